//! The one place where errors become gRPC statuses.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{error, warn};

use super::{ERROR_DOMAIN, proto};
use crate::classify::ClassifyError;
use crate::engine::EngineError;
use crate::repository::RepositoryError;
use crate::uri::UriError;
use crate::video::{SpoolError, VideoError};

/// What a refused client waits before it tries again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

/// INVALID_ARGUMENT.
pub(super) fn invalid(reason: &str, message: impl Into<String>) -> Status {
    status(Code::InvalidArgument, reason, message)
}

pub(super) fn model_not_found(name: &str, version: &str, known: &[&str]) -> Status {
    let wanted = if version.is_empty() { name.to_owned() } else { format!("{name} version {version}") };
    status(Code::NotFound, "MODEL_NOT_FOUND", format!("no model {wanted:?}; there are {}", known.join(", ")))
}

pub(super) fn no_model_control() -> Status {
    let message = "callers of this server may not load or unload models; `serve --model-control` lets them";
    status(Code::PermissionDenied, "MODEL_CONTROL_OFF", message)
}

pub(super) fn from_repository_error(error: &RepositoryError) -> Status {
    match error {
        RepositoryError::NotFound { .. } => status(Code::NotFound, "MODEL_NOT_FOUND", error.to_string()),
        RepositoryError::Last => status(Code::FailedPrecondition, "MODEL_IS_LAST", error.to_string()),
        RepositoryError::Memory { .. } => status(Code::ResourceExhausted, "NO_MODEL_MEMORY", error.to_string()),
        _ => {
            error!(%error, "a model was not loaded");
            status(Code::FailedPrecondition, "MODEL_REFUSED", error.public())
        }
    }
}

/// RESOURCE_EXHAUSTED with the time after which to try again.
fn exhausted(reason: &str, message: String) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, HashMap::new());
    details.set_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

pub(super) fn overloaded(max_requests: usize) -> Status {
    let message = format!("{max_requests} requests are being worked on, which is the limit; try again");
    exhausted("TOO_MANY_REQUESTS", message)
}

pub(super) fn too_many_streams(max_streams: usize) -> Status {
    let message = format!("{max_streams} streams of videos are open, which is the limit; try again");
    exhausted("TOO_MANY_STREAMS", message)
}

pub(super) fn no_memory(capacity: usize) -> Status {
    let message = format!("the messages of other requests fill the {capacity} bytes there are for them; try again");
    exhausted("TOO_MANY_BYTES", message)
}

pub(super) fn stopping(message: &str) -> Status {
    status(Code::Unavailable, "STOPPING", message)
}

pub(super) fn no_token() -> Status {
    status(Code::Unauthenticated, "TOKEN_MISSING", "this server wants a token: send `authorization: Bearer TOKEN`")
}

pub(super) fn unknown_token() -> Status {
    status(Code::Unauthenticated, "TOKEN_UNKNOWN", "this server does not know the token")
}

pub(super) fn token_busy(max_requests: usize) -> Status {
    let message = format!("{max_requests} calls with this token are being worked on, which is its limit; try again");
    exhausted("TOO_MANY_REQUESTS_OF_TOKEN", message)
}

pub(super) fn from_spool_error(error: SpoolError) -> Status {
    match error {
        SpoolError::TooLarge { .. } => invalid("VIDEO_TOO_LARGE", error.to_string()),
        SpoolError::Disk(error) => {
            error!(%error, "an upload could not be written");
            exhausted("NO_DISK_SPACE", "there is no room on disk for this upload; try again".to_owned())
        }
        SpoolError::Unwanted => status(Code::Cancelled, "CANCELLED", "nobody reads this upload any more"),
    }
}

/// A status as one field of an answer.
pub(super) fn to_video_error(status: &Status) -> proto::VideoError {
    let details = status.get_error_details();
    let retry_delay = details.retry_info().and_then(|info| info.retry_delay);
    proto::VideoError {
        code: status.code() as i32,
        reason: details.error_info().map_or_else(String::new, |info| info.reason.clone()),
        message: status.message().to_owned(),
        retry_delay: retry_delay.and_then(|delay| delay.try_into().ok()),
    }
}

/// The name of a code as the gRPC documentation writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

pub(super) fn deadline_exceeded(timeout: Duration) -> Status {
    status(
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        format!("the call took longer than its deadline of {timeout:?}"),
    )
}

pub(super) fn client_idle(timeout: Duration) -> Status {
    let message = format!("nothing came from the client for {timeout:?} while the call was waiting for it");
    status(Code::DeadlineExceeded, "CLIENT_IDLE", message)
}

pub(super) fn message_too_large(actual: usize, limit: usize) -> Status {
    invalid("VIDEO_TOO_LARGE", format!("the request message is {actual} bytes; the limit is {limit}"))
}

/// The caller learns what it did wrong; what is our own fault is logged and not sent.
pub(super) fn from_classify_error(error: &ClassifyError) -> Status {
    match error {
        ClassifyError::Video(video) => from_video_error(video),
        ClassifyError::Engine(EngineError::Stopped) => stopping("the server is stopping"),
        ClassifyError::ScoreThreshold { .. } => invalid("INVALID_SCORE_THRESHOLD", error.to_string()),
        ClassifyError::TimeRange { .. } => invalid("INVALID_TIME_RANGE", error.to_string()),
        ClassifyError::Deadline => status(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", error.to_string()),
        ClassifyError::Engine(EngineError::ClipSize { .. } | EngineError::Execution(_)) => internal(error),
    }
}

/// Whose fault it is that a URI gives no video; what the server that has it said is logged and not sent.
pub(super) fn from_uri_error(error: UriError) -> Status {
    match error {
        UriError::Invalid(_) => invalid("URI_INVALID", error.to_string()),
        UriError::NotAllowed(_) => status(Code::PermissionDenied, "URI_NOT_ALLOWED", error.to_string()),
        UriError::Denied => status(Code::PermissionDenied, "SOURCE_DENIED", error.to_string()),
        UriError::NotFound => status(Code::NotFound, "VIDEO_NOT_FOUND", error.to_string()),
        UriError::Unavailable(detail) => {
            warn!(detail, "a video could not be fetched");
            let message = "the video could not be fetched from its server; try again";
            status(Code::Unavailable, "SOURCE_UNAVAILABLE", message)
        }
        UriError::Video(error) => from_video_error(&error),
        UriError::Spool(error) => from_spool_error(error),
    }
}

fn from_video_error(error: &VideoError) -> Status {
    let reason = match error {
        VideoError::Empty => "VIDEO_EMPTY",
        VideoError::TooLarge { .. } => "VIDEO_TOO_LARGE",
        VideoError::NotAVideo { .. } => "NOT_A_VIDEO",
        VideoError::Image { .. } => "IMAGE_NOT_VIDEO",
        VideoError::Container { .. } => "CONTAINER_NOT_ACCEPTED",
        VideoError::NoVideoStream { .. } => "NO_VIDEO_STREAM",
        VideoError::OnlyAttachedPicture { .. } => "ONLY_ATTACHED_PICTURE",
        VideoError::UnsupportedCodec { .. } => "UNSUPPORTED_CODEC",
        VideoError::NoFrames { .. } => "NO_FRAMES",
        VideoError::NoFramesInRange { .. } => "NO_FRAMES_IN_RANGE",
        VideoError::TooManyPixels { .. } => "TOO_MANY_PIXELS",
        VideoError::TooManyFrames { .. } => "TOO_MANY_FRAMES",
        VideoError::TooManyClips { .. } => "TOO_MANY_CLIPS",
        VideoError::TooLong { .. } => "VIDEO_TOO_LONG",
        VideoError::TooManyFormatChanges { .. } => "TOO_MANY_FORMAT_CHANGES",
        VideoError::TooMuchCpuTime { .. } => "TOO_MUCH_DECODE_TIME",
        VideoError::DecoderCrashed { .. } => "DECODER_CRASHED",
        VideoError::OutOfMemory { .. } => "DECODER_OUT_OF_MEMORY",
        VideoError::Cancelled => return status(Code::Cancelled, "CANCELLED", "the call was cancelled"),
        VideoError::NoDecoder(_)
        | VideoError::Read(_)
        | VideoError::ResizeSmallerThanCrop { .. }
        | VideoError::Ffmpeg { .. } => {
            return internal(error);
        }
    };
    invalid(reason, error.to_string())
}

/// INTERNAL; the log has what happened.
pub(super) fn internal(error: &dyn std::fmt::Display) -> Status {
    error!(%error, "request failed");
    status(Code::Internal, "INTERNAL", "the server failed; its log has the details under this request's id")
}
