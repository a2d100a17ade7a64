//! Weights of separable resampling: for each output position, which source samples count how much.

/// Fractional bits of quantised weights: they sum to `1 << WEIGHT_BITS` for each output position.
pub(super) const WEIGHT_BITS: u32 = 14;

/// Part of a source axis, in samples from its start; may be fractional.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    /// First sample's left edge.
    pub(super) start: f64,
    /// Extent.
    pub(super) length: f64,
}

/// One resampling matrix, banded: `rows[o]` holds the weights of output `o`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Weights {
    rows: Vec<Band>,
    source_len: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Band {
    start: usize,
    weights: Vec<f64>,
}

impl Weights {
    /// Pillow's bilinear: a triangle filter, widened by the scale when shrinking. `span` becomes `out` samples; the
    /// filter sees samples beyond the span, but none beyond the source. Source: `precompute_coeffs` of
    /// Pillow's `Resample.c`.
    pub(super) fn triangle(source_len: usize, span: Span, out: usize) -> Self {
        let scale = span.length / out as f64;
        let support = scale.max(1.0);
        let rows = (0..out)
            .map(|o| {
                let center = span.start + (o as f64 + 0.5) * scale;
                let start = ((center - support + 0.5).max(0.0) as usize).min(source_len - 1);
                let end = ((center + support + 0.5).max(0.0) as usize).clamp(start + 1, source_len);
                let weight = |i: usize| (1.0 - ((i as f64 - center + 0.5) / support).abs()).max(0.0);
                Band::normalised(start, (start..end).map(weight).collect())
            })
            .collect();
        Self { rows, source_len }
    }

    /// Linear interpolation between the two nearest samples, whatever the scale. Source: PyTorch's
    /// `upsample_bilinear2d` with `align_corners=False`.
    pub(super) fn two_tap(source_len: usize, span: Span, out: usize) -> Self {
        let scale = span.length / out as f64;
        let rows = (0..out)
            .map(|o| {
                let position = (span.start + (o as f64 + 0.5) * scale - 0.5).clamp(0.0, (source_len - 1) as f64);
                let start = position as usize;
                let fraction = position - start as f64;
                let weights = if fraction > 0.0 { vec![1.0 - fraction, fraction] } else { vec![1.0] };
                Band { start, weights }
            })
            .collect();
        Self { rows, source_len }
    }

    /// Chroma to luma resolution as swscale does it: bicubic (B = 0, C = 0.6), samples centred, edges repeated.
    /// Source: `initFilter` of libswscale's `utils.c`.
    pub(super) fn chroma_upsampling(chroma_len: usize, luma_len: usize) -> Self {
        let scale = chroma_len as f64 / luma_len as f64;
        let rows = (0..luma_len)
            .map(|o| {
                let center = (o as f64 + 0.5) * scale - 0.5;
                let first = center.floor() as i64 - 1;
                let last = chroma_len as i64 - 1;
                let start = first.clamp(0, last) as usize;
                let mut weights = vec![0.0; ((first + 3).clamp(0, last) as usize) - start + 1];
                for tap in first..first + 4 {
                    weights[tap.clamp(0, last) as usize - start] += cubic((tap as f64 - center).abs());
                }
                Band::normalised(start, weights)
            })
            .collect();
        Self { rows, source_len: chroma_len }
    }

    /// First `inner`, then `self`, as one matrix.
    pub(super) fn after(&self, inner: &Weights) -> Self {
        assert_eq!(self.source_len, inner.rows.len(), "the matrices fit each other");
        let rows = self
            .rows
            .iter()
            .map(|band| {
                let bands = &inner.rows[band.start..band.start + band.weights.len()];
                let start = bands.iter().map(|b| b.start).min().unwrap_or(0);
                let end = bands.iter().map(|b| b.start + b.weights.len()).max().unwrap_or(0);
                let mut weights = vec![0.0; end - start];
                for (outer, inner) in band.weights.iter().zip(bands) {
                    for (sum, weight) in weights[inner.start - start..].iter_mut().zip(&inner.weights) {
                        *sum += outer * weight;
                    }
                }
                Band { start, weights }
            })
            .collect();
        Self { rows, source_len: inner.source_len }
    }

    /// The same for a source stored in reverse order.
    pub(super) fn mirrored(mut self) -> Self {
        for band in &mut self.rows {
            band.start = self.source_len - band.start - band.weights.len();
            band.weights.reverse();
        }
        self
    }

    /// Fixed-point weights for the kernel.
    pub(super) fn quantised(&self) -> Taps {
        let mut bands: Vec<(usize, Vec<i16>)> = self.rows.iter().map(Band::quantised).collect();
        let first = bands.iter().map(|(start, _)| *start).min().unwrap_or(0);
        let end = bands.iter().map(|(start, weights)| start + weights.len()).max().unwrap_or(0);
        let longest = bands.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        let width = longest.next_multiple_of(2);
        let mut taps = Taps {
            first,
            end,
            offsets: Vec::new(),
            lens: Vec::new(),
            width,
            weights: Vec::new(),
            pairs: Pairs::default(),
        };
        for (start, weights) in &mut bands {
            taps.offsets.push(*start - first);
            taps.lens.push(weights.len());
            weights.resize(width, 0);
            taps.weights.append(weights);
        }
        taps.pairs = Pairs::of(&taps);
        taps
    }
}

impl Band {
    fn normalised(start: usize, mut weights: Vec<f64>) -> Self {
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        Self { start, weights }
    }

    /// Rounded weights without the zeros at both ends; what rounding loses goes to the largest.
    fn quantised(&self) -> (usize, Vec<i16>) {
        let one = f64::from(1 << WEIGHT_BITS);
        let mut weights: Vec<i16> = self.weights.iter().map(|w| (w * one).round() as i16).collect();
        let lost = (1 << WEIGHT_BITS) - weights.iter().map(|&w| i32::from(w)).sum::<i32>();
        if let Some(largest) = weights.iter_mut().max() {
            *largest += lost as i16;
        }
        let leading = weights.iter().take_while(|&&w| w == 0).count();
        let trailing = weights.iter().rev().take_while(|&&w| w == 0).count();
        (self.start + leading, weights[leading..weights.len() - trailing].to_vec())
    }
}

/// Mitchell-Netravali family with B = 0, C = 0.6, swscale's default.
fn cubic(x: f64) -> f64 {
    const C: f64 = 0.6;
    if x < 1.0 {
        (2.0 - C) * x.powi(3) + (C - 3.0) * x.powi(2) + 1.0
    } else if x < 2.0 {
        -C * x.powi(3) + 5.0 * C * x.powi(2) - 8.0 * C * x + 4.0 * C
    } else {
        0.0
    }
}

/// Quantised weights of one axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taps {
    /// First source sample with any weight.
    pub(super) first: usize,
    /// One past the last source sample with any weight.
    pub(super) end: usize,
    /// First source sample of each output, from `first` on; less than `end - first`.
    offsets: Vec<usize>,
    lens: Vec<usize>,
    /// Weights stored for each output, an even number: the rest are zeros.
    width: usize,
    weights: Vec<i16>,
    pairs: Pairs,
}

/// The weights of [`Taps`] for pairs of neighbouring samples: 0 and 1, 2 and 3, ... from [`Taps::first`] on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Pairs {
    /// Pairs that count for each output, padded with zeros.
    pub(super) count: usize,
    /// First pair of each output; its first sample is one of the source's.
    pub(super) starts: Vec<usize>,
    /// Weights of all outputs, `count` pairs for each.
    pub(super) weights: Vec<[i16; 2]>,
}

impl Pairs {
    fn of(taps: &Taps) -> Self {
        let odd = |o: usize| taps.offsets[o] % 2;
        let count = (0..taps.len()).map(|o| (odd(o) + taps.lens[o]).div_ceil(2)).max().unwrap_or(0);
        let mut pairs = Self { count, starts: Vec::new(), weights: vec![[0; 2]; taps.len() * count] };
        for (o, weights) in pairs.weights.chunks_exact_mut(count.max(1)).enumerate() {
            pairs.starts.push(taps.offsets[o] / 2);
            weights.as_flattened_mut()[odd(o)..][..taps.lens[o]].copy_from_slice(taps.band(o).1);
        }
        pairs
    }
}

impl Taps {
    /// Output samples.
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// First source sample of output `o`, and its weights without padding.
    #[inline]
    pub(super) fn band(&self, o: usize) -> (usize, &[i16]) {
        (self.first + self.offsets[o], &self.weights[o * self.width..][..self.lens[o]])
    }

    /// As [`Taps::band`], with a zero after an odd number of weights.
    #[inline]
    pub(super) fn band_of_pairs(&self, o: usize) -> (usize, &[[i16; 2]]) {
        let weights = &self.weights[o * self.width..][..self.lens[o].next_multiple_of(2)];
        (self.first + self.offsets[o], weights.as_chunks().0)
    }

    /// The weights for pairs of samples.
    pub(super) fn pairs(&self) -> &Pairs {
        &self.pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(len: usize) -> Span {
        Span { start: 0.0, length: len as f64 }
    }

    /// The matrix applied to a ramp: linear filters that are symmetric keep straight lines straight inside.
    fn on_ramp(weights: &Weights) -> Vec<f64> {
        let value = |band: &Band| band.weights.iter().enumerate().map(|(i, w)| w * (band.start + i) as f64).sum();
        weights.rows.iter().map(value).collect()
    }

    #[test]
    fn same_size_copies() {
        for weights in [Weights::triangle(5, whole(5), 5), Weights::two_tap(5, whole(5), 5)] {
            assert_eq!(on_ramp(&weights), [0.0, 1.0, 2.0, 3.0, 4.0]);
        }
    }

    #[test]
    fn halving_with_two_taps_takes_the_mean_of_each_pair() {
        assert_eq!(on_ramp(&Weights::two_tap(6, whole(6), 3)), [0.5, 2.5, 4.5]);
    }

    #[test]
    fn upsampling_then_shrinking_keeps_straight_lines_straight_inside() {
        let fused = Weights::triangle(64, whole(64), 16).after(&Weights::chroma_upsampling(32, 64));
        for (o, value) in on_ramp(&fused).into_iter().enumerate().take(14).skip(2) {
            let expected = (o as f64 + 0.5) * 2.0 - 0.5;
            // The cubic with C = 0.6 is no exact interpolator of straight lines; half a percent is its own ripple.
            assert!((value - expected).abs() < 0.02, "{o}: {value} is not {expected}");
        }
    }

    proptest! {
        #[test]
        fn quantised_weights_sum_to_one_and_stay_inside(
            source in 1usize..3000, out in 1usize..200, start in 0.0f64..0.5, length in 0.01f64..0.5, antialias: bool,
        ) {
            let span = Span { start: start * source as f64, length: length * source as f64 };
            let make = if antialias { Weights::triangle } else { Weights::two_tap };
            let taps = make(source, span, out).quantised();
            prop_assert!(taps.end <= source);
            for o in 0..out {
                let (start, weights) = taps.band(o);
                prop_assert!(start >= taps.first && start + weights.len() <= taps.end);
                prop_assert_eq!(weights.iter().map(|&w| i32::from(w)).sum::<i32>(), 1 << WEIGHT_BITS);
                let pairs = taps.pairs();
                let before = start - taps.first - 2 * pairs.starts[o];
                let mut paired = pairs.weights[o * pairs.count..][..pairs.count].as_flattened().to_vec();
                prop_assert_eq!(paired.drain(before..before + weights.len()).collect::<Vec<_>>(), weights);
                prop_assert!(paired.iter().all(|&w| w == 0));
            }
        }

        #[test]
        fn mirroring_twice_changes_nothing(source in 1usize..300, out in 1usize..50) {
            let weights = Weights::triangle(source, whole(source), out);
            prop_assert_eq!(weights.clone().mirrored().mirrored(), weights);
        }
    }
}
