//! What happens around every call, whatever its service: request id, tracing span, deadline, access log.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::Code;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tower::{Layer, Service};
use tracing::{Instrument, info, info_span};

use super::status;

/// Metadata key of the request id.
const REQUEST_ID: &str = "x-request-id";
const MAX_REQUEST_ID_LEN: usize = 128;
const GRPC_STATUS: &str = "grpc-status";
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Wraps a server's services; see the module.
#[derive(Debug, Clone)]
pub(super) struct RequestLayer {
    /// Bytes of the longest message that is taken, for the error of a longer one.
    pub(super) max_message: usize,
}

#[derive(Debug, Clone)]
pub(super) struct RequestService<S> {
    inner: S,
    max_message: usize,
}

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestService { inner, max_message: self.max_message }
    }
}

impl<S, RequestBody, ResponseBody> Service<Request<RequestBody>> for RequestService<S>
where
    S: Service<Request<RequestBody>, Response = Response<ResponseBody>, Error = Infallible>,
    S::Future: Send + 'static,
    ResponseBody: Default,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let id = request_id(request.headers());
        let span = info_span!("request", id = id.to_str().unwrap_or_default(), call = request.uri().path());
        let timeout = request.headers().get(GRPC_TIMEOUT).and_then(parse_timeout);
        let max_message = self.max_message;
        let response = self.inner.call(request);
        let started = Instant::now();
        Box::pin(
            async move {
                let response = match timeout {
                    // tonic ends late calls too, but as CANCELLED, which tells the client that it cancelled itself.
                    Some(timeout) => match tokio::time::timeout(timeout, response).await {
                        Ok(response) => response?,
                        Err(_) => status::deadline_exceeded(timeout).into_http(),
                    },
                    None => response.await?,
                };
                let mut response = with_own_status(response, max_message);
                response.headers_mut().insert(REQUEST_ID, id);
                let code = status_code(response.headers());
                info!(code = ?code, elapsed = ?started.elapsed(), "answered");
                Ok(response)
            }
            .instrument(span),
        )
    }
}

/// The client's id if it may stand in a log line, else one of our own.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let is_printable = |id: &&HeaderValue| {
        !id.is_empty() && id.len() <= MAX_REQUEST_ID_LEN && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(is_printable).cloned().unwrap_or_else(|| {
        // Process id and start time keep ids of several servers and restarts apart; no secret is needed.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:08x}-{:08x}-{number:x}", std::process::id(), start_second());
        HeaderValue::try_from(id).expect("hexadecimal is a header value")
    })
}

fn start_second() -> u64 {
    static START: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *START.get_or_init(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    })
}

/// Replaces the statuses that tonic makes itself where the API promises better ones.
fn with_own_status<B: Default>(response: Response<B>, max_message: usize) -> Response<B> {
    if status_code(response.headers()) == Code::OutOfRange {
        // The only OUT_OF_RANGE there is: tonic's for a message over `max_decoding_message_size`.
        return status::message_too_large(max_message).into_http();
    }
    response
}

/// OK unless the response consists of an error in its headers, as those of unary calls do.
fn status_code(headers: &HeaderMap) -> Code {
    headers.get(GRPC_STATUS).map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// `TimeoutValue TimeoutUnit` of the gRPC protocol: up to eight digits and one of H, M, S, m, u, n.
fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tower::service_fn;

    use super::*;

    #[tokio::test]
    async fn a_call_past_its_deadline_is_deadline_exceeded() {
        let never = service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, Infallible>>());
        let mut service = RequestLayer { max_message: 0 }.layer(never);
        let request = Request::builder().header(GRPC_TIMEOUT, "5m").body(()).unwrap();
        let response = service.call(request).await.unwrap();
        assert_eq!(status_code(response.headers()), Code::DeadlineExceeded);
        assert!(response.headers().contains_key(REQUEST_ID), "errors carry the request id too");
    }

    #[test]
    fn timeouts_parse_as_the_protocol_says() {
        let parse = |text: &'static str| parse_timeout(&HeaderValue::from_static(text));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "m", "5", "-5m", "123456789S", "5x", "5.5S"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn request_ids_that_could_forge_log_lines_are_replaced() {
        let id = |text: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(text).unwrap());
            request_id(&headers)
        };
        assert_eq!(id(b"job-17"), "job-17");
        assert_ne!(id(b"a b"), "a b");
        assert_ne!(id(&[b'x'; 200]).len(), 200);
        assert_ne!(id(b"one"), id(b""));
    }
}
