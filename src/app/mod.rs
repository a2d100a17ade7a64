//! What a server does for its callers, whatever transport they use: classify a video, one that is uploaded meanwhile, or
//! many; models; inference on tensors. Requests, answers and errors are types of its own.
//!
//! A transport decodes a request, calls [`App`], and encodes the answer or the [`AppError`]. Permits, deadlines and the
//! memory of messages are accounted for here.

mod answers;
mod classify;
mod deadline;
mod error;
mod infer;
mod many;
mod memory;
mod models;
mod permits;
pub(crate) mod quote;
mod reason;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::classify::Classifier;
use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::repository::Repository;
use crate::uri::Uris;
pub(crate) use answers::{Answers, Incoming, send};
pub use classify::{ClassifyRequest, ModelSelector, VideoSource};
pub use deadline::Deadline;
pub use error::AppError;
pub(crate) use infer::{InferInput, InferRequest, Inference, Row};
pub(crate) use many::Item;
pub(crate) use memory::{MessageMemory, Room};
use permits::Permits;
pub use reason::{Category, Reason};
pub(crate) use upload::Chunk;
pub use upload::{ClipLabels, Progress, UploadEvent};

/// What a request message may be longer than the video in it.
const MESSAGE_OVERHEAD_BYTES: usize = 64 << 10;

/// The models and the classifier that requests share.
#[derive(Debug)]
pub struct Services {
    /// Decodes and classifies.
    pub classifier: Classifier,
    /// Running models.
    pub models: Arc<Repository>,
    /// What all of them count.
    pub metrics: Arc<Metrics>,
}

/// What callers may do, and how much of it at a time.
#[derive(Debug, Clone)]
pub struct AppOptions {
    /// Videos worked on at a time of which all bytes are here; one more is refused.
    pub max_requests: usize,
    /// Videos uploaded at a time; one more is refused.
    pub max_uploads: usize,
    /// Calls of many videos that are open at a time; one more is refused.
    pub max_streams: usize,
    /// Videos of one such call that are worked on at a time; others wait to be read.
    pub videos_per_stream: usize,
    /// Bytes that messages that are held as a whole may take in memory, or one message's worth if that is more.
    pub message_memory: usize,
    /// Where long uploads are kept while they are decoded; the system's temporary directory if `None`.
    pub spool: Option<PathBuf>,
    /// Whether callers may load and unload models.
    pub model_control: bool,
    /// Opens videos that come as URIs.
    pub uris: Uris,
    /// How fast clients have to send and to take answers.
    pub pace: Pace,
}

/// No permits are counted, and no URIs read.
impl Default for AppOptions {
    fn default() -> Self {
        Self {
            max_requests: usize::MAX,
            max_uploads: usize::MAX,
            max_streams: usize::MAX,
            videos_per_stream: 8,
            message_memory: usize::MAX,
            spool: None,
            model_control: false,
            uris: Uris::default(),
            pace: Pace::default(),
        }
    }
}

/// The use cases. Clones share everything.
#[derive(Debug, Clone)]
pub struct App {
    pub(crate) services: Arc<Services>,
    pub(crate) options: Arc<AppOptions>,
    permits: Arc<Permits>,
    pub(crate) memory: MessageMemory,
    /// Whether all models take requests.
    is_ready: watch::Receiver<bool>,
    /// Whether the server stops.
    draining: watch::Receiver<bool>,
}

impl App {
    pub(crate) fn new(
        services: Arc<Services>,
        options: AppOptions,
        is_ready: watch::Receiver<bool>,
        draining: watch::Receiver<bool>,
    ) -> Self {
        let permits = Arc::new(Permits::new(&options));
        let max_bytes = usize::try_from(services.classifier.limits().max_bytes).unwrap_or(usize::MAX);
        let memory = MessageMemory::new(options.message_memory, max_bytes.saturating_add(MESSAGE_OVERHEAD_BYTES));
        Self { services, options: Arc::new(options), permits, memory, is_ready, draining }
    }

    /// Of a process that serves nobody else.
    pub fn local(services: Services, options: AppOptions) -> Self {
        // Nobody changes what these tell.
        let (_, is_ready) = watch::channel(true);
        let (_, draining) = watch::channel(false);
        Self::new(Arc::new(services), options, is_ready, draining)
    }

    /// Whether all models take requests, and the server does not stop.
    pub(crate) fn is_ready(&self) -> bool {
        *self.is_ready.borrow()
    }
}
