//! Batch normalisation, ReLU and max pool in one: the way from a first convolution to the residual blocks. What the pool
//! drops, most of the largest activations of a network, is never written.

#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{PANEL, Shared, vectorized};
use super::norm::{Normalization, ParameterGradients, column_sums};
use crate::geometry::Window;

/// Shapes of a volume (n, t, h, w, c) and its pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PooledNorm {
    pub(crate) clips: usize,
    pub(crate) channels: usize,
    /// (t, h, w) of the input.
    pub(crate) input: [usize; 3],
    /// (t, h, w) of the output.
    pub(crate) output: [usize; 3],
    pub(crate) window: Window,
    /// Whether negative values become 0.
    pub(crate) relu: bool,
}

impl PooledNorm {
    /// Writes the maxima, and for each which tap of its window it was, the first of equals in (t, h, w) order.
    pub(crate) fn forward(
        &self,
        norm: &Normalization,
        input: &[f32],
        [weight, bias]: [&[f32]; 2],
        output: &mut [f32],
        taps: &mut [u32],
    ) {
        let (scale, offset) = norm.affine(weight, bias);
        let (channels, row_len) = (self.channels, self.output[2] * self.channels);
        let lowest = if self.relu { 0. } else { f32::NEG_INFINITY };
        output.par_chunks_mut(row_len).zip(taps.par_chunks_mut(row_len)).enumerate().for_each(
            |(row, (maxima, taps))| {
                let (frame, y) = (row / self.output[1], row % self.output[1]);
                let (clip, t) = (frame / self.output[0], frame % self.output[0]);
                vectorized(|| {
                    let places = maxima.chunks_exact_mut(channels).zip(taps.chunks_exact_mut(channels));
                    for (x, (maxima, taps)) in places.enumerate() {
                        maxima.fill(f32::NEG_INFINITY);
                        let mut first = true;
                        self.for_each_tap(clip, [t, y, x], |tap, place| {
                            if std::mem::take(&mut first) {
                                taps.fill(tap);
                            }
                            let values = input[place * channels..][..channels].iter().zip(scale.iter().zip(&offset));
                            for ((maximum, best), (x, (scale, offset))) in
                                maxima.iter_mut().zip(taps.iter_mut()).zip(values)
                            {
                                let value = x * scale + offset;
                                let wins = value > *maximum || value.is_nan();
                                *maximum = if wins { value } else { *maximum };
                                *best = if wins { tap } else { *best };
                            }
                        });
                        for maximum in maxima {
                            *maximum = if *maximum < lowest { lowest } else { *maximum };
                        }
                    }
                });
            },
        );
    }

    /// Replaces `input` by its gradient, from `output`, `taps` and `upstream` (n, t', h', w', c).
    pub(crate) fn backward(
        &self,
        norm: &Normalization,
        input: &mut [f32],
        weight: &[f32],
        [output, upstream]: [&[f32]; 2],
        taps: &[u32],
    ) -> ParameterGradients {
        let channels = self.channels;
        let passed = |index: usize| if self.relu && output[index] <= 0. { 0. } else { upstream[index] };
        let steps = self.tap_steps();
        // Index in the input of what was the maximum at `index` of the output.
        let source =
            |corner: isize, index: usize, c: usize| (corner + steps[taps[index] as usize]) as usize * channels + c;
        let (places, row_len) = (self.output.iter().product::<usize>(), self.output[2]);
        let rows = self.clips * places / row_len;
        let sums = column_sums((0..rows).into_par_iter(), channels, |row, of_bias, of_weight| {
            for place in row * row_len..(row + 1) * row_len {
                let corner = self.corner(place);
                for (c, (of_bias, of_weight)) in of_bias.iter_mut().zip(of_weight.iter_mut()).enumerate() {
                    let index = place * channels + c;
                    let g = passed(index);
                    *of_bias += g;
                    *of_weight += g * (input[source(corner, index, c)] - norm.mean[c]);
                }
            }
        });
        let gradients = norm.parameter_gradients(&sums);
        let slope = norm.slope(&gradients, input.len() / channels);
        let scale = norm.scale(weight);
        input.par_chunks_mut(self.input[2] * channels).for_each(|row| {
            vectorized(|| {
                for place in row.chunks_exact_mut(channels) {
                    for (((x, mean), scale), [slope, offset]) in
                        place.iter_mut().zip(&norm.mean).zip(&scale).zip(&slope)
                    {
                        *x = scale * (-offset - (*x - mean) * slope);
                    }
                }
            });
        });
        let panels = channels.div_ceil(PANEL);
        let target = Shared::new(input);
        (0..self.clips * panels).into_par_iter().for_each(|task| {
            let (clip, first) = (task / panels, task % panels * PANEL);
            for place in clip * places..(clip + 1) * places {
                let corner = self.corner(place);
                for (c, scale) in scale.iter().enumerate().skip(first).take(PANEL) {
                    let index = place * channels + c;
                    // SAFETY: windows overlap within a clip only, and a task has some channels of a clip for itself.
                    unsafe { *target.at(source(corner, index, c), 1) += scale * passed(index) };
                }
            }
        });
        gradients
    }

    /// Place in the input of the corner of an output's window, were there no borders.
    fn corner(&self, place: usize) -> isize {
        let [t_out, h_out, w_out] = self.output;
        let (clip, at) =
            (place / (t_out * h_out * w_out), [place / (h_out * w_out) % t_out, place / w_out % h_out, place % w_out]);
        let [frames, height, width] = self.input.map(|size| size as isize);
        let [t, h, w] = std::array::from_fn(|axis| {
            (at[axis] * self.window.stride[axis]) as isize - self.window.padding[axis] as isize
        });
        ((clip as isize * frames + t) * height + h) * width + w
    }

    /// Places in the input from a window's corner to each of its taps.
    fn tap_steps(&self) -> Vec<isize> {
        let ([kt, kh, kw], [_, height, width]) = (self.window.kernel, self.input);
        let tap = |tap: usize| ((tap / (kh * kw) * height + tap / kw % kh) * width + tap % kw) as isize;
        (0..kt * kh * kw).map(tap).collect()
    }

    /// Calls `visit(tap, place)` for the taps of a window that meet data.
    #[inline(always)]
    fn for_each_tap(&self, clip: usize, place: [usize; 3], mut visit: impl FnMut(u32, usize)) {
        let [frames, height, width] = self.input;
        let [t, h, w]: [Range<usize>; 3] =
            std::array::from_fn(|axis| self.window.covered(axis, place[axis], self.input[axis]));
        let tap = |axis: usize, at: usize| at + self.window.padding[axis] - place[axis] * self.window.stride[axis];
        let [_, kh, kw] = self.window.kernel;
        for t in t {
            for h in h.clone() {
                for w in w.clone() {
                    let number = (tap(0, t) * kh + tap(1, h)) * kw + tap(2, w);
                    visit(number as u32, ((clip * frames + t) * height + h) * width + w);
                }
            }
        }
    }
}
