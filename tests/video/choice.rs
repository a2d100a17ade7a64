//! Which picture is the video, and which way up it is.

use std::fs;

use kinetoscope::video::VideoError;

use crate::media::{Media, decode};

/// One picture of 320x240, in colours of its own.
const PICTURE: &str = "-f lavfi -i color=red:size=320x240:rate=25:duration=0.04";

/// 50 frames of 128x96.
const VIDEO: &str = "-f lavfi -i testsrc2=size=128x96:rate=25:duration=2";

#[test]
fn track_of_one_picture_is_not_the_video_whatever_its_flags() {
    let media = Media::new();
    for (name, encoder) in [
        ("a.mkv", "-c:v mjpeg -pix_fmt yuvj420p"),
        ("h264.mkv", "-c:v libx264 -pix_fmt yuv420p"),
        ("a.mp4", "-c:v libx264 -pix_fmt yuv420p -movflags +faststart"),
        ("a.ts", "-c:v libx264 -pix_fmt yuv420p"),
    ] {
        for (order, flags) in [
            ("-map 0 -map 1", "-disposition:v:0 default -disposition:v:1 0"),
            ("-map 1 -map 0", "-disposition:v:0 0 -disposition:v:1 default"),
        ] {
            let path = media.make(name, &format!("{PICTURE} {VIDEO} {order} {flags} {encoder}"));
            let (_, summary) = decode(&path).expect("a good video");
            assert_eq!((summary.frames, summary.width, summary.partial), (50, 128, None), "{name}, {order}");
        }
    }
}

#[test]
fn only_track_is_the_video_even_if_it_has_one_picture() {
    let media = Media::new();
    let path = media.make("a.mkv", &format!("{PICTURE} -c:v libx264 -pix_fmt yuv420p"));
    assert_eq!(decode(&path).expect("a short video").1.frames, 1);
}

#[test]
fn photographs_are_images() {
    let media = Media::new();
    let avif = media.make("a.avif", "-f lavfi -i testsrc2=size=64x48 -frames:v 1 -c:v libaom-av1 -still-picture 1");
    // What comes after its type is none of our business: FFmpeg reads some and refuses others.
    let heic = [&[0, 0, 0, 24][..], b"ftypheic\0\0\0\0mif1heic", &[0, 0, 0, 12], b"meta\0\0\0\0"].concat();
    let heic = media.write("a.heic", &heic);
    // A motion photo of a telephone: a photograph with a video behind it.
    let mut photo = fs::read(media.make("a.jpg", "-f lavfi -i testsrc2=size=64x48 -frames:v 1")).expect("made");
    photo.extend(fs::read(media.make("a.mp4", &format!("{VIDEO} -c:v libx264"))).expect("made"));
    let photo = media.write("motion.jpg", &photo);
    for (path, found) in [(avif, "avif"), (heic, "heif"), (photo, "jpeg")] {
        match decode(&path) {
            Err(VideoError::Image { format }) => assert_eq!(format, found),
            other => panic!("{found}: {:?}", other.map(|(_, summary)| summary)),
        }
    }
}

#[test]
fn animations_are_decoded_or_named() {
    let media = Media::new();
    for (name, encoder) in [("a.png", "-f apng -plays 0"), ("a.avif", "-c:v libaom-av1 -cpu-used 8"), ("a.gif", "")] {
        let path = media.make(name, &format!("-f lavfi -i testsrc2=size=64x48:rate=10 -frames:v 20 {encoder}"));
        let (_, summary) = decode(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((summary.frames, summary.partial), (20, None), "{name}");
    }
    let webp = media.make("a.webp", "-f lavfi -i testsrc2=size=64x48:rate=10 -frames:v 20 -c:v libwebp_anim");
    match decode(&webp) {
        Err(VideoError::UnsupportedCodec { codec }) => assert_eq!(codec, "animated WebP"),
        // Later versions of FFmpeg may know how.
        other => assert_eq!(other.expect("decoded").1.frames, 20),
    }
}

#[test]
fn pictures_are_turned_as_messages_among_them_say() {
    let media = Media::new();
    let turn = |name: &str, size: &str, turn: &str| {
        let upright =
            media.make(name, &format!("-f lavfi -i mandelbrot=size={size}:rate=25 -frames:v 20 -c:v libx264"));
        let message = format!("-c copy -bsf:v h264_metadata=display_orientation=insert:{turn}");
        let turned = media.make(&format!("turned-{name}"), &format!("-r 25 -i {} {message}", upright.display()));
        (decode(&upright).expect("a good video"), decode(&turned).expect("a good video"))
    };
    let ((_, upright), (_, quarter)) = turn("quarter.h264", "128x96", "rotate=90");
    assert_eq!((upright.width, upright.height, quarter.width, quarter.height), (128, 96, 96, 128), "as they are shown");
    let ((upright, _), (half, _)) = turn("half.h264", "128x128", "rotate=180");
    let backwards = half[0].rgb[..112 * 112 * 3].chunks_exact(3).rev().flatten();
    let difference: u64 = upright[0].rgb.iter().zip(backwards).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    // Rounding differs where the filter's weights are mirrored.
    assert!(difference < 112 * 112 * 3, "{difference}: the first frame is upside down, but for a level a value");
}
