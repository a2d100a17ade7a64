//! Input that is broken, hostile or no video: a clear error or the right answer.

use std::path::PathBuf;

use kinetoscope::model::spec::Preprocessing;
use kinetoscope::video::{DecodeOptions, PartialReason, Source, VideoError};

use crate::media::{Media, decode, decode_with};

fn video(media: &Media, name: &str, extra: &str) -> PathBuf {
    let args =
        format!("-f lavfi -i testsrc2=size=320x240:rate=25 -frames:v 48 -c:v libx264 -g 12 -pix_fmt yuv420p {extra}");
    media.make(name, &args)
}

#[test]
fn empty_input_is_called_empty() {
    let result =
        decode_with(&Source::Bytes(Default::default()), &Preprocessing::AUTHORS_2018, &DecodeOptions::default());
    assert!(matches!(result, Err(VideoError::Empty)), "{result:?}");
}

#[test]
fn text_is_no_video() {
    let media = Media::new();
    let path = media.write("a.txt", b"This is a letter, not a video.\n".repeat(50).as_slice());
    let error = decode(&path).expect_err("text");
    assert!(matches!(error, VideoError::NotAVideo { .. } | VideoError::Container { .. }), "{error}");
}

#[test]
fn still_images_are_refused_by_name() {
    let media = Media::new();
    for (name, format) in [("a.png", "png"), ("a.jpg", "jpeg"), ("a.webp", "webp"), ("a.bmp", "bmp")] {
        let path = media.make(name, "-f lavfi -i testsrc2=size=64x48 -frames:v 1");
        match decode(&path) {
            Err(VideoError::Image { format: found }) => assert_eq!(found, format),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn sound_alone_has_no_video_stream() {
    let media = Media::new();
    let path = media.make("a.m4a", "-f lavfi -i sine=duration=1 -c:a aac");
    let error = decode(&path).expect_err("sound");
    assert!(matches!(error, VideoError::NoVideoStream { streams: 1, .. }), "{error}");
}

#[test]
fn cover_picture_is_no_video() {
    let media = Media::new();
    let cover = media.make("cover.jpg", "-f lavfi -i testsrc2=size=64x48 -frames:v 1");
    let args = format!(
        "-f lavfi -i sine=duration=1 -i {} -map 0 -map 1 -c:a aac -c:v copy -disposition:v attached_pic",
        cover.display()
    );
    let error = decode(&media.make("song.m4a", &args)).expect_err("a song");
    assert!(matches!(error, VideoError::OnlyAttachedPicture { .. }), "{error}");
}

#[test]
fn playlists_never_open_another_file() {
    let media = Media::new();
    video(&media, "inner.mp4", "");
    let inner = media.path("inner.mp4");
    let concat = format!("ffconcat version 1.0\nfile '{}'\n", inner.display());
    let hls = format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{}\n#EXT-X-ENDLIST\n", inner.display());
    let sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n";
    for (name, text) in [("a.ffconcat", concat.as_str()), ("a.m3u8", hls.as_str()), ("a.sdp", sdp)] {
        let error = decode(&media.write(name, text.as_bytes())).expect_err(name);
        assert!(matches!(error, VideoError::Container { .. }), "{name}: {error}");
    }
}

#[test]
fn file_whose_index_is_cut_off_says_that_the_header_is_damaged() {
    let media = Media::new();
    let whole = video(&media, "whole.mp4", "");
    let len = std::fs::metadata(&whole).expect("made").len() as usize;
    let error = decode(&media.truncate(&whole, "cut.mp4", len / 2)).expect_err("no index");
    assert!(matches!(&error, VideoError::NotAVideo { detail } if detail.contains("mp4")), "{error}");
    assert!(error.to_string().contains("Invalid data found"), "FFmpeg's own words are there: {error}");
}

#[test]
fn truncated_file_gives_what_is_there_and_says_so() {
    let media = Media::new();
    let whole = video(&media, "whole.mp4", "-movflags +faststart");
    let len = std::fs::metadata(&whole).expect("made").len() as usize;
    let (clips, summary) = decode(&media.truncate(&whole, "cut.mp4", len * 2 / 3)).expect("half a video");
    assert!(summary.frames > 16 && summary.frames < 48, "{summary:?}");
    assert_eq!(clips.len(), (summary.frames as usize).div_ceil(16));
    assert!(matches!(summary.partial, Some(PartialReason::Truncated { expected: 48, .. })), "{summary:?}");
}

#[test]
fn files_that_end_before_they_say_are_called_truncated() {
    let media = Media::new();
    for (whole, extra) in [
        ("a.mkv", ""),
        ("a.webm", "-c:v libvpx -deadline realtime -cpu-used 8"),
        ("streamed.mkv", "-flush_packets 1 -live 1"),
        ("a.avi", ""),
        ("a.ts", ""),
        ("a.m2ts", ""),
    ] {
        let path = video(&media, whole, extra);
        assert_eq!(decode(&path).expect("a good video").1.partial, None, "{whole}");
        let len = std::fs::metadata(&path).expect("made").len() as usize;
        let cut = media.truncate(&path, &format!("cut-{whole}"), len * 2 / 3 + 1);
        let (_, summary) = decode(&cut).expect("most of a video");
        let truncated = matches!(summary.partial, Some(PartialReason::Truncated { .. }));
        // Written for streaming, a cluster may not say how long it is: then nobody can know.
        assert!(truncated || whole == "streamed.mkv", "{whole}: {summary:?}");
    }
}

#[test]
fn damaged_packets_are_passed_over_and_counted() {
    let media = Media::new();
    let path = video(&media, "a.ts", "-f mpegts");
    let mut bytes = std::fs::read(&path).expect("made");
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 3000] {
        *byte ^= 0x5a;
    }
    let (clips, summary) = decode(&media.write("damaged.ts", &bytes)).expect("most of a video");
    assert!(!clips.is_empty() && summary.frames > 30, "{summary:?}");
    assert!(summary.corrupt_packets > 0 && summary.partial.is_some(), "{summary:?}");
}

#[test]
fn container_whose_packets_are_all_garbage_has_no_frames() {
    let media = Media::new();
    let path = video(&media, "a.mp4", "-movflags +faststart");
    let mut bytes = std::fs::read(&path).expect("made");
    let data = bytes.windows(4).position(|window| window == b"mdat").expect("an mdat box") + 4;
    bytes[data..].fill(0);
    let error = decode(&media.write("zeros.mp4", &bytes)).expect_err("zeros");
    assert!(matches!(error, VideoError::NoFrames { .. } | VideoError::NotAVideo { .. }), "{error}");
}

#[test]
fn missing_file_is_a_read_error() {
    let error = decode(&Media::new().path("nothing.mp4")).expect_err("no file");
    assert!(matches!(error, VideoError::Read(_)), "{error}");
}

#[test]
fn directory_is_a_read_error() {
    let media = Media::new();
    let error = decode(&media.path("")).expect_err("a directory");
    assert!(matches!(error, VideoError::Read(_)), "{error}");
}

#[test]
fn fixed_resize_smaller_than_the_crop_is_refused() {
    let media = Media::new();
    let path = video(&media, "a.mp4", "");
    let resize = kinetoscope::model::spec::Resize::Fixed { height: 128, width: 100 };
    let preprocessing = Preprocessing { resize, ..Preprocessing::TORCHVISION };
    let result = decode_with(&Source::Path(path), &preprocessing, &DecodeOptions::default());
    assert!(matches!(result, Err(VideoError::ResizeSmallerThanCrop { width: 100, .. })), "{result:?}");
}
