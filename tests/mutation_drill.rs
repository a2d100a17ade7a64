//! The short form of `examples/mutation_drill`, on media made here. A test binary of its own, because it counts the
//! descriptors and children of its process.

#![cfg(feature = "video")]

#[path = "../examples/mutation_drill/drill.rs"]
mod drill;
#[path = "../examples/mutation_drill/mutate.rs"]
mod mutate;

use std::process::Command;

use drill::Drill;
use kinetoscope::video::WorkerOptions;

/// 40 frames of 160x120 as the bytes of a file `name`.
fn video(name: &str, arguments: &str) -> (String, Vec<u8>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join(name);
    let made = Command::new("ffmpeg")
        .args("-loglevel error -nostdin -f lavfi -i testsrc2=size=160x120:rate=25 -frames:v 40".split(' '))
        .args(arguments.split_whitespace())
        .arg(&path)
        .status()
        .expect("the ffmpeg command is installed (apt-get install ffmpeg)");
    assert!(made.success(), "{name}");
    (name.to_string(), std::fs::read(path).expect("made"))
}

#[test]
fn damaged_videos_leave_nothing_behind() {
    let x264 = "-c:v libx264 -preset veryfast -g 12 -pix_fmt yuv420p";
    let videos = vec![
        video("a.mp4", x264),
        video("faststart.mp4", &format!("{x264} -movflags +faststart")),
        video("fragmented.mp4", &format!("{x264} -movflags +frag_keyframe+empty_moov")),
        video("a.mkv", x264),
        video("a.ts", x264),
        video("a.avi", "-c:v mpeg4"),
        video("a.mpg", "-c:v mpeg2video"),
        video("a.webm", "-c:v libvpx -deadline realtime -cpu-used 8"),
    ];
    let workers = WorkerOptions { program: env!("CARGO_BIN_EXE_kinetoscope").into(), ..Default::default() };
    let outcome = Drill { videos, count: 60, seed: 1, threads: 2, workers, keep: None }.run();
    assert!(outcome.faults.is_empty(), "{outcome:#?}");
    // Damage that hits nothing, or everything, would test little.
    let [file, upload] = outcome
        .answers
        .iter()
        .filter(|(answer, _)| answer.starts_with("clips"))
        .fold([0; 2], |sum, (_, n)| [sum[0] + n[0], sum[1] + n[1]]);
    assert!(outcome.answers.len() >= 4 && file >= 5 && upload >= 5, "{outcome:#?}");
}
