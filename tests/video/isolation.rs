//! Decoding in processes of their own.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{
    Clip, DecodeOptions, Decoder, Isolation, Limits, Source, SpoolOptions, VideoError, VideoSummary, WorkerOptions,
    spool,
};
use tokio_util::sync::CancellationToken;

use crate::media::{Media, decode};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kinetoscope");

fn isolated(workers: WorkerOptions) -> Decoder {
    Decoder::new(Isolation::Processes(workers))
}

fn workers() -> WorkerOptions {
    WorkerOptions { program: PROGRAM.into(), ..Default::default() }
}

/// A worker that first runs a shell script, in which `$PROGRAM` is the real one.
fn scripted(script: &str) -> WorkerOptions {
    let arguments = vec!["-c".to_string(), format!("PROGRAM='{PROGRAM}'; {script}")];
    WorkerOptions { program: "/bin/sh".into(), arguments, ..Default::default() }
}

/// A worker that writes its process number to `path`.
fn traceable(path: &Path) -> WorkerOptions {
    scripted(&format!("echo $$ >> '{}'; exec \"$PROGRAM\" decode-worker", path.display()))
}

/// The process number of the `n`-th worker that writes to `path`, from 1, once it has locked itself in.
fn wait_for_worker(path: &Path, n: usize) -> String {
    let begin = Instant::now();
    loop {
        let pids = fs::read_to_string(path).unwrap_or_default();
        if let Some(pid) = pids.lines().nth(n - 1) {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if status.contains("Seccomp:\t2") {
                // Let it go on to the bytes that do not come.
                thread::sleep(Duration::from_millis(300));
                return pid.to_string();
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "worker {n} did not start; these did: {pids}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn run(decoder: &Decoder, source: Source, options: &DecodeOptions) -> Result<(Vec<Clip>, VideoSummary), VideoError> {
    let mut clips = Vec::new();
    let spec = ClipSpec::default();
    let summary = decoder.decode_clips(&source, &spec, &Preprocessing::AUTHORS_2018, options, |clip| {
        clips.push(clip);
        ControlFlow::Continue(())
    })?;
    Ok((clips, summary))
}

fn video(media: &Media, name: &str, extra: &str) -> PathBuf {
    let args =
        format!("-f lavfi -i testsrc2=size=320x240:rate=25 -frames:v 100 -c:v libx264 -g 12 -pix_fmt yuv420p {extra}");
    media.make(name, &args)
}

/// A source of which half the bytes never come, and what to hold on to meanwhile.
fn stalled(media: &Media, cancel: &CancellationToken) -> (Source, kinetoscope::video::SpoolWriter) {
    let bytes = fs::read(video(media, "stalled.mp4", "-movflags +faststart")).expect("made");
    let (mut writer, reader) = spool(SpoolOptions::default(), cancel.clone());
    writer.write(&bytes[..bytes.len() / 2]).expect("wanted");
    (Source::Spool(reader), writer)
}

#[test]
fn process_gives_the_same_clips_and_summary() {
    let media = Media::new();
    let decoder = isolated(workers());
    for (name, extra) in [("a.mp4", ""), ("b.mp4", "-movflags +faststart"), ("a.mkv", ""), ("a.ts", ""), ("a.avi", "")]
    {
        let path = video(&media, name, extra);
        let result = run(&decoder, Source::Path(path.clone()), &DecodeOptions::default());
        assert!(result == decode(&path), "{name}: {:?}", result.map(|(_, summary)| summary));
    }
}

#[test]
fn process_says_what_is_wrong_as_it_is_said_without() {
    let media = Media::new();
    let decoder = isolated(workers());
    let whole = video(&media, "whole.mp4", "-movflags +faststart");
    let len = fs::metadata(&whole).expect("made").len() as usize;
    let inputs = [
        media.write("a.txt", &b"This is a letter.\n".repeat(50)),
        media.write("empty.mp4", b""),
        media.make("a.png", "-f lavfi -i testsrc2=size=64x48 -frames:v 1"),
        media.make("a.m4a", "-f lavfi -i sine=duration=1 -c:a aac"),
        media.truncate(&whole, "cut.mp4", len / 2),
        media.write("a.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
    ];
    for input in inputs {
        let result = run(&decoder, Source::Path(input.clone()), &DecodeOptions::default());
        assert!(result == decode(&input), "{}: {:?}", input.display(), result.map(|(_, summary)| summary));
    }
    let options = DecodeOptions { limits: Limits { max_frames: 20, ..Default::default() }, ..Default::default() };
    let result = run(&decoder, Source::Path(whole), &options).map(|(_, summary)| summary);
    assert_eq!(result, Err(VideoError::TooManyFrames { limit: 20 }));
}

#[test]
fn upload_is_decoded_in_the_process_while_it_arrives() {
    let media = Media::new();
    let path = video(&media, "a.mp4", "-movflags +faststart");
    let bytes = fs::read(&path).expect("made");
    let (mut writer, reader) = spool(SpoolOptions::default(), CancellationToken::new());
    let decoding = thread::spawn(move || run(&isolated(workers()), Source::Spool(reader), &DecodeOptions::default()));
    for part in bytes.chunks(10_000) {
        writer.write(part).expect("wanted");
        thread::sleep(Duration::from_millis(1));
    }
    writer.finish();
    assert!(decoding.join().expect("no panic") == decode(&path));
}

#[test]
fn breaking_ends_the_job_and_keeps_the_process() {
    let media = Media::new();
    let pids = media.path("pids");
    let decoder = isolated(traceable(&pids));
    let path = video(&media, "a.mp4", "");
    for _ in 0..3 {
        let source = Source::Path(path.clone());
        let mut clips = 0;
        let (spec, preprocessing) = (ClipSpec { frames: 4, ..Default::default() }, Preprocessing::AUTHORS_2018);
        let summary = decoder.decode_clips(&source, &spec, &preprocessing, &DecodeOptions::default(), |_| {
            clips += 1;
            ControlFlow::Break(())
        });
        let summary = summary.expect("a good video");
        assert!(clips == 1 && summary.frames < 100, "{summary:?}");
    }
    assert_eq!(fs::read_to_string(&pids).expect("written").lines().count(), 1, "one process did it all");
}

#[test]
fn process_is_locked_in() {
    let media = Media::new();
    let pids = media.path("pids");
    let cancel = CancellationToken::new();
    let (source, _writer) = stalled(&media, &cancel);
    let decoder = isolated(traceable(&pids));
    let options = DecodeOptions { cancel: cancel.clone(), ..Default::default() };
    let status = thread::scope(|scope| {
        let decoding = scope.spawn(|| run(&decoder, source, &options));
        let pid = wait_for_worker(&pids, 1);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        cancel.cancel();
        assert_eq!(decoding.join().expect("no panic").map(|(_, summary)| summary), Err(VideoError::Cancelled));
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a cancelled process is gone and reaped");
        status
    });
    let has = |line: &str| status.lines().any(|l| l.split_whitespace().eq(line.split_whitespace()));
    assert!(has("Seccomp: 2") && has("NoNewPrivs: 1") && has("Threads: 1"), "{status}");
}

#[test]
fn killed_process_is_replaced_and_its_video_tried_once_more() {
    let media = Media::new();
    let pids = media.path("pids");
    let (source, mut writer) = stalled(&media, &CancellationToken::new());
    let rest = fs::read(media.path("stalled.mp4")).expect("made");
    let decoder = isolated(traceable(&pids));
    let (clips, summary) = thread::scope(|scope| {
        let decoding = scope.spawn(|| run(&decoder, source, &DecodeOptions::default()));
        let pid = wait_for_worker(&pids, 1);
        Command::new("kill").args(["-KILL", &pid]).status().expect("kill");
        writer.write(&rest[rest.len() / 2..]).expect("wanted");
        writer.finish();
        decoding.join().expect("no panic").expect("a good video")
    });
    let indices: Vec<usize> = clips.iter().map(|clip| clip.index).collect();
    assert_eq!((indices, summary.frames), ((0..7).collect(), 100), "no clip is missing or given twice");
}

#[test]
fn second_death_is_the_videos_fault() {
    let media = Media::new();
    let pids = media.path("pids");
    let (source, _writer) = stalled(&media, &CancellationToken::new());
    let decoder = isolated(traceable(&pids));
    let result = thread::scope(|scope| {
        let decoding = scope.spawn(|| run(&decoder, source, &DecodeOptions::default()));
        for n in 1..=2 {
            let pid = wait_for_worker(&pids, n);
            Command::new("kill").args(["-KILL", &pid]).status().expect("kill");
        }
        // Nothing more arrives: the owner notices the deaths by themselves.
        decoding.join().expect("no panic")
    });
    let error = result.expect_err("it died twice");
    assert!(matches!(&error, VideoError::DecoderCrashed { detail } if detail.contains("signal 9")), "{error}");
    assert!(error.is_input_fault());
}

#[test]
fn process_that_runs_out_of_memory_is_replaced_and_its_video_refused() {
    let media = Media::new();
    let path = media.make("a.mp4", "-f lavfi -i testsrc2=size=1920x1080 -frames:v 5 -c:v libx264 -preset ultrafast");
    // Less than the program and its libraries take already, so that nothing more can be had.
    let decoder = isolated(WorkerOptions { max_memory: 50 << 20, ..workers() });
    let error = run(&decoder, Source::Path(path), &DecodeOptions::default()).expect_err("no memory");
    // FFmpeg says so; our own allocations end the process.
    assert!(matches!(error, VideoError::DecoderCrashed { .. } | VideoError::OutOfMemory { .. }), "{error}");
}

#[test]
fn header_that_asks_for_too_much_memory_is_refused_as_without_isolation() {
    let media = Media::new();
    let mut bytes = fs::read(video(&media, "a.mp4", "")).expect("made");
    // A table of frame durations with 2^28 - 1 entries: more bytes than FFmpeg may have at once.
    let table = bytes.windows(4).position(|name| name == b"stts").expect("a table of frame durations");
    bytes[table + 8..][..4].copy_from_slice(&0x0fff_ffff_u32.to_be_bytes());
    let path = media.write("large.mp4", &bytes);
    let result = run(&isolated(workers()), Source::Path(path.clone()), &DecodeOptions::default());
    assert!(matches!(result, Err(VideoError::OutOfMemory { .. })), "{:?}", result.map(|(_, summary)| summary));
    assert!(result == decode(&path));
}

#[test]
fn process_inherits_no_open_files() {
    let media = Media::new();
    let path = video(&media, "a.mp4", "");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    // As libraries leave theirs.
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).expect("an open file");
    let decoder = isolated(workers());
    run(&decoder, Source::Path(path), &DecodeOptions::default()).expect("a good video");
    assert_eq!(decoder.idle_processes().len(), 1, "the process waits for more");
    drop(writer);
    // The end comes when nobody has the other side any more.
    let (send, ended) = std::sync::mpsc::channel();
    thread::spawn(move || send.send(std::io::Read::read(&mut reader, &mut [0])));
    let end = ended.recv_timeout(Duration::from_secs(20)).expect("the process has a copy of the other side");
    assert_eq!(end.expect("readable"), 0);
}

#[test]
fn process_of_one_video_is_replaced_by_the_next() {
    let media = Media::new();
    let (path, pids) = (video(&media, "a.mp4", ""), media.path("pids"));
    let decoder = isolated(WorkerOptions { max_videos: 1, ..traceable(&pids) });
    for _ in 0..3 {
        run(&decoder, Source::Path(path.clone()), &DecodeOptions::default()).expect("a good video");
        assert!(decoder.idle_processes().is_empty());
    }
    assert_eq!(fs::read_to_string(&pids).expect("written").lines().count(), 3);
}

#[test]
fn program_that_is_no_decoder_is_an_error_of_our_own() {
    let media = Media::new();
    let path = video(&media, "a.mp4", "");
    for program in ["/bin/false", "/nonexistent"] {
        let decoder = isolated(WorkerOptions { program: program.into(), ..Default::default() });
        let error = run(&decoder, Source::Path(path.clone()), &DecodeOptions::default()).expect_err("no decoder");
        assert!(matches!(error, VideoError::NoDecoder(_)) && !error.is_input_fault(), "{error}");
    }
}

#[test]
fn cancelling_ends_a_decode_of_full_hd_within_a_tenth_of_a_second() {
    let media = Media::new();
    let args = "-f lavfi -i testsrc2=size=1920x1080:rate=25 -frames:v 200 -c:v libx264 -preset ultrafast";
    let path = media.make("a.mp4", args);
    for decoder in [Decoder::new(Isolation::None), isolated(workers())] {
        let source = Source::Path(path.clone());
        let cancel = CancellationToken::new();
        let options = DecodeOptions { cancel: cancel.clone(), ..Default::default() };
        let decoding = thread::spawn(move || {
            let result = run(&decoder, source, &options);
            (Instant::now(), result.map(|(_, summary)| summary))
        });
        thread::sleep(Duration::from_millis(400));
        assert!(!decoding.is_finished(), "the video is long enough to be cancelled");
        let asked = Instant::now();
        cancel.cancel();
        let (ended, result) = decoding.join().expect("no panic");
        assert_eq!(result, Err(VideoError::Cancelled));
        assert!(ended - asked < Duration::from_millis(100), "{:?}", ended - asked);
    }
}

/// Seconds of CPU time after which the kernel ends process `pid`.
fn cpu_time_limit(pid: &str) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max cpu time")).expect("a line for each limit");
    line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or_else(|| panic!("no limit: {line}"))
}

#[test]
fn kernel_limits_the_cpu_time_of_each_job() {
    let media = Media::new();
    let pids = media.path("pids");
    let decoder = isolated(traceable(&pids));
    for seconds in [40, 7] {
        let cancel = CancellationToken::new();
        let (source, writer) = stalled(&media, &cancel);
        let limits = Limits { max_cpu_time: Duration::from_secs(seconds), ..Default::default() };
        let options = DecodeOptions { cancel, limits, ..Default::default() };
        thread::scope(|scope| {
            let decoding = scope.spawn(|| run(&decoder, source, &options));
            let limit = cpu_time_limit(&wait_for_worker(&pids, 1));
            // Three seconds more than it allows itself, and those it spent before: none here.
            assert!((seconds + 3..seconds + 6).contains(&limit), "{limit}");
            drop(writer);
            decoding.join().expect("no panic").expect("half a video");
        });
    }
}

#[test]
fn process_that_the_kernel_ends_for_its_cpu_time_is_not_tried_again() {
    let media = Media::new();
    let pids = media.path("pids");
    let (source, _writer) = stalled(&media, &CancellationToken::new());
    let decoder = isolated(traceable(&pids));
    let result = thread::scope(|scope| {
        let decoding = scope.spawn(|| run(&decoder, source, &DecodeOptions::default()));
        let pid = wait_for_worker(&pids, 1);
        // What the kernel sends.
        Command::new("kill").args(["-XCPU", &pid]).status().expect("kill");
        decoding.join().expect("no panic")
    });
    let error = result.expect_err("out of time");
    assert!(
        matches!(error, VideoError::TooMuchCpuTime { limit, .. } if limit == Limits::default().max_cpu_time),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&pids).expect("written").lines().count(), 1, "one process was enough");
}

/// A gigabyte and a half of frames go through it.
#[test]
fn process_that_decodes_full_hd_stays_small() {
    let media = Media::new();
    let args = "-f lavfi -i testsrc2=size=1920x1080:rate=25 -frames:v 500 -c:v libx264 -preset ultrafast -bf 3 -refs 4";
    let path = media.make("a.mp4", args);
    let decoder = isolated(workers());
    let spec = ClipSpec::default();
    let keep_going = |_| ControlFlow::Continue(());
    let (source, options) = (Source::Path(path), DecodeOptions::default());
    decoder.decode_clips(&source, &spec, &Preprocessing::AUTHORS_2018, &options, keep_going).expect("a good video");
    let [pid] = decoder.idle_processes()[..] else { panic!("one process is idle") };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak memory");
    let kilobytes: u64 = peak.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number");
    assert!(kilobytes < 120_000, "{peak}");
}

#[test]
fn process_that_is_too_small_makes_room_for_a_larger_one() {
    let media = Media::new();
    let source = Source::Path(video(&media, "a.mp4", ""));
    let decoder = isolated(workers());
    let decode = |size| {
        let spec = ClipSpec { size, ..ClipSpec::default() };
        let (preprocessing, options) = (Preprocessing::AUTHORS_2018, DecodeOptions::default());
        let keep_going = |_| ControlFlow::Continue(());
        decoder.decode_clips(&source, &spec, &preprocessing, &options, keep_going).expect("a good video");
        decoder.idle_processes()
    };
    let smallest = decode(32);
    for size in [64, 112, 160] {
        assert_eq!(decode(size).len(), 1, "{size}");
    }
    let largest = decode(160);
    assert_ne!(smallest, largest);
    assert_eq!(decode(32), largest, "a larger one is large enough");
}

#[test]
fn process_that_dies_while_it_waits_is_buried() {
    let media = Media::new();
    let decoder = isolated(workers());
    let path = video(&media, "a.mp4", "");
    run(&decoder, Source::Path(path.clone()), &DecodeOptions::default()).expect("a good video");
    let pid = decoder.idle_processes()[0];
    Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill");
    let begin = Instant::now();
    while !decoder.idle_processes().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(10), "it is dead");
        thread::yield_now();
    }
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie is left");
    run(&decoder, Source::Path(path), &DecodeOptions::default()).expect("a good video");
    assert_eq!(decoder.lost_processes(), 0);
}
