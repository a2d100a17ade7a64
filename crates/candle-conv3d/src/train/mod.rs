//! Fast forward and gradient kernels for training on CPUs, in f32.
//!
//! Each operation is a candle custom operation with its own backward pass. The versions made of candle's
//! operations, [`crate::reference`], are what they are tested against and what other devices and types use.

mod convolution;
mod direct;
mod join;
mod kernel;
mod norm;
mod pool;
mod residual;
mod scratch;
mod stem;
mod tile_transform;
mod volume;
mod winograd;

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor};

use crate::MaxPool3dConfig;
use crate::geometry::volume_dims;

pub(crate) use convolution::conv3d;

/// The pool by the fast kernels, or `None` where they don't apply.
pub(crate) fn max_pool3d(input: &Tensor, config: &MaxPool3dConfig) -> Result<Option<Tensor>> {
    if !fits(input) || input.rank() != 5 {
        return Ok(None);
    }
    let [n, c, t, h, w] = volume_dims(input)?;
    // Places are remembered in 32 bits.
    let (Ok(output), Ok(_)) = (config.output_dims([t, h, w]), u32::try_from(t * h * w)) else { return Ok(None) };
    let shapes = pool::Shapes { volumes: n * c, input: [t, h, w], output, window: config.window() };
    let [t, h, w] = output;
    input.contiguous()?.apply_op1(Pool { shapes, output: [n, c, t, h, w], places: OnceLock::new() }).map(Some)
}

/// The batch normalisation by the fast kernels: output, mean and biased variance (c), or `None` where they don't apply.
pub(crate) fn batch_norm(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    relu: bool,
) -> Result<Option<(Tensor, Tensor, Tensor)>> {
    if ![input, weight, bias].into_iter().all(fits) || input.rank() < 2 || input.elem_count() == 0 {
        return Ok(None);
    }
    let input = input.contiguous()?;
    let (clips, channels) = (input.dim(0)?, input.dim(1)?);
    let places = input.elem_count() / (clips * channels);
    let (mean, variance) = with_slices(&input, &input, |input, _| norm::statistics(input, clips, channels, places))?;
    let inverse_deviation = inverse_deviation(&variance, epsilon);
    let op = norm::Normalization { clips, channels, places, mean: mean.clone(), inverse_deviation, relu, fixed: false };
    let output = input.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
    let statistic = |values| Tensor::from_vec(values, channels, &Device::Cpu);
    Ok(Some((output, statistic(mean)?, statistic(variance)?)))
}

/// The normalisation by fixed statistics by the fast kernels, or `None` where they don't apply.
pub(crate) fn fixed_norm(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    [mean, variance]: [&Tensor; 2],
    epsilon: f64,
    relu: bool,
) -> Result<Option<Tensor>> {
    if ![input, weight, bias, mean, variance].into_iter().all(fits) || input.rank() < 2 || input.elem_count() == 0 {
        return Ok(None);
    }
    let input = input.contiguous()?;
    let (clips, channels) = (input.dim(0)?, input.dim(1)?);
    let places = input.elem_count() / (clips * channels);
    let inverse_deviation = inverse_deviation(&variance.to_vec1::<f32>()?, epsilon);
    let op =
        norm::Normalization { clips, channels, places, mean: mean.to_vec1()?, inverse_deviation, relu, fixed: true };
    input.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op).map(Some)
}

fn inverse_deviation(variance: &[f32], epsilon: f64) -> Vec<f32> {
    variance.iter().map(|&v| (1. / (f64::from(v) + epsilon).sqrt()) as f32).collect()
}

/// relu(a + b) by the fast kernels, or `None` where they don't apply.
pub(crate) fn add_relu(a: &Tensor, b: &Tensor) -> Result<Option<Tensor>> {
    if !fits(a) || !fits(b) || a.shape() != b.shape() {
        return Ok(None);
    }
    a.contiguous()?.apply_op2(&b.contiguous()?, join::AddRelu).map(Some)
}

fn fits(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::F32 && matches!(tensor.device(), Device::Cpu)
}

struct Pool {
    shapes: pool::Shapes,
    /// (n, c, t, h, w) of the output.
    output: [usize; 5],
    /// Where the maxima were, for the backward pass.
    places: OnceLock<Vec<u32>>,
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "max-pool3d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (maxima, places) = pool::forward(&self.shapes, contiguous(storage, layout)?);
        // An operation runs forward once; a second run would find the same places.
        self.places.get_or_init(|| places);
        Ok((CpuStorage::F32(maxima), Shape::from(self.output.as_slice())))
    }

    fn bwd(&self, input: &Tensor, _output: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let Some(places) = self.places.get() else { candle_core::bail!("max-pool3d went backward before forward") };
        let upstream = upstream.contiguous()?;
        let gradient =
            with_slices(&upstream, &upstream, |upstream, _| pool::input_gradient(&self.shapes, places, upstream))?;
        Tensor::from_vec(gradient, input.shape(), &Device::Cpu).map(Some)
    }
}

impl CustomOp3 for norm::Normalization {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let output = norm::forward(self, contiguous(s1, l1)?, contiguous(s2, l2)?, contiguous(s3, l3)?);
        Ok((CpuStorage::F32(output), l1.shape().clone()))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        output: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let upstream = upstream.contiguous()?;
        let (of_input, of_weight, of_bias) = with_slices(input, weight, |input, weight| {
            with_slices(output, &upstream, |output, upstream| norm::backward(self, input, weight, output, upstream))
        })??;
        let channel = |values| Tensor::from_vec(values, self.channels, &Device::Cpu).map(Some);
        let of_input = Tensor::from_vec(of_input, input.shape(), &Device::Cpu)?;
        Ok((Some(of_input), channel(of_weight)?, channel(of_bias)?))
    }
}

/// The floats of a contiguous f32 tensor.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("the fast kernels read contiguous tensors only"),
    }
}

fn with_slices<T>(a: &Tensor, b: &Tensor, f: impl FnOnce(&[f32], &[f32]) -> T) -> Result<T> {
    let ((a, a_layout), (b, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    match (&*a, &*b) {
        (Storage::Cpu(a), Storage::Cpu(b)) => Ok(f(contiguous(a, a_layout)?, contiguous(b, b_layout)?)),
        _ => candle_core::bail!("the fast kernels read CPU tensors only"),
    }
}
