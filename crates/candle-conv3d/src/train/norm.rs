//! Batch normalisation with the ReLU that follows it.

#![allow(unsafe_code)]

use rayon::prelude::*;

use super::kernel::{Shared, vectorized};

/// Values summed in f32 before they join a sum in f64: long sums in f32 alone would lose digits of the variance.
const CHUNK: usize = 1024;

/// Shapes and constants of one normalisation.
#[derive(Debug, Clone)]
pub(crate) struct Normalization {
    pub(crate) clips: usize,
    pub(crate) channels: usize,
    /// Places t h w of a volume.
    pub(crate) places: usize,
    /// Mean of each channel.
    pub(crate) mean: Vec<f32>,
    /// 1 / sqrt(variance + epsilon) of each channel.
    pub(crate) inverse_deviation: Vec<f32>,
    /// Whether negative results become 0.
    pub(crate) relu: bool,
    /// Whether mean and deviation are constants rather than those of the input.
    pub(crate) fixed: bool,
}

/// Mean and biased variance of each channel of `input` (n, c, places).
pub(crate) fn statistics(input: &[f32], clips: usize, channels: usize, places: usize) -> (Vec<f32>, Vec<f32>) {
    let count = (clips * places) as f64;
    (0..channels)
        .into_par_iter()
        .map(|c| {
            let volumes = || (0..clips).map(|clip| &input[(clip * channels + c) * places..][..places]);
            // Shifted by a value of the channel: the variance then doesn't drown in a large mean.
            let shift = input[c * places];
            let (mut sum, mut squares) = (0f64, 0f64);
            for chunk in volumes().flat_map(|volume| volume.chunks(CHUNK)) {
                let [s, q] = sums(chunk, chunk, |x, _| [x - shift, (x - shift) * (x - shift)]);
                sum += s;
                squares += q;
            }
            let mean = sum / count;
            ((f64::from(shift) + mean) as f32, (squares / count - mean * mean).max(0.) as f32)
        })
        .unzip()
}

/// The normalised input (n, c, places), scaled by `weight` and moved by `bias` (c).
pub(crate) fn forward(shape: &Normalization, input: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let mut output = vec![0f32; input.len()];
    let places = shape.places;
    output.par_chunks_mut(places).zip(input.par_chunks(places)).enumerate().for_each(|(i, (output, input))| {
        let c = i % shape.channels;
        let scale = weight[c] * shape.inverse_deviation[c];
        let offset = bias[c] - shape.mean[c] * scale;
        let lowest = if shape.relu { 0. } else { f32::NEG_INFINITY };
        vectorized(|| {
            for (y, x) in output.iter_mut().zip(input) {
                // A comparison, not `max`: NaN must stay NaN.
                let value = x * scale + offset;
                *y = if value < lowest { lowest } else { value };
            }
        });
    });
    output
}

/// Gradients of input (n, c, places), weight (c) and bias (c), with the statistics as functions of the input unless they
/// are fixed.
pub(crate) fn backward(
    shape: &Normalization,
    input: &[f32],
    weight: &[f32],
    output: &[f32],
    upstream: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let Normalization { clips, channels, places, .. } = *shape;
    let count = (clips * places) as f32;
    let mut gradient = vec![0f32; input.len()];
    let target = Shared::new(&mut gradient);
    let passes = |y: f32| if shape.relu && y <= 0. { 0. } else { 1. };
    let (of_weight, of_bias) = (0..channels)
        .into_par_iter()
        .map(|c| {
            let (mean, inverse) = (shape.mean[c], shape.inverse_deviation[c]);
            let volumes = || (0..clips).map(|clip| (clip * channels + c) * places);
            let (mut of_bias, mut of_weight) = (0f64, 0f64);
            for start in volumes().flat_map(|start| {
                (start..start + places).step_by(CHUNK).map(move |i| i..(start + places).min(i + CHUNK))
            }) {
                let [b, w] = triple_sums(&input[start.clone()], &output[start.clone()], &upstream[start], |x, y, g| {
                    let g = g * passes(y);
                    [g, g * (x - mean)]
                });
                of_bias += b;
                of_weight += w;
            }
            let (of_bias, of_weight) = (of_bias as f32, of_weight as f32 * inverse);
            let scale = weight[c] * inverse;
            let (slope, offset) = if shape.fixed { (0., 0.) } else { (of_weight / count * inverse, of_bias / count) };
            for start in volumes() {
                let range = start..start + places;
                // SAFETY: each channel's volumes are written by the one task of that channel.
                let gradient = unsafe { target.slice(start, places) };
                let values = input[range.clone()].iter().zip(&output[range.clone()]).zip(&upstream[range]);
                vectorized(|| {
                    for (gradient, ((x, &y), g)) in gradient.iter_mut().zip(values) {
                        *gradient = scale * (g * passes(y) - offset - (x - mean) * slope);
                    }
                });
            }
            (of_weight, of_bias)
        })
        .unzip();
    (gradient, of_weight, of_bias)
}

/// Sums of the two terms of each pair, in 16 partial sums each so that they vectorise.
fn sums(a: &[f32], b: &[f32], terms: impl Fn(f32, f32) -> [f32; 2]) -> [f64; 2] {
    triple_sums(a, b, b, |a, b, _| terms(a, b))
}

fn triple_sums(a: &[f32], b: &[f32], c: &[f32], terms: impl Fn(f32, f32, f32) -> [f32; 2]) -> [f64; 2] {
    vectorized(|| lane_sums(a, b, c, terms))
}

#[inline(always)]
fn lane_sums(a: &[f32], b: &[f32], c: &[f32], terms: impl Fn(f32, f32, f32) -> [f32; 2]) -> [f64; 2] {
    const LANES: usize = 16;
    let mut partial = [[0f32; LANES]; 2];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (c, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for i in 0..LANES {
            let [first, second] = terms(a[i], b[i], c[i]);
            partial[0][i] += first;
            partial[1][i] += second;
        }
    }
    let mut total = partial.map(|lanes| lanes.iter().copied().map(f64::from).sum::<f64>());
    for ((&a, &b), &c) in a_rest.iter().zip(b_rest).zip(c_rest) {
        for (total, term) in total.iter_mut().zip(terms(a, b, c)) {
            *total += f64::from(term);
        }
    }
    total
}
