//! Inference plans on NVIDIA GPUs.
//!
//! [`Plan::build`] takes the same graph as the plan for CPUs. Activations are channels-last, in bf16 unless asked
//! otherwise, convolutions run through cuDNN with bias, residual and ReLU in them, by algorithms that were measured on this
//! GPU, and everything else through kernels of this crate that are compiled when the GPU is opened. A batch size is one
//! CUDA graph. One thread owns the GPU; [`Lane`]s bring it clips, so that copies overlap with computing.
//!
//! The libraries (the driver, nvrtc, cuDNN) are loaded when they are used: a program with this module starts where there
//! are none, and [`gpus`] says what is missing.

mod cudnn;
mod device;
#[cfg(test)]
mod emulation;
mod error;
mod kernels;
mod lower;
mod plan;
mod program;
mod rearrange;
mod search;
mod shape;
#[cfg(test)]
mod testing;
#[cfg_attr(not(feature = "candle-cuda"), allow(dead_code, reason = "it trains on tensors of candle's CUDA backend"))]
pub(crate) mod train;
mod trial;

pub use device::{GpuInfo, gpus};
pub use error::CudaError;
pub use plan::{Clips, Lane, LayerChoice, Plan, PlanOptions};
#[cfg(feature = "candle-cuda")]
pub use train::candle::training_device;
