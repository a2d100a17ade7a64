//! Runs clips of many requests through a model.
//!
//! A request takes a [`VideoQueue`] and submits clips to it; the [`batcher`] decides which clips run together, and each
//! worker, a thread that owns a device, takes a batch whenever it is idle. A batch that fails is tried once more, clip
//! by clip, on a worker that was built anew.

pub mod batcher;
mod devices;
mod executor;
#[cfg(feature = "cuda")]
pub(crate) mod gpu;
mod worker;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::metrics::{Metrics, ModelMetrics};
use crate::model::file::Model;
use crate::model::spec::ModelSpec;
use batcher::{BatchPolicy, Batcher, Priority, VideoId};

pub use candle_conv3d::Precision;
pub use devices::{DeviceError, DeviceRequest, Devices};
pub use executor::{CpuExecutor, Executor, ExecutorError, Outputs};

/// Builds a worker's executor, at the start and after each failure.
pub type Build = dyn Fn() -> Result<Box<dyn Executor>, ExecutorError> + Send + Sync;

/// How an engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Threads that compute.
    pub threads: usize,
    /// Clips in one batch at most.
    pub max_batch: usize,
    /// How long a clip may wait for its batch to fill while a worker is idle.
    pub max_delay: Duration,
    /// Clips of one priority that may wait; who brings more waits himself, so that decoding never runs far ahead.
    pub queue_clips: usize,
    /// A batch that takes longer is given up and its worker replaced, but for models that are known to take so long:
    /// a batch may take [`EngineConfig::STUCK_FACTOR`] times as long as the first one.
    pub stuck_after: Duration,
}

impl EngineConfig {
    /// Batches above this gain nothing on any measured CPU, and each clip of a batch takes about 40 MB.
    pub const DEFAULT_MAX_BATCH: usize = 8;

    /// On GPUs: enough tiles for all multiprocessors in every layer.
    pub const DEFAULT_GPU_MAX_BATCH: usize = 64;

    /// How much longer than the first one a batch may take.
    pub const STUCK_FACTOR: u32 = 20;

    /// Batches' worth of clips that may wait: one that runs next and others for its workers' neighbours.
    const QUEUE_BATCHES: usize = 8;

    /// The defaults for batches of up to `max_batch` clips on `threads` threads.
    pub fn new(threads: usize, max_batch: usize) -> Self {
        Self {
            threads,
            max_batch,
            max_delay: Duration::ZERO,
            queue_clips: Self::QUEUE_BATCHES * max_batch,
            stuck_after: Duration::from_secs(60),
        }
    }

    /// Clips of one video that may wait or run: one batch that runs and one that waits behind it.
    fn clips_per_video(&self) -> usize {
        2 * self.max_batch
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from), Self::DEFAULT_MAX_BATCH)
    }
}

/// Why a clip has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The clip does not fit the model.
    #[error("clip has {actual} values; the model takes {expected}")]
    ClipSize {
        /// Values.
        actual: usize,
        /// Values.
        expected: usize,
    },
    /// The engine was stopped.
    #[error("the engine has stopped")]
    Stopped,
    /// No worker runs, and none could be started.
    #[error("no worker of the model could be started; it is tried again from time to time")]
    NoWorker,
    /// The device or the code that drives it failed, twice.
    #[error("running the model failed: {0}")]
    Execution(String),
}

/// One clip as the model takes it.
#[derive(Debug, Clone, PartialEq)]
pub enum ClipInput {
    /// 8-bit RGB, `(t, h, w, 3)`.
    Rgb(Bytes),
    /// What the network sees, normalised by the caller, `(3, t, h, w)`.
    Normalised(Arc<[f32]>),
}

impl ClipInput {
    /// Values, as many in either form.
    fn len(&self) -> usize {
        match self {
            Self::Rgb(rgb) => rgb.len(),
            Self::Normalised(values) => values.len(),
        }
    }
}

/// What the model says about one clip.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipOutput {
    /// One for each class.
    pub logits: Vec<f32>,
    /// Pooled features before the last layer.
    pub embedding: Vec<f32>,
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// It builds its executor, at the start or after a failure.
    Starting,
    /// Its executor can't be built; it tries again from time to time.
    Failed,
    /// It waits for clips.
    Idle,
    /// It runs a batch.
    Busy,
}

/// What an engine did since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Clips answered.
    pub clips: u64,
    /// Batches run, those that failed left out.
    pub batches: u64,
    /// Sum over clips of their wait for a batch.
    pub queued: Duration,
    /// Sum over clips of the time that their batch took on the device.
    pub computed: Duration,
    /// When the last batch ended.
    pub last: Option<SystemTime>,
}

/// An engine at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineState {
    /// Clips that wait.
    pub queued_clips: usize,
    /// One for each worker.
    pub workers: Vec<WorkerState>,
}

impl EngineState {
    /// Whether some worker can take clips.
    pub fn is_serving(&self) -> bool {
        self.workers.iter().any(|worker| matches!(worker, WorkerState::Idle | WorkerState::Busy))
    }
}

/// A running model. Dropping it lets the workers finish what is queued and ends them.
#[derive(Debug)]
pub struct Engine {
    spec: Arc<ModelSpec>,
    config: EngineConfig,
    shared: Arc<Shared>,
    next_video: AtomicU64,
    memory_bytes: u64,
    threads: Vec<JoinHandle<()>>,
}

/// What requests and workers share.
struct Shared {
    name: String,
    config: EngineConfig,
    state: Mutex<State>,
    /// Clips came, or the engine stops.
    changed: Condvar,
    /// The engine stops.
    stopping: Condvar,
    /// By priority, a permit for each clip that may wait: clips of one class never wait for those of another here.
    places: [Arc<Semaphore>; Priority::COUNT],
    build: Box<Build>,
    metrics: ModelMetrics,
}

struct State {
    batcher: Batcher<Job>,
    statistics: Statistics,
    workers: Vec<Worker>,
    stopping: bool,
}

impl State {
    /// Whether nobody is there to run clips, or soon will be.
    fn has_no_worker(&self) -> bool {
        self.workers.iter().all(|worker| worker.state == WorkerState::Failed)
    }
}

/// A worker as the others see it.
struct Worker {
    /// Grows when the worker's thread is given up: one of an older generation has no say any more.
    generation: u64,
    state: WorkerState,
    since: Instant,
    /// How long its batch has been running by the watchdog's account, which leaves out times when the process was stopped.
    ran: Duration,
    /// What it runs.
    batch: Vec<Job>,
}

/// A clip on its way through a worker.
struct Job {
    input: ClipInput,
    reply: oneshot::Sender<Result<ClipOutput, EngineError>>,
    queued: Instant,
    failed_before: bool,
    place: Option<OwnedSemaphorePermit>,
    _share: OwnedSemaphorePermit,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Builds the network on the CPU, runs it once, and starts its worker.
    pub fn start(model: Model, config: EngineConfig, metrics: &Metrics) -> Result<Self, ExecutorError> {
        Self::start_on(&Devices::Cpu, model, config, metrics)
    }

    /// Builds the network on its devices, runs it once, and starts its workers.
    pub fn start_on(
        devices: &Devices,
        model: Model,
        config: EngineConfig,
        metrics: &Metrics,
    ) -> Result<Self, ExecutorError> {
        let spec = model.spec.clone();
        let model = Arc::new(model);
        let build = devices.build(config, Box::new(move || Ok(Arc::clone(&model))));
        Self::with_workers(spec, config, devices.workers(), build, metrics)
    }

    /// Starts workers around any executors. `build` makes the first one here, so that a model that can't be built is
    /// known at once; the others are made by their workers.
    pub fn with_workers(
        spec: ModelSpec,
        config: EngineConfig,
        workers: usize,
        build: Box<Build>,
        metrics: &Metrics,
    ) -> Result<Self, ExecutorError> {
        let config =
            EngineConfig { max_batch: config.max_batch.max(1), queue_clips: config.queue_clips.max(1), ..config };
        let mut first = build()?;
        let begun = Instant::now();
        worker::warm_up(first.as_mut(), &spec, config.max_batch)?;
        let stuck_after = config.stuck_after.max(begun.elapsed() * EngineConfig::STUCK_FACTOR);
        let config = EngineConfig { stuck_after, ..config };
        let policy = BatchPolicy { max_batch: config.max_batch, max_delay: config.max_delay };
        let now = Instant::now();
        let worker = || Worker {
            generation: 0,
            state: WorkerState::Starting,
            since: now,
            ran: Duration::ZERO,
            batch: Vec::new(),
        };
        let state = State {
            batcher: Batcher::new(policy),
            statistics: Statistics::default(),
            workers: (0..workers.max(1)).map(|_| worker()).collect(),
            stopping: false,
        };
        let shared = Arc::new(Shared {
            name: spec.name.clone(),
            config,
            state: Mutex::new(state),
            changed: Condvar::new(),
            stopping: Condvar::new(),
            places: std::array::from_fn(|_| Arc::new(Semaphore::new(config.queue_clips.min(Semaphore::MAX_PERMITS)))),
            build,
            metrics: metrics.model(&spec.name),
        });
        let spec = Arc::new(spec);
        let memory_bytes = first.memory_bytes() * workers.max(1) as u64;
        let mut executors = VecDeque::from([first]);
        let mut threads: Vec<JoinHandle<()>> =
            (0..workers.max(1)).map(|index| worker::spawn(&shared, &spec, index, 0, executors.pop_front())).collect();
        threads.push(worker::spawn_watchdog(&shared, &spec));
        shared.lock().workers[0].state = WorkerState::Idle;
        Ok(Self { spec, config, shared, next_video: AtomicU64::new(0), memory_bytes, threads })
    }

    /// What the model file says.
    pub fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    /// How it runs.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Bytes that its workers hold: weights as they compute with them, and buffers.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// What it does right now.
    pub fn state(&self) -> EngineState {
        let state = self.shared.lock();
        EngineState {
            queued_clips: state.batcher.len(),
            workers: state.workers.iter().map(|worker| worker.state).collect(),
        }
    }

    /// What it did since its start.
    pub fn statistics(&self) -> Statistics {
        self.shared.lock().statistics
    }

    /// A queue for one video's clips.
    pub fn video(&self, priority: Priority) -> VideoQueue {
        VideoQueue {
            id: VideoId(self.next_video.fetch_add(1, Ordering::Relaxed)),
            priority,
            clip_len: self.spec.clip.rgb_len(),
            shared: Arc::clone(&self.shared),
            share: Arc::new(Semaphore::new(self.config.clips_per_video())),
        }
    }
}

/// The clips of one video on their way to the device. Dropping it removes those that still wait.
#[derive(Debug)]
pub struct VideoQueue {
    id: VideoId,
    priority: Priority,
    clip_len: usize,
    shared: Arc<Shared>,
    /// Bounds the clips of this video that wait or run.
    share: Arc<Semaphore>,
}

impl VideoQueue {
    /// Queues a clip; waits while this video or all of its priority together have too many in the queue.
    pub async fn submit(&self, input: ClipInput) -> Result<PendingClip, EngineError> {
        if input.len() != self.clip_len {
            return Err(EngineError::ClipSize { actual: input.len(), expected: self.clip_len });
        }
        let acquire = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).acquire_owned();
        let share = acquire(&self.share).await.expect("a video's share is never closed");
        let places = &self.shared.places[self.priority as usize];
        let place = acquire(places).await.map_err(|_| EngineError::Stopped)?;
        let (reply, output) = oneshot::channel();
        let now = Instant::now();
        let job = Job { input, reply, queued: now, failed_before: false, place: Some(place), _share: share };
        {
            let mut state = self.shared.lock();
            if state.stopping {
                return Err(EngineError::Stopped);
            }
            if state.has_no_worker() {
                return Err(EngineError::NoWorker);
            }
            state.batcher.push(self.id, self.priority, now, job);
        }
        self.shared.changed.notify_one();
        Ok(PendingClip(output))
    }
}

impl Drop for VideoQueue {
    fn drop(&mut self) {
        let removed = self.shared.lock().batcher.remove(self.id);
        // Their permits go back without the lock.
        drop(removed);
    }
}

/// The answer about a submitted clip, to be awaited. Its [`VideoQueue`] has to live that long.
#[derive(Debug)]
pub struct PendingClip(oneshot::Receiver<Result<ClipOutput, EngineError>>);

impl Future for PendingClip {
    type Output = Result<ClipOutput, EngineError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(EngineError::Stopped)))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.places.iter().for_each(|places| places.close());
        self.shared.changed.notify_all();
        self.shared.stopping.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("an engine thread panicked");
            }
        }
    }
}
