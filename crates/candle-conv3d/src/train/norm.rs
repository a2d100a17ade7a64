//! Batch normalisation of volumes (places, c), with the addition and the ReLU that may follow it.

use rayon::prelude::*;

use super::kernel::vectorized;

/// Floats that a task takes at a time: 32 KB, which stay in a first-level cache.
const TASK_FLOATS: usize = 8 * 1024;

/// Rows summed in f32 before they join a sum in f64: long sums in f32 alone would lose digits of the variance.
const SUMMED_ROWS: usize = 256;

/// By what a normalisation shifts and scales each channel.
#[derive(Debug, Clone)]
pub(crate) struct Normalization {
    pub(crate) mean: Vec<f32>,
    /// 1 / sqrt(variance + epsilon)
    pub(crate) inverse_deviation: Vec<f32>,
    /// Whether mean and deviation are constants rather than those of the input.
    pub(crate) fixed: bool,
}

/// Gradients of weight and bias (c).
pub(crate) struct ParameterGradients {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl Normalization {
    /// By the mean and the biased variance of each channel of `input`; gives the variance too.
    pub(crate) fn of_batch(input: &[f32], channels: usize, epsilon: f64) -> (Self, Vec<f32>) {
        let count = (input.len() / channels) as f64;
        // Shifted by a value of the channel: the variance then doesn't drown in a large mean.
        let shift = &input[..channels];
        let sums = column_sums(input.par_chunks(task_len(channels)), channels, |rows, sums, squares| {
            for row in rows.chunks_exact(channels) {
                for ((x, shift), (sum, square)) in row.iter().zip(shift).zip(sums.iter_mut().zip(squares.iter_mut())) {
                    let x = x - shift;
                    *sum += x;
                    *square += x * x;
                }
            }
        });
        let (mean, variance): (Vec<f32>, Vec<f32>) = sums
            .into_iter()
            .zip(shift)
            .map(|([sum, squares], &shift)| {
                let mean = sum / count;
                ((f64::from(shift) + mean) as f32, (squares / count - mean * mean).max(0.) as f32)
            })
            .unzip();
        (Self { mean, inverse_deviation: inverse_deviation(&variance, epsilon), fixed: false }, variance)
    }

    /// By a mean and a variance that are given.
    pub(crate) fn by(mean: Vec<f32>, variance: &[f32], epsilon: f64) -> Self {
        Self { mean, inverse_deviation: inverse_deviation(variance, epsilon), fixed: true }
    }

    /// Factor and summand of each channel, with the scaling by `weight` and the move by `bias`.
    pub(crate) fn affine(&self, weight: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let scale = self.scale(weight);
        let offset = bias.iter().zip(&self.mean).zip(&scale).map(|((bias, mean), scale)| bias - mean * scale).collect();
        (scale, offset)
    }

    /// Writes the normalised input plus `residual`, with negative results as 0 if `relu`.
    pub(crate) fn forward(
        &self,
        input: &[f32],
        [weight, bias]: [&[f32]; 2],
        residual: Option<&[f32]>,
        relu: bool,
        output: &mut [f32],
    ) {
        let (scale, offset) = self.affine(weight, bias);
        let channels = scale.len();
        let len = task_len(channels);
        let lowest = if relu { 0. } else { f32::NEG_INFINITY };
        // A comparison, not `max`: NaN must stay NaN.
        let above = |value: f32| if value < lowest { lowest } else { value };
        output.par_chunks_mut(len).zip(input.par_chunks(len)).enumerate().for_each(|(task, (output, input))| {
            let residual = residual.map(|residual| &residual[task * len..][..output.len()]);
            vectorized(|| {
                let rows = output.chunks_exact_mut(channels).zip(input.chunks_exact(channels));
                match residual {
                    None => {
                        for (output, input) in rows {
                            for ((y, x), (scale, offset)) in output.iter_mut().zip(input).zip(scale.iter().zip(&offset))
                            {
                                *y = above(x * scale + offset);
                            }
                        }
                    }
                    Some(residual) => {
                        for ((output, input), residual) in rows.zip(residual.chunks_exact(channels)) {
                            let constants = scale.iter().zip(&offset);
                            for (((y, x), r), (scale, offset)) in
                                output.iter_mut().zip(input).zip(residual).zip(constants)
                            {
                                *y = above(x * scale + offset + r);
                            }
                        }
                    }
                }
            });
        });
    }

    /// Replaces `input` by its gradient, with the statistics as functions of the input unless they are fixed, and
    /// `upstream` by what of it passes the ReLU whose `output` is given.
    pub(crate) fn backward(
        &self,
        input: &mut [f32],
        weight: &[f32],
        output: Option<&[f32]>,
        upstream: &mut [f32],
    ) -> ParameterGradients {
        let channels = weight.len();
        let len = task_len(channels);
        let tasks = upstream.par_chunks_mut(len).zip(input.par_chunks(len)).enumerate();
        let sums = column_sums(tasks, channels, |(task, (upstream, input)), of_bias, of_weight| {
            if let Some(output) = output {
                for (g, &y) in upstream.iter_mut().zip(&output[task * len..]) {
                    *g = if y <= 0. { 0. } else { *g };
                }
            }
            for (upstream, input) in upstream.chunks_exact(channels).zip(input.chunks_exact(channels)) {
                let sums = of_bias.iter_mut().zip(of_weight.iter_mut());
                for (((g, x), mean), (of_bias, of_weight)) in upstream.iter().zip(input).zip(&self.mean).zip(sums) {
                    *of_bias += g;
                    *of_weight += g * (x - mean);
                }
            }
        });
        let gradients = self.parameter_gradients(&sums);
        let slope = self.slope(&gradients, input.len() / channels);
        let scale = self.scale(weight);
        input.par_chunks_mut(len).zip(upstream.par_chunks(len)).for_each(|(input, upstream)| {
            vectorized(|| {
                for (input, upstream) in input.chunks_exact_mut(channels).zip(upstream.chunks_exact(channels)) {
                    let constants = self.mean.iter().zip(&scale).zip(&slope);
                    for ((x, g), ((mean, scale), [slope, offset])) in input.iter_mut().zip(upstream).zip(constants) {
                        *x = scale * (g - offset - (*x - mean) * slope);
                    }
                }
            });
        });
        gradients
    }

    /// Gradients of bias and weight from the sums of the gradient and of its product with the centred input.
    pub(crate) fn parameter_gradients(&self, sums: &[[f64; 2]]) -> ParameterGradients {
        let bias = sums.iter().map(|sums| sums[0] as f32).collect();
        let weight = sums.iter().zip(&self.inverse_deviation).map(|(sums, inverse)| sums[1] as f32 * inverse).collect();
        ParameterGradients { weight, bias }
    }

    /// What moving mean and deviation take off the gradient of an input that is one of `count`: for each channel the part
    /// that grows with the centred input, and the part that doesn't.
    pub(crate) fn slope(&self, gradients: &ParameterGradients, count: usize) -> Vec<[f32; 2]> {
        let parts = gradients.weight.iter().zip(&gradients.bias).zip(&self.inverse_deviation);
        let part =
            |((weight, bias), inverse): ((&f32, &f32), &f32)| [weight / count as f32 * inverse, bias / count as f32];
        parts.map(|values| if self.fixed { [0.; 2] } else { part(values) }).collect()
    }

    pub(crate) fn scale(&self, weight: &[f32]) -> Vec<f32> {
        weight.iter().zip(&self.inverse_deviation).map(|(weight, inverse)| weight * inverse).collect()
    }
}

fn inverse_deviation(variance: &[f32], epsilon: f64) -> Vec<f32> {
    variance.iter().map(|&v| (1. / (f64::from(v) + epsilon).sqrt()) as f32).collect()
}

/// Floats of the rows that a task takes.
fn task_len(channels: usize) -> usize {
    (TASK_FLOATS / channels).clamp(1, SUMMED_ROWS) * channels
}

/// Two sums for each channel over all tasks, in the order of the tasks; `sum` adds those of one.
pub(crate) fn column_sums<T>(
    tasks: impl IndexedParallelIterator<Item = T>,
    channels: usize,
    sum: impl Fn(T, &mut [f32], &mut [f32]) + Sync,
) -> Vec<[f64; 2]> {
    let partial: Vec<Vec<f32>> = tasks
        .map(|task| {
            let mut sums = vec![0f32; 2 * channels];
            let (first, second) = sums.split_at_mut(channels);
            vectorized(|| sum(task, first, second));
            sums
        })
        .collect();
    let mut total = vec![[0f64; 2]; channels];
    for sums in partial {
        let (first, second) = sums.split_at(channels);
        for ((total, &first), &second) in total.iter_mut().zip(first).zip(second) {
            total[0] += f64::from(first);
            total[1] += f64::from(second);
        }
    }
    total
}
