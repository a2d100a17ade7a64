//! The 3D convolution layer.

use candle_core::{Error, Result, Tensor};
use candle_nn::{Module, VarBuilder};

use crate::geometry::{GeometryError, Window};
use crate::{reference, train};

/// How the kernel moves, in (t, h, w) order. Groups and dilation are always 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv3dConfig {
    /// Steps between neighbouring windows. Default 1.
    pub stride: [usize; 3],
    /// Zeros on either side of each axis. Default 0.
    pub padding: [usize; 3],
}

impl Default for Conv3dConfig {
    fn default() -> Self {
        Self { stride: [1; 3], padding: [0; 3] }
    }
}

impl Conv3dConfig {
    /// (t, h, w) of the output for an input of (t, h, w) and a kernel of (kt, kh, kw).
    pub fn output_dims(&self, input: [usize; 3], kernel: [usize; 3]) -> std::result::Result<[usize; 3], GeometryError> {
        self.window(kernel).output_dims(input)
    }

    /// The window and (t, h, w) of the output for an input (n, t, h, w, ic) and a weight (oc, ic, kt, kh, kw), unless they
    /// don't belong together or there is more padding than kernel: the reference takes windows without data.
    pub(crate) fn fit(&self, input: [usize; 5], weight: [usize; 5]) -> Option<(Window, [usize; 3])> {
        let ([_, t, h, w, in_channels], [out_channels, weight_channels, kt, kh, kw]) = (input, weight);
        let window = self.window([kt, kh, kw]);
        let sensible = (0..3).all(|axis| window.padding[axis] < window.kernel[axis]);
        let output = window.output_dims([t, h, w]).ok()?;
        (in_channels == weight_channels && out_channels > 0 && sensible).then_some((window, output))
    }

    pub(crate) fn window(&self, kernel: [usize; 3]) -> Window {
        Window::new(kernel, self.stride, self.padding)
    }
}

/// A 3D convolution layer over (n, ic, t, h, w), differentiable in input, weight and bias.
///
/// On CPUs in f32 it runs by this crate's kernels, with the feature `candle-cuda` on CUDA tensors by cuDNN, and by candle's
/// operations otherwise.
#[derive(Debug, Clone)]
pub struct Conv3d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv3dConfig,
}

impl Conv3d {
    /// `weight` is (oc, ic, kt, kh, kw) and `bias` (oc), as PyTorch stores them.
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: Conv3dConfig) -> Self {
        Self { weight, bias, config }
    }

    /// Stride and padding.
    pub fn config(&self) -> &Conv3dConfig {
        &self.config
    }

    /// The weight, (oc, ic, kt, kh, kw).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, (oc).
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Conv3d {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let output = match fast(input, &self.weight, &self.config)? {
            Some(output) => output,
            None => reference::conv3d(input, &self.weight, &self.config)?,
        };
        let Some(bias) = &self.bias else { return Ok(output) };
        let out_channels = self.weight.dim(0)?;
        if bias.dims() != [out_channels] {
            return Err(Error::wrap(GeometryError::Bias { bias: bias.dims().to_vec(), out_channels }));
        }
        output.broadcast_add(&bias.reshape((1, out_channels, 1, 1, 1))?)
    }
}

/// The convolution by this crate's own kernels, or by cuDNN; `None` where neither applies.
fn fast(input: &Tensor, weight: &Tensor, config: &Conv3dConfig) -> Result<Option<Tensor>> {
    #[cfg(feature = "candle-cuda")]
    if let Some(output) = crate::cuda::train::candle::conv3d(input, weight, config)? {
        return Ok(Some(output));
    }
    train::conv3d(input, weight, config)
}

/// A [`Conv3d`] with the tensors `weight` (oc, ic, kt, kh, kw) and `bias` (oc) of `vb`.
///
/// New variables get candle's defaults for convolutions: Kaiming-normal weights and a bias uniform within
/// 1 / sqrt(fan in).
pub fn conv3d(
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 3],
    config: Conv3dConfig,
    vb: VarBuilder,
) -> Result<Conv3d> {
    let fan_in = (in_channels * kernel.iter().product::<usize>()) as f64;
    let bound = 1. / fan_in.sqrt();
    let bias = vb.get_with_hints(out_channels, "bias", candle_nn::Init::Uniform { lo: -bound, up: bound })?;
    Ok(Conv3d { bias: Some(bias), ..conv3d_no_bias(in_channels, out_channels, kernel, config, vb)? })
}

/// A [`Conv3d`] with the tensor `weight` (oc, ic, kt, kh, kw) of `vb` and no bias.
pub fn conv3d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 3],
    config: Conv3dConfig,
    vb: VarBuilder,
) -> Result<Conv3d> {
    let [kt, kh, kw] = kernel;
    let shape = (out_channels, in_channels, kt, kh, kw);
    let weight = vb.get_with_hints(shape, "weight", candle_nn::init::DEFAULT_KAIMING_NORMAL)?;
    Ok(Conv3d::new(weight, None, config))
}
