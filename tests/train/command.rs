//! `kinetoscope train` as people run it: from videos to a model that classifies, stopped, killed, on a full disk, by two
//! processes.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kinetoscope::model::file::Model;
use kinetoscope::model::spec::ClipSpec;
use kinetoscope::train::checkpoint::Checkpoint;
use kinetoscope::train::trainer::{BEST_FILE, CHECKPOINT_FILE, LAST_FILE};

use crate::media::Media;

/// Four videos of each of two classes that differ in colour.
fn dataset(media: &Media) -> PathBuf {
    for (class, color) in [("blue", "0x2040ff"), ("red", "0xff3020")] {
        std::fs::create_dir_all(media.path("data").join(class)).unwrap();
        for number in 0..4 {
            let args = format!(
                "-f lavfi -i color={color}:size=48x40:rate=25,noise=alls={}:allf=t -frames:v 12 -pix_fmt yuv420p",
                10 + number
            );
            media.make(&format!("data/{class}/{number}.mp4"), &args);
        }
    }
    media.path("data")
}

fn kinetoscope(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinetoscope"));
    command.args(args);
    command
}

/// `train` with a network and clips so small that an epoch takes a fraction of a second.
fn train(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = kinetoscope(&["train", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    command.args("--depth 10 --width 0.0625 --clip-frames 4 --clip-size 32 --batch-size 2 --lr 0.02".split(' '));
    command.args("--validation-fraction 0.25 --schedule constant --threads 1 --loader-threads 1".split(' ')).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

fn values(path: &Path) -> HashMap<String, Vec<f32>> {
    let tensors = Model::read(path).unwrap().tensors;
    tensors.into_iter().map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

/// That each file is whole or not there, and nothing else is left behind once the run is resumed.
fn assert_files_load(out: &Path) {
    for file in [LAST_FILE, BEST_FILE] {
        if out.join(file).exists() {
            Model::read(&out.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }
    Checkpoint::read(&out.join(CHECKPOINT_FILE)).unwrap();
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn wait_for(path: &Path) {
    for _ in 0..600 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} does not appear", path.display());
}

#[test]
fn trained_model_classifies_and_fine_tunes() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let trained = run(&mut train(&data, &out, &["--epochs", "12", "--no-flip"]));
    assert_success(&trained);
    let table = text(&trained.stdout);
    assert!(table.contains("3D ResNet-10") && table.lines().count() >= 15, "{table}");
    assert!(table.lines().any(|row| row.trim_start().starts_with("12 ")), "epochs are counted from 1: {table}");
    assert!(std::fs::read_to_string(out.join("history.csv")).unwrap().lines().count() == 13);

    let model = out.join(BEST_FILE);
    let video = data.join("red/0.mp4");
    let answer =
        run(&mut kinetoscope(&["classify", video.to_str().unwrap(), "--model", model.to_str().unwrap(), "--json"]));
    assert_success(&answer);
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!((&answer["labels"][0]["label"], &answer["model"]), (&"red".into(), &"out".into()), "{answer}");

    // The same network with a new last layer; the rest stays.
    let others = media.path("others");
    std::fs::rename(data.join("red"), data.join("crimson")).unwrap();
    let mut tune = kinetoscope(&["train", "--data", data.to_str().unwrap(), "--out", others.to_str().unwrap()]);
    tune.args(["--init", model.to_str().unwrap(), "--begin-at", "fc", "--epochs", "1", "--batch-size", "2"]);
    tune.args(["--clip-size", "48"]);
    assert_success(&run(&mut tune));
    let (before, after) = (values(&model), values(&others.join(LAST_FILE)));
    for (name, values) in &after {
        assert_eq!(values != &before[name], name.starts_with("fc."), "{name}");
    }
    let tuned = Model::read(&others.join(LAST_FILE)).unwrap().spec;
    assert_eq!(tuned.labels, ["blue", "crimson"]);
    assert_eq!(tuned.clip, ClipSpec { frames: 4, size: 48, temporal_stride: 1 });
}

#[test]
fn interrupt_saves_and_resuming_ends_as_if_nothing_had_happened() {
    let media = Media::new();
    let (data, whole, stopped) = (dataset(&media), media.path("whole"), media.path("stopped"));
    assert_success(&run(&mut train(&data, &whole, &["--epochs", "30", "--name", "same"])));
    for (name, status) in [("-INT", 130), ("-TERM", 143)] {
        // So that its appearance tells that this run has begun.
        let _ = std::fs::remove_file(stopped.join("history.csv"));
        let child = train(&data, &stopped, &["--epochs", "30", "--name", "same", "--resume"]).spawn().unwrap();
        wait_for(&stopped.join("history.csv"));
        std::thread::sleep(Duration::from_millis(300));
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("--resume goes on"));
        assert!(stopped.join(CHECKPOINT_FILE).exists());
    }
    let refused = run(&mut train(&data, &stopped, &["--epochs", "30"]));
    assert!(text(&refused.stderr).contains("holds a training already"), "{}", text(&refused.stderr));
    assert_success(&run(&mut train(&data, &stopped, &["--epochs", "30", "--name", "same", "--resume"])));
    for file in [LAST_FILE, BEST_FILE] {
        assert!(values(&whole.join(file)) == values(&stopped.join(file)), "{file} differs");
    }
}

#[test]
fn kill_at_any_instant_leaves_whole_files_and_a_run_that_goes_on() {
    let media = Media::new();
    let (data, out, whole) = (dataset(&media), media.path("out"), media.path("whole"));
    let epochs = ["--epochs", "25", "--name", "same", "--resume"];
    for kill in 0..8u64 {
        let mut child = train(&data, &out, &epochs).spawn().unwrap();
        wait_for(&out.join("history.csv"));
        // Spread over the time that some epochs and their files take.
        std::thread::sleep(Duration::from_millis(120 + (kill * 83) % 250));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_files_load(&out);
    }
    assert_success(&run(&mut train(&data, &out, &epochs)));
    assert_success(&run(&mut train(&data, &whole, &epochs)));
    assert!(values(&whole.join(LAST_FILE)) == values(&out.join(LAST_FILE)));
    let history = |out: &Path| std::fs::read_to_string(out.join("history.csv")).unwrap().lines().count();
    assert_eq!(history(&out), history(&whole));
}

#[test]
fn full_disk_is_told_and_costs_nothing_that_was_there() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    assert_success(&run(&mut train(&data, &out, &["--epochs", "2"])));
    let read = |file: &str| std::fs::read(out.join(file)).unwrap();
    let before = [LAST_FILE, BEST_FILE, CHECKPOINT_FILE].map(read);
    // A limit on the size of files stands for the disk: writes beyond it fail in the midst of a file.
    let more = train(&data, &out, &["--epochs", "4", "--resume"]);
    let mut limited = Command::new("bash");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "bash"])
        .arg(more.get_program())
        .args(more.get_args());
    let failed = run(&mut limited);
    assert!(!failed.status.success());
    assert!(text(&failed.stderr).contains("File too large"), "{}", text(&failed.stderr));
    assert!([LAST_FILE, BEST_FILE, CHECKPOINT_FILE].map(read) == before, "files changed");
    let partial = std::fs::read_dir(&out)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".partial"));
    assert_eq!(partial.count(), 0, "temporary files stay");
    assert_success(&run(&mut train(&data, &out, &["--epochs", "4", "--resume"])));
}

#[test]
fn two_processes_train_one_model() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let process = |rank: &str| {
        let mut command = train(&data, &out, &["--epochs", "2"]);
        command.env("RANK", rank).env("WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command.spawn().unwrap()
    };
    for child in [process("1"), process("0")] {
        assert_success(&child.wait_with_output().unwrap());
    }
    Model::read(&out.join(LAST_FILE)).unwrap();
}

#[test]
fn bad_input_is_told_before_anything_is_trained() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let refusal = |more: &[&str]| {
        let output = run(&mut train(&data, &out, more));
        assert!(!output.status.success(), "{more:?}");
        assert!(!out.exists(), "{more:?} made files");
        text(&output.stderr)
    };
    let layer = refusal(&["--begin-at", "layer5"]);
    assert!(layer.contains("its layers are conv1, layer1, layer2, layer3, layer4, fc"), "{layer}");
    let nesterov = refusal(&["--nesterov", "--momentum", "0"]);
    assert!(nesterov.contains("momentum above 0"), "{nesterov}");
    let clip = refusal(&["--temporal-stride", "1000"]);
    assert!(clip.contains("temporal stride 1 to 64"), "{clip}");
    let model = media.write("model.safetensors", b"none");
    let both = refusal(&["--init", model.to_str().unwrap()]);
    assert!(both.contains("cannot be used with"), "{both}");
    std::fs::create_dir(data.join("green")).unwrap();
    let empty = refusal(&[]);
    assert!(empty.contains("green"), "{empty}");
}

#[test]
fn check_lists_broken_videos_and_trains_nothing() {
    let media = Media::new();
    let data = dataset(&media);
    media.write("data/red/broken.mp4", b"no video");
    let output = run(&mut kinetoscope(&["train", "--data", data.to_str().unwrap(), "--check"]));
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    assert!(report.contains("1 videos that can't be used") && report.contains("broken.mp4"), "{report}");
}

#[test]
fn imbalance_is_told_and_has_remedies() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    for number in 4..30 {
        std::fs::copy(data.join("red/0.mp4"), data.join(format!("red/{number}.mp4"))).unwrap();
    }
    let checked = run(&mut kinetoscope(&["train", "--data", data.to_str().unwrap(), "--check"]));
    let (table, warning) = (text(&checked.stdout), text(&checked.stderr));
    let row = |class: &str| {
        table
            .lines()
            .any(|line| line.split_whitespace().collect::<Vec<_>>()[..] == class.split(' ').collect::<Vec<_>>())
    };
    assert!(row("blue 3 1 0") && row("red 24 6 0"), "{table}");
    assert!(warning.contains("the class red has 24 training videos, blue has 3"), "{warning}");

    let trained = run(&mut train(&data, &out, &["--epochs", "1"]));
    assert_success(&trained);
    assert!(text(&trained.stdout).contains("training videos: blue 3, red"), "{}", text(&trained.stdout));
    assert!(text(&trained.stderr).contains("the class red has"), "{}", text(&trained.stderr));

    let weights = media.write("weights.csv", b"class,weight\nred,0.5\nblue,4\n");
    for remedy in [
        &["--class-weights", "balanced"][..],
        &["--class-weights", weights.to_str().unwrap()],
        &["--sampler", "balanced"],
    ] {
        let out = media.path(remedy[1].split('/').next_back().unwrap()).with_extension(&remedy[0][2..]);
        let more = [&["--epochs", "1", "--best", "mean-class-accuracy"], remedy].concat();
        let trained = run(&mut train(&data, &out, &more));
        assert_success(&trained);
        assert!(!text(&trained.stderr).contains("the class red has"), "{}", text(&trained.stderr));
    }
    for (content, said) in [
        ("red,1\n", "has no weight for the class \"blue\""),
        ("red,1\ngreen,2\n", "line 2: the data has no class \"green\""),
        ("red,1\nblue,heavy\n", "line 2: the weight is \"heavy\""),
        ("red,0\nblue,0\n", "all weights are 0"),
    ] {
        let weights = media.write("wrong.csv", content.as_bytes());
        let refused = run(&mut train(&data, &media.path("none"), &["--class-weights", weights.to_str().unwrap()]));
        let error = text(&refused.stderr);
        assert!(!refused.status.success() && error.contains(said) && error.contains("wrong.csv"), "{error}");
    }
}

#[test]
fn values_of_a_preset_are_printed_and_options_go_before_them() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let trained = run(&mut train(&data, &out, &["--preset", "finetune", "--epochs", "1", "--freeze-norm=false"]));
    assert_success(&trained);
    let printed = text(&trained.stdout);
    // The learning rate and the schedule are given; what is not comes from the preset.
    assert!(printed.contains("recipe (preset finetune): 1 epochs, batches of 2 clips"), "{printed}");
    assert!(printed.contains("learning rate 0.02") && printed.contains("schedule constant"), "{printed}");
    assert!(printed.contains("labels smoothed by 0.1") && !printed.contains("keep their statistics"), "{printed}");
}

#[test]
fn second_training_in_a_folder_is_refused_while_the_first_one_runs() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let mut first = train(&data, &out, &["--epochs", "100000", "--resume"]).spawn().unwrap();
    wait_for(&out.join("history.csv"));
    let second = run(&mut train(&data, &out, &["--epochs", "100000", "--resume"]));
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another process trains in"), "{}", text(&second.stderr));
    // Whatever ended the first one, its lock ended with it.
    assert_success(&run(&mut train(&data, &out, &["--epochs", "1", "--resume"])));
}

#[test]
fn interrupt_is_heard_while_other_processes_are_waited_for() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = train(&data, &out, &["--epochs", "2", "--world-size", "2", "--rank", "0"]);
    let child = command.args(["--master-port", &port.to_string()]).spawn().unwrap();
    // It waits once it listens.
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("stopped before the training began"), "{}", text(&output.stderr));
    assert!(!out.exists());
}

#[test]
fn process_that_is_killed_costs_the_others_no_step() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let process = |rank: &str| {
        let more = ["--epochs", "100000", "--world-size", "2", "--rank", rank, "--master-port", &port];
        train(&data, &out, &more).spawn().unwrap()
    };
    let (root, mut other) = (process("0"), process("1"));
    wait_for(&out.join(LAST_FILE));
    other.kill().unwrap();
    other.wait().unwrap();
    let root = root.wait_with_output().unwrap();
    assert_eq!(root.status.code(), Some(1));
    let error = text(&root.stderr);
    assert!(error.contains("the connection to rank 1 is lost: "), "{error}");
    let said = error.lines().last().unwrap();
    let reason = said.rsplit(": ").next().unwrap();
    assert_eq!(said.matches(reason).count(), 1, "{said}");
    // An epoch has one step of two batches; all steps that were whole are there, those before a validation too.
    let progress = Checkpoint::read(&out.join(CHECKPOINT_FILE)).unwrap().unwrap().progress;
    assert_eq!(progress.step, progress.epoch + progress.batch, "{progress:?}");
}

#[test]
fn step_that_memory_is_too_small_for_is_refused_with_the_options_that_help() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let refused = |more: &str, kilobytes: u64| {
        let mut command = kinetoscope(&["train", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        command.args("--depth 10 --epochs 1 --batch-size 64 --threads 1".split(' ')).args(more.split_whitespace());
        // A limit on the address space stands for a small machine.
        let mut limited = Command::new("bash");
        limited.args(["-c", &format!("ulimit -v {kilobytes}; exec \"$@\""), "bash"]);
        limited.arg(command.get_program()).args(command.get_args());
        limited.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = run(&mut limited);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(!out.exists());
        text(&output.stderr)
    };
    let said = refused("", 1_500_000);
    assert!(said.contains("a step with --batch-size 64 takes about"), "{said}");
    assert!(said.contains("--batch-size ") && said.contains(" --accumulate "), "{said}");
    let said = refused("--clip-size 448 --clip-frames 64", 1_500_000);
    assert!(said.contains("even with --batch-size 1") && said.contains("--clip-size"), "{said}");
}

#[test]
fn learning_rates_are_tried_and_drawn() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let found = run(&mut train(&data, &out, &["--find-lr"]));
    assert_success(&found);
    assert!(text(&found.stdout).contains("the loss falls"), "{}", text(&found.stdout));
    let table = std::fs::read_to_string(out.join("learning-rates.csv")).unwrap();
    assert!(table.starts_with("learning_rate,loss\n0.00001,") && table.lines().count() > 20, "{table}");
    assert!(out.join("learning-rates.png").exists() && !out.join(CHECKPOINT_FILE).exists());
}

/// Videos that show red, blue or both halves, listed with several labels.
fn several_labels(media: &Media) -> PathBuf {
    let mut table = "path,labels,split\n".to_owned();
    for (name, top, bottom, labels) in [
        ("red", "0xff3020", "0xff3020", "red"),
        ("blue", "0x2040ff", "0x2040ff", "blue"),
        ("both", "0xff3020", "0x2040ff", "red;blue"),
    ] {
        for number in 0..4 {
            let noise = 10 + number;
            let args = format!(
                "-f lavfi -i color={top}:size=48x24:rate=25 -f lavfi -i color={bottom}:size=48x24:rate=25 -filter_complex \
                 vstack,noise=alls={noise}:allf=t -frames:v 12 -pix_fmt yuv420p"
            );
            media.make(&format!("several/{name}-{number}.mp4"), &args);
            let split = if number == 0 { "val" } else { "train" };
            table += &format!("{name}-{number}.mp4,{labels},{split}\n");
        }
    }
    std::fs::write(media.path("several/videos.csv"), table).unwrap();
    media.path("several")
}

#[test]
fn videos_of_several_labels_are_trained_evaluated_and_classified_by_sigmoids() {
    let media = Media::new();
    std::fs::create_dir_all(media.path("several")).unwrap();
    let (data, out) = (several_labels(&media), media.path("out"));
    let trained = run(&mut train(&data, &out, &["--epochs", "20"]));
    assert_success(&trained);
    let printed = text(&trained.stdout);
    assert!(printed.contains("videos may show several classes") && printed.contains("mAP"), "{printed}");
    let history = std::fs::read_to_string(out.join("history.csv")).unwrap();
    let last: Vec<&str> = history.lines().last().unwrap().split(',').collect();
    assert!(last[6].is_empty() && !last[7].is_empty(), "mean average precision and no mean class accuracy: {history}");

    let model = out.join(BEST_FILE);
    let model = model.to_str().unwrap();
    let evaluated = run(&mut kinetoscope(&["evaluate", "--data", data.to_str().unwrap(), "--model", model, "--json"]));
    assert_success(&evaluated);
    let summary: serde_json::Value = serde_json::from_slice(&evaluated.stdout).unwrap();
    assert_eq!((&summary["multi_label"], &summary["videos"]["total"]), (&true.into(), &3.into()), "{summary}");
    assert!(summary["mean_average_precision"].as_f64().unwrap() > 0.9, "{summary}");
    let both = data.join("both-0.mp4");
    let answer = run(&mut kinetoscope(&["classify", both.to_str().unwrap(), "--model", model, "--json"]));
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let score = |place: usize| answer["labels"][place]["score"].as_f64().unwrap();
    assert_eq!(answer["multi_label"], true);
    assert!(score(0) > 0.5 && score(1) > 0.5, "both are shown: {answer}");

    let refused = run(&mut train(&data, &media.path("new"), &["--label-smoothing", "0.1"]));
    assert!(text(&refused.stderr).contains("--label-smoothing is for one label a video"), "{}", text(&refused.stderr));
    let refused = run(&mut train(&data, &media.path("new"), &["--loss", "cross-entropy"]));
    assert!(text(&refused.stderr).contains("labelled as more than one class: both-"), "{}", text(&refused.stderr));
}

#[test]
fn checkpoint_with_the_texts_of_an_older_version_is_resumed() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    assert_success(&run(&mut train(&data, &out, &["--epochs", "1"])));
    let path = out.join(CHECKPOINT_FILE);
    let mut checkpoint = Checkpoint::read(&path).unwrap().unwrap();
    let settings = &mut checkpoint.progress.settings;
    for added in [
        "loss",
        "mixup",
        "cutmix",
        "label smoothing",
        "class weights",
        "gradient clipping",
        "average of weights",
        "metric of the best epoch",
        "sampler",
        "weights of the data",
        "cached clips of a video",
        "precision",
    ] {
        assert!(settings.remove(added).is_some(), "{added}");
    }
    for (name, text) in [
        (
            "optimizer",
            "Sgd(SgdConfig { learning_rate: 0.02, momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.001 })",
        ),
        ("schedule", "Constant"),
        ("augmentation", "Augment { train: true, crop: CornerMultiScale, flip: true, color_jitter: None }"),
    ] {
        assert!(settings.insert(name.to_owned(), text.to_owned()).is_some(), "{name}");
    }
    checkpoint.write(&path).unwrap();
    let resumed = run(&mut train(&data, &out, &["--epochs", "2", "--resume"]));
    assert_success(&resumed);
    assert!(text(&resumed.stdout).contains("going on in epoch 2"), "{}", text(&resumed.stdout));

    checkpoint.progress.settings.insert("schedule".to_owned(), "Plateau { patience: 10, gamma: 0.1 }".to_owned());
    checkpoint.write(&path).unwrap();
    let refused = run(&mut train(&data, &out, &["--epochs", "3", "--resume"]));
    let words = "its schedule is Plateau { patience: 10, gamma: 0.1 }, now it is constant";
    assert!(text(&refused.stderr).contains(words), "{}", text(&refused.stderr));
}

#[test]
fn several_sources_are_trained_on_in_their_shares() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let second = media.path("more/red");
    std::fs::create_dir_all(media.path("more/green")).unwrap();
    std::fs::create_dir_all(&second).unwrap();
    for number in 0..2 {
        for (class, color) in [("red", "0xff3020"), ("green", "0x20d040")] {
            let args =
                format!("-f lavfi -i color={color}:size=48x40:rate=25 -frames:v {} -pix_fmt yuv420p", 8 + number);
            media.make(&format!("more/{class}/{number}.mp4"), &args);
        }
    }
    let more = media.path("more");
    let with = |weights: &str, out: &Path| {
        run(&mut train(&data, out, &["--data", more.to_str().unwrap(), "--data-weights", weights, "--epochs", "1"]))
    };
    let trained = with("1,3", &out);
    assert_success(&trained);
    let model = Model::read(&out.join(LAST_FILE)).unwrap();
    assert_eq!(model.spec.labels, ["blue", "green", "red"]);
    let refused = with("1", &media.path("new"));
    assert!(text(&refused.stderr).contains("--data-weights has 1 weights for 2 --data"), "{}", text(&refused.stderr));
    let changed = run(&mut train(&data, &out, &["--data", more.to_str().unwrap(), "--epochs", "1", "--resume"]));
    assert!(
        text(&changed.stderr).contains("its weights of the data is 1, 3, now it is none"),
        "{}",
        text(&changed.stderr)
    );
}

#[test]
fn cached_clips_give_the_same_weights_as_decoded_ones() {
    let media = Media::new();
    let (data, cache) = (dataset(&media), media.path("cache"));
    let with = |name: &str| {
        let out = media.path(name);
        let cached = ["--cache", cache.to_str().unwrap(), "--cache-clips", "2", "--epochs", "4"];
        assert_success(&run(&mut train(&data, &out, &cached)));
        values(&out.join(LAST_FILE))
    };
    let first = with("first");
    let clips = || {
        std::fs::read_dir(&cache)
            .unwrap()
            .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "clip"))
            .count()
    };
    // Six training videos of two clips each, and two validation videos.
    assert_eq!(clips(), 14);
    assert!(first == with("second"), "what was read is what was decoded");
    assert_eq!(clips(), 14);
}

#[test]
fn several_seeds_are_summed_up() {
    let media = Media::new();
    let (data, out) = (dataset(&media), media.path("out"));
    let trained = run(&mut train(&data, &out, &["--epochs", "1", "--seeds", "3,4"]));
    assert_success(&trained);
    let printed = text(&trained.stdout);
    assert!(printed.contains("standard deviation") && printed.contains("seed 4, 2 of 2"), "{printed}");
    assert_eq!(std::fs::read_to_string(out.join("seeds.csv")).unwrap().lines().count(), 3);
    assert!(values(&out.join("seed-3").join(LAST_FILE)) != values(&out.join("seed-4").join(LAST_FILE)));
    let again = run(&mut train(&data, &out, &["--epochs", "1", "--seeds", "3,4", "--resume"]));
    assert_success(&again);
    let summed = |output: &str| output.lines().rev().take(5).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(summed(&text(&again.stdout)), summed(&printed));
}
