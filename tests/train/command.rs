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
    assert!(layer.contains("its layers are conv1, layer1, layer2, layer3, layer4 and fc"), "{layer}");
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
