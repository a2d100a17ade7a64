//! What stands between convolutions in training: batch normalisation and the end of a residual block.

use candle_core::{Error, Result, Tensor};

use crate::geometry::GeometryError;
use crate::{reference, train};

/// What follows a batch normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// max(x, 0).
    Relu,
}

/// What [`batch_norm`] gives.
#[derive(Debug, Clone)]
pub struct BatchNormOutput {
    /// The normalised input, of its shape.
    pub output: Tensor,
    /// Mean of each channel (c), without gradient.
    pub mean: Tensor,
    /// Biased variance of each channel (c), without gradient. Running variances want it times count / (count - 1).
    pub variance: Tensor,
}

/// Normalises each channel of `input` (n, c, ...) by its mean and variance over the batch, scales it by `weight`
/// (c), moves it by `bias` (c) and applies `activation`. Differentiable in all three.
///
/// The statistics come along so that the caller can keep running ones. One fused operation on CPUs in f32, where
/// candle's own operations would pass over the activations some thirty times in a training step.
pub fn batch_norm(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    activation: Activation,
) -> Result<BatchNormOutput> {
    check_channels(input, &[weight, bias])?;
    let relu = activation == Activation::Relu;
    match train::batch_norm(input, weight, bias, epsilon, relu)? {
        Some((output, mean, variance)) => Ok(BatchNormOutput { output, mean, variance }),
        None => reference::batch_norm(input, weight, bias, epsilon, activation),
    }
}

/// Normalises each channel of `input` (n, c, ...) by a `mean` and `variance` (c) that stay as they are, scales it by
/// `weight` (c), moves it by `bias` (c) and applies `activation`: batch normalisation in evaluation, or frozen in training.
/// Differentiable in input, weight and bias. One fused operation on CPUs in f32.
pub fn fixed_norm(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    epsilon: f64,
    activation: Activation,
) -> Result<Tensor> {
    check_channels(input, &[weight, bias, mean, variance])?;
    let relu = activation == Activation::Relu;
    match train::fixed_norm(input, weight, bias, [mean, variance], epsilon, relu)? {
        Some(output) => Ok(output),
        None => reference::fixed_norm(input, weight, bias, mean, variance, epsilon, activation),
    }
}

fn check_channels(input: &Tensor, parameters: &[&Tensor]) -> Result<()> {
    let channels = input.dim(1)?;
    for parameter in parameters {
        if parameter.dims() != [channels] {
            let bias = parameter.dims().to_vec();
            return Err(Error::wrap(GeometryError::Bias { bias, out_channels: channels }));
        }
    }
    Ok(())
}

/// relu(`a` + `b`), the end of a residual block, for two tensors of one shape. One fused operation on CPUs in f32.
pub fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match train::add_relu(a, b)? {
        Some(output) => Ok(output),
        None => (a + b)?.relu(),
    }
}
