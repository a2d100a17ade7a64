//! The thread that owns a GPU, and the lanes that bring it clips.
#![allow(unsafe_code)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result};

use super::CudaError;
use super::device::{self, GpuInfo};
use super::lower::ConvStep;
use super::program::{Gpu, Program, Source};
use super::search::{Choice, Remembered};
use crate::Precision;
use crate::graph::{Graph, passes};

/// How to build a plan.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// The GPU, by the driver's number.
    pub ordinal: usize,
    /// What it computes with.
    pub precision: Precision,
    /// Batch sizes that get algorithms and a CUDA graph of their own; other batches run as the next larger one, the
    /// largest is the limit of one run.
    pub batches: Vec<usize>,
    /// Value of byte `b` in channel `c`: `table[c][b]`.
    pub table: [[f32; 256]; 3],
    /// Directory for what was measured; measured anew at each start if `None`.
    pub cache: Option<PathBuf>,
    /// Algorithms that are measured for a convolution, of each kind that cuDNN proposes; a third of them for batches of
    /// neither one clip nor the largest size.
    pub candidates: usize,
    /// Leave out so many of the fastest algorithms of each convolution: after a plan whose results were wrong.
    pub skip: usize,
}

impl PlanOptions {
    /// For batches of up to `max_batch` clips, in steps of two.
    pub fn new(ordinal: usize, max_batch: usize, table: [[f32; 256]; 3]) -> Self {
        let mut batches: Vec<usize> =
            std::iter::successors(Some(1), |batch| Some(batch * 2)).take_while(|batch| *batch < max_batch).collect();
        batches.push(max_batch.max(1));
        Self { ordinal, precision: Precision::default(), batches, table, cache: None, candidates: 6, skip: 0 }
    }
}

/// How a convolution of the largest batch is computed.
#[derive(Clone, Debug)]
pub struct LayerChoice {
    /// The layer.
    pub name: String,
    /// Precision, batch, input, output, kernel, stride and padding of the convolution as it is computed.
    pub shape: String,
    /// The algorithm, by cuDNN's numbers.
    pub algorithm: String,
    /// What it took when it was measured, for the batch.
    pub time: Duration,
}

impl LayerChoice {
    pub(super) fn new(conv: &ConvStep, batch: usize, Choice { algorithm, micros }: &Choice) -> Self {
        let list = |dims: &[usize]| dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let shape = &conv.shape;
        let shape = format!("n{batch} {} -> {} k{}", list(&shape.input), list(&shape.output), list(&shape.kernel));
        let time = Duration::try_from_secs_f32(micros * 1e-6).unwrap_or_default();
        Self { name: conv.name.clone(), shape, algorithm: algorithm.to_string(), time }
    }
}

/// A batch of clips.
#[derive(Clone, Copy, Debug)]
pub enum Clips<'a> {
    /// Each (t, h, w, 3).
    Rgb(&'a [&'a [u8]]),
    /// Each (c, t, h, w), normalised.
    Values(&'a [&'a [f32]]),
}

/// A network on a GPU, and the thread that owns it. Clips reach it through [`Lane`]s.
pub struct Plan {
    shared: Arc<Shared>,
    remembered: Mutex<Remembered>,
    info: Built,
    // Ends when the last sender is gone.
    thread: Option<JoinHandle<()>>,
}

/// What a plan's thread tells when it is ready.
struct Built {
    gpu: GpuInfo,
    context: Arc<CudaContext>,
    layers: Vec<LayerChoice>,
    memory_bytes: usize,
    multiply_adds: u64,
    input: [usize; 4],
    outputs: Vec<[usize; 4]>,
    batches: Vec<usize>,
    max_batch: usize,
    remembered: Remembered,
}

/// What a plan and its lanes share.
struct Shared {
    sender: Mutex<Option<Sender<Message>>>,
    /// Something failed; nobody knows what state the GPU is in.
    failed: AtomicBool,
}

impl Shared {
    fn send(&self, message: Message) -> Result<(), CudaError> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sender.and_then(|sender| sender.send(message).ok()).ok_or_else(ended)
    }
}

enum Message {
    Run(Job),
    Time { batch: usize, runs: usize, reply: Sender<Result<Duration, CudaError>> },
}

/// A batch whose clips are on their way to the GPU. Its lane keeps all of this alive until `done` has happened, or the
/// reply is an error, before which the stream is waited for.
struct Job {
    clips: u64,
    source: Source,
    n: usize,
    uploaded: Arc<CudaEvent>,
    results: Results,
    done: Arc<CudaEvent>,
    reply: Sender<Result<(), CudaError>>,
}

/// Where a lane wants its results: pinned floats.
struct Results {
    address: *mut f32,
    len: usize,
}

// SAFETY: the lane that owns the memory does not touch it while a job of its is under way.
unsafe impl Send for Results {}

impl Plan {
    /// Builds a plan of a [bound](Graph::bind) graph. Takes seconds, and minutes where algorithms have to be measured first.
    pub fn build(graph: Graph, options: PlanOptions) -> Result<Self, CudaError> {
        for parameter in graph.parameters() {
            parameter.values()?;
        }
        let (sender, messages) = mpsc::channel();
        let (report, ready) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("gpu-{}", options.ordinal))
            .spawn(move || match open(graph, &options) {
                Ok((program, built)) => {
                    if report.send(Ok(built)).is_ok() {
                        serve(&program, &messages);
                    }
                }
                Err(error) => drop(report.send(Err(error))),
            })
            .map_err(|error| CudaError::Input(error.to_string()))?;
        match ready.recv() {
            Ok(Ok(mut info)) => {
                let remembered = Mutex::new(std::mem::take(&mut info.remembered));
                let shared = Arc::new(Shared { sender: Mutex::new(Some(sender)), failed: AtomicBool::new(false) });
                Ok(Self { shared, remembered, info, thread: Some(thread) })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CudaError::Ended(panic_of(thread))),
        }
    }

    /// The GPU.
    pub fn gpu(&self) -> &GpuInfo {
        &self.info.gpu
    }

    /// How the convolutions of the largest batch are computed.
    pub fn layers(&self) -> &[LayerChoice] {
        &self.info.layers
    }

    /// Bytes of GPU memory, those of lanes left out.
    pub fn memory_bytes(&self) -> usize {
        self.info.memory_bytes
    }

    /// Multiply-adds of a clip that direct convolution takes, those with zero padding included.
    pub fn multiply_adds(&self) -> u64 {
        self.info.multiply_adds
    }

    /// Most clips of one run on the GPU.
    pub fn max_batch(&self) -> usize {
        self.info.max_batch
    }

    /// Batch sizes that have a CUDA graph of their own.
    pub fn batches(&self) -> &[usize] {
        &self.info.batches
    }

    /// Whether a run of it failed: it is to be built anew then.
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Keeps what was measured for the next start.
    pub fn remember(&self) -> std::io::Result<()> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).write()
    }

    /// The time of a run of `batch` clips that are on the GPU already, the mean of `runs`.
    pub fn time(&self, batch: usize, runs: usize) -> Result<Duration, CudaError> {
        let (reply, answer) = mpsc::channel();
        self.shared.send(Message::Time { batch, runs, reply })?;
        answer.recv().map_err(|_| ended())?
    }

    /// A way for clips to the GPU. With two of them, one uploads while the other's clips are computed.
    pub fn lane(&self) -> Result<Lane, CudaError> {
        let Built { context, input, outputs, max_batch, .. } = &self.info;
        let clip_len = input.iter().product::<usize>();
        let output_lens: Vec<usize> = outputs.iter().map(|dims| dims.iter().product()).collect();
        // Four bytes a value, for a clip at least.
        let staging_bytes = clip_len * (*max_batch).max(4);
        let driver = CudaError::driver;
        let stream = context.new_stream().map_err(driver("cuStreamCreate"))?;
        let staging = stream.alloc_zeros(staging_bytes).map_err(driver("cuMemAlloc"))?;
        let results_len = max_batch * output_lens.iter().sum::<usize>();
        // SAFETY: bytes and floats may hold anything; both are written before they are read.
        let (pinned, results) = unsafe {
            (context.alloc_pinned::<u8>(staging_bytes), context.alloc_pinned_with_flags::<f32>(results_len, 0))
        };
        let pinned = pinned.map_err(driver("cuMemHostAlloc"))?;
        let results = results.map_err(driver("cuMemHostAlloc"))?;
        let event = |flags| context.new_event(flags).map(Arc::new).map_err(driver("cuEventCreate"));
        let (uploaded, done) = (event(None)?, event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))?);
        stream.synchronize().map_err(driver("cuStreamSynchronize"))?;
        Ok(Lane {
            shared: Arc::clone(&self.shared),
            staging,
            pinned,
            results,
            uploaded,
            done,
            stream,
            channels: input[0],
            clip_len,
            output_lens,
            max_batch: *max_batch,
        })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // Lanes that are left have nobody to send to.
        drop(self.shared.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(graph: Graph, options: &PlanOptions) -> Result<(Program, Built), CudaError> {
    let gpu = Gpu::open(options.ordinal, options.precision)?;
    let info = gpu.info.clone();
    let file = options.cache.as_deref().map(|directory| {
        device::fingerprint(&info).map(|name| directory.join(name).with_extension_added("algorithms"))
    });
    let mut remembered = Remembered::read(file.transpose()?);
    let (program, layers) = Program::build(gpu, &passes::prepare(graph), options, &mut remembered)?;
    let built = Built {
        gpu: info,
        context: Arc::clone(&program.gpu.context),
        layers,
        memory_bytes: program.memory_bytes(),
        multiply_adds: program.network.multiply_adds,
        input: program.network.input,
        outputs: program.network.outputs.iter().map(|(_, dims)| *dims).collect(),
        batches: options.batches.clone(),
        max_batch: options.batches.iter().copied().max().unwrap_or(1),
        remembered,
    };
    Ok((program, built))
}

/// `with_extension` for names that have dots.
trait WithExtensionAdded {
    fn with_extension_added(self, extension: &str) -> PathBuf;
}

impl WithExtensionAdded for PathBuf {
    fn with_extension_added(self, extension: &str) -> PathBuf {
        let mut name = self.into_os_string();
        name.push(".");
        name.push(extension);
        name.into()
    }
}

/// Runs what comes until nobody can send any more, or something fails.
fn serve(program: &Program, messages: &Receiver<Message>) {
    for message in messages {
        match message {
            Message::Time { batch, runs, reply } => {
                let _ = reply.send(program.time(batch, runs));
            }
            Message::Run(job) => {
                let started = start(program, &job);
                if started.is_err() {
                    // The lane may free what the stream still uses once it has the answer.
                    let _ = program.gpu.synchronize();
                }
                let failed = started.is_err();
                let _ = job.reply.send(started);
                if failed {
                    return;
                }
            }
        }
    }
}

fn start(program: &Program, job: &Job) -> Result<(), CudaError> {
    let Job { clips, source, n, uploaded, results, done, .. } = job;
    let stream = &program.gpu.stream;
    stream.wait(uploaded).map_err(CudaError::driver("cuStreamWaitEvent"))?;
    // SAFETY: the lane's staging memory holds `n` clips when `uploaded` has happened, and keeps them.
    unsafe { program.run(*clips, *source, *n)? };
    // SAFETY: pinned floats of the lane, which leaves them alone until `done` has happened.
    let to = unsafe { std::slice::from_raw_parts_mut(results.address, results.len) };
    // SAFETY: as above.
    unsafe { program.download(to, *n)? };
    done.record(stream).map_err(CudaError::driver("cuEventRecord"))
}

/// A way for clips to a plan's GPU: buffers on both sides and a stream for copies.
pub struct Lane {
    shared: Arc<Shared>,
    // Dropped in this order: memory before the stream that frees it.
    staging: CudaSlice<u8>,
    pinned: PinnedHostSlice<u8>,
    results: PinnedHostSlice<f32>,
    uploaded: Arc<CudaEvent>,
    done: Arc<CudaEvent>,
    stream: Arc<CudaStream>,
    channels: usize,
    clip_len: usize,
    output_lens: Vec<usize>,
    max_batch: usize,
}

impl Lane {
    /// Computes the outputs of any number of clips, in runs of at most the plan's largest batch. `outputs` has one slice an
    /// output, each (n, c, t, h, w). After an error the plan has to be built anew, unless the slices did not fit.
    pub fn run(&mut self, clips: Clips<'_>, outputs: &mut [&mut [f32]]) -> Result<(), CudaError> {
        let n = self.check(clips, outputs)?;
        // Floats take four times the room of bytes.
        let limit = match clips {
            Clips::Rgb(_) => self.max_batch,
            Clips::Values(_) => (self.staging.len() / (4 * self.clip_len)).min(self.max_batch),
        };
        let mut begin = 0;
        while begin < n {
            let end = n.min(begin + limit);
            let part = match clips {
                Clips::Rgb(clips) => Clips::Rgb(&clips[begin..end]),
                Clips::Values(clips) => Clips::Values(&clips[begin..end]),
            };
            if let Err(error) = self.run_part(part, begin, outputs) {
                self.shared.failed.store(true, Ordering::Relaxed);
                // What is under way on any stream uses this lane's memory.
                let _ = self.stream.context().synchronize();
                return Err(error);
            }
            begin = end;
        }
        Ok(())
    }

    /// Bytes of GPU memory.
    pub fn memory_bytes(&self) -> usize {
        self.staging.len()
    }

    /// Returns the number of clips.
    fn check(&self, clips: Clips<'_>, outputs: &[&mut [f32]]) -> Result<usize, CudaError> {
        let lens: Vec<usize> = match clips {
            Clips::Rgb(clips) => clips.iter().map(|clip| clip.len()).collect(),
            Clips::Values(clips) => clips.iter().map(|clip| clip.len()).collect(),
        };
        let n = lens.len();
        if n == 0 {
            return Err(CudaError::Input("a batch of no clips".to_owned()));
        }
        if matches!(clips, Clips::Rgb(_)) && self.channels != 3 {
            let channels = self.channels;
            return Err(CudaError::Input(format!(
                "RGB clips need a network of 3 input channels; this one has {channels}"
            )));
        }
        if let Some(len) = lens.iter().find(|len| **len != self.clip_len) {
            return Err(CudaError::Input(format!("a clip has {len} values; expected are {}", self.clip_len)));
        }
        if outputs.len() != self.output_lens.len() {
            let (actual, expected) = (outputs.len(), self.output_lens.len());
            return Err(CudaError::Input(format!("{actual} output slices; the plan has {expected} outputs")));
        }
        for (index, (output, len)) in outputs.iter().zip(&self.output_lens).enumerate() {
            if output.len() != n * len {
                let (actual, needed) = (output.len(), n * len);
                return Err(CudaError::Input(format!(
                    "output {index} has room for {actual} values; needed are {needed}"
                )));
            }
        }
        Ok(n)
    }

    fn run_part(&mut self, clips: Clips<'_>, begin: usize, outputs: &mut [&mut [f32]]) -> Result<(), CudaError> {
        let driver = CudaError::driver;
        let (n, source) = match clips {
            Clips::Rgb(clips) => (clips.len(), Source::Rgb),
            Clips::Values(clips) => (clips.len(), Source::Values),
        };
        self.stream.context().bind_to_thread().map_err(driver("cuCtxSetCurrent"))?;
        let clip_bytes = self.clip_len * if source == Source::Rgb { 1 } else { 4 };
        // No events are tracked, so that the guard does nothing.
        let device = self.staging.device_ptr(&self.stream).0;
        // Its own event was never recorded, so that this does not wait.
        let pinned = self.pinned.as_mut_slice().map_err(driver("cuEventSynchronize"))?;
        for (index, place) in pinned.chunks_exact_mut(clip_bytes).take(n).enumerate() {
            match clips {
                Clips::Rgb(clips) => place.copy_from_slice(clips[index]),
                Clips::Values(clips) => {
                    for (to, value) in place.chunks_exact_mut(4).zip(clips[index]) {
                        to.copy_from_slice(&value.to_ne_bytes());
                    }
                }
            }
            let to = device + (index * clip_bytes) as u64;
            // SAFETY: the staging memory has room for `n` clips; it and the pinned memory are left alone until this lane
            // has waited for `done`, or for both streams after an error.
            unsafe { result::memcpy_htod_async(to, place, self.stream.cu_stream()) }.map_err(driver("cuMemcpyHtoD"))?;
        }
        self.uploaded.record(&self.stream).map_err(driver("cuEventRecord"))?;
        let (reply, answer) = mpsc::channel();
        let results = Results {
            address: self.results.as_mut_ptr().map_err(driver("cuEventSynchronize"))?,
            len: n * self.output_lens.iter().sum::<usize>(),
        };
        self.shared.send(Message::Run(Job {
            clips: device,
            source,
            n,
            uploaded: Arc::clone(&self.uploaded),
            results,
            done: Arc::clone(&self.done),
            reply,
        }))?;
        answer.recv().map_err(|_| ended())??;
        self.done.synchronize().map_err(driver("cuEventSynchronize"))?;
        let mut rest = self.results.as_slice().map_err(driver("cuEventSynchronize"))?;
        for (output, len) in outputs.iter_mut().zip(&self.output_lens) {
            let (part, others) = rest.split_at(n * len);
            output[begin * len..][..n * len].copy_from_slice(part);
            rest = others;
        }
        Ok(())
    }
}

fn ended() -> CudaError {
    CudaError::Ended("a run before failed".to_owned())
}

/// Why a thread panicked.
fn panic_of(thread: JoinHandle<()>) -> String {
    let Err(panic) = thread.join() else { return "it returned".to_owned() };
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".to_owned())
}
