//! Convolutions of tensors (n, c, t, h, w) on a GPU: what layers on candle's CUDA tensors do.
#![allow(unsafe_code)]

use std::sync::Arc;

use candle_core::{DType, Result, Shape, Tensor};

use super::super::rearrange::padded;
use super::convolution::{Convolution, Geometry, volume_bytes, volume_len};
use super::machine::{Grid, Machine, Memory, launch};
use crate::geometry::volume_dims;
use crate::{Conv3dConfig, Precision};

/// What a machine computes with for tensors of a type.
pub(super) fn precision(dtype: DType) -> Option<Precision> {
    match dtype {
        DType::F32 => Some(Precision::F32),
        DType::F16 => Some(Precision::F16),
        DType::BF16 => Some(Precision::Bf16),
        _ => None,
    }
}

/// A convolution of tensors of a machine, in the machine's type.
#[derive(Debug)]
pub(super) struct PlainConvolution {
    machine: Arc<dyn Machine>,
    convolution: Convolution,
    dtype: DType,
    /// (n, t, h, w, c)
    input: [usize; 5],
}

impl PlainConvolution {
    /// `None` for shapes that don't fit together or have more padding than kernel.
    pub(super) fn new(
        machine: &Arc<dyn Machine>,
        input: &Tensor,
        weight: &Tensor,
        config: &Conv3dConfig,
    ) -> Result<Option<Self>> {
        let [n, c, t, h, w] = volume_dims(input)?;
        let dims = [n, t, h, w, c];
        let Some(geometry) = Geometry::new(dims, weight.dims5()?.into(), config) else { return Ok(None) };
        let (machine, dtype) = (Arc::clone(machine), input.dtype());
        Ok(Some(Self { convolution: geometry.convolution(&machine), machine, dtype, input: dims }))
    }

    /// (n, c, t, h, w) of the output.
    pub(super) fn output_shape(&self) -> Shape {
        let [n, t, h, w, c] = self.convolution.output;
        Shape::from((n, c, t, h, w))
    }

    /// The output.
    pub(super) fn forward(&self, input: &Tensor, weight: &Tensor) -> Result<Memory> {
        let input = self.channels_last(input, self.input)?;
        let output = self.convolution.forward(&input, &self.convolution.pack(weight)?)?;
        self.channels_first(&output, self.convolution.output)
    }

    /// The gradient of the input.
    pub(super) fn input_gradient(&self, weight: &Tensor, upstream: &Tensor) -> Result<Tensor> {
        let upstream = self.channels_last(upstream, self.convolution.output)?;
        let gradient = self.convolution.input_gradient(&self.convolution.pack(weight)?, &upstream)?;
        let [n, t, h, w, c] = self.input;
        let gradient = self.channels_first(&gradient, self.input)?;
        self.machine.to_tensor(gradient, &Shape::from((n, c, t, h, w)), self.dtype)
    }

    /// The gradient of the weight.
    pub(super) fn weight_gradient(&self, input: &Tensor, upstream: &Tensor) -> Result<Tensor> {
        let input = self.channels_last(input, self.input)?;
        let upstream = self.channels_last(upstream, self.convolution.output)?;
        self.convolution.weight_gradient(&input, &upstream)?.to_dtype(self.dtype)
    }

    /// A tensor as a volume of `dims` (n, t, h, w, c).
    fn channels_last(&self, tensor: &Tensor, dims: [usize; 5]) -> Result<Memory> {
        let tensor = tensor.contiguous()?;
        let [n, t, h, w, c] = dims;
        let volume = self.machine.allocate(volume_bytes(&*self.machine, dims))?;
        let (from, to) = (self.machine.address(&tensor)?, volume.address());
        let (places, channels, stored, n) = ((t * h * w) as i32, c as i32, padded(c) as i32, n as i32);
        let grid = Grid::Work(volume_len(dims));
        // SAFETY: a tensor and a volume of these dimensions in the machine's type.
        unsafe { launch!(self.machine, channels_last, grid, from, to, places, channels, stored, n)? };
        Ok(volume)
    }

    /// The inverse of [`channels_last`](Self::channels_last).
    fn channels_first(&self, volume: &Memory, dims: [usize; 5]) -> Result<Memory> {
        let values = dims.iter().product::<usize>();
        let [n, t, h, w, c] = dims;
        let tensor = self.machine.allocate(values * self.dtype.size_in_bytes())?;
        let (from, to) = (volume.address(), tensor.address());
        let (places, channels, stored, n) = ((t * h * w) as i32, c as i32, padded(c) as i32, n as i32);
        // SAFETY: as in `channels_last`.
        unsafe { launch!(self.machine, channels_first, Grid::Work(values), from, to, places, channels, stored, n)? };
        Ok(tensor)
    }
}
