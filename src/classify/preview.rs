//! Small pictures of clips, for people to look at.

use jpeg_encoder::{ColorType, Encoder};

use crate::model::spec::ClipSpec;

/// Good enough for a picture of a hundred pixels, at some 3 kB.
const QUALITY: u8 = 75;

/// The middle frame of a clip of pixels `(t, h, w, 3)`. Empty if a picture can't be as large.
pub(super) fn jpeg(rgb: &[u8], clip: &ClipSpec) -> Vec<u8> {
    let frame_len = clip.rgb_len() / clip.frames;
    let frame = &rgb[clip.frames / 2 * frame_len..][..frame_len];
    let mut jpeg = Vec::new();
    let Ok(size) = u16::try_from(clip.size) else { return jpeg };
    match Encoder::new(&mut jpeg, QUALITY).encode(frame, size, size, ColorType::Rgb) {
        Ok(()) => jpeg,
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_frame_becomes_a_jpeg() {
        let clip = ClipSpec { frames: 3, size: 16, temporal_stride: 1 };
        let frame = |value: u8| vec![value; 16 * 16 * 3];
        let middle = jpeg(&[frame(0), frame(200), frame(0)].concat(), &clip);
        assert!(middle.starts_with(&[0xff, 0xd8]) && middle.ends_with(&[0xff, 0xd9]));
        assert_eq!(middle, jpeg(&[frame(9), frame(200), frame(7)].concat(), &clip), "only the middle one counts");
        assert_ne!(middle, jpeg(&[frame(0), frame(0), frame(200)].concat(), &clip));
    }
}
