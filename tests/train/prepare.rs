//! Re-encoding a dataset with the `ffmpeg` command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use kinetoscope::train::dataset::{DataSpec, Dataset};
use kinetoscope::train::prepare::{Outcome, PrepareError, PrepareOptions, jobs, prepare};
use kinetoscope::video::{DecodeOptions, Extent, Source, probe};

use crate::media::Media;

/// Two classes of two videos each; the last is none.
fn dataset(media: &Media) -> PathBuf {
    for folder in ["in/a", "in/b"] {
        fs::create_dir_all(media.path(folder)).expect("a folder");
    }
    let codec = "-c:v libx264 -pix_fmt yuv420p";
    media.make("in/a/large.mp4", &format!("-f lavfi -i testsrc2=size=640x480:rate=25 -frames:v 40 {codec}"));
    media.make("in/a/small.avi", "-f lavfi -i testsrc2=size=96x63:rate=25 -frames:v 20 -c:v mpeg4");
    media.make("in/b/small.mp4", &format!("-f lavfi -i testsrc2=size=96x64:rate=25 -frames:v 20 {codec}"));
    media.write("in/b/broken.mp4", b"not a video");
    media.path("in")
}

fn run(folder: &Path, out: &Path, options: &PrepareOptions) -> Vec<(String, Outcome)> {
    let dataset = Dataset::open(&DataSpec::new(folder)).expect("a dataset");
    let outcomes = Mutex::new(Vec::new());
    prepare(&jobs(&dataset, out).expect("jobs"), options, |job, outcome| {
        let name = job.from.strip_prefix(folder).expect("below the folder").display().to_string();
        outcomes.lock().expect("no panics").push((name, outcome));
    })
    .expect("the ffmpeg command is installed");
    let mut outcomes = outcomes.into_inner().expect("no panics");
    outcomes.sort_by(|a, b| a.0.cmp(&b.0));
    outcomes
}

fn extent(path: PathBuf) -> Extent {
    probe(&Source::Path(path), &DecodeOptions::default()).expect("a good video").expect("an MP4 file")
}

#[test]
fn videos_are_made_smaller_with_all_frames_and_a_second_run_goes_on() {
    let media = Media::new();
    let (folder, out) = (dataset(&media), media.path("out"));
    fs::create_dir_all(out.join("b")).expect("a folder");
    // As a killed run leaves it.
    fs::write(out.join("b/.small.mp4.part"), b"half").expect("a file");
    let outcomes = run(&folder, &out, &PrepareOptions::default());
    let (bad, good): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(name, _)| name == "b/broken.mp4");
    assert!(good.iter().all(|(_, outcome)| *outcome == Outcome::Done), "{good:?}");
    assert!(matches!(&bad[..], [(_, Outcome::Failed(words))] if words.contains("broken.mp4")), "{bad:?}");

    assert_eq!(extent(out.join("a/large.mp4")), Extent { frames: 40, width: 480, height: 360 });
    assert_eq!(extent(out.join("a/small.mp4")), Extent { frames: 20, width: 96, height: 62 }, "even, and no larger");
    assert_eq!(extent(out.join("b/small.mp4")), Extent { frames: 20, width: 96, height: 64 });
    let in_b = fs::read_dir(out.join("b")).expect("a folder").count();
    assert_eq!(in_b, 1, "nothing half done is left");

    let before = fs::metadata(out.join("a/large.mp4")).and_then(|data| data.modified()).expect("a file");
    let again = run(&folder, &out, &PrepareOptions::default());
    assert_eq!(again.iter().filter(|(_, outcome)| *outcome == Outcome::WasThere).count(), 3, "{again:?}");
    assert_eq!(fs::metadata(out.join("a/large.mp4")).and_then(|data| data.modified()).expect("a file"), before);
}

#[test]
fn files_of_one_name_do_not_overwrite_each_other() {
    let media = Media::new();
    let folder = dataset(&media);
    media.make("in/a/large.avi", "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 5 -c:v mpeg4");
    let dataset = Dataset::open(&DataSpec::new(&folder)).expect("a dataset");
    let out = media.path("out");
    let to: Vec<PathBuf> = jobs(&dataset, &out).expect("jobs").into_iter().map(|job| job.to).collect();
    let expected = ["a/large.mp4", "a/large.mp4.mp4", "a/small.mp4", "b/broken.mp4", "b/small.mp4"];
    assert_eq!(to, expected.map(|name| out.join(name)));
}

#[test]
fn output_within_the_dataset_is_refused() {
    let media = Media::new();
    let folder = dataset(&media);
    let dataset = Dataset::open(&DataSpec::new(&folder)).expect("a dataset");
    for out in [folder.clone(), folder.join("new/folder")] {
        let error = jobs(&dataset, &out).expect_err("within the dataset");
        assert!(matches!(error, PrepareError::OutWithinDataset { .. }), "{error}");
        assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 2, "nothing was made");
    }
}

#[test]
fn missing_command_is_named() {
    let options = PrepareOptions { ffmpeg: "no-such-ffmpeg".into(), ..PrepareOptions::default() };
    let error = prepare(&[], &options, |_, _| ()).expect_err("no such command").to_string();
    assert!(error.starts_with("can't run no-such-ffmpeg: ") && error.contains("apt-get install ffmpeg"), "{error}");
}

#[test]
fn command_tells_by_its_status_that_a_video_failed() {
    let media = Media::new();
    let folder = dataset(&media);
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kinetoscope"));
        command.arg("prepare").arg("--data").arg(&folder).arg("--out").arg(media.path("out"));
        command.output().expect("the program runs")
    };
    let output = run();
    assert_eq!(output.status.code(), Some(1));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(out, "3 videos re-encoded, 0 were there already, 1 failed\n");
    assert!(err.contains("in/b/broken.mp4: "), "{err}");
    fs::remove_file(media.path("in/b/broken.mp4")).expect("a file");
    media.make("in/b/other.mp4", "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 5 -c:v libx264 -pix_fmt yuv420p");
    let output = run();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 videos re-encoded, 3 were there already, 0 failed\n");
}
