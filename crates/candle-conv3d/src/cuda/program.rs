//! A network on one GPU: memory, chosen algorithms, and a CUDA graph for each batch size. One thread owns it all.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, DevicePtr, result};

use super::cudnn::{Addresses, Bound, ConvGraph, ConvPlan, Session};
use super::device::{self, GpuInfo};
use super::kernels::{Kernels, Purpose};
use super::lower::{Constant, ConvStep, Network, Step, ValueId, lower, stem_node};
use super::rearrange::StemForm;
use super::search::{Choice, Remembered, fastest};
use super::shape::{Pass, Signature};
use super::trial::ConvTrial;
use super::{CudaError, LayerChoice, PlanOptions};
use crate::Precision;
use crate::graph::{Graph, NodeId};

/// Runs in one timed graph: enough that its launch does not count.
pub(super) const REPEATS: usize = 8;
/// Timed launches; the fastest counts.
const LAUNCHES: usize = 3;

/// A GPU with the stream that all its work goes through.
pub(super) struct Gpu {
    // Dropped in this order: cuDNN first, the stream last.
    pub(super) session: Session,
    pub(super) kernels: Kernels,
    pub(super) stream: Arc<CudaStream>,
    pub(super) context: Arc<CudaContext>,
    pub(super) info: GpuInfo,
}

impl Gpu {
    pub(super) fn open(ordinal: usize, precision: Precision) -> Result<Self, CudaError> {
        let gpus = device::gpus()?;
        let count = gpus.len();
        let info = gpus.into_iter().nth(ordinal).ok_or(CudaError::Ordinal { actual: ordinal, count })?;
        let context = CudaContext::new(ordinal).map_err(CudaError::driver("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: nothing is allocated yet, and every use of memory here is ordered by one stream, or by events that this
        // module records itself.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(CudaError::driver("cuStreamCreate"))?;
        Self::on(stream, info, precision, Purpose::Inference)
    }

    /// On a stream that is there.
    pub(super) fn on(
        stream: Arc<CudaStream>,
        info: GpuInfo,
        precision: Precision,
        purpose: Purpose,
    ) -> Result<Self, CudaError> {
        let context = Arc::clone(stream.context());
        context.bind_to_thread().map_err(CudaError::driver("cuCtxSetCurrent"))?;
        let kernels = Kernels::load(&context, &stream, precision.element(), info.compute_capability, purpose)?;
        // SAFETY: the stream's context was made current on this thread, and this struct keeps both alive longer than the
        // session.
        let session = unsafe { Session::on_stream(stream.cu_stream()) }?;
        Ok(Self { session, kernels, stream, context, info })
    }

    pub(super) fn zeroed(&self, bytes: usize) -> Result<CudaSlice<u8>, CudaError> {
        self.stream.alloc_zeros(bytes.max(1)).map_err(CudaError::driver("cuMemAlloc"))
    }

    pub(super) fn upload(&self, bytes: &[u8]) -> Result<CudaSlice<u8>, CudaError> {
        let copied = self.stream.clone_htod(bytes).map_err(CudaError::driver("cuMemcpyHtoD"))?;
        // The bytes need not live longer than this call.
        self.synchronize()?;
        Ok(copied)
    }

    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(CudaError::driver("cuStreamSynchronize"))
    }

    /// Captures what `enqueue` puts on the stream.
    pub(super) fn capture(&self, enqueue: impl FnOnce() -> Result<(), CudaError>) -> Result<CudaGraph, CudaError> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(CudaError::driver("cuStreamBeginCapture"))?;
        let enqueued = enqueue();
        // Also after a failure, or the stream would go on capturing.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        enqueued?;
        let graph = graph.map_err(CudaError::driver("cuGraphInstantiate"))?;
        graph.ok_or_else(|| CudaError::Input("a capture gave no graph".to_owned()))
    }

    /// The shortest time of a graph's launch.
    pub(super) fn time(&self, graph: &CudaGraph) -> Result<Duration, CudaError> {
        let launch = || graph.launch().map_err(CudaError::driver("cuGraphLaunch"));
        launch()?;
        self.synchronize()?;
        let mut shortest = Duration::MAX;
        for _ in 0..LAUNCHES {
            let begin = Instant::now();
            launch()?;
            self.synchronize()?;
            shortest = shortest.min(begin.elapsed());
        }
        Ok(shortest)
    }
}

pub(super) fn address(slice: &CudaSlice<u8>, stream: &CudaStream) -> u64 {
    // No events are tracked, so that the guard does nothing.
    slice.device_ptr(stream).0
}

/// Puts a convolution on the stream, and what follows it if that is not in it.
///
/// # Safety
/// As [`ConvPlan::run`] says, for the addresses that `bound` was made of.
pub(super) unsafe fn run_conv(
    gpu: &Gpu,
    plan: &ConvPlan,
    bound: &Bound,
    addresses: &Addresses,
    channels: usize,
    relu: bool,
    values: usize,
) -> Result<(), CudaError> {
    // SAFETY: the caller vouches.
    unsafe { plan.run(&gpu.session, bound)? };
    if plan.fused {
        return Ok(());
    }
    let Addresses { output, bias, residual, .. } = *addresses;
    // SAFETY: the caller vouches; the output has `values` elements.
    unsafe { gpu.kernels.finish(output, bias, residual, channels, relu, values) }
}

/// A plan, which layers of the same shape share, and the choice it comes from.
struct Planned {
    plan: ConvPlan,
    choice: Choice,
}

/// A convolution of one batch size in its place.
struct PlacedConv {
    planned: Rc<Planned>,
    bound: Bound,
    addresses: Addresses,
}

/// One batch size, ready to run.
struct Bucket {
    batch: usize,
    /// The network from its loaded input to its outputs; dropped before what it refers to.
    graph: CudaGraph,
    // The graph refers to what belongs to these.
    _convs: Vec<PlacedConv>,
}

/// Where clips come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Bytes (t, h, w, 3).
    Rgb,
    /// Floats (c, t, h, w).
    Values,
}

/// A network on a GPU.
pub(super) struct Program {
    // Dropped in this order: graphs and plans before the memory they refer to, and that before the stream.
    buckets: Vec<Bucket>,
    pub(super) network: Network,
    arena: CudaSlice<u8>,
    constants: CudaSlice<u8>,
    workspace: CudaSlice<u8>,
    table: CudaSlice<u8>,
    max_batch: usize,
    pub(super) gpu: Gpu,
}

impl Program {
    /// Chooses algorithms, places everything on the GPU and runs it once.
    pub(super) fn build(
        gpu: Gpu,
        graph: &Graph,
        options: &PlanOptions,
        remembered: &mut Remembered,
    ) -> Result<(Self, Vec<LayerChoice>), CudaError> {
        let max_batch = options.batches.iter().copied().max().unwrap_or(1);
        let element = options.precision.element();
        let mut search = Search { gpu: &gpu, options, remembered, searched: HashSet::new(), planned: HashMap::new() };
        let form = search.stem_form(graph, max_batch)?;
        let mut network = lower(graph, element, form, max_batch)?;
        let mut chosen: Vec<(usize, Vec<Rc<Planned>>)> = Vec::new();
        for &batch in &options.batches {
            let plans = network.convs().map(|conv| search.plan(conv, batch)).collect::<Result<Vec<_>, _>>()?;
            chosen.push((batch, plans));
        }
        let layers = chosen.iter().find(|(batch, _)| *batch == max_batch).map_or_else(Vec::new, |(batch, plans)| {
            let layers = network.convs().zip(plans);
            layers.map(|(conv, planned)| LayerChoice::new(conv, *batch, &planned.choice)).collect()
        });

        let constants = gpu.upload(&std::mem::take(&mut network.constants))?;
        let arena = gpu.zeroed(network.clip_bytes * max_batch)?;
        let plans = chosen.iter().flat_map(|(_, plans)| plans);
        let scratch = plans.map(|planned| planned.plan.workspace).max().unwrap_or(0);
        let workspace = gpu.zeroed(scratch)?;
        let table = options.table.iter().flatten().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>();
        let table = gpu.upload(&table)?;
        let mut program = Self { buckets: Vec::new(), network, arena, constants, workspace, table, max_batch, gpu };
        for (batch, plans) in chosen {
            program.add_bucket(batch, plans)?;
        }
        Ok((program, layers))
    }

    fn add_bucket(&mut self, batch: usize, plans: Vec<Rc<Planned>>) -> Result<(), CudaError> {
        let mut convs = Vec::new();
        for (conv, planned) in self.network.convs().zip(plans) {
            let addresses = Addresses {
                input: self.value(conv.input),
                weight: self.constant(conv.weight),
                bias: self.constant(conv.bias),
                residual: conv.residual.map_or(0, |value| self.value(value)),
                output: self.value(conv.output),
                workspace: address(&self.workspace, &self.gpu.stream),
            };
            let bound = planned.plan.bind(&addresses)?;
            convs.push(PlacedConv { planned, bound, addresses });
        }
        // The first run loads what is loaded lazily, which a capture must not.
        self.enqueue(batch, &convs)?;
        self.gpu.synchronize()?;
        let graph = self.gpu.capture(|| self.enqueue(batch, &convs))?;
        self.buckets.push(Bucket { batch, graph, _convs: convs });
        Ok(())
    }

    /// Puts the network on the stream, from its loaded input to its outputs.
    fn enqueue(&self, batch: usize, convs: &[PlacedConv]) -> Result<(), CudaError> {
        let kernels = &self.gpu.kernels;
        let mut convs = convs.iter();
        for step in &self.network.steps {
            // SAFETY: the arena holds every value of `batch` clips, at most the largest batch, at the offsets that `lower` laid
            // out for it, and the constants what it packed; both live as long as this program, whose graphs and stream are
            // gone before them.
            unsafe {
                match step {
                    Step::Load { .. } => {}
                    Step::Conv(conv) => {
                        let PlacedConv { planned, bound, addresses } =
                            convs.next().expect("a plan for each convolution");
                        let output = &conv.shape.output;
                        let (channels, values) = (output[0], output.iter().product::<usize>() * batch);
                        run_conv(&self.gpu, &planned.plan, bound, addresses, channels, conv.relu, values)?;
                    }
                    Step::MaxPool { input, output, shape } => {
                        kernels.max_pool(self.value(*input), self.value(*output), shape, batch)?;
                    }
                    Step::Gather { input, output, shape } => {
                        kernels.gather(self.value(*input), self.value(*output), shape, batch)?;
                    }
                    Step::Mean { input, output, rows, stored, channels } => {
                        let (x, y) = (self.value(*input), self.value(*output));
                        kernels.mean(x, y, *rows, *stored, *channels, batch)?;
                    }
                    Step::Linear { input, output, weight, bias, inputs, outputs } => {
                        let (x, y) = (self.value(*input), self.value(*output));
                        let (weight, bias) = (self.constant(*weight), self.constant(*bias));
                        kernels.linear(x, weight, bias, y, *inputs, *outputs, batch)?;
                    }
                    Step::Store { input, output, channels, stored, positions } => {
                        let (x, y) = (self.value(*input), self.value(*output));
                        kernels.store(x, y, *channels, *stored, *positions, batch)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts a run on the stream: `n` clips at the device address `clips`, at most the bucket's batch.
    ///
    /// # Safety
    /// `clips` is memory of this GPU that holds them until the stream is done.
    pub(super) unsafe fn run(&self, clips: u64, source: Source, n: usize) -> Result<(), CudaError> {
        // SAFETY: the caller vouches.
        unsafe { self.load(clips, source, n)? };
        self.bucket(n)?.graph.launch().map_err(CudaError::driver("cuGraphLaunch"))
    }

    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn load(&self, clips: u64, source: Source, n: usize) -> Result<(), CudaError> {
        let load = self.network.steps.iter().find_map(|step| match step {
            Step::Load { output, shape } => Some((self.value(*output), shape)),
            _ => None,
        });
        let Some((out, shape)) = load else { return Ok(()) };
        let table = address(&self.table, &self.gpu.stream);
        // SAFETY: the caller vouches for the clips; the rest is as in `enqueue`.
        unsafe {
            match source {
                Source::Rgb => self.gpu.kernels.load_rgb(clips, table, out, shape, n),
                Source::Values => self.gpu.kernels.load_values(clips, out, shape, n),
            }
        }
    }

    /// Copies the outputs of `n` clips to the host, one after the other.
    ///
    /// # Safety
    /// `to` is not looked at and not freed before the stream is done.
    pub(super) unsafe fn download(&self, to: &mut [f32], n: usize) -> Result<(), CudaError> {
        let mut rest = to;
        for (value, dims) in &self.network.outputs {
            let (part, others) = rest.split_at_mut(n * dims.iter().product::<usize>());
            // SAFETY: an output of `n` clips in the arena; the caller vouches for the host's side.
            let copied = unsafe { result::memcpy_dtoh_async(part, self.value(*value), self.gpu.stream.cu_stream()) };
            copied.map_err(CudaError::driver("cuMemcpyDtoH"))?;
            rest = others;
        }
        Ok(())
    }

    /// The time of a run of `batch` clips that are on the GPU already, over `runs` runs.
    pub(super) fn time(&self, batch: usize, runs: usize) -> Result<Duration, CudaError> {
        let clip = self.network.input.iter().product::<usize>();
        let clips = self.gpu.zeroed(batch * clip)?;
        let at = address(&clips, &self.gpu.stream);
        let begin = Instant::now();
        for _ in 0..runs.max(1) {
            // SAFETY: zeros for as many clips, which live until the stream is done below.
            unsafe { self.run(at, Source::Rgb, batch)? };
        }
        self.gpu.synchronize()?;
        Ok(begin.elapsed() / runs.max(1) as u32)
    }

    fn bucket(&self, n: usize) -> Result<&Bucket, CudaError> {
        let fitting = self.buckets.iter().filter(|bucket| bucket.batch >= n).min_by_key(|bucket| bucket.batch);
        fitting.ok_or_else(|| CudaError::Input(format!("a batch of {n} clips; the plan takes 1 to {}", self.max_batch)))
    }

    /// Bytes on the GPU.
    pub(super) fn memory_bytes(&self) -> usize {
        [&self.arena, &self.constants, &self.workspace, &self.table].iter().map(|slice| slice.num_bytes()).sum()
    }

    fn value(&self, value: ValueId) -> u64 {
        address(&self.arena, &self.gpu.stream) + (self.network.values[value.0].offset * self.max_batch) as u64
    }

    fn constant(&self, constant: Constant) -> u64 {
        address(&self.constants, &self.gpu.stream) + constant.offset as u64
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Whatever still runs reads memory that is about to go. A GPU that is lost runs nothing.
        let _ = self.gpu.synchronize();
    }
}

/// Chooses algorithms by measurement.
struct Search<'a> {
    gpu: &'a Gpu,
    options: &'a PlanOptions,
    remembered: &'a mut Remembered,
    /// Signatures that were measured here.
    searched: HashSet<Signature>,
    planned: HashMap<Signature, Rc<Planned>>,
}

impl Search<'_> {
    /// How the first convolution reads its clips: by the time that it takes with its input's kernel.
    fn stem_form(&mut self, graph: &Graph, batch: usize) -> Result<StemForm, CudaError> {
        let Some(stem) = stem_node(graph) else { return Ok(StemForm::Padded) };
        let (mut best, mut last) = (None, None);
        for form in StemForm::ALL {
            match self.time_stem(graph, stem, form, batch) {
                Ok(micros) => {
                    if best.is_none_or(|(fastest, _)| micros < fastest) {
                        best = Some((micros, form));
                    }
                }
                Err(error) if error.is_out_of_memory() => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        best.map(|(_, form)| form).ok_or_else(|| last.expect("a form failed"))
    }

    fn time_stem(&mut self, graph: &Graph, stem: NodeId, form: StemForm, batch: usize) -> Result<f32, CudaError> {
        let mut stem_alone = graph.clone();
        stem_alone.outputs = vec![stem];
        let network = lower(&stem_alone, self.options.precision.element(), form, batch)?;
        let conv = network.convs().next().expect("the stem is a convolution");
        let micros = self.choice(conv, batch)?.micros;
        let (gpu, shape) = (self.gpu, network.load());
        let clips = gpu.zeroed(batch * network.input.iter().product::<usize>())?;
        let stored = gpu.zeroed(batch * network.values[conv.input.0].bytes)?;
        let table = gpu.zeroed(3 * 256 * 4)?;
        let of = |slice| address(slice, &gpu.stream);
        // SAFETY: memory of as many clips, which lives until the stream is done.
        let load = || unsafe { gpu.kernels.load_rgb(of(&clips), of(&table), of(&stored), shape, batch) };
        load()?;
        gpu.synchronize()?;
        let captured = gpu.capture(|| (0..REPEATS).try_for_each(|_| load()))?;
        Ok(micros + 1e6 * gpu.time(&captured)?.as_secs_f32() / REPEATS as f32)
    }

    /// The plan of a convolution.
    fn plan(&mut self, conv: &ConvStep, batch: usize) -> Result<Rc<Planned>, CudaError> {
        let signature = self.signature(conv, batch);
        if let Some(planned) = self.planned.get(&signature) {
            return Ok(Rc::clone(planned));
        }
        let mut choice = self.choice(conv, batch)?;
        let mut plan = self.compile(&signature, &choice);
        // What another process found may not work here.
        if plan.is_err() && !self.searched.contains(&signature) {
            choice = self.search(conv, signature)?;
            plan = self.compile(&signature, &choice);
        }
        let planned = Rc::new(Planned { plan: plan?, choice });
        self.planned.insert(signature, Rc::clone(&planned));
        Ok(planned)
    }

    fn compile(&self, signature: &Signature, choice: &Choice) -> Result<ConvPlan, CudaError> {
        let session = &self.gpu.session;
        ConvGraph::new(session, signature, choice.algorithm.fused)?.into_plan(session, &choice.algorithm)
    }

    fn choice(&mut self, conv: &ConvStep, batch: usize) -> Result<Choice, CudaError> {
        let signature = self.signature(conv, batch);
        // After a plan whose results were wrong, what was found before counts no more.
        let may_remember = self.options.skip == 0 || self.searched.contains(&signature);
        match self.remembered.get(&signature.to_string()) {
            Some(choice) if may_remember => Ok(choice.clone()),
            _ => self.search(conv, signature),
        }
    }

    fn search(&mut self, conv: &ConvStep, signature: Signature) -> Result<Choice, CudaError> {
        let PlanOptions { candidates, skip, .. } = *self.options;
        // Most runs are of a clip alone or of a full batch.
        let batches = &self.options.batches;
        let is_rare = signature.batch > 1 && batches.iter().any(|batch| *batch > signature.batch);
        let candidates = if is_rare { candidates.div_ceil(3) } else { candidates };
        let mut trial = ConvTrial::new(self.gpu, signature, candidates)?;
        let both = matches!(signature.precision, Precision::F32 | Precision::Tf32);
        let choice = fastest(&conv.name, &mut trial, skip, both)?;
        self.remembered.put(signature.to_string(), choice.clone());
        self.searched.insert(signature);
        Ok(choice)
    }

    fn signature(&self, conv: &ConvStep, batch: usize) -> Signature {
        let (precision, residual) = (self.options.precision, conv.residual.is_some());
        Signature { pass: Pass::Inference, shape: conv.shape, batch, precision, residual, relu: conv.relu }
    }
}
