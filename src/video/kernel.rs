//! The inner loops: one plane resized in both directions, then planes to RGB.
//!
//! Intermediate samples have [`SAMPLE_BITS`] bits whatever the source depth, so the second pass and the colour
//! matrix know one format only. All loops are plain safe Rust; [`Kernel`] compiles them twice, for any CPU and
//! for AVX2, and picks at run time.

use super::picture::Plane;
use super::weights::{TAP_GROUP, Taps, WEIGHT_BITS};

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
        i32::from(self)
    }
}

/// Resizes `plane` (samples of `depth` bits) into `out`, `rows.len()` rows of `columns.len()` intermediate samples.
/// `scratch` keeps its allocation from call to call.
#[inline(always)]
pub(super) fn resize_plane<T: Sample>(
    plane: &Plane<'_, T>,
    depth: u32,
    rows: &Taps,
    columns: &Taps,
    scratch: &mut Vec<i16>,
    out: &mut [i16],
) {
    let (first, end) = (columns.first, columns.end);
    // The padding lets the padded taps of the last columns read beyond the end, where their weights are zero.
    scratch.clear();
    scratch.resize(end - first + columns.width(), 0);
    for (y, out_row) in out.chunks_exact_mut(columns.len()).enumerate() {
        let (start, weights) = rows.band(y);
        blend_rows(plane, start, weights, first, depth, &mut scratch[..end - first]);
        shrink_row(scratch, first, columns, out_row);
    }
}

/// Columns blended at a time: eight registers of eight 32-bit sums with AVX2.
const BLOCK: usize = 64;

/// Weighted sum of the rows from `start` on; `out` covers the columns from `first` on.
#[inline(always)]
fn blend_rows<T: Sample>(
    plane: &Plane<'_, T>,
    start: usize,
    weights: &[i16],
    first: usize,
    depth: u32,
    out: &mut [i16],
) {
    let mut x = first;
    let mut blocks = out.chunks_exact_mut(BLOCK);
    for block in &mut blocks {
        let mut sums = [1i32 << (depth - 1); BLOCK];
        for (y, &weight) in weights.iter().enumerate() {
            let row: &[T; BLOCK] = plane.row(start + y)[x..][..BLOCK].try_into().expect("BLOCK samples were sliced");
            for (sum, sample) in sums.iter_mut().zip(row) {
                *sum += sample.value() * i32::from(weight);
            }
        }
        for (out, sum) in block.iter_mut().zip(sums) {
            *out = to_sample(sum >> depth);
        }
        x += BLOCK;
    }
    for (i, out) in blocks.into_remainder().iter_mut().enumerate() {
        let mut sum = 1i32 << (depth - 1);
        for (y, &weight) in weights.iter().enumerate() {
            sum += plane.row(start + y)[x + i].value() * i32::from(weight);
        }
        *out = to_sample(sum >> depth);
    }
}

/// Each output is a weighted sum of neighbours in `row`, whose first element is source column `first`.
#[inline(always)]
fn shrink_row(row: &[i16], first: usize, columns: &Taps, out: &mut [i16]) {
    let width = columns.width();
    for ((out, &start), weights) in
        out.iter_mut().zip(columns.starts()).zip(columns.padded_weights().chunks_exact(width))
    {
        let mut sum = 1i32 << (WEIGHT_BITS - 1);
        let samples = &row[start - first..][..width];
        for (samples, weights) in samples.chunks_exact(TAP_GROUP).zip(weights.chunks_exact(TAP_GROUP)) {
            for (&sample, &weight) in samples.iter().zip(weights) {
                sum += i32::from(sample) * i32::from(weight);
            }
        }
        *out = to_sample(sum >> WEIGHT_BITS);
    }
}

#[inline(always)]
fn to_sample(value: i32) -> i16 {
    value.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

/// Fractional bits of [`ColorCoefficients`].
pub(super) const COLOR_BITS: u32 = 13;

/// From intermediate Y'CbCr samples to 8-bit RGB, with [`COLOR_BITS`] fractional bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ColorCoefficients {
    /// Luma's part of all three.
    pub(super) luma: i32,
    /// Second chroma's part of red.
    pub(super) red_v: i32,
    /// First chroma's part of green.
    pub(super) green_u: i32,
    /// Second chroma's part of green.
    pub(super) green_v: i32,
    /// First chroma's part of blue.
    pub(super) blue_u: i32,
    /// Luma of black, an intermediate sample.
    pub(super) black: i32,
}

const NEUTRAL: i32 = 1 << (SAMPLE_BITS - 1);
const COLOR_SHIFT: u32 = COLOR_BITS + SAMPLE_BITS - 8;

#[inline(always)]
pub(super) fn ycbcr_to_rgb(y: &[i16], u: &[i16], v: &[i16], c: &ColorCoefficients, rgb: &mut [u8]) {
    for (((rgb, &y), &u), &v) in rgb.chunks_exact_mut(3).zip(y).zip(u).zip(v) {
        let luma = (i32::from(y) - c.black) * c.luma + (1 << (COLOR_SHIFT - 1));
        let (u, v) = (i32::from(u) - NEUTRAL, i32::from(v) - NEUTRAL);
        rgb[0] = to_byte((luma + v * c.red_v) >> COLOR_SHIFT);
        rgb[1] = to_byte((luma + u * c.green_u + v * c.green_v) >> COLOR_SHIFT);
        rgb[2] = to_byte((luma + u * c.blue_u) >> COLOR_SHIFT);
    }
}

#[inline(always)]
pub(super) fn planes_to_rgb(r: &[i16], g: &[i16], b: &[i16], rgb: &mut [u8]) {
    const SHIFT: u32 = SAMPLE_BITS - 8;
    let round = |sample: i16| to_byte((i32::from(sample) + (1 << (SHIFT - 1))) >> SHIFT);
    for (((rgb, &r), &g), &b) in rgb.chunks_exact_mut(3).zip(r).zip(g).zip(b) {
        rgb.copy_from_slice(&[round(r), round(g), round(b)]);
    }
}

#[inline(always)]
fn to_byte(value: i32) -> u8 {
    value.clamp(0, 255) as u8
}
