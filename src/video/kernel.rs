//! The inner loops: one plane resized in both directions, then planes to RGB.
//!
//! Intermediate samples have [`SAMPLE_BITS`] bits whatever the source depth, so the second pass and the colour
//! matrix know one format only. This is the portable form, for any CPU and to test the others against.

use super::picture::Plane;
use super::weights::{Taps, WEIGHT_BITS};

/// Bits of an intermediate sample: 8-bit white is 255 << 6. Filters with negative weights overshoot by at most
/// a quarter, which 16 bits with sign hold.
pub(super) const SAMPLE_BITS: u32 = 14;

/// A decoded sample: 8 bits, or up to 14 bits in a 16-bit word.
pub(super) trait Sample: Copy + Send + Sync {
    /// The value.
    fn value(self) -> i32;
}

impl Sample for u8 {
    #[inline(always)]
    fn value(self) -> i32 {
        i32::from(self)
    }
}

impl Sample for u16 {
    #[inline(always)]
    fn value(self) -> i32 {
        i32::from(self & MAX_WORD)
    }
}

/// The largest sample of the deepest format. Raw video can hold any word; bits above mean nothing.
pub(super) const MAX_WORD: u16 = (1 << 14) - 1;

/// Resizes `plane` (samples of `depth` bits) into `out`, `rows.len()` rows of `columns.len()` intermediate samples.
/// `scratch` keeps its allocation from call to call.
pub(super) fn resize_plane<T: Sample>(
    plane: &Plane<'_, T>,
    depth: u32,
    rows: &Taps,
    columns: &Taps,
    scratch: &mut Vec<i16>,
    out: &mut [i16],
) {
    let (first, end) = (columns.first, columns.end);
    scratch.clear();
    scratch.resize(end - first, 0);
    for (y, out_row) in out.chunks_exact_mut(columns.len()).enumerate() {
        let (start, weights) = rows.band(y);
        blend_rows(plane, start, weights, first, depth, scratch);
        shrink_row(scratch, first, columns, out_row);
    }
}

/// Columns blended at a time, few enough for their sums to stay in registers.
const BLOCK: usize = 16;

/// Weighted sum of the rows from `start` on; `out` covers the columns from `first` on.
pub(super) fn blend_rows<T: Sample>(
    plane: &Plane<'_, T>,
    start: usize,
    weights: &[i16],
    first: usize,
    depth: u32,
    out: &mut [i16],
) {
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let mut sums = [1i32 << (depth - 1); BLOCK];
        for (y, &weight) in weights.iter().enumerate() {
            let row = &plane.row(start + y)[first + block * BLOCK..][..out.len()];
            for (sum, sample) in sums.iter_mut().zip(row) {
                *sum += sample.value() * i32::from(weight);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = to_sample(sum >> depth);
        }
    }
}

/// Each output is a weighted sum of neighbours in `row`, whose first element is source column `first`.
pub(super) fn shrink_row(row: &[i16], first: usize, columns: &Taps, out: &mut [i16]) {
    for (o, out) in out.iter_mut().enumerate() {
        let (start, weights) = columns.band(o);
        let samples = &row[start - first..][..weights.len()];
        let products = samples.iter().zip(weights).map(|(&sample, &weight)| i32::from(sample) * i32::from(weight));
        *out = to_sample((products.sum::<i32>() + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS);
    }
}

fn to_sample(value: i32) -> i16 {
    value.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

/// Fractional bits of [`ColorCoefficients`].
pub(super) const COLOR_BITS: u32 = 13;

/// From intermediate Y'CbCr samples to 8-bit RGB, with [`COLOR_BITS`] fractional bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ColorCoefficients {
    /// Luma's part of all three.
    pub(super) luma: i16,
    /// Second chroma's part of red.
    pub(super) red_v: i16,
    /// First chroma's part of green.
    pub(super) green_u: i16,
    /// Second chroma's part of green.
    pub(super) green_v: i16,
    /// First chroma's part of blue.
    pub(super) blue_u: i16,
    /// Luma of black, an intermediate sample.
    pub(super) black: i16,
}

/// The middle of an intermediate chroma sample's range.
pub(super) const NEUTRAL: i16 = 1 << (SAMPLE_BITS - 1);
/// From an intermediate sample times a coefficient to a byte.
pub(super) const COLOR_SHIFT: u32 = COLOR_BITS + SAMPLE_BITS - 8;

pub(super) fn ycbcr_to_rgb(planes: [&[i16]; 3], c: &ColorCoefficients, rgb: &mut [u8]) {
    let [y, u, v] = planes;
    let round = 1 << (COLOR_SHIFT - 1);
    for (((rgb, &y), &u), &v) in rgb.chunks_exact_mut(3).zip(y).zip(u).zip(v) {
        let y = i32::from(y.saturating_sub(c.black));
        let (u, v) = (i32::from(u.saturating_sub(NEUTRAL)), i32::from(v.saturating_sub(NEUTRAL)));
        let luma = y * i32::from(c.luma) + round;
        rgb[0] = to_byte((luma + v * i32::from(c.red_v)) >> COLOR_SHIFT);
        rgb[1] = to_byte((luma + u * i32::from(c.green_u) + v * i32::from(c.green_v)) >> COLOR_SHIFT);
        rgb[2] = to_byte((luma + u * i32::from(c.blue_u)) >> COLOR_SHIFT);
    }
}

pub(super) fn planes_to_rgb(planes: [&[i16]; 3], rgb: &mut [u8]) {
    let [r, g, b] = planes;
    const SHIFT: u32 = SAMPLE_BITS - 8;
    let round = |sample: i16| to_byte((i32::from(sample) + (1 << (SHIFT - 1))) >> SHIFT);
    for (((rgb, &r), &g), &b) in rgb.chunks_exact_mut(3).zip(r).zip(g).zip(b) {
        rgb.copy_from_slice(&[round(r), round(g), round(b)]);
    }
}

fn to_byte(value: i32) -> u8 {
    value.clamp(0, 255) as u8
}
