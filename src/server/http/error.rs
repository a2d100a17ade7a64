//! Errors as HTTP responses.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tonic::codegen::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use tonic::codegen::http::{HeaderMap, HeaderValue, StatusCode};

use crate::app::{AppError, Category, Reason};
use crate::server::protocol::Protocol;

/// The status of a response that has a reason.
pub(in crate::server) fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::TooManyClips
        | Reason::TooManyFrames
        | Reason::TooManyPixels
        | Reason::TooMuchDecodeTime
        | Reason::VideoTooLarge
        | Reason::VideoTooLong => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::ContainerNotAccepted
        | Reason::ImageNotVideo
        | Reason::NoVideoStream
        | Reason::NotAVideo
        | Reason::OnlyAttachedPicture
        | Reason::UnsupportedCodec
        | Reason::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Reason::ClientIdle | Reason::ClientTooSlow => StatusCode::REQUEST_TIMEOUT,
        Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Reason::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
        _ => match reason.category() {
            Category::AlreadyExists | Category::FailedPrecondition => StatusCode::CONFLICT,
            // What nginx says of a client that has gone; nobody reads it.
            Category::Cancelled => StatusCode::from_u16(499).expect("three digits are a status"),
            Category::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Category::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Category::InvalidArgument => StatusCode::BAD_REQUEST,
            Category::NotFound => StatusCode::NOT_FOUND,
            Category::PermissionDenied => StatusCode::FORBIDDEN,
            Category::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Category::Unauthenticated => StatusCode::UNAUTHORIZED,
            Category::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        },
    }
}

#[derive(Serialize)]
struct Envelope<T> {
    error: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Description<'a> {
    code: &'a str,
    reason: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_delay: Option<String>,
}

/// `{"error": {...}}`.
pub(in crate::server) fn json(error: &AppError) -> String {
    let error = Description {
        code: error.reason.category().as_str(),
        reason: error.reason.as_str(),
        message: &error.message,
        retry_delay: error.retry_after.map(|delay| format!("{}s", delay.as_secs_f64())),
    };
    serde_json::to_string(&Envelope { error }).expect("texts are JSON")
}

/// The whole response. The error is one of its extensions.
pub(in crate::server) fn response(protocol: Protocol, error: AppError) -> Response {
    let body = match protocol {
        Protocol::InferenceHttp => serde_json::to_string(&Envelope { error: &error.message }).expect("texts are JSON"),
        Protocol::Http | Protocol::Grpc => json(&error) + "\n",
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status(error.reason);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(delay) = error.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(delay.as_secs_f64().ceil() as u64));
    }
    if error.reason.category() == Category::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response.extensions_mut().insert(error);
    response
}

/// Videos are compressed already, and what unpacks to more than it was needs limits of its own.
pub(in crate::server) fn refuse_encoded(headers: &HeaderMap) -> Result<(), AppError> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(AppError::new(Reason::UnsupportedMediaType, "bodies with a Content-Encoding are not taken"))
        }
        _ => Ok(()),
    }
}

/// An error of the HTTP API.
#[derive(Debug)]
pub(super) struct ApiError(AppError);

impl<E: Into<AppError>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        response(Protocol::Http, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_the_status_that_clients_expect() {
        for (reason, expected) in [
            (Reason::TooManyRequests, 429),
            (Reason::VideoTooLarge, 413),
            (Reason::NotAVideo, 415),
            (Reason::ClientIdle, 408),
            (Reason::TokenMissing, 401),
            (Reason::UriNotAllowed, 403),
            (Reason::ModelNotFound, 404),
            (Reason::DeadlineExceeded, 504),
            (Reason::Stopping, 503),
            (Reason::Internal, 500),
            (Reason::InvalidOption, 400),
        ] {
            assert_eq!(status(reason).as_u16(), expected, "{reason:?}");
        }
        for &reason in Reason::ALL {
            assert!(status(reason).as_u16() >= 400, "{reason:?}");
        }
    }
}
