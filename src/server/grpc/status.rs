//! Errors as gRPC statuses.

use std::collections::HashMap;

use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::app::{AppError, Category, Reason};
use crate::proto;
use crate::server::ERROR_DOMAIN;

const GRPC_STATUS: &str = "grpc-status";
const GRPC_STATUS_DETAILS: &str = "grpc-status-details-bin";

impl From<Category> for Code {
    fn from(category: Category) -> Self {
        match category {
            Category::AlreadyExists => Self::AlreadyExists,
            Category::Cancelled => Self::Cancelled,
            Category::DeadlineExceeded => Self::DeadlineExceeded,
            Category::FailedPrecondition => Self::FailedPrecondition,
            Category::Internal => Self::Internal,
            Category::InvalidArgument => Self::InvalidArgument,
            Category::NotFound => Self::NotFound,
            Category::PermissionDenied => Self::PermissionDenied,
            Category::ResourceExhausted => Self::ResourceExhausted,
            Category::Unauthenticated => Self::Unauthenticated,
            Category::Unavailable => Self::Unavailable,
        }
    }
}

impl From<AppError> for Status {
    fn from(error: AppError) -> Self {
        let mut details = ErrorDetails::with_error_info(error.reason.as_str(), ERROR_DOMAIN, HashMap::new());
        if error.retry_after.is_some() {
            details.set_retry_info(error.retry_after);
        }
        Self::with_error_details(error.reason.category().into(), error.message, details)
    }
}

/// As one field of an answer.
impl From<&AppError> for proto::VideoError {
    fn from(error: &AppError) -> Self {
        Self {
            code: Code::from(error.reason.category()) as i32,
            reason: error.reason.as_str().to_owned(),
            message: error.message.clone(),
            retry_delay: error.retry_after.and_then(|delay| delay.try_into().ok()),
        }
    }
}

/// INVALID_ARGUMENT for what could not be understood at all, which tonic calls INTERNAL: no message, one that is no
/// protobuf, text that is no UTF-8, a body that breaks off. Our own INTERNAL has details, these have none.
pub(crate) fn blame_caller(headers: &mut HeaderMap) {
    let is = |code: Code| headers.get(GRPC_STATUS).is_some_and(|value| Code::from_bytes(value.as_bytes()) == code);
    if !is(Code::Internal) || headers.contains_key(GRPC_STATUS_DETAILS) {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    let message = format!("the request can't be read: {}", status.message());
    // What stands in a status can stand in headers.
    let _ = Status::from(AppError::new(Reason::MalformedRequest, message)).add_header(headers);
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
