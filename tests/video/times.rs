//! Headers and timestamps that are wrong in good videos: the frames are there all the same, and time goes on.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{
    Clip, DecodeOptions, Limits, Source, TimeRange, VideoError, VideoSummary, decode_clips, probe,
};

use crate::media::Media;

/// Four frames a clip, 32x32.
const SPEC: ClipSpec = ClipSpec { frames: 4, size: 32, temporal_stride: 1 };

const H264: &str = "-c:v libx264 -preset ultrafast -g 25 -bf 2 -pix_fmt yuv420p";
const VP8: &str = "-c:v libvpx -deadline realtime -cpu-used 8 -g 25";
const MPEG2: &str = "-c:v mpeg2video -g 12 -bf 2";

fn decode(path: &Path, options: &DecodeOptions) -> Result<(Vec<Clip>, VideoSummary), VideoError> {
    let mut clips = Vec::new();
    let source = Source::Path(path.into());
    let summary = decode_clips(&source, &SPEC, &Preprocessing::AUTHORS_2018, options, |clip| {
        clips.push(clip);
        ControlFlow::Continue(())
    })?;
    Ok((clips, summary))
}

/// Two seconds at 25 frames a second.
fn make(media: &Media, name: &str, extra: &str) -> PathBuf {
    media.make(name, &format!("-f lavfi -i testsrc2=size=64x48:rate=25:duration=2 {extra}"))
}

fn range(start: f64, end: f64) -> TimeRange {
    TimeRange { start: Duration::from_secs_f64(start), end: Some(Duration::from_secs_f64(end)) }
}

/// Asserts that `frames` frames at 25 a second come in order of time, without gaps or overlaps, and that parts by time are
/// those of the whole.
fn assert_goes_on(path: &Path, frames: u64) {
    let name = path.display();
    let (clips, summary) = decode(path, &DecodeOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let times: Vec<_> = clips.iter().map(|clip| (clip.start, clip.end)).collect();
    assert_eq!(summary.frames, frames, "{name}: {times:?}");
    let expected = Duration::from_millis(40) * frames as u32;
    // Some containers count in milliseconds, and a frame's length at a seam is a guess.
    assert!(summary.duration.abs_diff(expected) <= Duration::from_millis(45), "{name}: {summary:?}");
    for pair in times.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "{name}: {times:?}");
        assert!(pair[0].0 + Duration::from_millis(100) < pair[0].1, "{name} stands still: {times:?}");
        assert!(pair[0].0 + Duration::from_millis(250) > pair[0].1, "{name} leaps: {times:?}");
    }
    let each = |range| {
        let spec = ClipSpec { frames: 1, ..SPEC };
        let options = DecodeOptions { range, ..Default::default() };
        let mut frames = Vec::new();
        let source = Source::Path(path.into());
        decode_clips(&source, &spec, &Preprocessing::AUTHORS_2018, &options, |clip| {
            frames.push((clip.start, clip.rgb));
            ControlFlow::Continue(())
        })
        .unwrap_or_else(|error| panic!("{name} {range:?}: {error}"));
        frames
    };
    let all = each(TimeRange::ALL);
    let last = summary.duration.as_secs_f64() + times[0].0.as_secs_f64();
    for (start, end) in [(0.3, 0.9), (last / 2.0 - 0.3, last / 2.0 + 0.4), (last - 0.5, 100.0)] {
        let range = range(start, end);
        let inside = |start: Duration| start >= range.start && range.end.is_none_or(|end| start < end);
        let expected: Vec<_> = all.iter().filter(|(start, _)| inside(*start)).collect();
        let part = each(range);
        assert!(!expected.is_empty() && part.iter().collect::<Vec<_>>() == expected, "{name}: {range:?} of {times:?}");
    }
    let options = DecodeOptions { clip_stride: 9, ..Default::default() };
    let (some, _) = decode(path, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(some.iter().eq(clips.iter().step_by(9)), "{name}: a stride changes the clips");
    let check = DecodeOptions { max_clips_wanted: Some(1), ..Default::default() };
    assert!(probe(&Source::Path(path.into()), &check).is_ok(), "{name}");
    assert!(decode(path, &check).is_ok(), "{name}");
}

#[test]
fn time_goes_on_where_recordings_were_joined() {
    let media = Media::new();
    for (kind, extra) in [
        ("ts", H264),
        ("m2ts", H264),
        ("mpg", MPEG2),
        ("mkv", H264),
        ("webm", VP8),
        ("live.webm", &format!("{VP8} -live 1")),
    ] {
        let first = std::fs::read(make(&media, &format!("first.{kind}"), extra)).expect("made");
        let later = format!("{extra} -output_ts_offset 5000");
        let later = std::fs::read(make(&media, &format!("later.{kind}"), &later)).expect("made");
        for (name, parts) in
            [("twice", [&first, &first]), ("jumps", [&first, &later]), ("jumps-back", [&later, &first])]
        {
            assert_goes_on(&media.write(&format!("{name}.{kind}"), &parts.map(Vec::as_slice).concat()), 100);
        }
    }
}

#[test]
fn strides_do_not_jump_where_timestamps_begin_again() {
    let media = Media::new();
    for (kind, extra) in [("mkv", H264), ("live.webm", &format!("{VP8} -live 1") as &str)] {
        let input = "-f lavfi -i testsrc2=size=64x48:rate=25:duration=8";
        let part = media.make(&format!("part.{kind}"), &format!("{input} {extra}"));
        let part = std::fs::read(part).expect("made");
        let path = media.write(&format!("twice.{kind}"), &[&part[..], &part].concat());
        let (all, full) = decode(&path, &DecodeOptions::default()).expect("a good video");
        assert_eq!(full.frames, 400);
        let options = DecodeOptions { clip_stride: 30, ..Default::default() };
        let (some, summary) = decode(&path, &options).expect("a good video");
        assert!(some.iter().eq(all.iter().step_by(30)), "{kind}");
        assert_eq!(summary, VideoSummary { clips: 4, ..full });
    }
}

#[test]
fn time_goes_on_over_stray_timestamps() {
    let media = Media::new();
    // In ticks of the container; ffmpeg lets presentation times stray, not decoding times.
    for (name, extra, ticks_per_second) in [
        ("a.mkv", VP8, 1_000),
        ("a.webm", VP8, 1_000),
        ("a.mp4", H264, 12_800),
        ("a.ts", H264, 90_000),
        ("a.mpg", MPEG2, 90_000),
    ] {
        for (from, to, by) in [(20, 21, 10_800.0), (30, 30, 10_800.0), (48, 49, 10_800.0), (20, 20, 0.7)] {
            let ticks = by * f64::from(ticks_per_second);
            let stray = format!("-bsf:v setts=pts=PTS+if(between(N\\,{from}\\,{to})\\,{ticks}\\,0)");
            assert_goes_on(&make(&media, name, &format!("{extra} {stray}")), 50);
        }
    }
}

#[test]
fn gaps_that_the_container_accounts_for_remain() {
    let media = Media::new();
    // A frame each 5 s; then frames at 25 a second, 8 s, and 25 a second again.
    let slides = "-f lavfi -i testsrc2=size=64x48:rate=1/5:duration=50";
    let paused =
        "-f lavfi -i testsrc2=size=64x48:rate=25:duration=2 -vf setpts=PTS+gte(N\\,25)*8/TB -vsync passthrough";
    for (name, extra) in [
        ("a.mp4", H264),
        ("fragmented.mp4", &format!("{H264} -movflags +frag_keyframe+empty_moov")),
        ("a.mkv", H264),
        ("a.webm", VP8),
        ("live.webm", &format!("{VP8} -live 1")),
        ("a.flv", H264),
    ] {
        for (input, seconds) in [(slides, 50.0), (paused, 10.0)] {
            let path = media.make(name, &format!("{input} {extra}"));
            let (_, summary) = decode(&path, &DecodeOptions::default()).expect("a good video");
            let actual = summary.duration.as_secs_f64();
            // A last frame of unknown length may be a slide.
            let shortest = if input == slides { 45.0 } else { seconds - 0.1 };
            assert!((shortest..seconds + 0.1).contains(&actual), "{name}: {actual} s of {seconds}");
        }
    }
}

/// Overwrites the `len` bytes that begin `skip` after each place where `name` stands.
fn overwrite(file: &mut [u8], name: &[u8], skip: usize, with: &[u8]) {
    let places: Vec<usize> = (0..file.len() - name.len()).filter(|&at| file[at..].starts_with(name)).collect();
    assert!(!places.is_empty(), "{} is not in the file", String::from_utf8_lossy(name));
    for place in places {
        file[place + skip..][..with.len()].copy_from_slice(with);
    }
}

#[test]
fn absurd_headers_refuse_nothing() {
    let media = Media::new();
    let patched = |name: &str, extra: &str, patch: &dyn Fn(&mut [u8])| {
        let mut file = std::fs::read(make(&media, name, extra)).expect("made");
        patch(&mut file);
        media.write(&format!("absurd-{name}"), &file)
    };
    let fragments = format!("{H264} -movflags +frag_keyframe+empty_moov+default_base_moof");
    // Version, flags, two times, a timescale; then the duration.
    let unknown_media = |file: &mut [u8]| overwrite(file, b"mdhd", 20, &[0xff; 4]);
    let day = 86_400f64;
    let cases = [
        patched("fragmented.mp4", &fragments, &unknown_media),
        patched("whole.mp4", H264, &unknown_media),
        patched("movie.mp4", H264, &|file| overwrite(file, b"mvhd", 20, &[0xff; 4])),
        // In milliseconds.
        patched("a.mkv", H264, &|file| overwrite(file, &[0x44, 0x89, 0x88], 3, &(day * 1000.0).to_be_bytes())),
        patched("a.webm", VP8, &|file| overwrite(file, &[0x44, 0x89, 0x88], 3, &(day * 1000.0).to_be_bytes())),
        patched("a.flv", H264, &|file| overwrite(file, b"duration", 9, &day.to_be_bytes())),
        // The main header's number of frames, and the length of the stream.
        patched("a.avi", "-c:v mpeg4 -g 25", &|file| {
            overwrite(file, b"avih", 24, &50_000_000u32.to_le_bytes());
            overwrite(file, b"strh", 40, &50_000_000u32.to_le_bytes());
        }),
        // A segment of a stream that began long ago.
        make(&media, "segment.mp4", &format!("{fragments} -output_ts_offset 5000")),
    ];
    for path in cases {
        assert_goes_on(&path, 50);
    }
}

#[test]
fn long_film_is_refused_before_it_is_decoded() {
    let media = Media::new();
    let film = media.make("film.mp4", &format!("-f lavfi -i testsrc2=size=32x32:rate=1:duration=10800 {H264}"));
    let copy = |name: &str| media.make(name, &format!("-i {} -c copy", film.display()));
    let hour = Duration::from_secs(3600);
    for path in [film.clone(), copy("film.mkv"), copy("film.ts"), copy("film.avi")] {
        let error = decode(&path, &DecodeOptions::default()).expect_err("three hours");
        assert!(
            matches!(error, VideoError::TooLong { actual, .. } if actual > 2 * hour),
            "{}: {error}",
            path.display()
        );
        let limits = Limits { max_frames: 10_000, max_duration: Duration::MAX, ..Limits::default() };
        let error = decode(&path, &DecodeOptions { limits, ..Default::default() }).expect_err("too many");
        assert!(matches!(error, VideoError::TooManyFrames { .. }), "{}: {error}", path.display());
    }
    let decoded = decode(&film, &DecodeOptions { limits: Limits::UNLIMITED, ..Default::default() });
    assert_eq!(decoded.expect("no limit").1.frames, 10_800);
}

#[test]
fn what_is_left_out_counts_for_no_limit() {
    let media = Media::new();
    let path = media.make("a.mp4", &format!("-f lavfi -i testsrc2=size=32x32:rate=25:duration=100 {H264}"));
    let limits = Limits { max_frames: 1_200, max_duration: Duration::from_secs(20), ..Limits::default() };
    let with = |options| decode(&path, &DecodeOptions { limits: limits.clone(), ..options });
    assert!(matches!(
        with(DecodeOptions::default()),
        Err(VideoError::TooManyFrames { .. } | VideoError::TooLong { .. })
    ));
    let (clips, summary) = with(DecodeOptions { clip_stride: 50, ..Default::default() }).expect("a few clips");
    assert_eq!((clips.len(), summary.frames), (13, 2_500));
    let (clips, _) = with(DecodeOptions { max_clips_wanted: Some(40), ..Default::default() }).expect("a few clips");
    assert_eq!(clips.len(), 40);
    let result = with(DecodeOptions { max_clips_wanted: Some(400), ..Default::default() });
    assert!(matches!(result, Err(VideoError::TooLong { .. })), "it asks for more than the limit");
}

#[test]
fn picture_may_change_its_size_as_often_as_it_likes() {
    let media = Media::new();
    let sizes = ["64x48", "96x64", "80x80", "64x96"];
    let parts: Vec<Vec<u8>> = (0..40)
        .map(|n| {
            let size = sizes[n % sizes.len()];
            let path = media.path(&format!("{size}.ts"));
            if !path.exists() {
                let args = format!("-f lavfi -i testsrc2=size={size}:rate=25 -frames:v 4 -c:v mpeg2video -bf 0");
                media.make(&format!("{size}.ts"), &args);
            }
            std::fs::read(path).expect("made")
        })
        .collect();
    let (_, summary) = decode(&media.write("resized.ts", &parts.concat()), &DecodeOptions::default()).expect("frames");
    // At each change the decoder may lose the frame it holds back.
    assert!(summary.frames >= 120, "{summary:?}");
}
