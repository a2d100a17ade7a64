//! The convolution as an operation of candle, which picks the kernels.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::direct::{self, Shapes};
use super::scratch::Scratch;
use super::{contiguous, fits, residual, stem, with_slices};
use crate::Conv3dConfig;
use crate::geometry::{Window, volume_dims};

/// The convolution by the fast kernels, or `None` where they don't apply: other devices and types, and shapes that
/// the reference answers with an error.
pub(crate) fn conv3d(input: &Tensor, weight: &Tensor, config: &Conv3dConfig) -> Result<Option<Tensor>> {
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
    // Of a short clip the first and last taps may meet padding only: with one frame, two thirds of a residual
    // block's weights. Without them it is a convolution with a shorter kernel and less padding.
    let ([stride, ..], [padding, ..]) = (window.stride, window.padding);
    let meets_data = |tap: &usize| (0..output[0]).any(|out| (padding..padding + t).contains(&(out * stride + tap)));
    let (first, last) = ((0..kt).find(meets_data).unwrap_or(0), (0..kt).rfind(meets_data).unwrap_or(kt - 1));
    let taps = first..last + 1;
    let window = Window {
        kernel: [taps.len(), kh, kw],
        padding: [padding - first, window.padding[1], window.padding[2]],
        ..window
    };
    let shapes = Shapes { clips, in_channels, out_channels, input: [t, h, w], output, window };
    let op = Convolution { shapes, taps, all_taps: kt };
    input.contiguous()?.apply_op2(&weight.contiguous()?, op).map(Some)
}

struct Convolution {
    /// Of the convolution with the temporal taps in use.
    shapes: Shapes,
    /// Temporal taps in use: one at least, and the tap that meets the first frame at the first output is among them.
    taps: Range<usize>,
    /// Temporal taps of the weight.
    all_taps: usize,
}

/// One of the operands' or the result's floats from two others.
type Kernel = fn(&Shapes, &[f32], &[f32]) -> Vec<f32>;

struct Kernels {
    /// From input and weight.
    forward: Kernel,
    /// From weight and upstream gradient.
    input_gradient: Kernel,
    /// From input and upstream gradient.
    weight_gradient: Kernel,
}

impl Convolution {
    /// The fastest kernels for these shapes.
    fn kernels(&self) -> Kernels {
        if residual::applies(&self.shapes) {
            Kernels {
                forward: residual::forward,
                input_gradient: residual::input_gradient,
                weight_gradient: residual::weight_gradient,
            }
        } else if stem::applies(&self.shapes) {
            Kernels {
                forward: stem::forward,
                // A network's input is data and has no gradient, so this is rarely called.
                input_gradient: direct::input_gradient,
                weight_gradient: stem::weight_gradient,
            }
        } else {
            Kernels {
                forward: direct::forward,
                input_gradient: direct::input_gradient,
                weight_gradient: direct::weight_gradient,
            }
        }
    }
}

impl Convolution {
    /// The weight (oc, ic, kt, kh, kw) with the taps in use alone.
    fn narrowed<'a>(&self, weight: &'a [f32]) -> Narrowed<'a> {
        if self.taps.len() == self.all_taps {
            return Narrowed::Whole(weight);
        }
        let (area, pairs) = (self.area(), self.shapes.in_channels * self.shapes.out_channels);
        let mut narrowed = Scratch::any(pairs * self.taps.len() * area);
        let used = self.taps.start * area..self.taps.end * area;
        narrowed
            .par_chunks_mut(used.len())
            .zip(weight.par_chunks(self.all_taps * area))
            .for_each(|(narrowed, weight)| narrowed.copy_from_slice(&weight[used.clone()]));
        Narrowed::Copy(narrowed)
    }

    /// The gradient of the weight from that of the taps in use; the others have none.
    fn widened(&self, gradient: Vec<f32>) -> Vec<f32> {
        if self.taps.len() == self.all_taps {
            return gradient;
        }
        let area = self.area();
        let mut widened = vec![0f32; gradient.len() / self.taps.len() * self.all_taps];
        let used = self.taps.start * area..self.taps.end * area;
        widened
            .par_chunks_mut(self.all_taps * area)
            .zip(gradient.par_chunks(used.len()))
            .for_each(|(widened, gradient)| widened[used.clone()].copy_from_slice(gradient));
        widened
    }

    /// Taps of a frame.
    fn area(&self) -> usize {
        self.shapes.window.kernel[1] * self.shapes.window.kernel[2]
    }
}

enum Narrowed<'a> {
    Whole(&'a [f32]),
    Copy(Scratch),
}

impl Deref for Narrowed<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Whole(weight) => weight,
            Self::Copy(weight) => weight,
        }
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (input, weight) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let output = (self.kernels().forward)(&self.shapes, input, &self.narrowed(weight));
        Ok((CpuStorage::F32(output), Shape::from(self.shapes.output_dims().as_slice())))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _output: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let upstream = upstream.contiguous()?;
        let Kernels { input_gradient, weight_gradient, .. } = self.kernels();
        let of_input = || {
            let gradient = with_slices(weight, &upstream, |weight, upstream| {
                input_gradient(&self.shapes, &self.narrowed(weight), upstream)
            })?;
            Tensor::from_vec(gradient, input.shape(), &Device::Cpu)
        };
        let of_weight = || {
            let gradient = with_slices(input, &upstream, |input, upstream| {
                self.widened(weight_gradient(&self.shapes, input, upstream))
            })?;
            Tensor::from_vec(gradient, weight.shape(), &Device::Cpu)
        };
        Ok((input.track_op().then(of_input).transpose()?, weight.track_op().then(of_weight).transpose()?))
    }
}
