//! Runs clips of many requests through a model: a bounded queue and one worker thread a device.

mod executor;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::model::file::Model;
use crate::model::spec::ModelSpec;

pub use executor::{CpuExecutor, Executor, ExecutorError};

/// How an engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Threads that compute.
    pub threads: usize,
    /// Clips in one batch at most.
    pub max_batch: usize,
    /// Clips that may wait; who brings more waits himself, so that decoding never runs far ahead.
    pub queue_clips: usize,
}

impl EngineConfig {
    /// Batches above this gain nothing on any measured CPU, and each clip of a batch takes about 40 MB.
    pub const DEFAULT_MAX_BATCH: usize = 8;
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            max_batch: Self::DEFAULT_MAX_BATCH,
            queue_clips: 4 * Self::DEFAULT_MAX_BATCH,
        }
    }
}

/// Why a clip has no logits.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The clip does not fit the model.
    #[error("clip is {actual} bytes; the model takes {expected}")]
    ClipSize {
        /// Bytes.
        actual: usize,
        /// Bytes.
        expected: usize,
    },
    /// The engine was stopped.
    #[error("the engine has stopped")]
    Stopped,
    /// The device or the code that drives it failed.
    #[error("running the model failed: {0}")]
    Execution(String),
}

/// A running model. Dropping it lets the worker finish what is queued and ends it.
#[derive(Debug)]
pub struct Engine {
    spec: Arc<ModelSpec>,
    queue: Option<mpsc::Sender<Job>>,
    worker: Option<JoinHandle<()>>,
}

/// A clip on its way to the worker.
#[derive(Debug)]
struct Job {
    /// 8-bit RGB, `(t, h, w, 3)`.
    rgb: Vec<u8>,
    reply: oneshot::Sender<Result<Vec<f32>, EngineError>>,
}

/// The logits of a submitted clip, to be awaited. Dropping it cancels the clip if it still waits.
#[derive(Debug)]
pub struct PendingLogits(oneshot::Receiver<Result<Vec<f32>, EngineError>>);

impl Engine {
    /// Builds the network on the CPU and starts its worker.
    pub fn start(model: &Model, config: EngineConfig) -> Result<Self, ExecutorError> {
        let executor = CpuExecutor::new(model, config.threads, config.max_batch)?;
        Ok(Self::with_executor(model.spec.clone(), config, Box::new(executor)))
    }

    /// Starts a worker around any executor.
    pub fn with_executor(spec: ModelSpec, config: EngineConfig, executor: Box<dyn Executor>) -> Self {
        let (queue, jobs) = mpsc::channel(config.queue_clips.max(1));
        let worker = std::thread::Builder::new()
            .name(format!("model-{}", spec.name))
            .spawn(move || worker::run(jobs, executor, config.max_batch.max(1)))
            .expect("the system can start a thread at start-up");
        Self { spec: Arc::new(spec), queue: Some(queue), worker: Some(worker) }
    }

    /// What the model file says.
    pub fn spec(&self) -> &Arc<ModelSpec> {
        &self.spec
    }

    /// Queues a clip of 8-bit RGB `(t, h, w, 3)`; waits while the queue is full.
    pub async fn submit(&self, rgb: Vec<u8>) -> Result<PendingLogits, EngineError> {
        let expected = self.spec.clip.rgb_len();
        if rgb.len() != expected {
            return Err(EngineError::ClipSize { actual: rgb.len(), expected });
        }
        let (reply, logits) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(EngineError::Stopped)?;
        queue.send(Job { rgb, reply }).await.map_err(|_| EngineError::Stopped)?;
        Ok(PendingLogits(logits))
    }
}

impl PendingLogits {
    /// Waits for the logits, one for each class.
    pub async fn wait(self) -> Result<Vec<f32>, EngineError> {
        self.0.await.unwrap_or(Err(EngineError::Stopped))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the worker thread panicked");
        }
    }
}
