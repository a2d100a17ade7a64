//! What happens around every call, whatever its protocol: request id, tracing span, tokens, origins, limits, deadline, metrics,
//! access log.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tower::{Layer, Service, ServiceExt};
use tracing::{Instrument, Span, debug, info, info_span};

use super::answer::{CallBody, ErrorForm};
use super::auth::{Caller, Tokens, unknown_token};
use super::calls::{Admitted, Calls};
use super::connections::ConnectionHandle;
use super::grpc::messages::{Admission, Arrivals};
use super::grpc::status;
use super::http::body::PacedBody;
use super::http::error as http_error;
use super::origin::{self, OriginPolicy};
use super::protocol::{Call, Protocol};
use crate::app::quote::cut;
use crate::app::{AppError, Category, Deadline};
use crate::metrics::{InFlight, Metrics};
use crate::pace::Pace;

/// Metadata key of the request id.
const REQUEST_ID: &str = "x-request-id";
const MAX_REQUEST_ID_LEN: usize = 128;
const GRPC_STATUS: &str = "grpc-status";

/// Wraps a server's services; see the module.
#[derive(Debug, Clone)]
pub(super) struct RequestLayer {
    pub(super) admission: Admission,
    pub(super) metrics: Arc<Metrics>,
    pub(super) calls: Calls,
    /// Who may call; everybody if `None`.
    pub(super) tokens: Option<Tokens>,
    pub(super) origins: OriginPolicy,
    /// How long a client may take nothing of its answer.
    pub(super) idle_timeout: Duration,
    /// What answers requests that are not gRPC.
    pub(super) http: Router,
}

#[derive(Debug, Clone)]
pub(super) struct RequestService<S> {
    grpc: S,
    layer: RequestLayer,
}

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;

    fn layer(&self, grpc: S) -> Self::Service {
        RequestService { grpc, layer: self.clone() }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for RequestService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.grpc.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let id = request_id(request.headers());
        let protocol = Protocol::of(request.headers(), request.uri());
        let origin = self.layer.check_origin(protocol, &request);
        let page = origin.as_ref().ok().cloned().flatten();
        let answering = if request.method() == Method::OPTIONS && page.is_some() {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            origin::answer_preflight(response.headers_mut());
            Box::pin(std::future::ready(Ok(response)))
        } else {
            match self.layer.begin(protocol, &mut request, &id, origin.err()) {
                Ok(begun) => self.answer(protocol, request, begun),
                Err((call, error)) => {
                    if protocol != Protocol::Grpc {
                        // What is left of it has its time there.
                        drop(paced(request, self.layer.admission.pace));
                    }
                    refuse(protocol, call, error)
                }
            }
        };
        Box::pin(async move {
            let mut response = answering.await?;
            response.headers_mut().insert(REQUEST_ID, id);
            if let Some(page) = page {
                origin::expose(response.headers_mut(), page);
            }
            Ok(response)
        })
    }
}

/// A call that may go on.
struct Begun {
    call: RunningCall,
    kind: Call,
    end: Option<End>,
}

impl RequestLayer {
    /// Native clients of gRPC are no browsers and have no origin.
    fn check_origin(&self, protocol: Protocol, request: &Request<Body>) -> Result<Option<HeaderValue>, AppError> {
        let is_native = protocol == Protocol::Grpc && !request.headers().contains_key("origin");
        if is_native { Ok(None) } else { self.origins.check(request.headers(), request.uri()) }
    }

    /// Takes note of a call, and refuses it if it may not go on.
    fn begin(
        &self,
        protocol: Protocol,
        request: &mut Request<Body>,
        id: &HeaderValue,
        refused: Option<AppError>,
    ) -> Result<Begun, (RunningCall, AppError)> {
        let path = request.uri().path();
        let kind = Call::of(protocol, request.method(), path);
        let span = info_span!(
            "request",
            id = id.to_str().unwrap_or_default(),
            call = &*cut(path),
            token = tracing::field::Empty,
            otel.kind = tracing::field::Empty,
            otel.name = tracing::field::Empty
        );
        #[cfg(feature = "otlp")]
        {
            let name = if protocol == Protocol::Grpc { path } else { kind.name };
            crate::telemetry::otlp::continue_trace(&span, name, request.headers());
        }
        let mut call = RunningCall {
            _admitted: None,
            caller: None,
            name: kind.name,
            in_flight: Some(self.metrics.request_started(kind.name)),
            metrics: Arc::clone(&self.metrics),
            started: Instant::now(),
            span,
        };
        let timeout = match self.admit(&mut call, protocol, kind, request, refused) {
            Ok(timeout) => timeout,
            Err(error) => return Err((call, error)),
        };
        let deadline = timeout.map(|timeout| Deadline::new(call.started, timeout));
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        if let Some(caller) = &call.caller {
            request.extensions_mut().insert(CallerName(Arc::clone(&caller.name)));
        }
        let stopping = kind.is_about_server.then(|| self.calls.stopping());
        let end = end_of_call(deadline, call.caller.as_ref(), stopping);
        Ok(Begun { call, kind, end })
    }

    fn admit(
        &self,
        call: &mut RunningCall,
        protocol: Protocol,
        kind: Call,
        request: &Request<Body>,
        refused: Option<AppError>,
    ) -> Result<Option<Duration>, AppError> {
        let connection: Option<&ConnectionHandle> = request.extensions().get();
        let admitted = self.calls.admit(kind.is_about_server, connection);
        call._admitted = Some(admitted.inspect_err(|_| self.metrics.rejected("calls"))?);
        if let Some(error) = refused {
            return Err(error);
        }
        if let Some(tokens) = self.tokens.as_ref().filter(|_| !kind.is_public) {
            let caller = tokens.admit(request.headers()).inspect_err(|error| {
                if error.reason.category() == Category::ResourceExhausted {
                    self.metrics.rejected("token");
                }
            })?;
            call.span.record("token", &*caller.name);
            call.caller = Some(caller);
        }
        if protocol != Protocol::Grpc {
            http_error::refuse_encoded(request.headers())?;
        }
        protocol.timeout(request.headers(), request.uri())
    }
}

/// The name of the token that a call bears. An extension of its request.
#[derive(Debug, Clone)]
pub(super) struct CallerName(pub(super) Arc<str>);

impl<S> RequestService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    fn answer(&mut self, protocol: Protocol, request: Request<Body>, begun: Begun) -> Answering {
        let Begun { call, kind, end } = begun;
        let span = call.span.clone();
        let idle_timeout = self.layer.idle_timeout;
        match protocol {
            Protocol::Grpc => {
                let (mut parts, body) = request.into_parts();
                let (body, arrivals) = self.layer.admission.meter(body, kind.sending);
                parts.extensions.insert(arrivals.clone());
                let response = self.grpc.call(Request::from_parts(parts, Body::new(body)));
                Box::pin(answer_grpc(response, arrivals, call, end, idle_timeout).instrument(span))
            }
            Protocol::Http | Protocol::InferenceHttp => {
                let request = paced(request, self.layer.admission.pace);
                let response = self.layer.http.clone().oneshot(request);
                Box::pin(answer_http(protocol, response, call, end, idle_timeout).instrument(span))
            }
        }
    }
}

fn paced(request: Request<Body>, pace: Pace) -> Request<axum::body::Body> {
    let (parts, body) = request.into_parts();
    let head = Request::from_parts(parts, ());
    let body = axum::body::Body::new(PacedBody::new(&head, body, pace));
    head.map(|()| body)
}

async fn answer_grpc(
    response: impl Future<Output = Result<Response<Body>, Infallible>>,
    arrivals: Arrivals,
    call: RunningCall,
    end: Option<End>,
    idle_timeout: Duration,
) -> Result<Response<Body>, Infallible> {
    let (ended, end) = until_end(response, end).await;
    let mut response = match ended {
        Ok(response) => response?,
        Err(error) => Status::from(error).into_http(),
    };
    status::blame_caller(response.headers_mut());
    // The messages of a call without a stream are held until its answer is there.
    drop(arrivals);
    let code = response.headers().get(GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()));
    let mut call = Some(call);
    if let Some(code) = code
        && let Some(call) = call.take()
    {
        call.end(code);
    }
    let how = (ErrorForm::Grpc, Default::default());
    Ok(response.map(|body| Body::new(CallBody::new(body, call, end, how, idle_timeout))))
}

async fn answer_http(
    protocol: Protocol,
    response: impl Future<Output = Result<Response<axum::body::Body>, Infallible>>,
    call: RunningCall,
    end: Option<End>,
    idle_timeout: Duration,
) -> Result<Response<Body>, Infallible> {
    let (ended, end) = until_end(response, end).await;
    let mut response = match ended {
        Ok(response) => response?.map(Body::new),
        Err(error) => http_error::response(protocol, error).map(Body::new),
    };
    let mut call = Some(call);
    if let Some(error) = response.extensions_mut().remove::<AppError>()
        && let Some(call) = call.take()
    {
        call.end(error.reason.category().into());
    }
    let form = response.extensions_mut().remove().unwrap_or(ErrorForm::None);
    let stream_end = response.extensions_mut().remove().unwrap_or_default();
    Ok(response.map(|body| Body::new(CallBody::new(body, call, end, (form, stream_end), idle_timeout))))
}

/// What comes first: the response, or the end of the call. Gives the end too if it has not come.
async fn until_end<R>(response: impl Future<Output = R>, end: Option<End>) -> (Result<R, AppError>, Option<End>) {
    let Some(mut end) = end else { return (Ok(response.await), None) };
    tokio::select! {
        response = response => (Ok(response), Some(end)),
        error = &mut end => (Err(error), None),
    }
}

/// Ends a call before it began.
fn refuse(protocol: Protocol, call: RunningCall, error: AppError) -> Answering {
    call.end(error.reason.category().into());
    let response = match protocol {
        Protocol::Grpc => Status::from(error).into_http::<Body>(),
        Protocol::Http | Protocol::InferenceHttp => http_error::response(protocol, error).map(Body::new),
    };
    Box::pin(std::future::ready(Ok(response)))
}

/// A call that is being worked on.
#[derive(Debug)]
pub(super) struct RunningCall {
    _admitted: Option<Admitted>,
    /// If callers have to say who they are.
    caller: Option<Caller>,
    name: &'static str,
    in_flight: Option<InFlight>,
    metrics: Arc<Metrics>,
    started: Instant,
    span: Span,
}

impl RunningCall {
    pub(super) fn end(mut self, code: Code) {
        self.record(code);
    }

    fn record(&mut self, code: Code) {
        if self.in_flight.take().is_some() {
            self.metrics.request_ended(self.name, status::code_name(code));
            #[cfg(feature = "otlp")]
            crate::telemetry::otlp::set_status(&self.span, code);
            let elapsed = self.started.elapsed();
            self.span.in_scope(|| match self.name {
                // Load balancers ask all the time.
                "Check" | "GET /v2/health" => debug!(?code, ?elapsed, "answered"),
                _ => info!(?code, ?elapsed, "answered"),
            });
        }
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        // Nobody was there to take the end of the answer.
        self.record(Code::Cancelled);
    }
}

/// Resolves when a call has to end, whatever it does.
pub(super) type End = Pin<Box<dyn Future<Output = AppError> + Send>>;

/// At the call's deadline, when its token is revoked, or when the server that it asks about stops.
fn end_of_call(
    deadline: Option<Deadline>,
    caller: Option<&Caller>,
    stopping: Option<CancellationToken>,
) -> Option<End> {
    if deadline.is_none() && caller.is_none() && stopping.is_none() {
        return None;
    }
    let late = deadline.map(Deadline::passed);
    let revoked = caller.map(Caller::revoked).map(|revoked| async move {
        revoked.await;
        unknown_token()
    });
    let stopping = stopping.map(|stopping| async move {
        stopping.cancelled_owned().await;
        AppError::stopping("the server is stopping")
    });
    Some(Box::pin(async move {
        tokio::select! {
            error = or_never(late) => error,
            error = or_never(revoked) => error,
            error = or_never(stopping) => error,
        }
    }))
}

async fn or_never<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use http_body::Frame;
    use tonic::codegen::http::header::CONTENT_TYPE;
    use tower::service_fn;

    use super::super::answer::PIECE;

    use crate::app::MessageMemory;
    use crate::metrics::Format;
    use crate::pace::Pace;

    use super::*;

    fn layer() -> RequestLayer {
        RequestLayer {
            admission: Admission {
                memory: MessageMemory::new(1 << 20, 1 << 10),
                pace: Pace::default(),
                metrics: Arc::default(),
            },
            metrics: Arc::new(Metrics::default()),
            calls: Calls::new(2),
            tokens: None,
            origins: OriginPolicy::default(),
            idle_timeout: Duration::from_secs(60),
            http: Router::new(),
        }
    }

    fn call(timeout: &str) -> Request<Body> {
        let call = Request::builder().header("grpc-timeout", timeout).header(CONTENT_TYPE, "application/grpc");
        call.uri("/x.Y/ClassifyVideos").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn what_is_no_grpc_is_a_matter_of_http() {
        let reached = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
        let mut service = layer().layer(reached);
        let mut status = async |kind: &str| {
            let request = Request::builder().header(CONTENT_TYPE, kind).body(Body::empty()).unwrap();
            service.call(request).await.unwrap().status()
        };
        assert_eq!(status("application/grpc").await, StatusCode::OK);
        assert_eq!(status("application/json").await, StatusCode::NOT_FOUND, "the router of this test has no paths");
    }

    #[tokio::test]
    async fn a_call_past_its_deadline_is_deadline_exceeded() {
        let never = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
        let response = layer().layer(never).call(call("5m")).await.unwrap();
        assert_eq!(Status::from_header_map(response.headers()).unwrap().code(), Code::DeadlineExceeded);
        assert!(response.headers().contains_key(REQUEST_ID), "errors carry the request id too");
    }

    #[tokio::test]
    async fn a_stream_past_its_deadline_is_deadline_exceeded() {
        struct Endless;
        impl http_body::Body for Endless {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Pending
            }
        }
        let layer = layer();
        let metrics = Arc::clone(&layer.metrics);
        let stream = service_fn(|_: Request<Body>| async { Ok(Response::new(Body::new(Endless))) });
        let mut body = layer.layer(stream).call(call("20m")).await.unwrap().into_body();
        let frame = std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context));
        let trailers = frame.await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::DeadlineExceeded);
        let counted = "kinetoscope_requests_total{method=\"ClassifyVideos\",code=\"DEADLINE_EXCEEDED\"} 1";
        assert!(metrics.encode(Format::Text, &BTreeMap::new(), &BTreeMap::new()).contains(counted));
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_ends() {
        struct Filled(Option<Bytes>);
        impl http_body::Body for Filled {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                self.0.take().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
            }
        }
        let layer = RequestLayer { idle_timeout: Duration::from_millis(50), ..layer() };
        let metrics = Arc::clone(&layer.metrics);
        let in_flight = |count| {
            let text = metrics.encode(Format::Text, &BTreeMap::new(), &BTreeMap::new());
            text.contains(&format!("kinetoscope_requests_in_flight{{method=\"ClassifyVideos\"}} {count}"))
        };
        let whole = Bytes::from(vec![0; 3 * PIECE]);
        let answer = service_fn(move |_: Request<Body>| {
            let body = Body::new(Filled(Some(whole.clone())));
            async { Ok(Response::new(body)) }
        });
        let request = Request::builder().uri("/x.Y/ClassifyVideos").header(CONTENT_TYPE, "application/grpc");
        let request = request.body(Body::empty()).unwrap();
        let mut body = layer.layer(answer).call(request).await.unwrap().into_body();
        for _ in 0..3 {
            let frame = std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context));
            assert_eq!(frame.await.unwrap().unwrap().into_data().unwrap().len(), PIECE, "taking it slowly is seen");
        }
        while !in_flight(0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let frame = std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context));
        let trailers = frame.await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::DeadlineExceeded);
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
