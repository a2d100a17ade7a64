//! Which clip of a video a network is trained on, and how its pixels are varied: all drawn from a counter, so that
//! `(seed, epoch, position)` gives the same clip whenever and wherever it is asked for.

use std::fmt;

use crate::model::counter::CounterStream;
use crate::model::spec::ClipSpec;
use crate::video::{Choice, Crop, Extent};

/// How clips are taken from videos.
#[derive(Debug, Clone, PartialEq)]
pub struct Augment {
    /// False: the middle of each video, [`TrainCrop::Center`], nothing varied, and examples in their order; for
    /// validation by clips. The other fields mean nothing then.
    pub train: bool,
    /// Which part of the frames.
    pub crop: TrainCrop,
    /// Mirrors half of the clips. Not for classes that have a direction, such as "pan left".
    pub flip: bool,
    /// Varies the colours.
    pub color_jitter: Option<ColorJitter>,
}

/// Which part of its frames a clip shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TrainCrop {
    /// One of the four corners or the centre, at a side of one of [`SCALES`] of the short side, aspect ratio 1 (paper,
    /// section 3.2.1).
    CornerMultiScale,
    /// A rectangle anywhere whose area and aspect ratio are drawn from these ranges (the newer reference code; its
    /// defaults are [`TrainCrop::RANDOM_RESIZED`]). It is resized to a square.
    RandomResized {
        /// Least and largest part of the frame's area.
        area: (f64, f64),
        /// Least and largest ratio of width to height, drawn on a logarithmic scale.
        ratio: (f64, f64),
    },
    /// The middle, by the rule of the model's preprocessing.
    Center,
}

/// Parts of the short side (paper, section 3.2.1): 1, 2^-1/4, 2^-1/2, 2^-3/4, 1/2.
pub const SCALES: [f64; 5] =
    [1.0, 0.840_896_415_253_714_6, std::f64::consts::FRAC_1_SQRT_2, 0.594_603_557_501_360_5, 0.5];

/// Corners and centre, as horizontal and vertical places of [`Crop::Square`].
const POSITIONS: [(f64, f64); 5] = [(0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)];

/// How far colours are varied. Each factor is drawn from `1 - x` to `1 + x`, once a clip, so that a clip does not flicker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColorJitter {
    /// Of all pixels.
    pub brightness: f64,
    /// Of the distance from the clip's mean gray.
    pub contrast: f64,
    /// Of the distance from the pixel's own gray.
    pub saturation: f64,
}

impl TrainCrop {
    /// The newer reference code's: a quarter of the area to all of it, ratio 3/4 to 4/3.
    pub const RANDOM_RESIZED: Self = Self::RandomResized { area: (0.25, 1.0), ratio: (0.75, 4.0 / 3.0) };
}

impl fmt::Display for Augment {
    /// What is varied, in a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.train {
            return f.write_str("the middle of each video and frame, nothing varied");
        }
        f.write_str("clips from any time, ")?;
        match self.crop {
            TrainCrop::CornerMultiScale => f.write_str("a corner or the middle at five scales")?,
            TrainCrop::RandomResized { area: (low, high), .. } => {
                write!(f, "random parts of {:.0}% to {:.0}% of the frame", 100.0 * low, 100.0 * high)?;
            }
            TrainCrop::Center => f.write_str("the middle of the frame")?,
        }
        f.write_str(if self.flip { ", half of them mirrored" } else { ", none mirrored" })?;
        match self.color_jitter {
            Some(ColorJitter { brightness, contrast, saturation }) => {
                write!(f, ", brightness {brightness}, contrast {contrast} and saturation {saturation} varied")
            }
            None => f.write_str(", colours as they are"),
        }
    }
}

impl Augment {
    /// The paper's (section 3.2.1).
    pub const PAPER: Self = Self { train: true, crop: TrainCrop::CornerMultiScale, flip: true, color_jitter: None };
    /// Nothing random: for validation.
    pub const NONE: Self = Self { train: false, crop: TrainCrop::Center, flip: false, color_jitter: None };

    /// What earlier versions wrote into checkpoints for the same.
    pub fn earlier_texts(&self) -> Vec<String> {
        let mut words = match self.crop {
            TrainCrop::CornerMultiScale => "a corner or the middle at one of five scales".to_owned(),
            TrainCrop::RandomResized { .. } => "a random area and aspect ratio".to_owned(),
            TrainCrop::Center => "the middle".to_owned(),
        };
        words += if self.flip { ", half of the clips mirrored" } else { ", no clips mirrored" };
        if let Some(ColorJitter { brightness, contrast, saturation }) = self.color_jitter {
            words += &format!(", brightness {brightness}, contrast {contrast} and saturation {saturation} varied");
        }
        vec![format!("{self:?}"), words]
    }

    /// Draws the variation of the clip at `position` of the epoch's order.
    pub fn draw(&self, seed: u64, epoch: u64, position: u64) -> Variation {
        let mut draws = Draws::new(seed, "clip", epoch, position);
        if !self.train {
            return Variation { time: 0.5, crop: TrainCrop::Center, flip: false, colors: None, draws };
        }
        // All are drawn whether they are used or not: leaving one out leaves the others as they are.
        let (time, mirrored) = (draws.unit(), draws.below(2) == 1);
        let factors = [draws.unit(), draws.unit(), draws.unit()];
        let colors = self.color_jitter.map(|ColorJitter { brightness, contrast, saturation }| {
            let factor = |amount: f64, unit: f64| (1.0 + amount * (2.0 * unit - 1.0)).max(0.0) as f32;
            Colors {
                brightness: factor(brightness, factors[0]),
                contrast: factor(contrast, factors[1]),
                saturation: factor(saturation, factors[2]),
            }
        });
        Variation { time, crop: self.crop, flip: self.flip && mirrored, colors, draws }
    }
}

/// What was drawn for one clip.
#[derive(Debug, Clone)]
pub struct Variation {
    /// From 0 for the first possible start to 1, exclusive, for the last.
    time: f64,
    crop: TrainCrop,
    /// Whether the clip is to be mirrored.
    pub flip: bool,
    /// How its colours are to be changed.
    pub colors: Option<Colors>,
    /// For the crop, which depends on the size of the frames.
    draws: Draws,
}

impl Variation {
    /// The clip to decode. All starts from which a whole clip is left are equally likely; a video that is too short for one
    /// begins at its start, and is looped.
    pub fn choose(&self, clip: &ClipSpec, video: Extent) -> Choice {
        let span = (clip.frames.max(1) as u64 - 1) * clip.temporal_stride.max(1) as u64 + 1;
        let starts = video.frames.saturating_sub(span) + 1;
        let first_frame = ((self.time * starts as f64) as u64).min(starts - 1);
        Choice { first_frame, crop: self.crop(f64::from(video.width), f64::from(video.height)) }
    }

    /// The same colours and mirroring of the clip that `other` takes.
    pub(super) fn of_clip(self, other: &Self) -> Self {
        Self { time: other.time, crop: other.crop, draws: other.draws, ..self }
    }

    /// What tells the clip from others of the same video, in a text.
    pub(super) fn clip_text(&self) -> String {
        match self.crop {
            TrainCrop::Center => format!("{:?} {:?}", self.time, self.crop),
            crop => format!("{:?} {crop:?} {:?}", self.time, self.draws),
        }
    }

    fn crop(&self, width: f64, height: f64) -> Crop {
        let mut draws = self.draws;
        match self.crop {
            TrainCrop::Center => Crop::Center,
            TrainCrop::CornerMultiScale => {
                let scale = SCALES[draws.below(SCALES.len() as u64) as usize];
                let (x, y) = POSITIONS[draws.below(POSITIONS.len() as u64) as usize];
                Crop::Square { scale, x, y }
            }
            TrainCrop::RandomResized { area, ratio } => random_resized(&mut draws, width, height, area, ratio),
        }
    }
}

/// As torchvision's `RandomResizedCrop`: draws until the rectangle fits, at most ten times; then the largest in the middle
/// that keeps to the range of ratios.
fn random_resized(draws: &mut Draws, width: f64, height: f64, area: (f64, f64), ratio: (f64, f64)) -> Crop {
    let between = |(low, high): (f64, f64), unit: f64| low + (high - low) * unit;
    for _ in 0..10 {
        let pixels = width * height * between(area, draws.unit());
        let ratio = between((ratio.0.ln(), ratio.1.ln()), draws.unit()).exp();
        let (w, h) = ((pixels * ratio).sqrt() / width, (pixels / ratio).sqrt() / height);
        if w <= 1.0 && h <= 1.0 {
            return Crop::Box { left: draws.unit() * (1.0 - w), top: draws.unit() * (1.0 - h), width: w, height: h };
        }
    }
    let ratio = (width / height).clamp(ratio.0, ratio.1);
    let (w, h) = ((height * ratio / width).min(1.0), (width / ratio / height).min(1.0));
    Crop::Box { left: (1.0 - w) / 2.0, top: (1.0 - h) / 2.0, width: w, height: h }
}

/// Factors for the colours of a clip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colors {
    brightness: f32,
    contrast: f32,
    saturation: f32,
}

impl Colors {
    /// Changes the pixels of a clip, `(.., 3)` RGB: brightness, then contrast, then saturation, each rounded and cut off
    /// to 0-255. Gray is `0.299 R + 0.587 G + 0.114 B`.
    pub fn apply(&self, rgb: &mut [u8]) {
        let byte = |value: f32| value.round().clamp(0.0, 255.0) as u8;
        for value in rgb.iter_mut() {
            *value = byte(f32::from(*value) * self.brightness);
        }
        let pixels = rgb.as_chunks::<3>().0;
        let sum: f64 = pixels.iter().map(|pixel| f64::from(gray(pixel))).sum();
        let mean = (sum / pixels.len().max(1) as f64) as f32;
        for pixel in rgb.as_chunks_mut::<3>().0 {
            let contrasted = pixel.map(|value| byte(mean + (f32::from(value) - mean) * self.contrast));
            let gray = gray(&contrasted);
            *pixel = contrasted.map(|value| byte(gray + (f32::from(value) - gray) * self.saturation));
        }
    }
}

fn gray(&[r, g, b]: &[u8; 3]) -> f32 {
    0.299 * f32::from(r) + 0.587 * f32::from(g) + 0.114 * f32::from(b)
}

/// Random numbers in a row, for one purpose, epoch and position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draws {
    stream: CounterStream,
    next: u64,
}

impl Draws {
    pub(super) fn new(seed: u64, purpose: &str, epoch: u64, position: u64) -> Self {
        Self { stream: CounterStream::new(seed, &format!("{purpose} {epoch} {position}")), next: 0 }
    }

    fn bits(&mut self) -> u64 {
        self.next += 1;
        self.stream.bits(self.next - 1)
    }

    /// Uniform in [0, 1), 53 bits.
    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, but for a bias of `n / 2^64` (Lemire 2019, without the rejection).
    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIP: ClipSpec = ClipSpec { frames: 16, size: 112, temporal_stride: 1 };
    const JITTER: ColorJitter = ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4 };

    fn extent(frames: u64) -> Extent {
        Extent { frames, width: 340, height: 256 }
    }

    #[test]
    fn texts_of_the_first_versions_are_known() {
        let texts = Augment { flip: false, ..Augment::PAPER }.earlier_texts();
        assert_eq!(texts[0], "Augment { train: true, crop: CornerMultiScale, flip: false, color_jitter: None }");
        assert_eq!(texts[1], "a corner or the middle at one of five scales, no clips mirrored");
    }

    /// How often each of `n` outcomes comes in 10,000 draws.
    fn tally(n: usize, outcome: impl Fn(Variation) -> usize) -> Vec<usize> {
        let mut counts = vec![0; n];
        for position in 0..10_000 {
            counts[outcome(Augment::PAPER.draw(7, 3, position))] += 1;
        }
        counts
    }

    /// Within five standard deviations of 10,000 draws of probability `1 / n`.
    fn assert_even(counts: &[usize]) {
        let p = 1.0 / counts.len() as f64;
        let (mean, deviation) = (10_000.0 * p, (10_000.0 * p * (1.0 - p)).sqrt());
        assert!(counts.iter().all(|&count| (count as f64 - mean).abs() < 5.0 * deviation), "{counts:?}");
    }

    #[test]
    fn every_whole_clip_is_equally_likely() {
        assert_even(&tally(15, |drawn| drawn.choose(&CLIP, extent(30)).first_frame as usize));
    }

    #[test]
    fn scales_positions_and_flips_are_equally_likely_and_independent() {
        let square = |drawn: &Variation| match drawn.choose(&CLIP, extent(30)).crop {
            Crop::Square { scale, x, y } => (scale, (x, y)),
            other => panic!("{other:?} is no square"),
        };
        let place = |list: &[f64], value: f64| list.iter().position(|&item| item == value).expect("one of the list");
        assert_even(&tally(50, |drawn| {
            let (scale, position) = square(&drawn);
            let position = POSITIONS.iter().position(|&item| item == position).expect("one of five");
            (place(&SCALES, scale) * 5 + position) * 2 + usize::from(drawn.flip)
        }));
    }

    #[test]
    fn scales_are_the_papers() {
        for (quarters, scale) in SCALES.into_iter().enumerate() {
            assert!((scale - 2f64.powf(-(quarters as f64) / 4.0)).abs() < 1e-15);
        }
    }

    #[test]
    fn short_video_begins_at_its_start() {
        for position in 0..20 {
            assert_eq!(Augment::PAPER.draw(0, 0, position).choose(&CLIP, extent(9)).first_frame, 0);
        }
    }

    #[test]
    fn temporal_stride_leaves_room_for_the_whole_clip() {
        let strided = ClipSpec { temporal_stride: 3, ..CLIP };
        let last = (0..2000).map(|p| Augment::PAPER.draw(0, 0, p).choose(&strided, extent(50)).first_frame).max();
        // 16 frames, 3 apart, are 46 frames long.
        assert_eq!(last, Some(4));
    }

    #[test]
    fn validation_takes_the_middle_and_changes_nothing() {
        let drawn = Augment::NONE.draw(1, 2, 3);
        assert_eq!(drawn.choose(&CLIP, extent(36)), Choice { first_frame: 10, crop: Crop::Center });
        assert!(!drawn.flip && drawn.colors.is_none());
    }

    #[test]
    fn flip_can_be_left_out_without_an_effect_on_the_rest() {
        let no_flip = Augment { flip: false, ..Augment::PAPER };
        for position in 0..50 {
            let [with, without] = [&Augment::PAPER, &no_flip].map(|augment| augment.draw(5, 0, position));
            assert!(!without.flip);
            assert_eq!(with.choose(&CLIP, extent(99)), without.choose(&CLIP, extent(99)));
        }
    }

    #[test]
    fn numbers_stay_what_they_are() {
        // A change here would make every published seed give another training run.
        let mut draws = Draws::new(1, "clip", 2, 3);
        assert_eq!([draws.below(1000), draws.below(1000), draws.below(1000)], [390, 120, 384]);
    }

    #[test]
    fn neutral_colors_change_nothing() {
        let before: Vec<u8> = (0..=255).collect::<Vec<u8>>()[..255].to_vec();
        let mut after = before.clone();
        Colors { brightness: 1.0, contrast: 1.0, saturation: 1.0 }.apply(&mut after);
        assert_eq!(before, after);
    }

    #[test]
    fn saturation_of_nothing_is_gray_and_contrast_of_nothing_is_flat() {
        let mut rgb = [200, 10, 50, 0, 100, 0];
        Colors { brightness: 1.0, contrast: 1.0, saturation: 0.0 }.apply(&mut rgb);
        assert_eq!(rgb, [71, 71, 71, 59, 59, 59]);
        Colors { brightness: 1.0, contrast: 0.0, saturation: 1.0 }.apply(&mut rgb);
        assert_eq!(rgb, [65; 6]);
    }

    proptest! {
        #[test]
        fn boxes_lie_within_the_frame(
            width in 1u32..4000, height in 1u32..3000, seed: u64, position: u64,
            low in 0.01f64..1.0, narrow in 0.05f64..1.0,
        ) {
            let crop = TrainCrop::RandomResized { area: (low, 1.0), ratio: (narrow, 1.0 / narrow) };
            let drawn = Augment { crop, ..Augment::PAPER }.draw(seed, 0, position);
            let choice = drawn.choose(&CLIP, Extent { frames: 20, width, height });
            let Crop::Box { left, top, width: w, height: h } = choice.crop else { panic!("{choice:?}") };
            prop_assert!(w > 0.0 && h > 0.0 && left >= 0.0 && top >= 0.0);
            prop_assert!(left + w <= 1.0 + 1e-12 && top + h <= 1.0 + 1e-12);
            let ratio = w * f64::from(width) / (h * f64::from(height));
            prop_assert!(ratio >= narrow * 0.999 && ratio <= 1.001 / narrow || w == 1.0 || h == 1.0, "{}", ratio);
        }

        #[test]
        fn same_place_gives_the_same_clip(seed: u64, epoch: u64, position: u64, frames in 1u64..1000) {
            let augment = Augment { color_jitter: Some(JITTER), ..Augment::PAPER };
            let [a, b] = [(); 2].map(|()| augment.draw(seed, epoch, position));
            prop_assert_eq!(a.choose(&CLIP, extent(frames)), b.choose(&CLIP, extent(frames)));
            prop_assert_eq!((a.flip, a.colors), (b.flip, b.colors));
            prop_assert!(a.choose(&CLIP, extent(frames)).first_frame <= frames.saturating_sub(16));
        }
    }
}
