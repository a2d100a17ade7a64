//! Fast forward and gradient kernels for training on CPUs, in f32.
//!
//! The kernels work on volumes (n, t, h, w, c). A [`Tape`] leads these from layer to layer; the operations on candle's
//! tensors, with backward passes of their own, rearrange them on the way in and out. The versions made of candle's operations,
//! [`crate::reference`], are what they are tested against and what other devices and types use.

mod conv_norm;
mod convolution;
mod direct;
mod join;
mod kernel;
mod norm;
mod pool;
mod pooled_norm;
mod residual;
mod scratch;
mod shortcut;
mod stem;
pub(crate) mod tape;
mod tile_transform;
mod volume;
mod winograd;

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor};

use crate::MaxPool3dConfig;
use crate::geometry::volume_dims;

pub(crate) use convolution::conv3d;
pub use tape::{BatchStatistics, ConvNormLayer, Following, Statistics, Tape, Volume};

use norm::Normalization;
use scratch::Scratch;
use volume::{channels_first, channels_last};

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
    let (channels, places) = channels_and_places(input.dims());
    let (norm, variance) = with_slices(&input, &input, |input, _| {
        Normalization::of_batch(&channels_last(input, channels, places), channels, epsilon)
    })?;
    let statistic = |values| Tensor::from_vec(values, channels, &Device::Cpu);
    let (mean, variance) = (statistic(norm.mean.clone())?, statistic(variance)?);
    let output = input.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Norm { norm, relu })?;
    Ok(Some((output, mean, variance)))
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
    let norm = Normalization::by(mean.to_vec1()?, &variance.to_vec1::<f32>()?, epsilon);
    let op = Norm { norm, relu };
    input.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op).map(Some)
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

/// Normalisation of (n, c, ...).
struct Norm {
    norm: Normalization,
    relu: bool,
}

impl CustomOp3 for Norm {
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
        let (channels, places) = channels_and_places(l1.dims());
        let input = channels_last(contiguous(s1, l1)?, channels, places);
        let mut output = Scratch::any(input.len());
        self.norm.forward(&input, [contiguous(s2, l2)?, contiguous(s3, l3)?], None, self.relu, &mut output);
        Ok((CpuStorage::F32(channels_first(&output, channels, places)), l1.shape().clone()))
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
        let (channels, places) = channels_and_places(input.dims());
        let last = |volume: &[f32]| channels_last(volume, channels, places);
        let (mut gradient, mut upstream) =
            with_slices(input, &upstream, |input, upstream| (last(input), last(upstream)))?;
        let of_parameters = with_slices(output, weight, |output, weight| {
            let output = self.relu.then(|| last(output));
            self.norm.backward(&mut gradient, weight, output.as_deref(), &mut upstream)
        })?;
        let of_input = Tensor::from_vec(channels_first(&gradient, channels, places), input.shape(), &Device::Cpu)?;
        let channel = |values| Tensor::from_vec(values, channels, &Device::Cpu).map(Some);
        Ok((Some(of_input), channel(of_parameters.weight)?, channel(of_parameters.bias)?))
    }
}

/// c and the places of a volume (n, c, ...).
fn channels_and_places(dims: &[usize]) -> (usize, usize) {
    (dims[1], dims[2..].iter().product())
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
