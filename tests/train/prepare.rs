//! Re-encoding a dataset with the `ffmpeg` command.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use kinetoscope::train::dataset::{DataSpec, Dataset, SplitRule};
use kinetoscope::train::prepare::{Outcome, PrepareError, PrepareOptions, jobs, prepare, write_split};
use kinetoscope::video::{DecodeOptions, Extent, Source, count_frames, probe};
use tokio_util::sync::CancellationToken;

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
    prepare(&jobs(&dataset, out).expect("jobs"), options, &CancellationToken::new(), |job, outcome| {
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
fn split_is_written_beside_the_output_and_obeyed_there() {
    let media = Media::new();
    for class in ["a", "b"] {
        fs::create_dir_all(media.path("in").join(class)).expect("a folder");
        for number in 0..10 {
            media.write(&format!("in/{class}/{number}.{}", ["avi", "mkv"][number % 2]), b"");
        }
        // Its output has another name than its source.
        media.write(&format!("in/{class}/1.avi"), b"");
    }
    let (folder, out) = (media.path("in"), media.path("out"));
    // As the first versions divided: by names that the new files have not.
    let old = DataSpec { split_rule: SplitRule::FileName, ..DataSpec::new(&folder) };
    let dataset = Dataset::open(&old).expect("a dataset");
    let jobs = jobs(&dataset, &out).expect("jobs");
    write_split(&dataset, &jobs, &out).expect("a list");
    for job in &jobs {
        fs::create_dir_all(job.to.parent().expect("a parent")).expect("a folder");
        fs::write(&job.to, b"").expect("a file");
    }
    let new = Dataset::open(&DataSpec::new(&out)).expect("a dataset");
    let expected: BTreeSet<&PathBuf> = dataset
        .validation
        .iter()
        .map(|example| &jobs.iter().find(|job| job.from == example.video).expect("a job for each").to)
        .collect();
    assert_eq!(new.validation.iter().map(|example| &example.video).collect::<BTreeSet<_>>(), expected);
    assert!(new.warnings.is_empty(), "{:?}", new.warnings);
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
    let error = prepare(&[], &options, &CancellationToken::new(), |_, _| ()).expect_err("no such command").to_string();
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

/// A dataset of which each video takes FFmpeg a while.
fn long_dataset(media: &Media) -> PathBuf {
    for (class, first) in [("a", 24), ("b", 30)] {
        fs::create_dir_all(media.path("long").join(class)).expect("a folder");
        for number in 0..2 {
            // Each differs from the others, so that none is a copy.
            let rate = first + number;
            let args = format!(
                "-f lavfi -i testsrc2=size=320x180:rate={rate} -frames:v 500 -c:v libx264 -preset ultrafast -pix_fmt yuv420p"
            );
            media.make(&format!("long/{class}/{number}.mp4"), &args);
        }
    }
    media.path("long")
}

fn prepare_command(data: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kinetoscope"));
    command.args(["prepare", "--jobs", "2", "--data"]).arg(data).arg("--out").arg(out);
    // A group of its own, as a shell gives to each command: what a terminal's Ctrl-C reaches.
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn part_files(out: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(out).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "part")).collect()
}

/// Waits until FFmpeg has written to an output that is not finished.
fn wait_for_a_part(out: &Path) {
    for _ in 0..6000 {
        if part_files(out).iter().any(|part| fs::metadata(part).is_ok_and(|data| data.len() > 0)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nothing was begun in a minute");
}

fn kill(child: &Child, signal: &str, group: bool) {
    let target = if group { format!("-{}", child.id()) } else { child.id().to_string() };
    assert!(Command::new("kill").args([signal, "--", &target]).status().expect("kill runs").success());
}

#[test]
fn run_that_is_ended_by_any_signal_leaves_whole_videos_and_blames_none() {
    let media = Media::new();
    let folder = long_dataset(&media);
    for (signal, group, status) in
        [("-INT", true, Some(130)), ("-INT", false, Some(130)), ("-TERM", false, Some(143)), ("-KILL", false, None)]
    {
        let out = media.path(&format!("out{signal}{group}"));
        let first = prepare_command(&folder, &out).spawn().expect("the program runs");
        wait_for_a_part(&out);
        kill(&first, signal, group);
        // The next run begins while the first one's processes may still be ending.
        let second = prepare_command(&folder, &out).output().expect("the program runs");
        let first = first.wait_with_output().expect("it ended");
        assert_eq!(first.status.code(), status, "{signal}");
        let said = String::from_utf8_lossy(&first.stderr);
        assert!(!said.contains(".mp4"), "no video is blamed: {said}");
        assert!(second.status.success(), "{signal}: {}", String::from_utf8_lossy(&second.stderr));
        for video in ["a/0.mp4", "a/1.mp4", "b/0.mp4", "b/1.mp4"] {
            let count = count_frames(&Source::Path(out.join(video)), &DecodeOptions::default()).expect("a good video");
            assert!(count.is_whole() && count.decoded == 500, "{signal}: {video}: {count:?}");
        }
        assert_eq!(part_files(&out), Vec::<PathBuf>::new());
    }
}

#[test]
fn runs_at_the_same_time_share_the_work() {
    let media = Media::new();
    let (folder, out) = (long_dataset(&media), media.path("out"));
    let runs = [(); 2].map(|()| prepare_command(&folder, &out).spawn().expect("the program runs"));
    let done: usize = runs
        .into_iter()
        .map(|run| {
            let output = run.wait_with_output().expect("it ended");
            assert!(output.status.success());
            let words = String::from_utf8_lossy(&output.stdout).into_owned();
            let done = words.split(' ').next().and_then(|number| number.parse::<usize>().ok());
            done.unwrap_or_else(|| panic!("{words}"))
        })
        .sum();
    assert_eq!(done, 4, "each video is re-encoded once");
    for video in ["a/0.mp4", "a/1.mp4", "b/0.mp4", "b/1.mp4"] {
        assert_eq!(extent(out.join(video)).frames, 500);
    }
}

#[test]
fn output_that_lacks_frames_does_not_get_its_name() {
    let media = Media::new();
    let folder = dataset(&media);
    // An FFmpeg that stops early and says that all is well, as one does whose disk is full at the wrong moment.
    let script = "#!/bin/sh\ncase \"$*\" in *-encoders*) exec ffmpeg \"$@\";; esac\n\
        for last; do :; done\n\
        ffmpeg -loglevel error -nostdin -i \"$9\" -frames:v 7 -c:v libx264 -pix_fmt yuv420p -f mp4 -y \"$last\"\n";
    let ffmpeg = media.write("short-ffmpeg", script.as_bytes());
    fs::set_permissions(&ffmpeg, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a file");
    let out = media.path("out");
    let options = PrepareOptions { ffmpeg, ..PrepareOptions::default() };
    let outcomes = run(&folder, &out, &options);
    let lacking = |name: &str| {
        let (_, outcome) = outcomes.iter().find(|(video, _)| video == name).expect("an outcome for each");
        matches!(outcome, Outcome::Failed(words) if words.starts_with("7 frames came out of it; it has "))
    };
    assert!(lacking("a/large.mp4") && lacking("a/small.avi") && lacking("b/small.mp4"), "{outcomes:?}");
    assert!(!out.join("a/large.mp4").exists());
}
