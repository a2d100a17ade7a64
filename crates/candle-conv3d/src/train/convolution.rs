//! The convolution as an operation of candle, which picks the kernels.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::direct::{self, Shapes};
use super::scratch::Scratch;
use super::volume::{channels_first, channels_last};
use super::{contiguous, fits, residual, stem, with_slices};
use crate::Conv3dConfig;
use crate::geometry::{Window, volume_dims};

/// The convolution by the fast kernels, or `None` where they don't apply: other devices and types, and shapes that
/// the reference answers with an error.
pub(crate) fn conv3d(input: &Tensor, weight: &Tensor, config: &Conv3dConfig) -> Result<Option<Tensor>> {
    if !fits(input) || !fits(weight) || input.rank() != 5 || weight.rank() != 5 {
        return Ok(None);
    }
    let [n, c, t, h, w] = volume_dims(input)?;
    let Some(op) = Convolution::new([n, t, h, w, c], weight.dims5()?.into(), config) else { return Ok(None) };
    input.contiguous()?.apply_op2(&weight.contiguous()?, op).map(Some)
}

/// A convolution of volumes (n, t, h, w, c) with kernels (oc, ic, kt, kh, kw), forward and backward.
#[derive(Debug, Clone)]
pub(crate) struct Convolution {
    /// Of the convolution with the temporal taps in use.
    shapes: Shapes,
    /// Temporal taps in use: one at least, and the tap that meets the first frame at the first output is among them.
    taps: Range<usize>,
    /// Temporal taps of the weight.
    all_taps: usize,
}

impl Convolution {
    /// The convolution of an input (n, t, h, w, ic) by a weight (oc, ic, kt, kh, kw), unless the shapes don't belong
    /// together or need more padding than the kernel is large.
    pub(crate) fn new(input: [usize; 5], weight: [usize; 5], config: &Conv3dConfig) -> Option<Self> {
        let [clips, t, h, w, in_channels] = input;
        let [out_channels, _, kt, kh, kw] = weight;
        let (window, output) = config.fit(input, weight)?;
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
        Some(Self { shapes, taps, all_taps: kt })
    }

    /// (n, t, h, w, c) of the output.
    pub(crate) fn output_dims(&self) -> [usize; 5] {
        self.shapes.output_dims()
    }

    /// Writes the output.
    pub(crate) fn forward(&self, input: &[f32], weight: &[f32], output: &mut [f32]) {
        let (shapes, weight) = (&self.shapes, self.narrowed(weight));
        match Kernels::of(shapes) {
            Kernels::Residual => residual::forward(shapes, input, &weight, output),
            Kernels::Stem => stem::forward(shapes, input, &weight, output),
            Kernels::Direct => direct::forward(shapes, input, &weight, output),
        }
    }

    /// Writes the gradient of the input.
    pub(crate) fn input_gradient(&self, weight: &[f32], upstream: &[f32], gradient: &mut [f32]) {
        let (shapes, weight) = (&self.shapes, self.narrowed(weight));
        match Kernels::of(shapes) {
            Kernels::Residual => residual::input_gradient(shapes, &weight, upstream, gradient),
            // A network's input is data and has no gradient, so that of a stem is rarely wanted.
            Kernels::Stem | Kernels::Direct => direct::input_gradient(shapes, &weight, upstream, gradient),
        }
    }

    /// The gradient of the weight.
    pub(crate) fn weight_gradient(&self, input: &[f32], upstream: &[f32]) -> Vec<f32> {
        let shapes = &self.shapes;
        self.widened(match Kernels::of(shapes) {
            Kernels::Residual => residual::weight_gradient(shapes, input, upstream),
            Kernels::Stem => stem::weight_gradient(shapes, input, upstream),
            Kernels::Direct => direct::weight_gradient(shapes, input, upstream),
        })
    }

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

/// The fastest kernels for some shapes.
enum Kernels {
    Residual,
    Stem,
    Direct,
}

impl Kernels {
    fn of(shapes: &Shapes) -> Self {
        if residual::applies(shapes) {
            Self::Residual
        } else if stem::applies(shapes) {
            Self::Stem
        } else {
            Self::Direct
        }
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
        let [n, t, h, w, c] = self.output_dims();
        let mut output = Scratch::any(n * t * h * w * c);
        self.forward(&last(input, self.shapes.input_dims()), weight, &mut output);
        Ok((CpuStorage::F32(first(&output, self.output_dims())), Shape::from((n, c, t, h, w))))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _output: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (input_dims, upstream) = (self.shapes.input_dims(), upstream.contiguous()?);
        let upstream = with_slices(&upstream, &upstream, |upstream, _| last(upstream, self.output_dims()))?;
        let of_input = || {
            let gradient = with_slices(weight, weight, |weight, _| {
                let mut gradient = Scratch::any(input.elem_count());
                self.input_gradient(weight, &upstream, &mut gradient);
                first(&gradient, input_dims)
            })?;
            Tensor::from_vec(gradient, input.shape(), &Device::Cpu)
        };
        let of_weight = || {
            let gradient =
                with_slices(input, input, |input, _| self.weight_gradient(&last(input, input_dims), &upstream))?;
            Tensor::from_vec(gradient, weight.shape(), &Device::Cpu)
        };
        Ok((input.track_op().then(of_input).transpose()?, weight.track_op().then(of_weight).transpose()?))
    }
}

/// A tensor's (n, c, t, h, w) as a volume of `dims` (n, t, h, w, c).
fn last(tensor: &[f32], [_, t, h, w, c]: [usize; 5]) -> Scratch {
    channels_last(tensor, c, t * h * w)
}

/// The inverse of [`last`].
fn first(volume: &[f32], [_, t, h, w, c]: [usize; 5]) -> Vec<f32> {
    channels_first(volume, c, t * h * w)
}
