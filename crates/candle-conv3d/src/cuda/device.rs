//! Which GPUs and libraries there are.
#![allow(unsafe_code)]

#[cfg(not(feature = "candle-cuda"))]
use std::sync::OnceLock;

use cudarc::driver::{CudaContext, result, sys};

use super::CudaError;
use super::cudnn;

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// The driver's number for it; `CUDA_VISIBLE_DEVICES` chooses and orders them.
    pub ordinal: usize,
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Such as (9, 0).
    pub compute_capability: (i32, i32),
    /// Bytes of memory.
    pub memory_bytes: usize,
}

/// The GPUs that this process may use; an error says what is missing.
pub fn gpus() -> Result<Vec<GpuInfo>, CudaError> {
    require_driver()?;
    let count = match CudaContext::device_count() {
        Ok(count) => usize::try_from(count).unwrap_or(0),
        Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
        Err(error) => return Err(CudaError::driver("cuInit")(error)),
    };
    if count == 0 {
        return Err(CudaError::NoDevice);
    }
    require_nvrtc()?;
    require_cudnn()?;
    (0..count).map(gpu).collect()
}

fn gpu(ordinal: usize) -> Result<GpuInfo, CudaError> {
    let info = || -> Result<GpuInfo, result::DriverError> {
        let device = result::device::get(ordinal as i32)?;
        let name = result::device::get_name(device)?;
        use sys::CUdevice_attribute as Attribute;
        // SAFETY: a device that the driver just named.
        let (major, minor, memory_bytes) = unsafe {
            (
                result::device::get_attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                result::device::get_attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                result::device::total_mem(device)?,
            )
        };
        Ok(GpuInfo { ordinal, name, compute_capability: (major, minor), memory_bytes })
    };
    info().map_err(CudaError::driver("cuDeviceGet"))
}

/// What plans depend on beside the network: GPU, driver and cuDNN, as a file name.
pub(super) fn fingerprint(gpu: &GpuInfo) -> Result<String, CudaError> {
    let (major, minor) = gpu.compute_capability;
    let text = format!("{} sm{major}{minor} cudnn {} driver {}", gpu.name, cudnn::version()?, driver_version());
    Ok(text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect())
}

/// As the kernel module tells it, or the CUDA version that the driver supports.
fn driver_version() -> String {
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let line = module.lines().next().unwrap_or_default();
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    if let Some(version) = line.split_whitespace().find(is_version) {
        return version.to_owned();
    }
    let mut version = 0;
    // SAFETY: the library is there, and `version` has room for an int.
    let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
    version.to_string()
}

/// Whether a library that is loaded when it is used is there. One that the program is linked to is, or it wouldn't have
/// started.
macro_rules! is_present {
    ($library:path) => {{
        #[cfg(not(feature = "candle-cuda"))]
        {
            use $library as library;
            static FOUND: OnceLock<bool> = OnceLock::new();
            // SAFETY: loads and unloads a library of NVIDIA's, as its first use would.
            *FOUND.get_or_init(|| unsafe { library::is_culib_present() })
        }
        #[cfg(feature = "candle-cuda")]
        true
    }};
}

/// The driver, which whoever installs the GPU installs.
pub(super) fn require_driver() -> Result<(), CudaError> {
    require(is_present!(cudarc::driver::sys), "libcuda.so.1", "the NVIDIA driver brings it")
}

pub(super) fn require_nvrtc() -> Result<(), CudaError> {
    require(
        is_present!(cudarc::nvrtc::sys),
        "libnvrtc.so",
        "CUDA's toolkit or the wheel nvidia-cuda-nvrtc brings it; LD_LIBRARY_PATH leads to it",
    )
}

pub(super) fn require_cudnn() -> Result<(), CudaError> {
    require(
        is_present!(cudarc::cudnn::sys),
        "libcudnn.so.9",
        "cuDNN or the wheel nvidia-cudnn-cu13 brings it; LD_LIBRARY_PATH leads to it",
    )
}

fn require(found: bool, name: &'static str, purpose: &'static str) -> Result<(), CudaError> {
    if found { Ok(()) } else { Err(CudaError::Library { name, purpose }) }
}
