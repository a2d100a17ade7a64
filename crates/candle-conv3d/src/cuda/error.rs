//! What can go wrong on a GPU.

use cudarc::driver::{DriverError, sys::CUresult};

use crate::graph::GraphError;
use crate::plan::PlanError;

/// Why a plan can't be built or run on a GPU.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// A library of CUDA is not installed.
    #[error("{name} can't be loaded: {purpose}")]
    Library {
        /// Its file.
        name: &'static str,
        /// What brings it.
        purpose: &'static str,
    },
    /// The driver finds no GPU.
    #[error("there is no usable NVIDIA GPU")]
    NoDevice,
    /// A GPU that is not there.
    #[error("there is no GPU {actual}; the driver sees {count}")]
    Ordinal {
        /// Number asked for.
        actual: usize,
        /// GPUs there are.
        count: usize,
    },
    /// cuDNN with known wrong results.
    #[error("cuDNN is {0}.{1}; 3D convolutions need at least 9.15", .actual / 10_000, .actual / 100 % 100)]
    CudnnVersion {
        /// As `cudnnGetVersion` tells it.
        actual: usize,
    },
    /// A call of the driver failed.
    #[error("{call}: {code:?}")]
    Driver {
        /// What was tried.
        call: &'static str,
        /// The driver's answer.
        code: CUresult,
    },
    /// A call of cuDNN failed.
    #[error("cuDNN, {call}: {status}{message}")]
    Cudnn {
        /// What was tried.
        call: &'static str,
        /// The status's name.
        status: String,
        /// cuDNN's own explanation.
        message: String,
    },
    /// The kernels don't compile.
    #[error("nvrtc: {0}")]
    Compile(String),
    /// The network can't be run on GPUs.
    #[error("{layer}: {reason}")]
    Unsupported {
        /// Name of the layer.
        layer: String,
        /// Why.
        reason: &'static str,
    },
    /// No algorithm for a convolution is there and right.
    #[error("{layer}: none of {tried} algorithms can be used; the last one: {last}")]
    NoAlgorithm {
        /// Name of the layer.
        layer: String,
        /// Algorithms looked at.
        tried: usize,
        /// Why the last one was refused.
        last: String,
    },
    /// The slices given don't fit the plan.
    #[error("{0}")]
    Input(String),
    /// The thread that owned the GPU has ended.
    #[error("the GPU's thread has ended: {0}")]
    Ended(String),
}

impl CudaError {
    pub(super) fn driver(call: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |DriverError(code)| Self::Driver { call, code }
    }

    /// Whether less memory would have done.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Driver { code, .. } => *code == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            Self::Cudnn { status, .. } => status == "CUDNN_STATUS_ALLOC_FAILED",
            _ => false,
        }
    }
}

impl From<GraphError> for CudaError {
    fn from(error: GraphError) -> Self {
        Self::Input(error.to_string())
    }
}

impl From<PlanError> for CudaError {
    fn from(error: PlanError) -> Self {
        Self::Input(error.to_string())
    }
}
