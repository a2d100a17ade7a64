//! Where windows lie: output sizes, and the checks that every operation shares.

use candle_core::{Result, Tensor};

/// The axes of a volume in the order of every `[usize; 3]` of this crate.
const AXES: [&str; 3] = ["time", "height", "width"];

/// A shape or configuration that no 3D convolution or pool can work on.
///
/// It reaches callers inside a [`candle_core::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// A stride of zero would never leave the first window.
    #[error("stride along {axis} is 0; it must be at least 1")]
    ZeroStride {
        /// The axis at fault.
        axis: &'static str,
    },
    /// A window without extent has no value.
    #[error("kernel along {axis} is 0; it must be at least 1")]
    ZeroKernel {
        /// The axis at fault.
        axis: &'static str,
    },
    /// Not one window fits.
    #[error("kernel along {axis} is {kernel}; input {input} with padding {padding} on both sides allows at most {}",
        input.saturating_add(padding.saturating_mul(2)))]
    KernelTooLarge {
        /// The axis at fault.
        axis: &'static str,
        /// Kernel size along it.
        kernel: usize,
        /// Input size along it.
        input: usize,
        /// Padding on either side of it.
        padding: usize,
    },
    /// A pool window could lie wholly in the padding and have no maximum.
    #[error("pool padding along {axis} is {padding}; a kernel of {kernel} allows at most {}", kernel / 2)]
    PoolPadding {
        /// The axis at fault.
        axis: &'static str,
        /// Padding on either side of it.
        padding: usize,
        /// Kernel size along it.
        kernel: usize,
    },
    /// The input holds nothing.
    #[error("input (n, c, t, h, w) is {shape:?}; no dimension may be 0")]
    EmptyInput {
        /// Shape of the input.
        shape: [usize; 5],
    },
    /// Input and weight don't belong together.
    #[error("input has {input} channels; the weight wants {weight}")]
    Channels {
        /// Channels of the input.
        input: usize,
        /// Input channels of the weight.
        weight: usize,
    },
    /// The bias is not one number an output channel.
    #[error("bias has shape {bias:?}; {out_channels} output channels want [{out_channels}]")]
    Bias {
        /// Shape of the bias.
        bias: Vec<usize>,
        /// Output channels of the weight.
        out_channels: usize,
    },
}

/// The shape of one clip's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) c: usize,
    pub(crate) t: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
}

impl Shape {
    /// Values of one clip.
    pub(crate) fn len(&self) -> usize {
        self.c * self.t * self.h * self.w
    }

    /// (c, t, h, w)
    pub(crate) fn dims(&self) -> [usize; 4] {
        [self.c, self.t, self.h, self.w]
    }
}

/// A sliding window of a convolution or a pool over (t, h, w).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Size, `[t, h, w]`.
    pub kernel: [usize; 3],
    /// Distance from one window to the next, `[t, h, w]`.
    pub stride: [usize; 3],
    /// Padding before the input, `[t, h, w]`.
    pub padding: [usize; 3],
    /// Padding after the input, `[t, h, w]`.
    pub padding_after: [usize; 3],
}

impl Window {
    /// With as much padding after the input as before it.
    pub(crate) const fn new(kernel: [usize; 3], stride: [usize; 3], padding: [usize; 3]) -> Self {
        Self { kernel, stride, padding, padding_after: padding }
    }

    /// Number of windows along each axis of an input of (t, h, w): floor((padded input - kernel) / stride) + 1.
    pub(crate) fn output_dims(&self, input: [usize; 3]) -> std::result::Result<[usize; 3], GeometryError> {
        let mut output = [0; 3];
        for (i, axis) in AXES.into_iter().enumerate() {
            let (kernel, stride, padding, input) = (self.kernel[i], self.stride[i], self.padding[i], input[i]);
            if stride == 0 {
                return Err(GeometryError::ZeroStride { axis });
            }
            if kernel == 0 {
                return Err(GeometryError::ZeroKernel { axis });
            }
            let padded = input.saturating_add(padding).saturating_add(self.padding_after[i]);
            let Some(room) = padded.checked_sub(kernel) else {
                return Err(GeometryError::KernelTooLarge { axis, kernel, input, padding });
            };
            output[i] = room / stride + 1;
        }
        Ok(output)
    }

    /// The input places along `axis` that window number `place` covers.
    pub(crate) fn covered(&self, axis: usize, place: usize, input: usize) -> std::ops::Range<usize> {
        let start = place * self.stride[axis];
        let end = (start + self.kernel[axis]).saturating_sub(self.padding[axis]).min(input);
        start.saturating_sub(self.padding[axis])..end
    }

    /// Kernel positions `begin..end` along `axis` that meet data, not padding, for output position `out` of an axis of
    /// `len` values.
    pub(crate) fn valid_taps(&self, axis: usize, out: usize, len: usize) -> (usize, usize) {
        let start = out * self.stride[axis];
        let begin = self.padding[axis].saturating_sub(start).min(self.kernel[axis]);
        let end = (len + self.padding[axis]).saturating_sub(start).min(self.kernel[axis]);
        (begin, end.max(begin))
    }

    /// Refuses padding of more than half the kernel, as PyTorch's pools do.
    pub(crate) fn check_pool_padding(&self) -> std::result::Result<(), GeometryError> {
        for (i, axis) in AXES.into_iter().enumerate() {
            let (padding, kernel) = (self.padding[i], self.kernel[i]);
            if padding > kernel / 2 {
                return Err(GeometryError::PoolPadding { axis, padding, kernel });
            }
        }
        Ok(())
    }
}

/// (n, c, t, h, w) of `input`, none of them 0.
pub(crate) fn volume_dims(input: &Tensor) -> Result<[usize; 5]> {
    let (n, c, t, h, w) = input.dims5()?;
    let shape = [n, c, t, h, w];
    if shape.contains(&0) {
        return Err(candle_core::Error::wrap(GeometryError::EmptyInput { shape }));
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_counts_whole_windows_only() {
        let window = Window::new([7, 7, 7], [1, 2, 2], [3, 3, 3]);
        assert_eq!(window.output_dims([16, 112, 111]), Ok([16, 56, 56]));
    }

    #[test]
    fn absurd_padding_is_an_answer_or_an_error_but_no_panic() {
        let window = Window::new([1; 3], [1; 3], [usize::MAX / 2; 3]);
        assert!(window.output_dims([16, 16, 16]).is_ok());
        assert!(window.check_pool_padding().is_err());
    }
}
