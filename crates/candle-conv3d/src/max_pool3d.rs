//! The 3D max pool layer.

use candle_core::{Result, Tensor};
use candle_nn::Module;

use crate::geometry::{GeometryError, Window};
use crate::{reference, train};

/// The window of a pool, in (t, h, w) order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPool3dConfig {
    /// Size of the window.
    pub kernel: [usize; 3],
    /// Steps between neighbouring windows.
    pub stride: [usize; 3],
    /// Minus infinities on either side of each axis, at most half the kernel.
    pub padding: [usize; 3],
}

impl MaxPool3dConfig {
    /// (t, h, w) of the output for an input of (t, h, w).
    pub fn output_dims(&self, input: [usize; 3]) -> std::result::Result<[usize; 3], GeometryError> {
        let window = self.window();
        window.check_pool_padding()?;
        window.output_dims(input)
    }

    pub(crate) fn window(&self) -> Window {
        Window::new(self.kernel, self.stride, self.padding)
    }
}

/// A 3D max pool layer over (n, c, t, h, w).
///
/// As in PyTorch, padding never wins, NaN always does, and among equal values the first in (t, h, w)
/// order gets the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPool3d {
    config: MaxPool3dConfig,
}

impl MaxPool3d {
    /// A pool with this window.
    pub fn new(config: MaxPool3dConfig) -> Self {
        Self { config }
    }

    /// The window.
    pub fn config(&self) -> &MaxPool3dConfig {
        &self.config
    }
}

impl Module for MaxPool3d {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match train::max_pool3d(input, &self.config)? {
            Some(output) => Ok(output),
            None => reference::max_pool3d(input, &self.config),
        }
    }
}
