//! Parts of videos by time, and what timestamps mean.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{Clip, DecodeOptions, Source, TimeRange, VideoError, VideoSummary, decode_clips};

use crate::media::Media;

/// Each frame as a clip of its own, 32x32.
fn frames(path: &Path, range: TimeRange) -> Result<(Vec<Clip>, VideoSummary), VideoError> {
    let spec = ClipSpec { frames: 1, size: 32, temporal_stride: 1 };
    let options = DecodeOptions { range, ..Default::default() };
    let mut frames = Vec::new();
    let source = Source::Path(path.into());
    let summary = decode_clips(&source, &spec, &Preprocessing::AUTHORS_2018, &options, |clip| {
        frames.push(clip);
        ControlFlow::Continue(())
    })?;
    Ok((frames, summary))
}

fn range(start: f64, end: f64) -> TimeRange {
    TimeRange { start: Duration::from_secs_f64(start), end: Some(Duration::from_secs_f64(end)) }
}

fn make(media: &Media, name: &str, extra: &str) -> PathBuf {
    media.make(name, &format!("-f lavfi -i testsrc2=size=64x48:rate=25:duration=4 {extra}"))
}

#[test]
fn part_of_a_video_has_exactly_the_frames_of_a_full_decode() {
    let media = Media::new();
    let kinds = [
        ("b.mp4", "-c:v libx264 -bf 3 -g 20 -pix_fmt yuv420p"),
        ("open.mp4", "-c:v libx264 -x264-params open-gop=1:bframes=3:keyint=20:scenecut=0 -pix_fmt yuv420p"),
        ("refresh.mkv", "-c:v libx264 -x264-params intra-refresh=1:keyint=20 -pix_fmt yuv420p"),
        ("fragmented.mp4", "-c:v libx264 -g 20 -movflags +frag_keyframe+empty_moov -pix_fmt yuv420p"),
        ("hevc.mp4", "-c:v libx265 -x265-params log-level=none:keyint=20:open-gop=1 -pix_fmt yuv420p"),
        ("vp9.webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 20 -pix_fmt yuv420p"),
        ("a.ts", "-c:v libx264 -g 20 -bf 3 -pix_fmt yuv420p"),
        ("a.avi", "-c:v mpeg4 -g 20"),
        ("a.mpg", "-c:v mpeg2video -g 20 -bf 2"),
        ("vfr.mp4", "-vf select='not(mod(n\\,3))+not(mod(n\\,7))' -vsync vfr -c:v libx264 -g 10 -pix_fmt yuv420p"),
    ];
    for (name, extra) in kinds {
        let path = make(&media, name, extra);
        let (all, _) = frames(&path, TimeRange::ALL).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(all.len() > 40, "{name}: {} frames", all.len());
        for (start, end) in [(0.0, 0.5), (1.5, 2.5), (1.99, 2.13), (3.5, 100.0)] {
            let range = range(start, end);
            let inside = |clip: &&Clip| clip.start >= range.start && range.end.is_none_or(|end| clip.start < end);
            let expected: Vec<&Clip> = all.iter().filter(inside).collect();
            let (part, summary) = frames(&path, range).unwrap_or_else(|error| panic!("{name} {range:?}: {error}"));
            assert_eq!(summary.partial, None, "{name} {range:?}");
            assert_eq!(summary.frames, expected.len() as u64, "{name} {range:?}");
            for (ours, theirs) in part.iter().zip(expected) {
                assert_eq!(ours.start, theirs.start, "{name} {range:?}");
                assert!(ours.rgb == theirs.rgb, "{name} {range:?}: pixels at {:?}", ours.start);
            }
        }
    }
}

#[test]
fn end_of_a_long_video_comes_without_decoding_the_rest() {
    let media = Media::new();
    let args =
        "-f lavfi -i testsrc2=size=640x480:rate=25:duration=40 -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p";
    let path = media.make("long.mp4", args);
    let timed = |range| {
        let begin = Instant::now();
        frames(&path, range).expect("a good video");
        begin.elapsed()
    };
    let (all, last) = (timed(TimeRange::ALL), timed(range(39.0, 40.0)));
    // A fortieth of the frames; a quarter of the time leaves room for opening the file and a busy machine.
    assert!(last < all / 4, "{last:?} for the last second, {all:?} for all");
}

#[test]
fn range_after_the_end_says_that_nothing_is_there() {
    let media = Media::new();
    let path = make(&media, "a.mp4", "-c:v libx264 -pix_fmt yuv420p");
    let result = frames(&path, range(50.0, 60.0));
    assert!(matches!(result, Err(VideoError::NoFramesInRange { .. })), "{result:?}");
}

#[test]
fn edit_list_cuts_the_start_as_players_do() {
    let media = Media::new();
    let whole = make(&media, "whole.mp4", "-c:v libx264 -bf 2 -g 100 -pix_fmt yuv420p");
    // Copying from 1 s keeps the packets from the key frame on and hides the first second by an edit list.
    let cut = media.make("cut.mp4", &format!("-ss 1 -i {} -c copy", whole.display()));
    let (frames, summary) = frames(&cut, TimeRange::ALL).expect("a good video");
    assert_eq!((frames.len(), frames[0].start, summary.partial), (75, Duration::ZERO, None));
}

#[test]
fn start_of_the_containers_timeline_is_time_zero() {
    let media = Media::new();
    let path = make(&media, "late.ts", "-c:v libx264 -pix_fmt yuv420p -output_ts_offset 1000");
    let (frames, _) = frames(&path, TimeRange::ALL).expect("a good video");
    assert!(frames[0].start < Duration::from_millis(100), "{:?}", frames[0].start);
}

#[test]
fn interlaced_frames_stay_one_frame_each() {
    let media = Media::new();
    let path = make(&media, "fields.mpg", "-vf setfield=tff -c:v mpeg2video -flags +ildct+ilme");
    assert_eq!(frames(&path, TimeRange::ALL).expect("a good video").0.len(), 100);
}

#[test]
fn best_of_several_video_streams_is_taken_and_named() {
    let media = Media::new();
    let args = "-f lavfi -i testsrc2=size=64x48:rate=25:duration=1 -f lavfi -i testsrc2=size=320x240:rate=25:duration=1 \
                -map 0 -map 1 -c:v libx264 -pix_fmt yuv420p -disposition:v:0 0 -disposition:v:1 default";
    let (_, summary) = frames(&media.make("two.mkv", args), TimeRange::ALL).expect("a good video");
    assert_eq!((summary.stream_index, summary.width, summary.height), (1, 320, 240));
}

#[test]
fn picture_that_changes_its_size_is_followed() {
    let media = Media::new();
    for (name, size) in [("small.ts", "64x48"), ("large.ts", "128x96")] {
        media.make(name, &format!("-f lavfi -i testsrc2=size={size}:rate=25:duration=1 -c:v mpeg2video"));
    }
    let joined =
        ["small.ts", "large.ts", "small.ts"].map(|name| std::fs::read(media.path(name)).expect("made")).concat();
    let path = media.write("joined.ts", &joined);
    let (frames, summary) = frames(&path, TimeRange::ALL).expect("a good video");
    // At each change the decoder loses the frame it holds back.
    assert!(frames.len() >= 73, "{} frames", frames.len());
    assert_eq!((summary.width, summary.height), (64, 48));
}
