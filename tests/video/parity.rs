//! Pixels against the reference: swscale to RGB at full size with its exact flags, then Pillow's resize, then the
//! crop.

use std::path::Path;

use kinetoscope::model::spec::{ColorMatrix, Preprocessing, Resize};
use kinetoscope::video::{DecodeOptions, Source, VideoSummary};

use crate::media::{Media, decode_with, ffmpeg};
use crate::pillow::Image;

const SIZE: usize = 112;

/// The displayed frames at full size, converted by swscale.
fn reference_frames(path: &Path, summary: &VideoSummary, matrix: ColorMatrix) -> Vec<Image> {
    let matrix = match matrix {
        ColorMatrix::Bt601 => ":in_color_matrix=bt601",
        ColorMatrix::Tagged => "",
    };
    let filter = format!("scale=iw:ih:flags=bicubic+full_chroma_int+accurate_rnd{matrix},format=rgb24");
    let path = path.to_str().expect("a UTF-8 path");
    let bytes =
        ffmpeg(["-i", path, "-vsync", "passthrough", "-vf", &filter, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
    let (width, height) = (summary.width as usize, summary.height as usize);
    assert_eq!(bytes.len(), summary.frames as usize * width * height * 3, "as many frames as we decoded");
    bytes.chunks(width * height * 3).map(|rgb| Image { width, height, rgb: rgb.to_vec() }).collect()
}

fn reference_pixels(frame: &Image, preprocessing: &Preprocessing) -> Image {
    let short = frame.width.min(frame.height);
    let (width, height) = match preprocessing.resize {
        Resize::ShortSide => (SIZE * frame.width / short, SIZE * frame.height / short),
        Resize::Fixed { height, width } => (width, height),
    };
    let resized = match preprocessing.antialias {
        true => frame.pillow_bilinear(width, height),
        false => frame.two_tap_bilinear(width, height),
    };
    let half_even = |margin: usize| ((margin as f64 / 2.0).round_ties_even()) as usize;
    resized.crop(half_even(width - SIZE), half_even(height - SIZE), SIZE)
}

/// Mean absolute difference in levels of 0-255, over all frames of a video.
fn mean_difference(path: &Path, preprocessing: &Preprocessing) -> f64 {
    let (clips, summary) = decode_with(&Source::Path(path.into()), preprocessing, &DecodeOptions::default())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let frames = reference_frames(path, &summary, preprocessing.color_matrix);
    let ours = clips.iter().flat_map(|clip| clip.rgb.chunks(SIZE * SIZE * 3).take(clip.frames));
    let (mut sum, mut count) = (0u64, 0u64);
    for (ours, frame) in ours.zip(&frames) {
        let theirs = reference_pixels(frame, preprocessing);
        sum += ours.iter().zip(&theirs.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        count += ours.len() as u64;
    }
    assert_eq!(count as usize, frames.len() * SIZE * SIZE * 3, "every frame was compared");
    sum as f64 / count as f64
}

/// The bar for every kind of picture. What remains is rounding: the reference rounds to 8 bits three times more.
const BAR: f64 = 0.5;

/// A moving picture in muted colours: where the reference clips saturated ones at full size, no linear filter follows.
fn moving(size: &str, encoding: &str) -> String {
    format!("-f lavfi -i testsrc2=duration=0.2:rate=25:size={size},eq=saturation=0.4:contrast=0.8 {encoding}")
}

fn check(name: &str, size: &str, encoding: &str, preprocessing: &Preprocessing) {
    let media = Media::new();
    let path = media.make(name, &moving(size, encoding));
    let difference = mean_difference(&path, preprocessing);
    println!("{name} {size} {encoding}: {difference:.3}");
    assert!(difference <= BAR, "{name} {size} {encoding}: mean difference is {difference} levels, the bar is {BAR}");
}

const BT601: Preprocessing = Preprocessing::AUTHORS_2018;
const TAGGED: Preprocessing = Preprocessing { color_matrix: ColorMatrix::Tagged, ..BT601 };

#[test]
fn landscape_and_portrait_pixels_equal_pillows() {
    check("a.mp4", "340x256", "-c:v libx264 -pix_fmt yuv420p", &BT601);
    check("a.mp4", "320x240", "-c:v libx264 -pix_fmt yuv420p", &BT601);
    check("a.mp4", "640x360", "-c:v libx264 -pix_fmt yuv420p", &BT601);
    check("a.mp4", "360x640", "-c:v libx264 -pix_fmt yuv420p", &BT601);
    check("a.mp4", "1280x720", "-c:v libx264 -pix_fmt yuv420p", &BT601);
}

#[test]
fn pixels_equal_pillows_at_every_bit_depth_and_chroma_subsampling() {
    for format in ["yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"] {
        check("a.mp4", "340x256", &format!("-c:v libx264 -pix_fmt {format}"), &BT601);
    }
    for format in ["yuv410p", "yuv411p", "yuv440p", "yuv420p12le", "yuv444p12le", "gray", "yuv420p16le"] {
        check("a.nut", "340x256", &format!("-c:v ffv1 -pix_fmt {format} -strict -1"), &BT601);
    }
}

#[test]
fn pixels_of_rgb_sources_equal_pillows() {
    check("a.mkv", "340x256", "-c:v libx264rgb", &BT601);
    for format in ["gbrp", "gbrp10le", "bgra", "rgb48le"] {
        check("a.mkv", "340x256", &format!("-c:v ffv1 -pix_fmt {format} -strict -1"), &BT601);
    }
    check("a.gif", "340x256", "", &BT601);
}

#[test]
fn full_range_pixels_equal_pillows() {
    check("a.mp4", "340x256", "-c:v libx264 -vf scale=out_range=full -pix_fmt yuv420p -color_range pc", &BT601);
    check("a.avi", "340x256", "-c:v mjpeg -q:v 2 -pix_fmt yuvj422p", &BT601);
}

#[test]
fn tagged_matrix_is_used_where_the_model_asks_for_it() {
    for (matrix, tag) in [("bt709", "bt709"), ("bt2020", "bt2020nc"), ("smpte240m", "smpte240m")] {
        let encoding = format!("-c:v libx264 -vf scale=out_color_matrix={matrix},format=yuv420p -colorspace {tag}");
        check("a.mp4", "340x256", &encoding, &TAGGED);
    }
}

#[test]
fn tags_are_ignored_where_the_model_asks_for_bt601() {
    check("a.mp4", "340x256", "-c:v libx264 -vf scale=out_color_matrix=bt709,format=yuv420p -colorspace bt709", &BT601);
}

#[test]
fn odd_and_tiny_pictures_equal_pillows() {
    check("a.nut", "175x133", "-c:v ffv1 -pix_fmt yuv420p", &BT601);
    check("a.nut", "3x2000", "-c:v ffv1 -pix_fmt yuv420p", &BT601);
    check("a.nut", "2000x3", "-c:v ffv1 -pix_fmt yuv420p", &BT601);
    check("a.nut", "64x48", "-vf scale=1:1 -c:v ffv1 -pix_fmt yuv420p", &BT601);
    check("a.nut", "64x48", "-c:v ffv1 -pix_fmt yuv420p", &BT601);
}

#[test]
fn torchvision_preprocessing_equals_two_tap_interpolation() {
    check("a.mp4", "340x256", "-c:v libx264 -pix_fmt yuv420p", &Preprocessing::TORCHVISION);
    check("a.mp4", "1280x720", "-c:v libx264 -pix_fmt yuv420p", &Preprocessing::TORCHVISION);
}

#[test]
fn rotated_pictures_equal_pillows_after_rotation() {
    for angle in [90, 180, 270] {
        let media = Media::new();
        let upright = media.make("upright.mp4", &moving("340x256", "-c:v libx264 -pix_fmt yuv420p"));
        let upright = upright.to_str().expect("a UTF-8 path");
        let turned = media.make("turned.mp4", &format!("-i {upright} -c copy -metadata:s:v rotate={angle}"));
        let difference = mean_difference(&turned, &BT601);
        println!("rotated by {angle}: {difference:.3}");
        assert!(difference <= BAR, "rotated by {angle}: mean difference is {difference} levels, the bar is {BAR}");
    }
}

/// Prints the difference for each file of a directory, for the table of real videos.
///
/// `KINETOSCOPE_PARITY_DIR=videos cargo test --release --test video -- --ignored --nocapture parity_of_a_directory`
#[test]
#[ignore = "needs videos of your own"]
fn parity_of_a_directory() {
    let directory = std::env::var_os("KINETOSCOPE_PARITY_DIR").expect("KINETOSCOPE_PARITY_DIR names a directory");
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).expect("a directory").map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        let difference = |preprocessing| match std::panic::catch_unwind(|| mean_difference(&path, &preprocessing)) {
            Ok(difference) => format!("{difference:.3}"),
            Err(_) => "-".to_string(),
        };
        println!("{} bt601 {} tagged {}", path.display(), difference(BT601), difference(TAGGED));
    }
}
