//! Compiles and launches the kernels of `kernels.cu`.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, result as driver,
};
use cudarc::nvrtc::{Ptx, result, sys};

use super::lower::{GatherShape, PoolShape};
use super::rearrange::LoadShape;
use super::shape::{ConvShape, Element};
use super::train::machine::{self, Grid};
use super::{CudaError, device};

/// The kernels of plans, and behind them those of training.
pub(crate) const SOURCES: [&str; 2] = [include_str!("kernels.cu"), include_str!("train/training.cu")];

const THREADS: u32 = 256;
/// Blocks a multiprocessor that keep it busy; the kernels stride over more work than that.
const BLOCKS_PER_PROCESSOR: u32 = 16;

/// Machine code for GPUs of a compute capability. Not PTX, which a driver that is older than nvrtc refuses.
pub(crate) fn compile(element: Element, (major, minor): (i32, i32), sources: &[&str]) -> Result<Vec<u8>, CudaError> {
    device::require_nvrtc()?;
    let failed = |error: result::NvrtcError| CudaError::Compile(error.to_string());
    let source = CString::new(sources.concat()).expect("the source has no zero byte");
    let program = Program(result::create_program(&source, Some(c"kernels.cu")).map_err(failed)?);
    let options = [
        format!("--gpu-architecture=sm_{major}{minor}"),
        format!("-DTYPE={}", element.kernel_type()),
        "--std=c++17".to_owned(),
    ];
    // SAFETY: a live program.
    if let Err(error) = unsafe { result::compile_program(program.0, &options) } {
        return Err(CudaError::Compile(format!("{error}\n{}", program.log())));
    }
    let mut len = 0;
    // SAFETY: a live program that was compiled for a real architecture, and room for a length.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &mut len) }.result().map_err(failed)?;
    let mut code = vec![0u8; len];
    // SAFETY: as above, and room for as many bytes as it said.
    unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }.result().map_err(failed)?;
    Ok(code)
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: a live program.
        let log: Vec<c_char> = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.iter().map(|&c| c as u8).collect();
        CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |log| log.to_string_lossy().into_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create_program` and not destroyed before. There is nobody to tell of a failure.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

// SAFETY: `Load` of kernels.cu, integers in the same order.
unsafe impl DeviceRepr for LoadShape {}
// SAFETY: `Pool` of kernels.cu, integers in the same order.
unsafe impl DeviceRepr for PoolShape {}
// SAFETY: `Gather` of kernels.cu, integers in the same order.
unsafe impl DeviceRepr for GatherShape {}

/// `Conv` of kernels.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct DirectShape {
    input: [i32; 4],
    output: [i32; 4],
    kernel: [i32; 3],
    stride: [i32; 3],
    padding: [i32; 3],
    relu: i32,
}

// SAFETY: `Conv` of kernels.cu, integers in the same order.
unsafe impl DeviceRepr for DirectShape {}

impl DirectShape {
    pub(crate) fn new(shape: &ConvShape, relu: bool) -> Self {
        let dims = |dims: [usize; 3]| dims.map(|dim| dim as i32);
        Self {
            input: shape.input.map(|dim| dim as i32),
            output: shape.output.map(|dim| dim as i32),
            kernel: dims(shape.kernel),
            stride: dims(shape.stride),
            padding: dims(shape.pre),
            relu: i32::from(relu),
        }
    }
}

/// The kernels on one GPU, for one element type.
///
/// Every launch is unsafe for the same reason: addresses are device memory of this GPU that holds what the kernel's
/// comment says for `n` clips, until the stream has done the work or whatever it was captured into is gone.
pub(crate) struct Kernels {
    stream: Arc<CudaStream>,
    most_blocks: u32,
    load_rgb: CudaFunction,
    load_values: CudaFunction,
    max_pool: CudaFunction,
    gather: CudaFunction,
    finish: CudaFunction,
    mean: CudaFunction,
    linear: CudaFunction,
    store: CudaFunction,
    direct_conv: CudaFunction,
    noise: CudaFunction,
    training: HashMap<&'static str, CudaFunction>,
}

/// What kernels are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Inference,
    #[cfg_attr(not(feature = "candle-cuda"), allow(dead_code))]
    Training,
}

impl Kernels {
    pub(crate) fn load(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
        element: Element,
        compute_capability: (i32, i32),
        purpose: Purpose,
    ) -> Result<Self, CudaError> {
        use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let (sources, names) = match purpose {
            Purpose::Inference => (&SOURCES[..1], &[][..]),
            Purpose::Training => (&SOURCES[..], &machine::KERNELS[..]),
        };
        let code = compile(element, compute_capability, sources)?;
        let module = context.load_module(Ptx::from_binary(code)).map_err(CudaError::driver("cuModuleLoadData"))?;
        let function = |name| module.load_function(name).map_err(CudaError::driver("cuModuleGetFunction"));
        let processors = context
            .attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(CudaError::driver("cuDeviceGetAttribute"))?;
        Ok(Self {
            stream: Arc::clone(stream),
            most_blocks: processors.max(1) as u32 * BLOCKS_PER_PROCESSOR,
            load_rgb: function("load_rgb")?,
            load_values: function("load_values")?,
            max_pool: function("max_pool")?,
            gather: function("gather")?,
            finish: function("finish")?,
            mean: function("mean")?,
            linear: function("linear")?,
            store: function("store")?,
            direct_conv: function("direct_conv")?,
            noise: function("noise")?,
            training: names.iter().map(|name| Ok((*name, function(name)?))).collect::<Result<_, CudaError>>()?,
        })
    }

    /// # Safety
    /// As [`Kernels`] says; `table` holds 3 x 256 floats.
    pub(crate) unsafe fn load_rgb(
        &self,
        clips: u64,
        table: u64,
        out: u64,
        shape: &LoadShape,
        n: usize,
    ) -> Result<(), CudaError> {
        let (work, n) = (n * shape.groups(), n as i32);
        let mut launch = self.stream.launch_builder(&self.load_rgb);
        launch.arg(&clips).arg(&table).arg(&out).arg(shape).arg(&n);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(work)) })
    }

    /// # Safety
    /// As [`Kernels`] says.
    pub(crate) unsafe fn load_values(
        &self,
        clips: u64,
        out: u64,
        shape: &LoadShape,
        n: usize,
    ) -> Result<(), CudaError> {
        let (work, n) = (n * shape.groups(), n as i32);
        let mut launch = self.stream.launch_builder(&self.load_values);
        launch.arg(&clips).arg(&out).arg(shape).arg(&n);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(work)) })
    }

    /// # Safety
    /// As [`Kernels`] says.
    pub(crate) unsafe fn max_pool(&self, x: u64, y: u64, shape: &PoolShape, n: usize) -> Result<(), CudaError> {
        let work = n * shape.output.iter().product::<i32>() as usize * shape.channels as usize / 8;
        let n = n as i32;
        let mut launch = self.stream.launch_builder(&self.max_pool);
        launch.arg(&x).arg(&y).arg(shape).arg(&n);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(work)) })
    }

    /// # Safety
    /// As [`Kernels`] says.
    pub(crate) unsafe fn gather(&self, x: u64, y: u64, shape: &GatherShape, n: usize) -> Result<(), CudaError> {
        let work = n * shape.dims.iter().product::<i32>() as usize * shape.channels as usize / 8;
        let n = n as i32;
        let mut launch = self.stream.launch_builder(&self.gather);
        launch.arg(&x).arg(&y).arg(shape).arg(&n);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(work)) })
    }

    /// # Safety
    /// As [`Kernels`] says; `residual` may be 0.
    pub(crate) unsafe fn finish(
        &self,
        y: u64,
        bias: u64,
        residual: u64,
        channels: usize,
        relu: bool,
        values: usize,
    ) -> Result<(), CudaError> {
        let (channels, relu, values) = (channels as i32, i32::from(relu), values as u64);
        let mut launch = self.stream.launch_builder(&self.finish);
        launch.arg(&y).arg(&bias).arg(&residual).arg(&channels).arg(&relu).arg(&values);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(values as usize / 8)) })
    }

    /// # Safety
    /// As [`Kernels`] says.
    pub(crate) unsafe fn mean(
        &self,
        x: u64,
        y: u64,
        rows: usize,
        stored: usize,
        channels: usize,
        n: usize,
    ) -> Result<(), CudaError> {
        let work = n * channels;
        let (rows, stored, channels, n) = (rows as i32, stored as i32, channels as i32, n as i32);
        let mut launch = self.stream.launch_builder(&self.mean);
        launch.arg(&x).arg(&y).arg(&rows).arg(&stored).arg(&channels).arg(&n);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(work)) })
    }

    /// # Safety
    /// As [`Kernels`] says.
    #[allow(clippy::too_many_arguments, reason = "the kernel's")]
    pub(crate) unsafe fn linear(
        &self,
        x: u64,
        weight: u64,
        bias: u64,
        y: u64,
        inputs: usize,
        outputs: usize,
        n: usize,
    ) -> Result<(), CudaError> {
        let work = n * outputs;
        let (inputs, outputs, n) = (inputs as i32, outputs as i32, n as i32);
        let mut launch = self.stream.launch_builder(&self.linear);
        launch.arg(&x).arg(&weight).arg(&bias).arg(&y).arg(&inputs).arg(&outputs).arg(&n);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(work)) })
    }

    /// # Safety
    /// As [`Kernels`] says.
    pub(crate) unsafe fn store(
        &self,
        x: u64,
        y: u64,
        channels: usize,
        stored: usize,
        positions: usize,
        n: usize,
    ) -> Result<(), CudaError> {
        let work = n * channels * positions;
        let (channels, stored, positions, n) = (channels as i32, stored as i32, positions as i32, n as i32);
        let mut launch = self.stream.launch_builder(&self.store);
        launch.arg(&x).arg(&y).arg(&channels).arg(&stored).arg(&positions).arg(&n);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(work)) })
    }

    /// # Safety
    /// As [`Kernels`] says; `bias` and `residual` may be 0, and `pairs` has room for two floats for each of `count`.
    #[allow(clippy::too_many_arguments, reason = "the kernel's")]
    pub(crate) unsafe fn direct_conv(
        &self,
        x: u64,
        weight: u64,
        bias: u64,
        residual: u64,
        y: u64,
        pairs: u64,
        shape: &DirectShape,
        (first, every, count): (u64, u64, usize),
    ) -> Result<(), CudaError> {
        let samples = count as i32;
        let mut launch = self.stream.launch_builder(&self.direct_conv);
        launch.arg(&x).arg(&weight).arg(&bias).arg(&residual).arg(&y).arg(&pairs).arg(shape);
        launch.arg(&first).arg(&every).arg(&samples);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(count)) })
    }

    /// # Safety
    /// As [`Kernels`] says; `out` has room for `count` elements.
    pub(crate) unsafe fn noise(&self, out: u64, count: usize, seed: u64, scale: f32) -> Result<(), CudaError> {
        let values = count as u64;
        let mut launch = self.stream.launch_builder(&self.noise);
        launch.arg(&out).arg(&values).arg(&seed).arg(&scale);
        // SAFETY: the kernel's parameters; the caller vouches for the memory.
        done(unsafe { launch.launch(self.grid(count)) })
    }

    /// One of [`machine::KERNELS`].
    ///
    /// # Safety
    /// As [`Kernels`] says; `arguments` point to values of the kernel's parameters.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: Grid,
        arguments: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let function = self.training.get(kernel).expect("a kernel that was loaded").cu_function();
        let blocks = match grid {
            Grid::Work(work) => self.grid(work).grid_dim,
            Grid::Blocks([x, y]) => (x as u32, y as u32, 1),
        };
        let stream = self.stream.cu_stream();
        // SAFETY: a function of a module that this struct keeps; the caller vouches for the rest.
        done(unsafe { driver::launch_kernel(function, blocks, (THREADS, 1, 1), 0, stream, arguments) })
    }

    fn grid(&self, work: usize) -> LaunchConfig {
        let blocks = (work.div_ceil(THREADS as usize).max(1)).min(self.most_blocks as usize) as u32;
        LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
    }
}

impl LoadShape {
    /// Pieces of work of one clip.
    pub(super) fn groups(&self) -> usize {
        [self.t, self.h, self.stored_w, self.stored_c / 4].iter().map(|&dim| dim as usize).product()
    }
}

fn done<T>(launched: Result<T, cudarc::driver::DriverError>) -> Result<(), CudaError> {
    launched.map(drop).map_err(CudaError::driver("cuLaunchKernel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_compiles_for_every_element_and_gpu() {
        if let Err(error) = device::require_nvrtc() {
            eprintln!("skipped: {error}");
            return;
        }
        for element in [Element::F32, Element::F16, Element::Bf16] {
            for capability in [(8, 0), (9, 0)] {
                let code = compile(element, capability, &SOURCES).unwrap();
                assert!(code.starts_with(b"\x7fELF"), "{element:?}, {capability:?}");
            }
        }
    }
}
