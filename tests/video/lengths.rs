//! How many clips a video gives, and when they are.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{DecodeOptions, Decoder, Isolation, Limits, Source, VideoError, WorkerOptions, decode_clips};

use crate::media::{Media, decode, decode_with};

fn make(media: &Media, frames: usize) -> std::path::PathBuf {
    let args = format!("-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v {frames} -c:v libx264 -pix_fmt yuv420p");
    media.make(&format!("{frames}.mp4"), &args)
}

#[test]
fn every_length_gives_its_clips_and_loops_the_tail() {
    let media = Media::new();
    for (frames, expected) in [(1, vec![1]), (15, vec![15]), (16, vec![16]), (17, vec![16, 1]), (30, vec![16, 14])] {
        let (clips, summary) = decode(&make(&media, frames)).expect("a good video");
        assert_eq!(clips.iter().map(|clip| clip.frames).collect::<Vec<_>>(), expected, "{frames} frames");
        assert_eq!((summary.frames, summary.clips, summary.partial), (frames as u64, expected.len() as u64, None));
        for clip in &clips {
            let images: Vec<&[u8]> = clip.rgb.chunks(112 * 112 * 3).collect();
            assert_eq!(images.len(), 16);
            assert!((0..16).all(|i| images[i] == images[i % clip.frames]), "{frames} frames: looped in order");
        }
    }
}

#[test]
fn clips_know_their_times() {
    let (clips, summary) = decode(&make(&Media::new(), 30)).expect("a good video");
    let times: Vec<(Duration, Duration)> = clips.iter().map(|clip| (clip.start, clip.end)).collect();
    let frame = Duration::from_millis(40);
    // MP4 counts in ticks of 1/12800 s here, FFmpeg's clock in doubles: far below a microsecond.
    let close = |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_micros(1);
    assert!(close(times[0].0, Duration::ZERO) && close(times[0].1, 16 * frame), "{times:?}");
    assert!(close(times[1].0, 16 * frame) && close(times[1].1, 30 * frame), "{times:?}");
    assert!(close(summary.duration, 30 * frame), "{:?}", summary.duration);
}

#[test]
fn bytes_in_memory_decode_as_the_file_does() {
    let media = Media::new();
    let path = make(&media, 17);
    let bytes = std::fs::read(&path).expect("the file was made");
    let options = DecodeOptions::default();
    let from_bytes = decode_with(&Source::Bytes(bytes.into()), &Preprocessing::AUTHORS_2018, &options);
    assert_eq!(from_bytes.expect("a good video"), decode(&path).expect("a good video"));
}

#[test]
fn temporal_stride_takes_every_other_frame() {
    let media = Media::new();
    let source = Source::Path(make(&media, 30));
    let spec = ClipSpec { frames: 8, size: 32, temporal_stride: 2 };
    let mut clips = Vec::new();
    let preprocessing = Preprocessing::AUTHORS_2018;
    decode_clips(&source, &spec, &preprocessing, &DecodeOptions::default(), |clip| {
        clips.push((clip.frames, clip.start.as_millis(), clip.end.as_millis()));
        ControlFlow::Continue(())
    })
    .expect("a good video");
    assert_eq!(clips, [(8, 0, 640), (7, 640, 1200)]);
}

#[test]
fn breaking_stops_decoding() {
    let media = Media::new();
    let source = Source::Path(make(&media, 30));
    let mut calls = 0;
    let (clip, preprocessing) = (ClipSpec { frames: 4, ..Default::default() }, Preprocessing::AUTHORS_2018);
    let summary = decode_clips(&source, &clip, &preprocessing, &DecodeOptions::default(), |_| {
        calls += 1;
        ControlFlow::Break(())
    })
    .expect("a good video");
    assert_eq!((calls, summary.clips), (1, 1));
}

#[test]
fn cancelled_decoding_says_so() {
    let media = Media::new();
    let options = DecodeOptions::default();
    options.cancel.cancel();
    let result = decode_with(&Source::Path(make(&media, 16)), &Preprocessing::AUTHORS_2018, &options);
    assert!(matches!(result, Err(VideoError::Cancelled)), "{result:?}");
}

#[test]
fn every_limit_is_named_in_its_error_here_and_in_a_process() {
    let media = Media::new();
    let path = make(&media, 30);
    let workers = WorkerOptions { program: env!("CARGO_BIN_EXE_kinetoscope").into(), ..Default::default() };
    for isolation in [Isolation::None, Isolation::Processes(workers)] {
        let decoder = Decoder::new(isolation);
        // The error, which has to name `limit`.
        let refused = |path: &Path, limits: Limits, limit: &str| {
            let options = DecodeOptions { limits, ..Default::default() };
            let (source, spec) = (Source::Path(path.into()), ClipSpec::default());
            let keep_going = |_| ControlFlow::Continue(());
            let result = decoder.decode_clips(&source, &spec, &Preprocessing::AUTHORS_2018, &options, keep_going);
            let error = result.expect_err("over the limit");
            assert!(error.to_string().contains(limit), "{limit} is not in: {error}");
            assert!(error.is_input_fault());
            error
        };
        let limits = Limits::default;
        let error = refused(&path, Limits { max_bytes: 100, ..limits() }, "limit is 100");
        assert!(matches!(error, VideoError::TooLarge { limit: 100, .. }), "{error}");
        let error = refused(&path, Limits { max_frames: 29, ..limits() }, "more than 29 frames");
        assert!(matches!(error, VideoError::TooManyFrames { limit: 29 }), "{error}");
        let error = refused(&path, Limits { max_clips: 1, ..limits() }, "more than 1 clips");
        assert!(matches!(error, VideoError::TooManyClips { limit: 1 }), "{error}");
        let error = refused(&path, Limits { max_duration: Duration::from_secs(1), ..limits() }, "limit is 1s");
        assert!(matches!(error, VideoError::TooLong { .. }), "{error}");
        let error = refused(&path, Limits { max_pixels: 64 * 48 - 1, ..limits() }, "limit is 3071 pixels");
        assert!(matches!(error, VideoError::TooManyPixels { actual: 3072, .. }), "{error}");
        let error = refused(&path, Limits { max_cpu_time: Duration::ZERO, ..limits() }, "limit is 0ns");
        assert!(matches!(error, VideoError::TooMuchCpuTime { .. }), "{error}");
        let options = DecodeOptions { limits: Limits::UNLIMITED, ..Default::default() };
        let (source, spec) = (Source::Path(path.clone()), ClipSpec::default());
        let keep_going = |_| ControlFlow::Continue(());
        let decoded = decoder.decode_clips(&source, &spec, &Preprocessing::AUTHORS_2018, &options, keep_going);
        assert_eq!(decoded.expect("there is no limit").frames, 30);
    }
}

#[test]
fn frames_a_header_hides_still_count_against_the_limit() {
    let media = Media::new();
    let path = media.make("a.ts", "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 30 -c:v mpeg2video");
    let options = DecodeOptions { limits: Limits { max_frames: 20, ..Default::default() }, ..Default::default() };
    let result = decode_with(&Source::Path(path), &Preprocessing::AUTHORS_2018, &options);
    assert!(matches!(result, Err(VideoError::TooManyFrames { limit: 20 })), "{result:?}");
}

#[test]
fn variable_frame_rate_keeps_the_frames_own_times() {
    let media = Media::new();
    // Frame n is shown at n * n * 10 ms.
    let args = "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 20 -vf settb=1/1000,setpts=N*N*10 -vsync passthrough \
                -c:v libx264 -bf 0 -enc_time_base 1/1000 -video_track_timescale 1000";
    let (clips, _) = decode(&media.make("vfr.mp4", args)).expect("a good video");
    let starts: Vec<u128> = clips.iter().map(|clip| clip.start.as_millis()).collect();
    assert_eq!(starts, [0, 2560]);
    assert_eq!(clips[0].end.as_millis(), 2560);
}
