//! The one place where errors become what a caller is told.

use std::time::Duration;

use tracing::{error, warn};

use super::Reason;
use super::quote::Quoted;
use crate::classify::ClassifyError;
use crate::engine::EngineError;
use crate::pace::TooSlow;
use crate::repository::RepositoryError;
use crate::uri::UriError;
use crate::video::{SpoolError, VideoError};

/// How long a refused client waits before it tries again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Bytes of a message. It stands in gRPC's trailers twice, and clients take 8 KiB of these.
const LONGEST_MESSAGE: usize = 1000;

/// Why a call failed: what its caller is told, over any transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AppError {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// How long to wait before the call is tried again; `None` if that will not help.
    pub retry_after: Option<Duration>,
    /// What happened, where callers of a server are not told. A local command prints it.
    pub detail: Option<String>,
}

impl AppError {
    /// An error that a retry does not help.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > LONGEST_MESSAGE {
            let end = (0..=LONGEST_MESSAGE).rev().find(|&end| message.is_char_boundary(end));
            message.truncate(end.unwrap_or_default());
            message.push('…');
        }
        Self { reason, message, retry_after: None, detail: None }
    }

    /// An error that passes.
    fn retry(reason: Reason, message: impl Into<String>) -> Self {
        Self { retry_after: Some(RETRY_DELAY), ..Self::new(reason, message) }
    }

    /// The server's own fault: the log has what happened.
    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        error!(%error, "request failed");
        let message = "the server failed; its log has the details under this request's id";
        Self { detail: Some(error.to_string()), ..Self::new(Reason::Internal, message) }
    }

    /// `known` are names and versions, the versions of a name one after the other.
    pub(super) fn model_not_found<'a>(
        name: &str,
        version: &str,
        known: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut wanted = Quoted::text(name).to_string();
        if !version.is_empty() {
            wanted.push_str(&format!(" version {}", Quoted::text(version)));
        }
        let mut models: Vec<(&str, Vec<&str>)> = Vec::new();
        for (name, version) in known {
            match models.iter_mut().find(|(known, _)| *known == name) {
                Some((_, versions)) => versions.push(version),
                None => models.push((name, vec![version])),
            }
        }
        let models: Vec<String> =
            models.iter().map(|(name, versions)| format!("{name} ({})", versions.join(", "))).collect();
        Self::new(Reason::ModelNotFound, format!("no model {wanted}; there are {}", models.join(", ")))
    }

    pub(super) fn no_model_control() -> Self {
        let message = "callers of this server may not load or unload models; `serve --model-control` lets them";
        Self::new(Reason::ModelControlOff, message)
    }

    pub(super) fn overloaded(max_requests: usize) -> Self {
        let message = format!("{max_requests} requests are being worked on, which is the limit; try again");
        Self::retry(Reason::TooManyRequests, message)
    }

    pub(super) fn too_many_streams(max_streams: usize) -> Self {
        let message = format!("{max_streams} streams of videos are open, which is the limit; try again");
        Self::retry(Reason::TooManyStreams, message)
    }

    pub(super) fn too_many_uploads(max_uploads: usize) -> Self {
        let message = format!("{max_uploads} videos are being uploaded, which is the limit; try again");
        Self::retry(Reason::TooManyUploads, message)
    }

    pub(crate) fn too_many_calls(max_calls: usize) -> Self {
        let message =
            format!("too many calls are open; the limit is {max_calls}, a quarter of it for health and reflection");
        Self::retry(Reason::TooManyCalls, message)
    }

    pub(crate) fn token_busy(max_requests: usize) -> Self {
        let message =
            format!("{max_requests} calls with this token are being worked on, which is its limit; try again");
        Self::retry(Reason::TooManyRequestsOfToken, message)
    }

    pub(crate) fn no_memory(capacity: usize) -> Self {
        let message = format!("the messages of other requests fill the {capacity} bytes there are for them; try again");
        Self::retry(Reason::TooManyBytes, message)
    }

    pub(crate) fn stopping(message: &str) -> Self {
        Self::new(Reason::Stopping, message)
    }

    pub(crate) fn deadline_exceeded(timeout: Duration) -> Self {
        Self::new(Reason::DeadlineExceeded, format!("the call took longer than its deadline of {timeout:?}"))
    }

    pub(crate) fn client_idle(timeout: Duration) -> Self {
        let message = format!("nothing came from the client for {timeout:?} while the call was waiting for it");
        Self::new(Reason::ClientIdle, message)
    }

    pub(crate) fn message_too_large(actual: usize, limit: usize) -> Self {
        let message = format!("the request message is {actual} bytes; the limit is {limit}");
        Self::new(Reason::VideoTooLarge, message)
    }
}

impl From<TooSlow> for AppError {
    fn from(how: TooSlow) -> Self {
        match how {
            TooSlow::Silent { limit } => Self::client_idle(limit),
            TooSlow::Slow { .. } | TooSlow::Long { .. } => {
                Self::new(Reason::ClientTooSlow, format!("the client was too slow: {how}"))
            }
        }
    }
}

impl From<RepositoryError> for AppError {
    fn from(error: RepositoryError) -> Self {
        match &error {
            RepositoryError::NotFound { name } => {
                Self::new(Reason::ModelNotFound, format!("no model {} was found", Quoted::text(name)))
            }
            RepositoryError::Last => Self::new(Reason::ModelIsLast, error.to_string()),
            RepositoryError::Memory { .. } => Self::new(Reason::NoModelMemory, error.to_string()),
            _ => {
                error!(%error, "a model was not loaded");
                Self::new(Reason::ModelRefused, error.public())
            }
        }
    }
}

impl From<SpoolError> for AppError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::TooLarge { .. } => Self::new(Reason::VideoTooLarge, error.to_string()),
            SpoolError::Disk(error) => {
                error!(%error, "an upload could not be written");
                Self::retry(Reason::NoDiskSpace, "there is no room on disk for this upload; try again")
            }
            SpoolError::Unwanted => Self::new(Reason::Cancelled, "nobody reads this upload any more"),
        }
    }
}

/// The caller learns what it did wrong; what is our own fault is logged and not sent.
impl From<ClassifyError> for AppError {
    fn from(error: ClassifyError) -> Self {
        let reason = match error {
            ClassifyError::Video(video) => return video.into(),
            ClassifyError::Engine(EngineError::Stopped) => return Self::stopping("the server is stopping"),
            ClassifyError::Engine(EngineError::NoWorker) => Reason::ModelHasNoWorker,
            ClassifyError::ScoreThreshold { .. } => Reason::InvalidScoreThreshold,
            ClassifyError::TimeRange { .. } => Reason::InvalidTimeRange,
            ClassifyError::Deadline => Reason::DeadlineExceeded,
            ClassifyError::Engine(EngineError::ClipSize { .. } | EngineError::Execution(_)) => {
                return Self::internal(&error);
            }
        };
        Self::new(reason, error.to_string())
    }
}

/// Whose fault it is that a URI gives no video; what the server that has it said is logged and not sent.
impl From<UriError> for AppError {
    fn from(error: UriError) -> Self {
        let reason = match error {
            UriError::Invalid(_) => Reason::UriInvalid,
            UriError::NotAllowed(_) => Reason::UriNotAllowed,
            UriError::Denied => Reason::SourceDenied,
            UriError::NotFound => Reason::VideoNotFound,
            UriError::Unavailable(detail) => {
                warn!(detail, "a video could not be fetched");
                let message = "the video could not be fetched from its server; try again";
                return Self::new(Reason::SourceUnavailable, message);
            }
            UriError::Rejected(detail) => {
                warn!(detail, "a video's server rejected the request");
                return Self::new(Reason::SourceRejected, "the video's server rejected the request");
            }
            UriError::Video(error) => return error.into(),
            UriError::Spool(error) => return error.into(),
        };
        Self::new(reason, error.to_string())
    }
}

impl From<VideoError> for AppError {
    fn from(error: VideoError) -> Self {
        let reason = match error {
            VideoError::Empty => Reason::VideoEmpty,
            VideoError::TooLarge { .. } => Reason::VideoTooLarge,
            VideoError::NotAVideo { .. } => Reason::NotAVideo,
            VideoError::Image { .. } => Reason::ImageNotVideo,
            VideoError::Container { .. } => Reason::ContainerNotAccepted,
            VideoError::NoVideoStream { .. } => Reason::NoVideoStream,
            VideoError::OnlyAttachedPicture { .. } => Reason::OnlyAttachedPicture,
            VideoError::UnsupportedCodec { .. } => Reason::UnsupportedCodec,
            VideoError::NoFrames { .. } => Reason::NoFrames,
            VideoError::NoFramesInRange { .. } => Reason::NoFramesInRange,
            VideoError::TooManyPixels { .. } => Reason::TooManyPixels,
            VideoError::TooManyFrames { .. } => Reason::TooManyFrames,
            VideoError::TooManyClips { .. } => Reason::TooManyClips,
            VideoError::TooLong { .. } => Reason::VideoTooLong,
            VideoError::TooMuchCpuTime { .. } => Reason::TooMuchDecodeTime,
            VideoError::DecoderCrashed { .. } => Reason::DecoderCrashed,
            VideoError::OutOfMemory { .. } => Reason::DecoderOutOfMemory,
            VideoError::Cancelled => return Self::new(Reason::Cancelled, "the call was cancelled"),
            VideoError::NoDecoder(_)
            | VideoError::Read(_)
            | VideoError::ResizeSmallerThanCrop { .. }
            | VideoError::Ffmpeg { .. } => return Self::internal(&error),
        };
        Self::new(reason, error.to_string())
    }
}
