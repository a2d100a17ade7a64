//! `evaluate` as people run it, on the built-in model and on a server.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::{Serving, run, text};
use crate::media::Media;

/// Three videos in two class folders: one where the built-in model puts it, one in the next class, one broken.
struct Dataset {
    media: Media,
    right: String,
    wrong: String,
}

impl Dataset {
    fn new() -> Self {
        let media = Media::new();
        let moving = "-f lavfi -i testsrc2=size=160x120:rate=25 -frames:v 40 -pix_fmt yuv420p";
        let still = "-f lavfi -i smptebars=size=160x120:rate=25 -frames:v 20 -pix_fmt yuv420p";
        let (first, second) = (media.make("first.mp4", moving), media.make("second.mp4", still));
        let labels: Value = serde_json::from_slice(&run(&["inspect", "--json"]).stdout).unwrap();
        let labels: Vec<&str> =
            labels["labels"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
        let best = |video: &Path| {
            let output = run(&["classify", video.to_str().unwrap(), "--json"]);
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            answer["labels"][0]["label"].as_str().unwrap().to_owned()
        };
        let right = best(&first);
        let taken = [right.clone(), best(&second)];
        let wrong = labels.iter().find(|&&label| taken.iter().all(|taken| taken != label)).unwrap();
        let dataset = Self { right, wrong: (*wrong).to_owned(), media };
        // As people name folders.
        let folder = |class: &str| dataset.path().join(class.replace(' ', "_"));
        for (class, video) in [(&dataset.right, first), (&dataset.wrong, second)] {
            std::fs::create_dir_all(folder(class)).unwrap();
            std::fs::rename(&video, folder(class).join(video.file_name().unwrap())).unwrap();
        }
        std::fs::write(folder(&dataset.wrong).join("broken.mp4"), b"not a video at all").unwrap();
        dataset
    }

    fn path(&self) -> PathBuf {
        self.media.path("data")
    }

    fn evaluate(&self, args: &[&str]) -> (Value, String) {
        let data = self.path();
        let output = run(&[&["evaluate", "--data", data.to_str().unwrap(), "--split", "all", "--json"], args].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        (serde_json::from_slice(&output.stdout).unwrap(), text(&output.stderr).to_owned())
    }
}

#[test]
fn a_model_and_a_server_give_the_same_figures() {
    let dataset = Dataset::new();
    let (mut local, errors) = dataset.evaluate(&[]);
    assert!(errors.contains("broken.mp4: not a video"), "{errors}");
    assert_eq!((&local["videos"]["total"], &local["videos"]["top_1"]), (&2.into(), &0.5.into()), "{local}");
    // 40 frames and 20 frames.
    assert_eq!(local["clips"]["total"], 5);
    assert_eq!(local["unreadable"].as_array().unwrap().len(), 1);
    assert!(local["unreadable"][0]["id"].as_str().unwrap().contains("broken"), "{local}");
    let of = |class: &str| {
        let classes = local["classes"].as_array().unwrap().iter();
        let spelled = class.replace(' ', "_");
        classes.clone().find(|row| row["class"] == spelled.as_str()).unwrap_or_else(|| panic!("{class}: {local}"))
    };
    assert_eq!((&of(&dataset.right)["top_1"], &of(&dataset.wrong)["top_1"]), (&1.0.into(), &0.0.into()));

    let serving = Serving::start();
    let (mut served, _) = dataset.evaluate(&["--server", &serving.address]);
    for summary in [&mut local, &mut served] {
        // A server words errors in its own way.
        for differs in ["seconds", "unreadable"] {
            summary.as_object_mut().unwrap().remove(differs);
        }
    }
    assert_eq!(served, local);
}

#[test]
fn files_for_people_and_for_the_authors_scripts_are_left() {
    let dataset = Dataset::new();
    let out = dataset.media.path("out");
    let (summary, _) = dataset.evaluate(&["--out", out.to_str().unwrap()]);
    let read = |name: &str| std::fs::read(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let json = |name: &str| serde_json::from_slice::<Value>(&read(name)).unwrap();
    assert_eq!(json("summary.json"), summary);
    let results = json("results.json");
    let results = results["results"].as_object().unwrap();
    assert_eq!(results.len(), 2, "one that can't be decoded has no result");
    for (id, labels) in results {
        let scores: Vec<f64> =
            labels.as_array().unwrap().iter().map(|label| label["score"].as_f64().unwrap()).collect();
        assert!(scores.len() >= 2 && scores.is_sorted_by(|a, b| a >= b), "{id}: {labels}");
    }
    for picture in ["confusion.png", "examples.png"] {
        assert!(read(picture).starts_with(b"\x89PNG"), "{picture}");
    }
    assert_eq!(text(&read("classes.csv")).lines().count(), 3);
    assert_eq!(text(&read("confusion.csv")).lines().count(), 3);
}

#[test]
fn a_class_that_the_model_lacks_and_an_empty_split_end_it_before_work() {
    let dataset = Dataset::new();
    let data = dataset.path();
    let refused = |args: &[&str]| {
        let output = run(&[&["evaluate", "--data", data.to_str().unwrap()], args].concat());
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
        text(&output.stderr).to_owned()
    };
    let empty = refused(&["--split", "test", "--validation-fraction", "0"]);
    assert!(empty.contains("the test split of") && empty.contains("3 training"), "{empty}");

    let unknown = data.join("juggling_chainsaws");
    std::fs::create_dir_all(&unknown).unwrap();
    std::fs::write(unknown.join("any.mp4"), b"never looked at").unwrap();
    let lacking = refused(&["--split", "all"]);
    assert!(lacking.contains("does not have 1 of the 3 classes: \"juggling_chainsaws\""), "{lacking}");
    assert!(!lacking.contains("broken.mp4"), "nothing was decoded: {lacking}");
}

/// Six videos where the built-in model puts them, but for one.
fn noisy_dataset(media: &Media) -> PathBuf {
    let labels: Value = serde_json::from_slice(&run(&["inspect", "--json"]).stdout).unwrap();
    let labels: Vec<&str> = labels["labels"].as_array().unwrap().iter().map(|label| label.as_str().unwrap()).collect();
    for number in 0..6 {
        let source = ["testsrc2", "smptebars", "mandelbrot"][number % 3];
        let args = format!("-f lavfi -i {source}=size=160x120:rate=25 -frames:v {} -pix_fmt yuv420p", 20 + 4 * number);
        let video = media.make(&format!("{number}.mp4"), &args);
        let answer = run(&["classify", video.to_str().unwrap(), "--json"]);
        let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
        let best = answer["labels"][0]["label"].as_str().unwrap();
        let class = if number == 5 { labels.iter().find(|&&label| label != best).unwrap() } else { best };
        std::fs::create_dir_all(media.path("noisy").join(class)).unwrap();
        std::fs::rename(&video, media.path("noisy").join(class).join(format!("{number}.mp4"))).unwrap();
    }
    media.path("noisy")
}

fn evaluate(data: &Path, args: &[&str]) -> (Value, String) {
    let output = run(&[&["evaluate", "--data", data.to_str().unwrap(), "--split", "all", "--json"], args].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    (serde_json::from_slice(&output.stdout).unwrap(), text(&output.stderr).to_owned())
}

#[test]
fn clips_and_crops_are_as_many_as_asked_for() {
    let media = Media::new();
    let data = noisy_dataset(&media);
    let (summary, _) = evaluate(&data, &["--clips", "2", "--crops", "3"]);
    assert_eq!((&summary["videos"]["total"], &summary["clips"]["total"]), (&6.into(), &36.into()), "{summary}");
    assert_eq!((&summary["clips_per_video"], &summary["crops"]), (&2.into(), &3.into()));
    let output = run(&["evaluate", "--data", data.to_str().unwrap(), "--crops", "3"]);
    assert_eq!(output.status.code(), Some(2), "crops are of some clips: {}", text(&output.stderr));
}

#[test]
fn one_view_of_a_video_of_one_clip_is_what_serving_sees() {
    let media = Media::new();
    let labels: Value = serde_json::from_slice(&run(&["inspect", "--json"]).stdout).unwrap();
    for place in 0..2 {
        let folder = format!("short/{}", labels["labels"][place].as_str().unwrap());
        std::fs::create_dir_all(media.path(&folder)).unwrap();
        media.make(
            &format!("{folder}/{place}.mp4"),
            "-f lavfi -i testsrc2=size=160x120:rate=25 -frames:v 16 -pix_fmt yuv420p",
        );
    }
    let of = |args: &[&str]| {
        let out = media.path("results");
        evaluate(&media.path("short"), &[&["--out", out.to_str().unwrap()], args].concat());
        serde_json::from_slice::<Value>(&std::fs::read(out.join("results.json")).unwrap()).unwrap()
    };
    assert_eq!(of(&[])["results"], of(&["--clips", "1"])["results"]);
}

#[test]
fn calibrated_model_tells_its_temperature_and_keeps_the_order_of_classes() {
    let media = Media::new();
    let data = noisy_dataset(&media);
    let (calibrated, page) = (media.path("calibrated.safetensors"), media.path("page.html"));
    let (file, page_file) = (calibrated.to_str().unwrap(), page.to_str().unwrap());
    let (summary, errors) = evaluate(&data, &["--calibrate", file, "--report", page_file]);
    assert!(errors.contains("6 videos only"), "{errors}");
    let temperature = summary["fitted"]["temperature"].as_f64().unwrap();
    let loss = |of: &Value| of["negative_log_likelihood"].as_f64().unwrap();
    assert!(loss(&summary["fitted"]["calibration"]) < loss(&summary["calibration"]), "{summary}");

    let inspected: Value = serde_json::from_slice(&run(&["inspect", file, "--json"]).stdout).unwrap();
    assert_eq!(inspected["scores"], serde_json::json!({"activation": "softmax", "temperature": temperature}));
    let (again, _) = evaluate(&data, &["--model", file]);
    assert!((loss(&again["calibration"]) - loss(&summary["fitted"]["calibration"])).abs() < 1e-4, "{again}");
    assert_eq!(again["scores"]["temperature"], temperature);

    let folder = std::fs::read_dir(&data).unwrap().next().unwrap().unwrap().path();
    let video = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let answer = |model: &[&str]| -> Value {
        serde_json::from_slice(&run(&[&["classify", video.to_str().unwrap(), "--json"], model].concat()).stdout)
            .unwrap()
    };
    let (plain, cooled) = (answer(&[]), answer(&["--model", file]));
    assert_eq!((plain.get("temperature"), cooled["temperature"].as_f64()), (None, Some(temperature)));
    assert_ne!(plain["labels"][0]["score"], cooled["labels"][0]["score"]);

    let html = std::fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("<article>").count(), 1);
    assert!(html.contains("data:image/png;base64,") && !html.contains("http:") && !html.contains("https:"));
}

#[test]
fn models_are_compared_on_the_same_videos() {
    let media = Media::new();
    let data = noisy_dataset(&media);
    let out = media.path("out");
    evaluate(&data, &["--out", out.to_str().unwrap()]);
    let results = out.join("results.json");
    let (summary, _) = evaluate(&data, &["--compare", results.to_str().unwrap()]);
    let comparison = &summary["comparison"];
    assert_eq!((&comparison["videos"], &comparison["difference"]), (&6.into(), &0.0.into()), "{summary}");
    assert_eq!((&comparison["only_first"], &comparison["p_value"]), (&0.into(), &1.0.into()));

    // The same answers, all wrong.
    let mut wrong: Value = serde_json::from_slice(&std::fs::read(&results).unwrap()).unwrap();
    for labels in wrong["results"].as_object_mut().unwrap().values_mut() {
        labels[0]["label"] = "nothing".into();
    }
    std::fs::write(&results, wrong.to_string()).unwrap();
    let (summary, _) = evaluate(&data, &["--compare", results.to_str().unwrap()]);
    assert_eq!(summary["comparison"]["difference"], summary["videos"]["top_1"]);
    assert_eq!(summary["comparison"]["other_accuracy"], 0.0);

    let output = run(&["evaluate", "--data", data.to_str().unwrap(), "--split", "all", "--compare", "none.json"]);
    assert!(text(&output.stderr).contains("can't read none.json"), "{}", text(&output.stderr));
}
