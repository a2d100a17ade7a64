//! On which devices models run.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use candle_conv3d::Precision;
use candle_conv3d::graph::Graph;

use super::{Build, CpuExecutor, EngineConfig, Executor, ExecutorError};
use crate::model::file::Model;

/// A device by the name that a user gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceRequest {
    /// `cpu`
    Cpu,
    /// `cuda`: every GPU that the driver sees.
    AllGpus,
    /// `cuda:N`, by the driver's number.
    Gpu(usize),
}

impl FromStr for DeviceRequest {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::AllGpus),
            _ => {
                let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number.map(Self::Gpu).ok_or_else(|| "expected cpu, cuda or cuda:N".to_owned())
            }
        }
    }
}

/// Why models can't run on the devices that were asked for.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Both kinds at a time.
    #[error("a server computes either on the CPU or on GPUs: choose --device cpu or --device cuda")]
    Mixed,
    /// A program without the code for it.
    #[cfg(not(feature = "cuda"))]
    #[error("this program was built without GPUs: build it with --features cuda")]
    NotBuilt,
    /// No driver, no library, no GPU.
    #[cfg(feature = "cuda")]
    #[error("no GPU can be used: {0}")]
    Gpu(candle_conv3d::cuda::CudaError),
}

/// Where models run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// One worker on the CPU.
    Cpu,
    /// Two workers a GPU: one brings clips there while the other's are computed.
    #[cfg(feature = "cuda")]
    Gpus {
        /// GPUs by the driver's numbers.
        ordinals: Vec<usize>,
        /// What they compute with.
        precision: Precision,
        /// Directory for what was measured about them.
        cache: Option<std::path::PathBuf>,
    },
}

/// Reads the model that executors are built of.
pub(crate) type ReadModel = dyn Fn() -> Result<Arc<Model>, ExecutorError> + Send + Sync;

impl Devices {
    /// The devices that were asked for. If none were, all GPUs, or the CPU where there are none; [`fmt::Display`] says
    /// which.
    pub fn choose(requests: &[DeviceRequest], precision: Precision) -> Result<Self, DeviceError> {
        let wants_cpu = requests.contains(&DeviceRequest::Cpu);
        let wants_gpus = requests.iter().any(|request| *request != DeviceRequest::Cpu);
        match (wants_cpu, wants_gpus) {
            (true, true) => Err(DeviceError::Mixed),
            (true, false) => Ok(Self::Cpu),
            (false, true) => Self::gpus(requests, precision),
            (false, false) => Ok(Self::any(precision)),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn gpus(_: &[DeviceRequest], _: Precision) -> Result<Self, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    #[cfg(not(feature = "cuda"))]
    fn any(_: Precision) -> Self {
        Self::Cpu
    }

    #[cfg(feature = "cuda")]
    fn gpus(requests: &[DeviceRequest], precision: Precision) -> Result<Self, DeviceError> {
        use candle_conv3d::cuda::CudaError;

        let count = candle_conv3d::cuda::gpus().map_err(DeviceError::Gpu)?.len();
        let mut ordinals = Vec::new();
        for request in requests {
            match *request {
                DeviceRequest::Cpu => {}
                DeviceRequest::AllGpus => ordinals.extend(0..count),
                DeviceRequest::Gpu(actual) if actual < count => ordinals.push(actual),
                DeviceRequest::Gpu(actual) => return Err(DeviceError::Gpu(CudaError::Ordinal { actual, count })),
            }
        }
        ordinals.sort_unstable();
        ordinals.dedup();
        Ok(Self::Gpus { ordinals, precision, cache: crate::config::cache_directory() })
    }

    #[cfg(feature = "cuda")]
    fn any(precision: Precision) -> Self {
        match Self::gpus(&[DeviceRequest::AllGpus], precision) {
            Ok(gpus) => gpus,
            Err(error) => {
                tracing::warn!("{error}; computing on the CPU");
                Self::Cpu
            }
        }
    }

    /// Workers of a model.
    pub fn workers(&self) -> usize {
        match self {
            Self::Cpu => 1,
            #[cfg(feature = "cuda")]
            Self::Gpus { ordinals, .. } => super::gpu::LANES * ordinals.len(),
        }
    }

    /// Clips in one batch at most, unless somebody chose.
    pub fn default_max_batch(&self) -> usize {
        match self {
            Self::Cpu => EngineConfig::DEFAULT_MAX_BATCH,
            #[cfg(feature = "cuda")]
            Self::Gpus { .. } => EngineConfig::DEFAULT_GPU_MAX_BATCH,
        }
    }

    /// Bytes that a model's executor on the CPU would hold, found without its weights and without taking that memory.
    /// 0 on GPUs, where only building one tells.
    #[cfg_attr(not(feature = "video"), allow(dead_code, reason = "only a repository asks"))]
    pub(crate) fn memory_bytes(&self, graph: &Graph, config: EngineConfig) -> Result<u64, ExecutorError> {
        match self {
            Self::Cpu => CpuExecutor::memory_bytes_of(graph, config.threads, config.max_batch),
            #[cfg(feature = "cuda")]
            Self::Gpus { .. } => Ok(0),
        }
    }

    /// Builds workers' executors of the model that `read` gives.
    pub(crate) fn build(&self, config: EngineConfig, read: Box<ReadModel>) -> Box<Build> {
        match self {
            Self::Cpu => Box::new(move || -> Result<Box<dyn Executor>, ExecutorError> {
                Ok(Box::new(CpuExecutor::new(&*read()?, config.threads, config.max_batch)?))
            }),
            #[cfg(feature = "cuda")]
            Self::Gpus { ordinals, precision, cache } => {
                let gpus = super::gpu::Gpus::new(ordinals, *precision, cache.clone(), config, read);
                Box::new(move || gpus.executor())
            }
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Self::Gpus { ordinals, precision, .. } => {
                let names: Vec<String> = ordinals.iter().map(|ordinal| format!("cuda:{ordinal}")).collect();
                write!(f, "{} ({precision})", names.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        assert_eq!("cpu".parse(), Ok(DeviceRequest::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceRequest::AllGpus));
        assert_eq!("cuda:3".parse(), Ok(DeviceRequest::Gpu(3)));
        for broken in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(broken.parse::<DeviceRequest>().is_err(), "{broken}");
        }
    }

    #[test]
    fn the_cpu_and_gpus_are_not_mixed() {
        let mixed = Devices::choose(&[DeviceRequest::Cpu, DeviceRequest::AllGpus], Precision::Bf16);
        assert!(matches!(mixed, Err(DeviceError::Mixed)));
        assert_eq!(Devices::choose(&[DeviceRequest::Cpu], Precision::Bf16).unwrap(), Devices::Cpu);
    }

    #[test]
    fn a_gpu_that_can_not_be_used_is_an_error_only_if_it_was_asked_for() {
        let asked = Devices::choose(&[DeviceRequest::Gpu(4096)], Precision::Bf16);
        let message = asked.unwrap_err().to_string();
        assert!(!message.contains('\n') && (message.contains("GPU") || message.contains("GPUs")), "{message}");
        assert!(Devices::choose(&[], Precision::Bf16).is_ok());
    }
}
