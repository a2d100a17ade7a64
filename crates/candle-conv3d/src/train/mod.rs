//! Fast forward and gradient kernels for training on CPUs, in f32.
//!
//! Each operation is a candle custom operation with its own backward pass. The versions made of candle's
//! operations, [`crate::reference`], are what they are tested against and what other devices and types use.

mod direct;
mod kernel;
mod volume;

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Storage, Tensor};

use crate::Conv3dConfig;
use crate::geometry::volume_dims;
use direct::Shapes;

/// The convolution by the fast kernels, or `None` where they don't apply: other devices and types, and shapes that
/// the reference answers with an error.
pub(crate) fn conv3d(input: &Tensor, weight: &Tensor, config: &Conv3dConfig) -> Result<Option<Tensor>> {
    let fits = |tensor: &Tensor| tensor.dtype() == DType::F32 && matches!(tensor.device(), Device::Cpu);
    if !fits(input) || !fits(weight) || input.rank() != 5 || weight.rank() != 5 {
        return Ok(None);
    }
    let [clips, in_channels, t, h, w] = volume_dims(input)?;
    let (out_channels, weight_channels, kt, kh, kw) = weight.dims5()?;
    let window = config.window([kt, kh, kw]);
    // More padding than kernel makes windows without data; the reference takes those.
    let sensible = (0..3).all(|axis| window.padding[axis] < window.kernel[axis]);
    let Ok(output) = window.output_dims([t, h, w]) else { return Ok(None) };
    if in_channels != weight_channels || out_channels == 0 || !sensible {
        return Ok(None);
    }
    let shapes = Shapes { clips, in_channels, out_channels, input: [t, h, w], output, window };
    input.contiguous()?.apply_op2(&weight.contiguous()?, Convolution(shapes)).map(Some)
}

struct Convolution(Shapes);

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = direct::forward(&self.0, contiguous(s1, l1)?, contiguous(s2, l2)?);
        Ok((CpuStorage::F32(output), Shape::from(self.0.output_dims().as_slice())))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _output: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let upstream = upstream.contiguous()?;
        let of_input = || {
            let gradient =
                with_slices(weight, &upstream, |weight, upstream| direct::input_gradient(&self.0, weight, upstream))?;
            Tensor::from_vec(gradient, input.shape(), &Device::Cpu)
        };
        let of_weight = || {
            let gradient =
                with_slices(input, &upstream, |input, upstream| direct::weight_gradient(&self.0, input, upstream))?;
            Tensor::from_vec(gradient, weight.shape(), &Device::Cpu)
        };
        Ok((input.track_op().then(of_input).transpose()?, weight.track_op().then(of_weight).transpose()?))
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
