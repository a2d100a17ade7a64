//! The one place where errors become gRPC statuses.

use std::collections::HashMap;
use std::time::Duration;

use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::{error, warn};

use super::quote::Quoted;
use super::{ERROR_DOMAIN, Reason, proto};
use crate::classify::ClassifyError;
use crate::engine::EngineError;
use crate::pace::TooSlow;
use crate::repository::RepositoryError;
use crate::uri::UriError;
use crate::video::{SpoolError, VideoError};

const GRPC_STATUS: &str = "grpc-status";
const GRPC_STATUS_DETAILS: &str = "grpc-status-details-bin";

/// What a refused client waits before it tries again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Bytes of a message. It stands in the trailers twice, and clients take 8 KiB of these.
const LONGEST_MESSAGE: usize = 1000;

fn status(code: Code, reason: Reason, message: impl Into<String>) -> Status {
    with_details(code, ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, HashMap::new()), message.into())
}

fn with_details(code: Code, details: ErrorDetails, mut message: String) -> Status {
    if message.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE).rev().find(|&end| message.is_char_boundary(end));
        message.truncate(end.unwrap_or_default());
        message.push('…');
    }
    Status::with_error_details(code, message, details)
}

/// INVALID_ARGUMENT.
pub(super) fn invalid(reason: Reason, message: impl Into<String>) -> Status {
    status(Code::InvalidArgument, reason, message)
}

/// `known` are names and versions, the versions of a name one after the other.
pub(super) fn model_not_found<'a>(
    name: &str,
    version: &str,
    known: impl Iterator<Item = (&'a str, &'a str)>,
) -> Status {
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
    let message = format!("no model {wanted}; there are {}", models.join(", "));
    status(Code::NotFound, Reason::ModelNotFound, message)
}

/// NOT_FOUND, as the health protocol has it.
pub(super) fn unknown_service() -> Status {
    status(Code::NotFound, Reason::ServiceUnknown, "this server has no such service")
}

/// INVALID_ARGUMENT for what could not be understood at all, which tonic calls INTERNAL: no message, one that is no
/// protobuf, text that is no UTF-8, a body that breaks off. Our own INTERNAL has details, these have none.
pub(super) fn blame_caller(headers: &mut HeaderMap) {
    let is = |code: Code| headers.get(GRPC_STATUS).is_some_and(|value| Code::from_bytes(value.as_bytes()) == code);
    if !is(Code::Internal) || headers.contains_key(GRPC_STATUS_DETAILS) {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    let status = invalid(Reason::MalformedRequest, format!("the request can't be read: {}", status.message()));
    // What stands in a status can stand in headers.
    let _ = status.add_header(headers);
}

pub(super) fn no_model_control() -> Status {
    let message = "callers of this server may not load or unload models; `serve --model-control` lets them";
    status(Code::PermissionDenied, Reason::ModelControlOff, message)
}

pub(super) fn from_repository_error(error: &RepositoryError) -> Status {
    match error {
        RepositoryError::NotFound { name } => {
            status(Code::NotFound, Reason::ModelNotFound, format!("no model {} was found", Quoted::text(name)))
        }
        RepositoryError::Last => status(Code::FailedPrecondition, Reason::ModelIsLast, error.to_string()),
        RepositoryError::Memory { .. } => status(Code::ResourceExhausted, Reason::NoModelMemory, error.to_string()),
        _ => {
            error!(%error, "a model was not loaded");
            status(Code::FailedPrecondition, Reason::ModelRefused, error.public())
        }
    }
}

/// RESOURCE_EXHAUSTED with the time after which to try again.
fn exhausted(reason: Reason, message: String) -> Status {
    let mut details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, HashMap::new());
    details.set_retry_info(Some(RETRY_DELAY));
    with_details(Code::ResourceExhausted, details, message)
}

pub(super) fn overloaded(max_requests: usize) -> Status {
    let message = format!("{max_requests} requests are being worked on, which is the limit; try again");
    exhausted(Reason::TooManyRequests, message)
}

pub(super) fn too_many_streams(max_streams: usize) -> Status {
    let message = format!("{max_streams} streams of videos are open, which is the limit; try again");
    exhausted(Reason::TooManyStreams, message)
}

pub(super) fn too_many_uploads(max_uploads: usize) -> Status {
    let message = format!("{max_uploads} videos are being uploaded, which is the limit; try again");
    exhausted(Reason::TooManyUploads, message)
}

pub(super) fn too_many_calls(max_calls: usize) -> Status {
    let message =
        format!("too many calls are open; the limit is {max_calls}, a quarter of it for health and reflection");
    exhausted(Reason::TooManyCalls, message)
}

pub(super) fn no_memory(capacity: usize) -> Status {
    let message = format!("the messages of other requests fill the {capacity} bytes there are for them; try again");
    exhausted(Reason::TooManyBytes, message)
}

pub(super) fn stopping(message: &str) -> Status {
    status(Code::Unavailable, Reason::Stopping, message)
}

pub(super) fn no_token() -> Status {
    status(Code::Unauthenticated, Reason::TokenMissing, "this server wants a token: send `authorization: Bearer TOKEN`")
}

pub(super) fn unknown_token() -> Status {
    status(Code::Unauthenticated, Reason::TokenUnknown, "this server does not know the token")
}

pub(super) fn token_busy(max_requests: usize) -> Status {
    let message = format!("{max_requests} calls with this token are being worked on, which is its limit; try again");
    exhausted(Reason::TooManyRequestsOfToken, message)
}

pub(super) fn from_spool_error(error: SpoolError) -> Status {
    match error {
        SpoolError::TooLarge { .. } => invalid(Reason::VideoTooLarge, error.to_string()),
        SpoolError::Disk(error) => {
            error!(%error, "an upload could not be written");
            exhausted(Reason::NoDiskSpace, "there is no room on disk for this upload; try again".to_owned())
        }
        SpoolError::Unwanted => status(Code::Cancelled, Reason::Cancelled, "nobody reads this upload any more"),
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
        Reason::DeadlineExceeded,
        format!("the call took longer than its deadline of {timeout:?}"),
    )
}

pub(super) fn client_idle(timeout: Duration) -> Status {
    let message = format!("nothing came from the client for {timeout:?} while the call was waiting for it");
    status(Code::DeadlineExceeded, Reason::ClientIdle, message)
}

pub(super) fn client_too_slow(how: TooSlow) -> Status {
    match how {
        TooSlow::Silent { limit } => client_idle(limit),
        TooSlow::Slow { .. } | TooSlow::Long { .. } => {
            status(Code::DeadlineExceeded, Reason::ClientTooSlow, format!("the client was too slow: {how}"))
        }
    }
}

pub(super) fn message_too_large(actual: usize, limit: usize) -> Status {
    invalid(Reason::VideoTooLarge, format!("the request message is {actual} bytes; the limit is {limit}"))
}

/// The caller learns what it did wrong; what is our own fault is logged and not sent.
pub(super) fn from_classify_error(error: &ClassifyError) -> Status {
    match error {
        ClassifyError::Video(video) => from_video_error(video),
        ClassifyError::Engine(EngineError::Stopped) => stopping("the server is stopping"),
        ClassifyError::Engine(EngineError::NoWorker) => {
            status(Code::Unavailable, Reason::ModelHasNoWorker, error.to_string())
        }
        ClassifyError::ScoreThreshold { .. } => invalid(Reason::InvalidScoreThreshold, error.to_string()),
        ClassifyError::TimeRange { .. } => invalid(Reason::InvalidTimeRange, error.to_string()),
        ClassifyError::Deadline => status(Code::DeadlineExceeded, Reason::DeadlineExceeded, error.to_string()),
        ClassifyError::Engine(EngineError::ClipSize { .. } | EngineError::Execution(_)) => internal(error),
    }
}

/// Whose fault it is that a URI gives no video; what the server that has it said is logged and not sent.
pub(super) fn from_uri_error(error: UriError) -> Status {
    match error {
        UriError::Invalid(_) => invalid(Reason::UriInvalid, error.to_string()),
        UriError::NotAllowed(_) => status(Code::PermissionDenied, Reason::UriNotAllowed, error.to_string()),
        UriError::Denied => status(Code::PermissionDenied, Reason::SourceDenied, error.to_string()),
        UriError::NotFound => status(Code::NotFound, Reason::VideoNotFound, error.to_string()),
        UriError::Unavailable(detail) => {
            warn!(detail, "a video could not be fetched");
            let message = "the video could not be fetched from its server; try again";
            status(Code::Unavailable, Reason::SourceUnavailable, message)
        }
        UriError::Rejected(detail) => {
            warn!(detail, "a video's server rejected the request");
            status(Code::FailedPrecondition, Reason::SourceRejected, "the video's server rejected the request")
        }
        UriError::Video(error) => from_video_error(&error),
        UriError::Spool(error) => from_spool_error(error),
    }
}

fn from_video_error(error: &VideoError) -> Status {
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
        VideoError::Cancelled => return status(Code::Cancelled, Reason::Cancelled, "the call was cancelled"),
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
    status(Code::Internal, Reason::Internal, "the server failed; its log has the details under this request's id")
}
