//! Clips of a video at equal distances, and several parts of their frames: what papers call "10 clips, 3 crops".

use crate::model::spec::{ClipSpec, Preprocessing, Resize};
use crate::video::{Choice, Crop, Extent};

/// Which clips and which parts of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Views {
    /// Clips of a video, at least 1: the middles of so many equal parts of all possible starts.
    pub clips: u32,
    /// Parts of a frame: 1, the middle, or 3, along the longer side.
    pub crops: u32,
}

impl Views {
    /// Views of a video.
    pub fn count(self) -> u32 {
        self.clips * self.crops
    }

    /// The clip of view `number`, counted from 0; the crops of a clip follow each other. A video that is too short for a clip
    /// gives its beginning, which is looped.
    pub fn choice(self, number: u32, clip: &ClipSpec, preprocessing: &Preprocessing, video: Extent) -> Choice {
        let (place, crop) = (u64::from(number / self.crops), number % self.crops);
        let span = (clip.frames.max(1) as u64 - 1) * clip.temporal_stride.max(1) as u64 + 1;
        let starts = video.frames.saturating_sub(span) + 1;
        let first_frame = (2 * place + 1) * starts / (2 * u64::from(self.clips));
        let crop = match (self.crops, crop) {
            (3, 0) => side(0.0, clip, preprocessing, video),
            (3, 2) => side(1.0, clip, preprocessing, video),
            _ => Crop::Center,
        };
        Choice { first_frame, crop }
    }
}

/// The square at one end of the longer side, as large as that in the middle: 0 for left or top, 1 for right or bottom.
fn side(end: f64, clip: &ClipSpec, preprocessing: &Preprocessing, video: Extent) -> Crop {
    match preprocessing.resize {
        Resize::ShortSide if video.width >= video.height => Crop::Square { scale: 1.0, x: end, y: 0.5 },
        Resize::ShortSide => Crop::Square { scale: 1.0, x: 0.5, y: end },
        // Of the frame as it is after the resize, whatever it was before.
        Resize::Fixed { height, width } => {
            let part = |length: usize| clip.size as f64 / length as f64;
            let (x, y) = if width >= height { (end, 0.5) } else { (0.5, end) };
            let (width, height) = (part(width), part(height));
            Crop::Box { left: x * (1.0 - width), top: y * (1.0 - height), width, height }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: ClipSpec = ClipSpec { frames: 16, size: 112, temporal_stride: 1 };
    const WIDE: Extent = Extent { frames: 115, width: 320, height: 240 };

    fn starts(clips: u32, frames: u64) -> Vec<u64> {
        let views = Views { clips, crops: 1 };
        let video = Extent { frames, ..WIDE };
        (0..clips).map(|view| views.choice(view, &CLIP, &Preprocessing::AUTHORS_2020, video).first_frame).collect()
    }

    #[test]
    fn clips_are_in_the_middles_of_equal_parts() {
        assert_eq!(starts(5, 115), [10, 30, 50, 70, 90]);
        assert_eq!(starts(1, 115), [50]);
        assert_eq!(starts(2, 7), [0, 0], "a short video has one start");
    }

    #[test]
    fn three_crops_are_the_ends_and_the_middle_of_the_longer_side() {
        let crops = |preprocessing: Preprocessing, video: Extent| {
            let views = Views { clips: 2, crops: 3 };
            assert_eq!(views.count(), 6);
            [0, 1, 2].map(|view| views.choice(view, &CLIP, &preprocessing, video).crop)
        };
        let square = |x, y| Crop::Square { scale: 1.0, x, y };
        assert_eq!(crops(Preprocessing::AUTHORS_2020, WIDE), [square(0.0, 0.5), Crop::Center, square(1.0, 0.5)]);
        let tall = Extent { width: 240, height: 320, ..WIDE };
        assert_eq!(crops(Preprocessing::AUTHORS_2020, tall)[2], square(0.5, 1.0));
        // Resized to 128x171 first, whatever the frame's shape.
        let Crop::Box { left, top, width, height } = crops(Preprocessing::TORCHVISION, tall)[2] else { panic!() };
        assert!((left + width - 1.0).abs() < 1e-12 && (width - 112.0 / 171.0).abs() < 1e-12);
        assert!((top - 8.0 / 128.0).abs() < 1e-12 && (height - 112.0 / 128.0).abs() < 1e-12);
    }
}
