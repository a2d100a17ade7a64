//! The inner loops of [`super::kernel`] for CPUs with AVX2, and the choice between both.

#![allow(unsafe_code)]

use super::kernel::{self, ColorCoefficients};
use super::picture::Plane;
use super::weights::Taps;

/// The inner loops as written for one kind of CPU. Every kernel gives the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel(Build);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kernel {
    /// For any CPU.
    pub(super) const PORTABLE: Self = Self(Build::Portable);

    /// The fastest that this CPU can run.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return Self(Build::Avx2);
        }
        Self::PORTABLE
    }

    /// Resizes a plane of 8-bit samples; see [`kernel::resize_plane`].
    pub(super) fn resize_bytes(
        self,
        plane: &Plane<'_, u8>,
        rows: &Taps,
        columns: &Taps,
        scratch: &mut Vec<i16>,
        out: &mut [i16],
    ) {
        match self.0 {
            Build::Portable => kernel::resize_plane(plane, 8, rows, columns, scratch, out),
            // SAFETY: `detect`, the only way to this variant, found AVX2 on this CPU.
            #[cfg(target_arch = "x86_64")]
            Build::Avx2 => unsafe { avx2::resize_bytes(plane, rows, columns, scratch, out) },
        }
    }

    /// Resizes a plane of samples of `depth` bits; see [`kernel::resize_plane`].
    pub(super) fn resize_words(
        self,
        plane: &Plane<'_, u16>,
        depth: u32,
        rows: &Taps,
        columns: &Taps,
        scratch: &mut Vec<i16>,
        out: &mut [i16],
    ) {
        match self.0 {
            Build::Portable => kernel::resize_plane(plane, depth, rows, columns, scratch, out),
            // SAFETY: as in `resize_bytes`.
            #[cfg(target_arch = "x86_64")]
            Build::Avx2 => unsafe { avx2::resize_words(plane, depth, rows, columns, scratch, out) },
        }
    }

    /// See [`kernel::ycbcr_to_rgb`].
    pub(super) fn ycbcr_to_rgb(self, planes: [&[i16]; 3], coefficients: &ColorCoefficients, rgb: &mut [u8]) {
        match self.0 {
            Build::Portable => kernel::ycbcr_to_rgb(planes, coefficients, rgb),
            // SAFETY: as in `resize_bytes`.
            #[cfg(target_arch = "x86_64")]
            Build::Avx2 => unsafe { avx2::ycbcr_to_rgb(planes, coefficients, rgb) },
        }
    }

    /// See [`kernel::planes_to_rgb`].
    pub(super) fn planes_to_rgb(self, planes: [&[i16]; 3], rgb: &mut [u8]) {
        match self.0 {
            Build::Portable => kernel::planes_to_rgb(planes, rgb),
            // SAFETY: as in `resize_bytes`.
            #[cfg(target_arch = "x86_64")]
            Build::Avx2 => unsafe { avx2::planes_to_rgb(planes, rgb) },
        }
    }
}

/// 16-bit samples and weights meet in `madd`, which adds two products of neighbours into a 32-bit sum, so rows (and
/// colour planes) are taken in pairs and interleaved.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::kernel::{COLOR_SHIFT, ColorCoefficients, MAX_WORD, NEUTRAL, SAMPLE_BITS};
    use super::{Plane, Taps, kernel};
    use crate::video::weights::WEIGHT_BITS;

    /// 32 bytes of `slice` from element `at` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load<T: Copy>(slice: &[T], at: usize) -> __m256i {
        let part = &slice[at..][..32 / size_of::<T>()];
        // SAFETY: `part` is 32 bytes long; the load needs no alignment, and any bits make a vector.
        unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
    }

    /// Writes 16 words to `slice` from element `at` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(slice: &mut [i16], at: usize, words: __m256i) {
        let part = &mut slice[at..][..16];
        // SAFETY: `part` is 32 bytes long and ours to write; the store needs no alignment.
        unsafe { _mm256_storeu_si256(part.as_mut_ptr().cast(), words) }
    }

    /// Writes 16 bytes worth of elements to `slice` from element `at` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_half<T: Copy>(slice: &mut [T], at: usize, bits: __m128i) {
        let part = &mut slice[at..][..16 / size_of::<T>()];
        // SAFETY: `part` is 16 bytes long and ours to write; the store needs no alignment. `T` is `u8` or `i16`, of which
        // any bits are a value.
        unsafe { _mm_storeu_si128(part.as_mut_ptr().cast(), bits) }
    }

    /// Two weights in each 32-bit lane, the first in the lower half.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pair(first: i16, second: i16) -> __m256i {
        _mm256_set1_epi32(i32::from(first) & 0xffff | i32::from(second) << 16)
    }

    /// The starts of blocks of `block` that cover `len >= block` elements; the last may overlap the one before.
    #[inline]
    fn blocks(len: usize, block: usize) -> impl Iterator<Item = usize> {
        (0..len.div_ceil(block)).map(move |i| (i * block).min(len - block))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn resize_bytes(
        plane: &Plane<'_, u8>,
        rows: &Taps,
        columns: &Taps,
        scratch: &mut Vec<i16>,
        out: &mut [i16],
    ) {
        let width = columns.end - columns.first;
        resize_rows(columns, scratch, out, |y, row| {
            let (start, weights) = rows.band(y);
            if width < 32 {
                kernel::blend_rows(plane, start, weights, columns.first, 8, row);
            } else {
                let source = Rows::of(plane, start, weights.len(), columns.first, width);
                blend_bytes(&source, rows.band_of_pairs(y).1, row);
            }
        });
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn resize_words(
        plane: &Plane<'_, u16>,
        depth: u32,
        rows: &Taps,
        columns: &Taps,
        scratch: &mut Vec<i16>,
        out: &mut [i16],
    ) {
        let width = columns.end - columns.first;
        resize_rows(columns, scratch, out, |y, row| {
            let (start, weights) = rows.band(y);
            if width < 16 {
                kernel::blend_rows(plane, start, weights, columns.first, depth, row);
            } else {
                let source = Rows::of(plane, start, weights.len(), columns.first, width);
                blend_words(&source, rows.band_of_pairs(y).1, depth, row);
            }
        });
    }

    /// Rows that are shrunk at once: the 32-bit lanes of a register.
    const LANES: usize = 8;

    /// Makes the rows of `out`: `blend` gives a row of the source's columns, which is then shrunk.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn resize_rows(columns: &Taps, scratch: &mut Vec<i16>, out: &mut [i16], mut blend: impl FnMut(usize, &mut [i16])) {
        let width = columns.end - columns.first;
        // Behind the last column are zeros up to whole registers, and as many as the padded weights may meet.
        let stride = (width + 2 * columns.pairs().count).next_multiple_of(2 * LANES);
        scratch.clear();
        scratch.resize(2 * LANES * stride, 0);
        let (blended, turned) = scratch.split_at_mut(LANES * stride);
        let rows = out.len() / columns.len();
        if rows < LANES || columns.len() < LANES {
            for (y, out) in out.chunks_exact_mut(columns.len()).enumerate() {
                blend(y, &mut blended[..width]);
                kernel::shrink_row(blended, columns.first, columns, out);
            }
            return;
        }
        for y in blocks(rows, LANES) {
            for (i, row) in blended.chunks_exact_mut(stride).enumerate() {
                blend(y + i, &mut row[..width]);
            }
            turn_pairs(blended, turned, stride);
            let out = &mut out[y * columns.len()..][..LANES * columns.len()];
            // Videos of up to about four times the clip's size need few pairs.
            match columns.pairs().count {
                2 => shrink_rows::<2>(turned, columns, out),
                3 => shrink_rows::<3>(turned, columns, out),
                4 => shrink_rows::<4>(turned, columns, out),
                5 => shrink_rows::<5>(turned, columns, out),
                _ => shrink_rows::<0>(turned, columns, out),
            }
        }
    }

    /// From eight rows of `stride` samples to the pairs of neighbours, eight rows of a pair side by side. `stride` is a
    /// multiple of 16.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn turn_pairs(rows: &[i16], turned: &mut [i16], stride: usize) {
        assert!(stride.is_multiple_of(2 * LANES) && rows.len() == LANES * stride && turned.len() == rows.len());
        for x in (0..stride).step_by(2 * LANES) {
            let row = |i: usize| {
                // SAFETY: `x + 16 <= stride`, and there are eight rows of `stride`; the load needs no alignment.
                unsafe { _mm256_loadu_si256(rows.as_ptr().add(i * stride + x).cast()) }
            };
            let neighbours = [0, 2, 4, 6].map(|i| {
                let (upper, lower) = (row(i), row(i + 1));
                [_mm256_unpacklo_epi32(upper, lower), _mm256_unpackhi_epi32(upper, lower)]
            });
            // Of rows 0 to 3 and 4 to 7: pairs 0 and 4, 1 and 5, 2 and 6, 3 and 7.
            let fours = [0, 2].map(|i| {
                let ([low, high], [below_low, below_high]) = (neighbours[i], neighbours[i + 1]);
                [
                    _mm256_unpacklo_epi64(low, below_low),
                    _mm256_unpackhi_epi64(low, below_low),
                    _mm256_unpacklo_epi64(high, below_high),
                    _mm256_unpackhi_epi64(high, below_high),
                ]
            });
            let [upper_rows, lower_rows] = fours;
            for (pair, (upper, lower)) in upper_rows.into_iter().zip(lower_rows).enumerate() {
                let pairs =
                    [_mm256_permute2x128_si256::<0x20>(upper, lower), _mm256_permute2x128_si256::<0x31>(upper, lower)];
                for (pairs, pair) in pairs.into_iter().zip([pair, pair + 4]) {
                    // SAFETY: pair `x / 2 + pair` is less than `stride / 2`, and each has 16 samples; as above.
                    unsafe { _mm256_storeu_si256(turned.as_mut_ptr().add((x / 2 + pair) * 2 * LANES).cast(), pairs) };
                }
            }
        }
    }

    /// Part of a plane whose bounds were checked once, as checks at each load cost as much as the load.
    struct Rows<'a, T> {
        part: &'a [T],
        stride: usize,
        last: usize,
        columns: usize,
    }

    impl<'a, T: Copy> Rows<'a, T> {
        /// `rows` rows from `start` on, of `columns` columns from `first` on; at least one of each.
        fn of(plane: &Plane<'a, T>, start: usize, rows: usize, first: usize, columns: usize) -> Self {
            assert!(rows > 0 && columns > 0 && first + columns <= plane.width && start + rows <= plane.height);
            let part = &plane.samples[start * plane.stride + first..][..(rows - 1) * plane.stride + columns];
            Self { part, stride: plane.stride, last: rows - 1, columns }
        }

        /// 32 bytes from column `x` on, of row `y` or else the last.
        ///
        /// # Safety
        ///
        /// There are 32 bytes of columns from `x` on.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn load(&self, y: usize, x: usize) -> __m256i {
            debug_assert!(x + 32 / size_of::<T>() <= self.columns);
            // SAFETY: `of` checked that the samples reach to the last column of the last row. The load needs no alignment.
            unsafe { _mm256_loadu_si256(self.part.as_ptr().add(y.min(self.last) * self.stride + x).cast()) }
        }
    }

    /// See [`kernel::blend_rows`]; `source` has as many columns as `out` has elements, at least 32.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn blend_bytes(source: &Rows<'_, u8>, weights: &[[i16; 2]], out: &mut [i16]) {
        assert_eq!(source.columns, out.len());
        let zero = _mm256_setzero_si256();
        for x in blocks(out.len(), 32) {
            let mut sums = [_mm256_set1_epi32(1 << 7); 4];
            for (i, &[first, second]) in weights.iter().enumerate() {
                let weights = pair(first, second);
                // SAFETY: `blocks` gives places with 32 elements left. The row after an odd last one has weight zero.
                let (upper, lower) = unsafe { (source.load(2 * i, x), source.load(2 * i + 1, x)) };
                let (left, right) = (_mm256_unpacklo_epi8(upper, lower), _mm256_unpackhi_epi8(upper, lower));
                let pairs = [
                    _mm256_unpacklo_epi8(left, zero),
                    _mm256_unpackhi_epi8(left, zero),
                    _mm256_unpacklo_epi8(right, zero),
                    _mm256_unpackhi_epi8(right, zero),
                ];
                for (sum, pair) in sums.iter_mut().zip(pairs) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pair, weights));
                }
            }
            let [a, b, c, d] = sums.map(|sum| _mm256_srai_epi32::<8>(sum));
            // Unpacking worked in halves: columns 0-7 and 16-23 are in the first pack, the others in the second.
            let (even, odd) = (_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            store(out, x, _mm256_permute2x128_si256::<0x20>(even, odd));
            store(out, x + 16, _mm256_permute2x128_si256::<0x31>(even, odd));
        }
    }

    /// See [`kernel::blend_rows`]; `source` has as many columns as `out` has elements, at least 16.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn blend_words(source: &Rows<'_, u16>, weights: &[[i16; 2]], depth: u32, out: &mut [i16]) {
        assert_eq!(source.columns, out.len());
        let mask = _mm256_set1_epi16(MAX_WORD as i16);
        let shift = _mm_cvtsi32_si128(depth as i32);
        for x in blocks(out.len(), 16) {
            let mut sums = [_mm256_set1_epi32(1 << (depth - 1)); 2];
            for (i, &[first, second]) in weights.iter().enumerate() {
                let weights = pair(first, second);
                // SAFETY: as in `blend_bytes`, with 16 elements.
                let (upper, lower) = unsafe { (source.load(2 * i, x), source.load(2 * i + 1, x)) };
                let (upper, lower) = (_mm256_and_si256(upper, mask), _mm256_and_si256(lower, mask));
                let pairs = [_mm256_unpacklo_epi16(upper, lower), _mm256_unpackhi_epi16(upper, lower)];
                for (sum, pair) in sums.iter_mut().zip(pairs) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pair, weights));
                }
            }
            let [a, b] = sums.map(|sum| _mm256_sra_epi32(sum, shift));
            store(out, x, _mm256_packs_epi32(a, b));
        }
    }

    /// See [`kernel::shrink_row`], for the eight rows of `turned` at a time. `COUNT` is the number of pairs for each output,
    /// 0 for any.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn shrink_rows<const COUNT: usize>(turned: &[i16], columns: &Taps, out: &mut [i16]) {
        let pairs = columns.pairs();
        let count = if COUNT == 0 { pairs.count } else { COUNT };
        assert!(count == pairs.count && pairs.weights.len() == pairs.starts.len() * count);
        let last = (columns.end - columns.first - 1) / 2;
        assert!(turned.len() >= (last + count) * 2 * LANES);
        let width = pairs.starts.len();
        for o in blocks(width, LANES) {
            let mut sums = [_mm256_set1_epi32(1 << (WEIGHT_BITS - 1)); LANES];
            for (k, sum) in sums.iter_mut().enumerate() {
                let start = pairs.starts[o + k];
                debug_assert!(start <= last);
                for p in 0..count {
                    // SAFETY: an output's first sample is one of the source's, so `start <= last`, and `turned` holds 16 samples
                    // for each pair before `last + count`; output `o + k` has `count` weights, as asserted. The loads need no
                    // alignment.
                    let (samples, weights) = unsafe {
                        let weights = pairs.weights.as_ptr().add((o + k) * count + p);
                        (
                            _mm256_loadu_si256(turned.as_ptr().add((start + p) * 2 * LANES).cast()),
                            _mm256_set1_epi32(weights.cast::<i32>().read_unaligned()),
                        )
                    };
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(samples, weights));
                }
            }
            let [a, b, c, d, e, f, g, h] = sums.map(|sum| _mm256_srai_epi32::<{ WEIGHT_BITS as i32 }>(sum));
            // In each half, two outputs of four rows; then two outputs of each row side by side; then eight outputs of a row.
            let twos = [(a, b), (c, d), (e, f), (g, h)].map(|(first, second)| {
                let mixed = _mm256_setr_epi8(
                    0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7,
                    14, 15,
                );
                _mm256_shuffle_epi8(_mm256_packs_epi32(first, second), mixed)
            });
            let (left, right) = ([twos[0], twos[1]], [twos[2], twos[3]]);
            let [left, right] = [left, right].map(|[a, b]| [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)]);
            for (i, (left, right)) in left.into_iter().zip(right).enumerate() {
                let rows = [_mm256_unpacklo_epi64(left, right), _mm256_unpackhi_epi64(left, right)];
                for (row, y) in rows.into_iter().zip(2 * i..) {
                    store_half(out, y * width + o, _mm256_castsi256_si128(row));
                    store_half(out, (y + 4) * width + o, _mm256_extracti128_si256::<1>(row));
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn ycbcr_to_rgb(planes: [&[i16]; 3], c: &ColorCoefficients, rgb: &mut [u8]) {
        let [y, u, v] = planes;
        if y.len() < 16 {
            return kernel::ycbcr_to_rgb(planes, c, rgb);
        }
        let (black, neutral) = (_mm256_set1_epi16(c.black), _mm256_set1_epi16(NEUTRAL));
        let round = _mm256_set1_epi32(1 << (COLOR_SHIFT - 1));
        let (red, blue) = (pair(c.luma, c.red_v), pair(c.luma, c.blue_u));
        let (green, green_v) = (pair(c.luma, c.green_u), pair(0, c.green_v));
        for at in blocks(y.len(), 16) {
            let y = _mm256_subs_epi16(load(y, at), black);
            let u = _mm256_subs_epi16(load(u, at), neutral);
            let v = _mm256_subs_epi16(load(v, at), neutral);
            let yu = [_mm256_unpacklo_epi16(y, u), _mm256_unpackhi_epi16(y, u)];
            let yv = [_mm256_unpacklo_epi16(y, v), _mm256_unpackhi_epi16(y, v)];
            let narrow = |sums: [__m256i; 2]| {
                let [a, b] = sums.map(|sum| _mm256_srai_epi32::<{ COLOR_SHIFT as i32 }>(_mm256_add_epi32(sum, round)));
                to_bytes(_mm256_packs_epi32(a, b))
            };
            let r = narrow(yv.map(|yv| _mm256_madd_epi16(yv, red)));
            let b = narrow(yu.map(|yu| _mm256_madd_epi16(yu, blue)));
            let luma_u = yu.map(|yu| _mm256_madd_epi16(yu, green));
            let from_v = yv.map(|yv| _mm256_madd_epi16(yv, green_v));
            let g = narrow([_mm256_add_epi32(luma_u[0], from_v[0]), _mm256_add_epi32(luma_u[1], from_v[1])]);
            store_pixels(rgb, at, r, g, b);
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn planes_to_rgb(planes: [&[i16]; 3], rgb: &mut [u8]) {
        const SHIFT: u32 = SAMPLE_BITS - 8;
        if planes[0].len() < 16 {
            return kernel::planes_to_rgb(planes, rgb);
        }
        let round = _mm256_set1_epi16(1 << (SHIFT - 1));
        for at in blocks(planes[0].len(), 16) {
            let [r, g, b] = planes.map(|plane| {
                let rounded = _mm256_adds_epi16(load(plane, at), round);
                to_bytes(_mm256_srai_epi16::<{ SHIFT as i32 }>(rounded))
            });
            store_pixels(rgb, at, r, g, b);
        }
    }

    /// 16 words as bytes, saturated.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn to_bytes(words: __m256i) -> __m128i {
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words))
    }

    /// Interleaves 16 pixels and writes them to `rgb` from pixel `at` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_pixels(rgb: &mut [u8], at: usize, r: __m128i, g: __m128i, b: __m128i) {
        for (third, [of_r, of_g, of_b]) in INTERLEAVE.iter().enumerate() {
            let pick = |color: __m128i, mask: &[i8; 16]| {
                // SAFETY: the mask is 16 bytes long; the load needs no alignment.
                _mm_shuffle_epi8(color, unsafe { _mm_loadu_si128(mask.as_ptr().cast()) })
            };
            let bytes = _mm_or_si128(_mm_or_si128(pick(r, of_r), pick(g, of_g)), pick(b, of_b));
            store_half(rgb, at * 3 + third * 16, bytes);
        }
    }

    /// For each third of 48 interleaved bytes and each colour: which of 16 samples goes where, -1 for none.
    const INTERLEAVE: [[[i8; 16]; 3]; 3] = {
        let mut masks = [[[-1i8; 16]; 3]; 3];
        let mut byte = 0;
        while byte < 48 {
            masks[byte / 16][byte % 3][byte % 16] = (byte / 3) as i8;
            byte += 1;
        }
        masks
    };
}
