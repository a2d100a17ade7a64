//! Answers of a classification in each [`Form`].

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio_stream::{Stream, StreamExt};
use tonic::codegen::http::HeaderValue;
use tonic::codegen::http::header::{CACHE_CONTROL, CONTENT_TYPE};

use super::form::Form;
use super::{error, json, table};
use crate::app::{AppError, UploadEvent};
use crate::classify::Classification;
use crate::proto::{ClassifyVideoResponse, ClassifyVideoStreamResponse};
use crate::server::answer::{ErrorForm, StreamEnd};

/// A whole answer.
pub(super) fn whole(form: Form, classification: Classification) -> Response {
    let body: Body = match form {
        Form::Vtt => table::vtt(&classification).into(),
        Form::Csv => table::csv(&classification).into(),
        Form::Json | Form::NdJson | Form::EventStream => {
            line(json::encode(&ClassifyVideoResponse { classification: Some(classification.into()) })).into()
        }
    };
    respond(form.content_type(), body)
}

/// A message of the API as JSON.
pub(super) fn message<M: prost::Message + prost::Name>(message: &M) -> Response {
    respond(Form::Json.content_type(), line(json::encode(message)))
}

fn respond(content_type: &'static str, body: impl Into<Body>) -> Response {
    let headers =
        [(CONTENT_TYPE, HeaderValue::from_static(content_type)), (CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (headers, body.into()).into_response()
}

/// Events as they come. The first error ends them. A stream may begin with a comment, so that its client sees that it is open.
pub(super) fn events<S>(form: Form, begin: Option<&'static str>, events: S) -> Response
where
    S: Stream<Item = Result<UploadEvent, AppError>> + Send + 'static,
{
    let (encode_error, end): (fn(&AppError) -> Bytes, _) = match form {
        Form::EventStream => (sse_error, StreamEnd::default()),
        _ => (line_error, StreamEnd::default()),
    };
    let ending = end.clone();
    let bytes = events.map(move |event| match event {
        Ok(event) => encode(form, event),
        Err(error) => {
            ending.failed(&error);
            encode_error(&error)
        }
    });
    let begin = tokio_stream::iter(begin.map(|text| Bytes::from_static(text.as_bytes())));
    let body = Body::from_stream(begin.chain(bytes).map(Ok::<_, std::convert::Infallible>));
    let mut response = respond(form.content_type(), body);
    // Proxies would collect them.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(ErrorForm::Event(encode_error));
    response.extensions_mut().insert(end);
    response
}

fn encode(form: Form, event: UploadEvent) -> Bytes {
    let name = match event {
        UploadEvent::Clip(_) => "clip",
        UploadEvent::Progress(_) => "progress",
        UploadEvent::Classification(_) => "classification",
    };
    let json = json::encode(&ClassifyVideoStreamResponse::from(event));
    match form {
        Form::EventStream => sse(name, &json),
        _ => line(json),
    }
}

/// With an end, which terminals want too.
fn line(mut json: Vec<u8>) -> Bytes {
    json.push(b'\n');
    json.into()
}

/// JSON has no line breaks outside of texts, and none in them.
fn sse(name: &str, json: &[u8]) -> Bytes {
    [b"event: ", name.as_bytes(), b"\ndata: ", json, b"\n\n"].concat().into()
}

fn line_error(error: &AppError) -> Bytes {
    line(error::json(error).into())
}

fn sse_error(error: &AppError) -> Bytes {
    sse("error", error::json(error).as_bytes())
}
