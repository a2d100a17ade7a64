//! 3D convolution and max pooling for [candle](https://github.com/huggingface/candle), forward and backward.
//!
//! candle has 1D and 2D convolutions; video networks (3D ResNet, R(2+1)D, I3D, X3D) and volumetric ones need the
//! third axis. The layers here look and behave like candle's own and PyTorch's: a [`Conv3d`] reads a
//! checkpoint's `weight` and `bias` as they are, gradients flow to input, weight and bias.
//!
//! Volumes are (n, c, t, h, w); every `[usize; 3]` is in (t, h, w) order.
//!
//! ```
//! use candle_conv3d::{Conv3dConfig, MaxPool3d, MaxPool3dConfig, conv3d_no_bias};
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Module, VarBuilder, VarMap};
//!
//! # fn main() -> candle_core::Result<()> {
//! let variables = VarMap::new();
//! let vb = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
//! let stem = Conv3dConfig { stride: [1, 2, 2], padding: [1, 3, 3] };
//! let conv = conv3d_no_bias(3, 8, [3, 7, 7], stem, vb.pp("conv1"))?;
//! let pool = MaxPool3d::new(MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] });
//!
//! let clip = Tensor::randn(0f32, 1., (1, 3, 8, 32, 32), &Device::Cpu)?;
//! let features = pool.forward(&conv.forward(&clip)?)?;
//! assert_eq!(features.dims(), [1, 8, 4, 8, 8]);
//!
//! let gradients = features.sum_all()?.backward()?;
//! assert_eq!(gradients.get(conv.weight()).map(Tensor::dims), Some(&[8, 3, 3, 7, 7][..]));
//! # Ok(())
//! # }
//! ```
//!
//! A global average pool needs no layer: `x.flatten_from(2)?.mean(2)?` is (n, c).
//!
//! A [`Tape`] trains residual networks faster than layers on tensors do. [`graph`] describes whole networks: [`network`] trains
//! them, and [`plan`] runs them on CPUs. With the feature `cuda`,
//! `cuda` runs them on NVIDIA GPUs; with `candle-cuda` convolutions of candle's CUDA tensors and tapes go through cuDNN.

mod allocator;
mod batch_norm;
mod conv3d;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod geometry;
pub mod graph;
mod max_pool3d;
pub mod network;
pub mod plan;
mod precision;
pub mod reference;
mod train;

pub use allocator::{TrainingAllocator, keep_freed_memory};
pub use batch_norm::{Activation, BatchNormOutput, add_relu, batch_norm, fixed_norm};
pub use conv3d::{Conv3d, Conv3dConfig, conv3d, conv3d_no_bias};
pub use geometry::GeometryError;
pub use max_pool3d::{MaxPool3d, MaxPool3dConfig};
pub use precision::Precision;
pub use train::{BatchStatistics, ConvNormLayer, Following, Statistics, Tape, Volume};
