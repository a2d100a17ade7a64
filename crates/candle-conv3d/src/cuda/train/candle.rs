//! candle's CUDA devices as machines, and the convolution as an operation on their tensors.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp2, DType, Device, Error, Layout, Result, Shape, Storage, Tensor, bail,
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, result, sys};

use super::super::CudaError;
use super::super::cudnn::{Addresses, ConvGraph, ConvPlan};
use super::super::device;
use super::super::kernels::Purpose;
use super::super::program::{Gpu, address};
use super::super::search::{Choice, Trial, fastest};
use super::super::shape::Signature;
use super::super::trial::ConvTrial;
use super::machine::{Grid, Machine, Memory, Owner};
use super::plain::{PlainConvolution, precision};
use crate::{Conv3dConfig, Precision};

/// Algorithms that are measured for a convolution, of each kind that cuDNN proposes.
const CANDIDATES: usize = 6;

/// A GPU to train on, by the driver's number, for candle: with a stream of its own, which all work on it goes through, and
/// memory that is kept for the next step when it is freed.
pub fn training_device(ordinal: usize) -> Result<Device> {
    let count = device::gpus().map_err(Error::wrap)?.len();
    if ordinal >= count {
        return Err(Error::wrap(CudaError::Ordinal { actual: ordinal, count }));
    }
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: nothing is allocated yet, and all work of this device goes through its one stream.
    unsafe { cuda.disable_event_tracking() };
    keep_memory(&cuda.cuda_stream()).map_err(Error::wrap)?;
    Ok(device)
}

/// Without it the driver gives freed memory back whenever the stream is waited for.
fn keep_memory(stream: &CudaStream) -> std::result::Result<(), CudaError> {
    let failed = CudaError::driver;
    let number = result::device::get(stream.context().ordinal() as i32).map_err(failed("cuDeviceGet"))?;
    let mut threshold = u64::MAX;
    // SAFETY: a device that the driver just named, whose pool lives as long as it; the attribute is a 64-bit integer.
    unsafe {
        let pool = result::device::get_default_mem_pool(number).map_err(failed("cuDeviceGetDefaultMemPool"))?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let value = (&raw mut threshold).cast::<c_void>();
        sys::cuMemPoolSetAttribute(pool, attribute, value).result().map_err(failed("cuMemPoolSetAttribute"))
    }
}

/// The machine of a device in a precision; made once.
pub(crate) fn machine(device: &CudaDevice, precision: Precision) -> Result<Arc<dyn Machine>> {
    type Known = (DeviceId, Precision, Arc<dyn Machine>);
    static MACHINES: Mutex<Vec<Known>> = Mutex::new(Vec::new());
    let mut machines = MACHINES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = machines.iter().find(|(id, of, _)| *id == device.id() && *of == precision);
    if let Some((.., machine)) = known {
        return Ok(Arc::clone(machine));
    }
    let machine: Arc<dyn Machine> = Arc::new(CandleGpu::open(device, precision).map_err(Error::wrap)?);
    machines.push((device.id(), precision, Arc::clone(&machine)));
    Ok(machine)
}

/// A device of candle's in one precision.
struct CandleGpu {
    precision: Precision,
    device: CudaDevice,
    stream: Arc<CudaStream>,
    state: Mutex<State>,
}

/// What one thread at a time uses.
struct State {
    // Dropped in this order: plans and their memory before cuDNN and the stream.
    planned: HashMap<Signature, Planned>,
    workspace: CudaSlice<u8>,
    gpu: Gpu,
}

struct Planned {
    plan: ConvPlan,
    choice: Choice,
}

// SAFETY: cuDNN's objects belong to no thread, and a mutex lets one at a time use them.
unsafe impl Send for State {}

impl fmt::Debug for CandleGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {}", self.device, self.precision)
    }
}

impl CandleGpu {
    fn open(device: &CudaDevice, precision: Precision) -> std::result::Result<Self, CudaError> {
        let stream = device.cuda_stream();
        let (gpus, ordinal) = (device::gpus()?, stream.context().ordinal());
        let count = gpus.len();
        let info = gpus.into_iter().nth(ordinal).ok_or(CudaError::Ordinal { actual: ordinal, count })?;
        let gpu = Gpu::on(Arc::clone(&stream), info, precision, Purpose::Training)?;
        let workspace = gpu.zeroed(0)?;
        let state = Mutex::new(State { planned: HashMap::new(), workspace, gpu });
        Ok(Self { precision, device: device.clone(), stream, state })
    }

    /// The state, with the device's context current on this thread.
    fn state(&self) -> std::result::Result<MutexGuard<'_, State>, CudaError> {
        self.stream.context().bind_to_thread().map_err(CudaError::driver("cuCtxSetCurrent"))?;
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// # Safety
    /// As for [`Machine::convolve`].
    unsafe fn convolve(&self, signature: &Signature, operands: [u64; 3]) -> std::result::Result<(), CudaError> {
        let mut state = self.state()?;
        state.plan(signature)?;
        let State { planned, workspace, gpu } = &mut *state;
        let plan = &planned[signature].plan;
        if workspace.len() < plan.workspace {
            *workspace = gpu.zeroed(plan.workspace)?;
        }
        let [input, weight, output] = operands;
        let workspace = address(workspace, &gpu.stream);
        let bound = plan.bind(&Addresses { input, weight, bias: 0, residual: 0, output, workspace })?;
        // SAFETY: the caller vouches for the operands; what is freed is freed behind this on the same stream.
        unsafe { plan.run(&gpu.session, &bound) }
    }
}

impl State {
    /// Sees to it that a convolution has a plan: by the fastest algorithm, or the one that other batches have. Measuring all
    /// for a last batch of a few clips would take longer than it saves.
    fn plan(&mut self, signature: &Signature) -> std::result::Result<&Planned, CudaError> {
        if !self.planned.contains_key(signature) {
            let same = |other: &Signature| Signature { batch: signature.batch, ..*other } == *signature;
            let known = self.planned.iter().find(|(other, _)| same(other));
            let mut trial = ConvTrial::new(&self.gpu, *signature, CANDIDATES)?;
            let known = known.and_then(|(_, Planned { choice, .. })| {
                let algorithm = choice.algorithm.clone();
                trial.time(&algorithm).ok().map(|micros| Choice { algorithm, micros })
            });
            let choice = match known {
                Some(choice) => choice,
                None => fastest(&signature.to_string(), &mut trial, 0, true)?,
            };
            drop(trial);
            let session = &self.gpu.session;
            let plan = ConvGraph::new(session, signature, false)?.into_plan(session, &choice.algorithm)?;
            self.planned.insert(*signature, Planned { plan, choice });
        }
        Ok(&self.planned[signature])
    }
}

impl Machine for CandleGpu {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        // SAFETY: bytes may hold anything; whoever asks writes before it reads.
        let slice = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        let slice = match slice.map_err(CudaError::driver("cuMemAlloc")) {
            Ok(slice) => slice,
            Err(error) if error.is_out_of_memory() => {
                bail!("the GPU has no memory for {bytes} bytes more: take fewer clips a batch")
            }
            Err(error) => return Err(Error::wrap(error)),
        };
        Ok(Memory::new(address(&slice, &self.stream), bytes, Owner::Gpu(slice)))
    }

    fn address(&self, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            bail!("a tensor of {:?} on {self:?}", tensor.device().location())
        };
        if !layout.is_contiguous() {
            bail!("kernels read contiguous tensors only");
        }
        let begin = match &storage.slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(&self.stream).0,
            CudaStorageSlice::F16(slice) => slice.device_ptr(&self.stream).0,
            CudaStorageSlice::BF16(slice) => slice.device_ptr(&self.stream).0,
            _ => bail!("kernels read f32, f16 and bf16 only, and not {:?}", storage.dtype()),
        };
        Ok(begin + (layout.start_offset() * storage.dtype().size_in_bytes()) as u64)
    }

    fn to_tensor(&self, memory: Memory, shape: &Shape, dtype: DType) -> Result<Tensor> {
        let storage = to_storage(&self.device, memory, shape.elem_count(), dtype)?;
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }

    unsafe fn launch(&self, kernel: &'static str, grid: Grid, arguments: &mut [*mut c_void]) -> Result<()> {
        let state = self.state().map_err(Error::wrap)?;
        // SAFETY: the caller vouches.
        unsafe { state.gpu.kernels.launch(kernel, grid, arguments) }.map_err(Error::wrap)
    }

    unsafe fn convolve(&self, signature: &Signature, operands: [u64; 3]) -> Result<()> {
        // SAFETY: the caller vouches.
        unsafe { self.convolve(signature, operands) }.map_err(Error::wrap)
    }

    fn micros(&self, signature: &Signature) -> Result<f32> {
        let mut state = self.state().map_err(Error::wrap)?;
        Ok(state.plan(signature).map_err(Error::wrap)?.choice.micros)
    }
}

/// Memory of `len` values as candle keeps it.
fn to_storage(device: &CudaDevice, memory: Memory, len: usize, dtype: DType) -> Result<CudaStorage> {
    if memory.bytes() != len * dtype.size_in_bytes() {
        bail!("{} bytes are not {len} values of {dtype:?}", memory.bytes());
    }
    let stream = device.cuda_stream();
    #[allow(clippy::infallible_destructuring_match, reason = "tests have machines of another kind")]
    let slice = match memory.into_owner() {
        Owner::Gpu(slice) => slice,
        #[cfg(test)]
        Owner::Host(_) => bail!("memory of another machine"),
    };
    /// # Safety
    /// The slice holds `len` values of `T`.
    unsafe fn retype<T>(stream: &Arc<CudaStream>, slice: CudaSlice<u8>, len: usize) -> CudaSlice<T> {
        // SAFETY: the memory is nobody else's any more, and the caller vouches for what it holds.
        let mut typed = unsafe { stream.upgrade_device_ptr::<T>(slice.leak(), len) };
        // Whoever reads it on another stream has to wait for what was launched.
        drop(typed.device_ptr_mut(stream));
        typed
    }
    // SAFETY: as many bytes as the values take, which the caller wrote.
    Ok(unsafe {
        match dtype {
            DType::F32 => CudaStorage::wrap_cuda_slice(retype::<f32>(&stream, slice, len), device.clone()),
            DType::F16 => CudaStorage::wrap_cuda_slice(retype::<half::f16>(&stream, slice, len), device.clone()),
            DType::BF16 => CudaStorage::wrap_cuda_slice(retype::<half::bf16>(&stream, slice, len), device.clone()),
            _ => bail!("no kernel computes {dtype:?}"),
        }
    })
}

/// The convolution of CUDA tensors, or `None` where it does not apply: other devices and types, and shapes that the
/// reference answers with an error.
pub(crate) fn conv3d(input: &Tensor, weight: &Tensor, config: &Conv3dConfig) -> Result<Option<Tensor>> {
    let (Device::Cuda(device), Some(precision)) = (input.device(), precision(input.dtype())) else { return Ok(None) };
    if !weight.device().same_device(input.device()) || weight.dtype() != input.dtype() || weight.rank() != 5 {
        return Ok(None);
    }
    let machine = machine(device, precision)?;
    let Some(convolution) = PlainConvolution::new(&machine, input, weight, config)? else { return Ok(None) };
    let output = convolution.forward(input, weight)?;
    let shape = convolution.output_shape();
    let output = Mutex::new(Some(to_storage(device, output, shape.elem_count(), input.dtype())?));
    input.apply_op2(weight, Convolved { convolution, shape, output }).map(Some)
}

/// The convolution as an operation that has its output already.
struct Convolved {
    convolution: PlainConvolution,
    shape: Shape,
    output: Mutex<Option<CudaStorage>>,
}

impl CustomOp2 for Convolved {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a convolution of CUDA tensors on the CPU")
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        // An operation runs forward once.
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        match output {
            Some(output) => Ok((output, self.shape.clone())),
            None => bail!("conv3d went forward twice"),
        }
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _output: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let of_input = input.track_op().then(|| self.convolution.input_gradient(weight, upstream)).transpose()?;
        let of_weight = weight.track_op().then(|| self.convolution.weight_gradient(input, upstream)).transpose()?;
        Ok((of_input, of_weight))
    }
}
