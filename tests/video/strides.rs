//! Every so many-th clip: the same clips as of a full decode, for less work.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{
    Clip, DecodeOptions, Decoder, Isolation, Limits, PartialReason, Source, TimeRange, VideoError, VideoSummary,
    WorkerOptions,
};

use crate::media::Media;

/// Four frames a clip, 32x32, so that a short video has many clips.
const SPEC: ClipSpec = ClipSpec { frames: 4, size: 32, temporal_stride: 1 };

type Decoded = Result<(Vec<Clip>, VideoSummary), VideoError>;

fn decode(decoder: &Decoder, path: &Path, spec: &ClipSpec, options: &DecodeOptions) -> Decoded {
    let mut clips = Vec::new();
    let source = Source::Path(path.into());
    let summary = decoder.decode_clips(&source, spec, &Preprocessing::AUTHORS_2018, options, |clip| {
        clips.push(clip);
        ControlFlow::Continue(())
    })?;
    Ok((clips, summary))
}

fn decoders() -> [Decoder; 2] {
    let workers = WorkerOptions { program: env!("CARGO_BIN_EXE_kinetoscope").into(), ..Default::default() };
    [Decoder::new(Isolation::None), Decoder::new(Isolation::Processes(workers))]
}

fn every(clip_stride: usize) -> DecodeOptions {
    DecodeOptions { clip_stride, ..Default::default() }
}

fn make(media: &Media, name: &str, extra: &str) -> PathBuf {
    media.make(name, &format!("-f lavfi -i testsrc2=size=64x48:rate=25:duration=13 {extra}"))
}

/// Asserts that a decode with `options` gives those clips of a full one that it should.
fn assert_same_clips(decoder: &Decoder, path: &Path, spec: &ClipSpec, options: &DecodeOptions) {
    let name = format!("{}, every {}", path.display(), options.clip_stride);
    let full = DecodeOptions { clip_stride: 1, ..options.clone() };
    let (all, full) = decode(decoder, path, spec, &full).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (some, summary) = decode(decoder, path, spec, options).unwrap_or_else(|error| panic!("{name}: {error}"));
    let expected: Vec<&Clip> = all.iter().step_by(options.clip_stride).collect();
    assert!(expected.len() > 1, "{name}: a test of one clip is none");
    assert_eq!(some.len(), expected.len(), "{name}");
    for (ours, theirs) in some.iter().zip(expected) {
        let place = |clip: &Clip| (clip.index, clip.frames, clip.start, clip.end);
        assert_eq!(place(ours), place(theirs), "{name}");
        assert!(ours.rgb == theirs.rgb, "{name}: pixels of clip {}", ours.index);
    }
    let clips = some.len() as u64;
    assert_eq!(summary, VideoSummary { clips, ..full }, "{name}");
}

#[test]
fn clips_of_a_stride_are_exactly_those_of_a_full_decode() {
    let media = Media::new();
    let kinds = [
        ("b.mp4", "-c:v libx264 -bf 3 -g 20 -pix_fmt yuv420p"),
        ("open.mp4", "-c:v libx264 -x264-params open-gop=1:bframes=3:keyint=20:scenecut=0 -pix_fmt yuv420p"),
        ("open.mkv", "-c:v libx264 -x264-params open-gop=1:bframes=3:keyint=20:scenecut=0 -pix_fmt yuv420p"),
        ("refresh.mkv", "-c:v libx264 -x264-params intra-refresh=1:keyint=20 -pix_fmt yuv420p"),
        ("fragmented.mp4", "-c:v libx264 -g 20 -movflags +frag_keyframe+empty_moov -pix_fmt yuv420p"),
        ("hevc.mp4", "-c:v libx265 -x265-params log-level=none:keyint=20:open-gop=1 -pix_fmt yuv420p"),
        ("vp8.webm", "-c:v libvpx -deadline realtime -cpu-used 8 -auto-alt-ref 1 -lag-in-frames 10 -g 20"),
        ("vp9.webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 20 -pix_fmt yuv420p"),
        ("mpeg4.mp4", "-c:v mpeg4 -g 20 -bf 2"),
        ("one-key.mp4", "-c:v libx264 -g 1000 -pix_fmt yuv420p"),
        ("a.ts", "-c:v libx264 -g 20 -bf 3 -pix_fmt yuv420p"),
        ("vfr.mp4", "-vf select='not(mod(n\\,3))+not(mod(n\\,7))' -vsync vfr -c:v libx264 -g 10 -pix_fmt yuv420p"),
    ];
    let [here, _] = decoders();
    for (name, extra) in kinds {
        let path = make(&media, name, extra);
        for stride in [3, 27, 34] {
            assert_same_clips(&here, &path, &SPEC, &every(stride));
        }
    }
}

#[test]
fn strides_in_time_and_of_clips_go_together_with_ranges_and_processes() {
    let media = Media::new();
    let path = make(&media, "b.mp4", "-c:v libx264 -bf 3 -g 12 -pix_fmt yuv420p");
    // The first second is hidden by an edit list, behind packets that are decoded but not shown.
    let cut = media.make("cut.mp4", &format!("-ss 1.3 -i {} -c copy", path.display()));
    let sparse = ClipSpec { temporal_stride: 3, ..SPEC };
    let range = TimeRange { start: Duration::from_millis(1010), end: Some(Duration::from_millis(11_333)) };
    for decoder in decoders() {
        for path in [&path, &cut] {
            assert_same_clips(&decoder, path, &SPEC, &every(30));
            assert_same_clips(&decoder, path, &sparse, &every(11));
            assert_same_clips(&decoder, path, &SPEC, &DecodeOptions { range, ..every(28) });
        }
    }
}

#[test]
fn truncated_video_is_decoded_and_marked_as_without_a_stride() {
    let media = Media::new();
    let [here, _] = decoders();
    for (whole, cut) in [("whole.mp4", "cut.mp4"), ("whole.mkv", "cut.mkv")] {
        let whole = make(&media, whole, "-c:v libx264 -g 20 -pix_fmt yuv420p -movflags +faststart");
        let len = std::fs::metadata(&whole).expect("made").len() as usize;
        let cut = media.truncate(&whole, cut, len * 2 / 3);
        assert_same_clips(&here, &cut, &SPEC, &every(27));
        let (_, summary) = decode(&here, &cut, &SPEC, &every(27)).expect("most of a video");
        assert!(matches!(summary.partial, Some(PartialReason::Truncated { .. })), "{summary:?}");
    }
}

#[test]
fn long_strides_cost_little() {
    let media = Media::new();
    let args =
        "-f lavfi -i testsrc2=size=640x480:rate=25:duration=40 -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p";
    let path = media.make("long.mp4", args);
    let copy = |name, extra| media.make(name, &format!("-i {} -c copy {extra}", path.display()));
    let copies = [copy("long.mkv", ""), copy("fragmented.mp4", "-movflags +frag_keyframe+empty_moov")];
    let [here, _] = decoders();
    for path in copies.iter().chain([&path]) {
        let timed = |stride| {
            let begin = Instant::now();
            decode(&here, path, &SPEC, &every(stride)).expect("a good video");
            begin.elapsed()
        };
        let (all, some) = (timed(1), timed(125));
        // Two clips of 250; a quarter of the time leaves room for opening the file and a busy machine.
        assert!(some < all / 4, "{}: {some:?} for two clips, {all:?} for all", path.display());
    }
}

#[test]
fn enough_clips_end_a_decode_without_error() {
    let media = Media::new();
    let path = make(&media, "a.mp4", "-c:v libx264 -g 20 -pix_fmt yuv420p");
    for decoder in decoders() {
        for (clip_stride, indices) in [(1, [0, 1, 2]), (30, [0, 30, 60])] {
            let options = DecodeOptions {
                max_clips_wanted: Some(3),
                limits: Limits { max_clips: 3, ..Default::default() },
                ..every(clip_stride)
            };
            let (clips, summary) = decode(&decoder, &path, &SPEC, &options).expect("a good video");
            assert_eq!(clips.iter().map(|clip| clip.index).collect::<Vec<_>>(), indices);
            assert!(summary.clips == 3 && summary.partial.is_none() && summary.frames < 325, "{summary:?}");
        }
        let options = DecodeOptions { max_clips_wanted: Some(1000), ..Default::default() };
        assert_eq!(decode(&decoder, &path, &SPEC, &options), decode(&decoder, &path, &SPEC, &every(1)));
    }
}

#[test]
fn absurd_strides_give_the_first_clip() {
    let media = Media::new();
    let path = make(&media, "a.mp4", "-c:v libx264 -g 20 -pix_fmt yuv420p");
    for decoder in decoders() {
        let (clips, summary) = decode(&decoder, &path, &SPEC, &every(usize::MAX)).expect("a good video");
        assert_eq!((clips.len(), summary.frames), (1, 325));
        let (clips, _) = decode(&decoder, &path, &SPEC, &every(0)).expect("a good video");
        assert_eq!(clips.len(), 82);
    }
}
