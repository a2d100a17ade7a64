//! A model on GPUs: a plan on each, checked against the CPU before it serves, and two workers that bring it clips.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_conv3d::Precision;
use candle_conv3d::cuda::{Clips, CudaError, Lane, Plan, PlanOptions};
use candle_conv3d::plan::{Input, PlanOptions as CpuPlanOptions};
use tracing::{info, warn};

use super::devices::ReadModel;
use super::{EngineConfig, Executor, ExecutorError, Outputs};
use crate::model::counter::CounterStream;
use crate::model::file::Model;
use crate::model::plan;
use crate::model::softmax;

/// Workers of a GPU: while the clips of one are computed, the other uploads its own.
pub(super) const LANES: usize = 2;
/// Plans that are tried: the one of the fastest algorithms, then those of the next ones.
const ATTEMPTS: usize = 3;

/// The GPUs of one engine.
pub(super) struct Gpus {
    slots: Vec<Arc<Slot>>,
    precision: Precision,
    cache: Option<PathBuf>,
    config: EngineConfig,
    read: Box<ReadModel>,
    check: Mutex<Option<Arc<SelfCheck>>>,
    /// Held while a GPU is chosen, so that no two workers choose the same one as the emptiest.
    choosing: Mutex<()>,
}

/// One GPU.
struct Slot {
    ordinal: usize,
    plan: Mutex<Option<(Arc<Plan>, OutputLens)>>,
    /// Executors that are there.
    lanes: AtomicUsize,
}

impl Gpus {
    pub(super) fn new(
        ordinals: &[usize],
        precision: Precision,
        cache: Option<PathBuf>,
        config: EngineConfig,
        read: Box<ReadModel>,
    ) -> Self {
        let slot = |&ordinal| Arc::new(Slot { ordinal, plan: Mutex::default(), lanes: AtomicUsize::new(0) });
        let slots = ordinals.iter().map(slot).collect();
        Self { slots, precision, cache, config, read, check: Mutex::default(), choosing: Mutex::default() }
    }

    /// An executor on the GPU that has the fewest.
    pub(super) fn executor(&self) -> Result<Box<dyn Executor>, ExecutorError> {
        let held = self.choose();
        let slot = &held.0;
        let (plan, outputs) = self.plan(slot)?;
        let (lane, ordinal) = (plan.lane().map_err(slot.error())?, slot.ordinal);
        Ok(Box::new(GpuExecutor { lane, plan, outputs, ordinal, _held: held }))
    }

    fn choose(&self) -> HeldLane {
        let _one_at_a_time = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let emptiest = self.slots.iter().min_by_key(|slot| slot.lanes.load(Ordering::Relaxed));
        HeldLane::new(emptiest.expect("a GPU at least"))
    }

    /// The GPU's plan; built if there is none or it has failed.
    fn plan(&self, slot: &Slot) -> Result<(Arc<Plan>, OutputLens), ExecutorError> {
        // Held while it is built: the other worker wants the same one.
        let mut place = slot.plan.lock().unwrap_or_else(PoisonError::into_inner);
        drop(place.take_if(|(plan, _)| plan.has_failed()));
        if let Some((plan, outputs)) = &*place {
            return Ok((Arc::clone(plan), *outputs));
        }
        let model = (self.read)()?;
        let [classes, features] = model.output_lens();
        let outputs = OutputLens { classes, features };
        let plan = Arc::new(self.build(slot, &model)?);
        *place = Some((Arc::clone(&plan), outputs));
        Ok((plan, outputs))
    }

    /// A plan that computes what a CPU does, for batches as large as memory allows.
    fn build(&self, slot: &Slot, model: &Model) -> Result<Plan, ExecutorError> {
        let check = self.check(model)?;
        let (plan, difference) = largest_that_fits(self.config.max_batch, |max_batch| {
            let table = model.spec.preprocessing.lookup_table();
            let options = PlanOptions {
                precision: self.precision,
                cache: self.cache.clone(),
                ..PlanOptions::new(slot.ordinal, max_batch, table)
            };
            check.build(model, options)
        })?;
        let (gpu, max_batch) = (plan.gpu(), plan.max_batch());
        info!(gpu = %gpu.name, ordinal = gpu.ordinal, precision = %self.precision, max_batch, difference, "GPU ready");
        Ok(plan)
    }

    /// The self-check, made once for all GPUs.
    fn check(&self, model: &Model) -> Result<Arc<SelfCheck>, ExecutorError> {
        let mut place = self.check.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(check) = &*place {
            return Ok(Arc::clone(check));
        }
        let check = Arc::new(SelfCheck::new(model, self.config.threads)?);
        *place = Some(Arc::clone(&check));
        Ok(check)
    }
}

/// What a CPU says about some clips, to compare GPUs with.
pub(crate) struct SelfCheck {
    clips: Vec<Vec<u8>>,
    classes: usize,
    features: usize,
    /// Softmax of each clip.
    scores: Vec<f32>,
}

impl SelfCheck {
    pub(crate) fn new(model: &Model, threads: usize) -> Result<Self, ExecutorError> {
        let clips = check_clips(model);
        // Without Winograd's algorithms: the fewest roundings.
        let max_batch = clips.len();
        let options = CpuPlanOptions { threads, max_batch, winograd: false, ..CpuPlanOptions::default() };
        let mut plan = plan::compile(model, options)?;
        let [classes, features] = model.output_lens();
        let (mut logits, mut embeddings) = (vec![0.0; clips.len() * classes], vec![0.0; clips.len() * features]);
        let views: Vec<&[u8]> = clips.iter().map(Vec::as_slice).collect();
        let input = Input::Rgb { clips: &views, table: &model.spec.preprocessing.lookup_table() };
        plan.run(input, &mut [&mut logits, &mut embeddings])?;
        let scores = logits.chunks(classes).flat_map(softmax).collect();
        Ok(Self { clips, classes, features, scores })
    }

    /// Builds a plan that passes, of the fastest algorithms or else of the next ones, and has it remember them. Gives the
    /// largest difference of a score too.
    pub(crate) fn build(&self, model: &Model, options: PlanOptions) -> Result<(Plan, f32), ExecutorError> {
        let (ordinal, tolerance) = (options.ordinal, tolerance(options.precision));
        let failed = |error| ExecutorError::Gpu { ordinal, error };
        let mut difference = f32::INFINITY;
        for skip in 0..ATTEMPTS {
            let graph = plan::bound_graph(model)?;
            let plan = Plan::build(graph, PlanOptions { skip, ..options.clone() }).map_err(failed)?;
            difference = self.difference(&plan).map_err(failed)?;
            if difference <= tolerance {
                if let Err(error) = plan.remember() {
                    warn!(%error, "what was measured on the GPU can't be kept for the next start");
                }
                return Ok((plan, difference));
            }
            warn!(ordinal, difference, tolerance, "the GPU's scores are not a CPU's, trying other algorithms");
        }
        Err(ExecutorError::SelfCheck { ordinal, difference, tolerance })
    }

    /// The largest difference of a score, over all batch sizes and all places in them.
    fn difference(&self, plan: &Plan) -> Result<f32, CudaError> {
        let Self { clips, classes, features, scores } = self;
        let mut lane = plan.lane()?;
        let mut largest: f32 = 0.0;
        for batch in plan.batches() {
            let clips: Vec<&[u8]> = clips.iter().map(Vec::as_slice).cycle().take(*batch).collect();
            let (mut logits, mut embeddings) = (vec![f32::NAN; batch * classes], vec![f32::NAN; batch * features]);
            lane.run(Clips::Rgb(&clips), &mut [&mut logits, &mut embeddings])?;
            for (row, expected) in logits.chunks(*classes).zip(scores.chunks(*classes).cycle()) {
                for (actual, expected) in softmax(row).iter().zip(expected) {
                    let difference = (actual - expected).abs();
                    largest = if difference.is_nan() { f32::INFINITY } else { largest.max(difference) };
                }
            }
        }
        Ok(largest)
    }
}

impl Slot {
    fn error(&self) -> impl Fn(CudaError) -> ExecutorError + use<> {
        let ordinal = self.ordinal;
        move |error| ExecutorError::Gpu { ordinal, error }
    }
}

/// Counts an executor from the attempt to build it to its end.
struct HeldLane(Arc<Slot>);

impl HeldLane {
    fn new(slot: &Arc<Slot>) -> Self {
        slot.lanes.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(slot))
    }
}

impl Drop for HeldLane {
    fn drop(&mut self) {
        self.0.lanes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Values that the model says about a clip.
#[derive(Debug, Clone, Copy)]
struct OutputLens {
    classes: usize,
    features: usize,
}

/// One worker's way to a GPU.
struct GpuExecutor {
    // Dropped in this order.
    lane: Lane,
    plan: Arc<Plan>,
    outputs: OutputLens,
    ordinal: usize,
    _held: HeldLane,
}

impl GpuExecutor {
    fn run(&mut self, clips: Clips<'_>, count: usize) -> Result<Outputs, ExecutorError> {
        let OutputLens { classes, features } = self.outputs;
        let mut outputs = Outputs { logits: vec![0.0; count * classes], embeddings: vec![0.0; count * features] };
        let ordinal = self.ordinal;
        self.lane
            .run(clips, &mut [&mut outputs.logits, &mut outputs.embeddings])
            .map_err(|error| ExecutorError::Gpu { ordinal, error })?;
        Ok(outputs)
    }
}

impl Executor for GpuExecutor {
    fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
        self.run(Clips::Rgb(clips), clips.len())
    }

    fn run_normalised(&mut self, clips: &[&[f32]]) -> Result<Outputs, ExecutorError> {
        self.run(Clips::Values(clips), clips.len())
    }

    fn memory_bytes(&self) -> u64 {
        // The plan is shared.
        (self.plan.memory_bytes() / LANES + self.lane.memory_bytes()) as u64
    }
}

/// How far a score may be from a CPU's.
fn tolerance(precision: Precision) -> f32 {
    match precision {
        Precision::F32 => 1e-4,
        Precision::Bf16 | Precision::F16 | Precision::Tf32 => 5e-3,
    }
}

/// Builds for batches as large as memory allows: half as large after each failure for want of memory.
fn largest_that_fits<T>(
    max_batch: usize,
    mut build: impl FnMut(usize) -> Result<T, ExecutorError>,
) -> Result<T, ExecutorError> {
    let mut batch = max_batch;
    loop {
        match build(batch) {
            Err(ExecutorError::Gpu { ordinal, error }) if error.is_out_of_memory() && batch > 1 => {
                warn!(ordinal, batch, "too little GPU memory, trying batches half as large");
                batch /= 2;
            }
            built => return built,
        }
    }
}

/// Noise, and a bright square that moves over a gradient.
fn check_clips(model: &Model) -> Vec<Vec<u8>> {
    let clip = &model.spec.clip;
    let stream = CounterStream::new(0, "self-check");
    let noise = (0..clip.rgb_len() as u64).map(|index| stream.byte(index)).collect();
    let size = clip.size;
    let picture = (0..clip.rgb_len()).map(|index| {
        let (channel, x, y) = (index % 3, index / 3 % size, index / 3 / size % size);
        let t = index / 3 / size / size;
        let inside = |at: usize, offset: usize| at.abs_diff((offset + 3 * t) % size) < size / 6;
        if inside(x, size / 4) && inside(y, size / 3) { 240 } else { ((x + 2 * y + 40 * channel) % 256) as u8 }
    });
    vec![noise, picture.collect()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builtin;

    fn out_of_memory() -> ExecutorError {
        let error = CudaError::Cudnn {
            call: "cudnnCreate",
            status: "CUDNN_STATUS_ALLOC_FAILED".to_owned(),
            message: String::new(),
        };
        ExecutorError::Gpu { ordinal: 0, error }
    }

    #[test]
    fn batches_become_smaller_until_they_fit() {
        let mut tried = Vec::new();
        let built = largest_that_fits(64, |batch| {
            tried.push(batch);
            if batch > 16 { Err(out_of_memory()) } else { Ok(batch) }
        });
        assert_eq!(built.unwrap(), 16);
        assert_eq!(tried, [64, 32, 16]);
    }

    #[test]
    fn a_gpu_without_memory_for_one_clip_is_an_error_and_other_errors_are_not_tried_again() {
        let mut tried = 0;
        let refused = largest_that_fits(4, |_| -> Result<(), _> {
            tried += 1;
            Err(out_of_memory())
        });
        assert!(matches!(refused, Err(ExecutorError::Gpu { .. })) && tried == 3);
        tried = 0;
        let refused = largest_that_fits(4, |_| -> Result<(), _> {
            tried += 1;
            Err(ExecutorError::Gpu { ordinal: 0, error: CudaError::NoDevice })
        });
        assert!(refused.is_err() && tried == 1);
    }

    #[test]
    fn workers_that_start_together_spread_over_the_gpus() {
        let read: Box<ReadModel> = Box::new(|| unreachable!("nothing is built"));
        let gpus = Gpus::new(&[0, 1], Precision::Bf16, None, EngineConfig::new(1, 2), read);
        for _ in 0..200 {
            let together = std::sync::Barrier::new(4);
            let held: Vec<HeldLane> = std::thread::scope(|scope| {
                let choose = || {
                    together.wait();
                    gpus.choose()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(choose)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(held.iter().filter(|lane| lane.0.ordinal == 0).count(), 2);
        }
    }

    #[test]
    fn the_self_check_would_see_a_mix_up_of_clips() {
        let model = builtin::model().unwrap();
        let check = SelfCheck::new(&model, 1).unwrap();
        let ([classes, _], clips) = (model.output_lens(), check.clips.len());
        assert!(clips == 2 && check.clips.iter().all(|clip| clip.len() == model.spec.clip.rgb_len()));
        assert_eq!(check.scores.len(), clips * classes);
        assert!((check.scores.iter().sum::<f32>() - clips as f32).abs() < 1e-4);
        let tolerance = tolerance(Precision::Bf16);
        let far =
            (0..classes).any(|class| (check.scores[class] - check.scores[classes + class]).abs() > 2.0 * tolerance);
        assert!(far, "{:?}", check.scores);
    }

    #[test]
    fn a_machine_without_gpu_says_so() {
        if candle_conv3d::cuda::gpus().is_ok() {
            eprintln!("skipped: there is a GPU");
            return;
        }
        let model = Arc::new(builtin::model().unwrap());
        let read: Box<ReadModel> = Box::new(move || Ok(Arc::clone(&model)));
        let gpus = Gpus::new(&[0], Precision::Bf16, None, EngineConfig::new(1, 2), read);
        let error = gpus.executor().err().expect("there is no GPU").to_string();
        assert!(error.starts_with("GPU 0: ") && !error.contains('\n'), "{error}");
        assert_eq!(gpus.slots[0].lanes.load(Ordering::Relaxed), 0, "a failure holds no place");
    }
}
