//! What happens around every call, whatever its service: request id, tracing span, room for its messages, deadline,
//! metrics, access log.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::body::Body;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span, debug, info, info_span};

use super::admission::{Admission, Sending};
use super::auth::{Caller, Tokens};
use super::connections::{ConnectionHandle, OpenCall};
use super::quote::cut;
use super::status;
use crate::metrics::{InFlight, Metrics};

/// Metadata key of the request id.
const REQUEST_ID: &str = "x-request-id";
const MAX_REQUEST_ID_LEN: usize = 128;
const GRPC_STATUS: &str = "grpc-status";
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// How long before its deadline a call is given up, so that the answer is there in time. Otherwise clients, and tonic on
/// this side, would end it by themselves, as CANCELLED and without a reason.
fn answer_time(timeout: Duration) -> Duration {
    (timeout / 20).clamp(Duration::from_millis(3), Duration::from_millis(50))
}

/// When a call has to be answered; an extension of its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(pub(super) Instant);

/// Wraps a server's services; see the module.
#[derive(Debug, Clone)]
pub(super) struct RequestLayer {
    pub(super) admission: Admission,
    pub(super) metrics: Arc<Metrics>,
    pub(super) calls: Calls,
    /// Who may call; everybody if `None`.
    pub(super) tokens: Option<Tokens>,
    /// How long a client may take nothing of its answer.
    pub(super) idle_timeout: Duration,
}

/// The calls that are open, on all connections. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    max: usize,
    all: Arc<Semaphore>,
    /// Those of them that are about the server itself. Who asks for its health needs no token, so they leave most to others.
    about_server: Arc<Semaphore>,
    /// The others, which a stopping server waits for: their connections stay.
    requests: TaskTracker,
    /// Cancelled when the server stops, and all who watch it were told.
    stopping: CancellationToken,
}

impl Calls {
    pub(super) fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            max,
            all: Arc::new(Semaphore::new(max)),
            about_server: Arc::new(Semaphore::new((max / 4).max(1))),
            requests: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Ends the calls that are about the server itself.
    pub(super) fn end_those_about_server(&self) {
        self.stopping.cancel();
    }

    /// Requests that are being worked on.
    pub(super) fn requests(&self) -> usize {
        self.requests.len()
    }

    /// A call that begins, or a refusal.
    fn admit(&self, is_about_server: bool, connection: Option<&ConnectionHandle>) -> Result<Admitted, Status> {
        let acquire = |permits: &Arc<Semaphore>| {
            Arc::clone(permits).try_acquire_owned().map_err(|_| status::too_many_calls(self.max))
        };
        let about_server = if is_about_server { Some(acquire(&self.about_server)?) } else { None };
        let permit = acquire(&self.all)?;
        Ok(Admitted {
            _permits: (permit, about_server),
            // A connection that is only watched over gives way to one with requests, and holds up no stop.
            _connection: connection.filter(|_| !is_about_server).map(ConnectionHandle::begin_call),
            _request: (!is_about_server).then(|| self.requests.token()),
        })
    }
}

/// What a call holds while it is open.
#[derive(Debug)]
struct Admitted {
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    _connection: Option<OpenCall>,
    _request: Option<TaskTrackerToken>,
}

/// Whether a call asks about the server and not about videos.
fn is_about_server(path: &str) -> bool {
    path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.")
}

#[derive(Debug, Clone)]
pub(super) struct RequestService<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestService { inner, layer: self.clone() }
    }
}

impl<S> Service<Request<Body>> for RequestService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(std::future::ready(Ok(response)));
        }
        let id = request_id(request.headers());
        let span = info_span!(
            "request",
            id = id.to_str().unwrap_or_default(),
            call = &*cut(request.uri().path()),
            token = tracing::field::Empty,
            otel.kind = tracing::field::Empty,
            otel.name = tracing::field::Empty
        );
        #[cfg(feature = "otlp")]
        crate::telemetry::otlp::continue_trace(&span, request.uri().path(), request.headers());
        let method = Method::of(request.uri().path());
        let timeout = request.headers().get(GRPC_TIMEOUT).and_then(parse_timeout);
        let metrics = Arc::clone(&self.layer.metrics);
        let is_about_server = is_about_server(request.uri().path());
        let mut call = Call {
            _admitted: None,
            caller: None,
            method: method.name,
            in_flight: Some(metrics.request_started(method.name)),
            metrics,
            started: Instant::now(),
            span: span.clone(),
        };

        match self.layer.calls.admit(is_about_server, request.extensions().get()) {
            Ok(admitted) => call._admitted = Some(admitted),
            Err(status) => {
                call.metrics.rejected("calls");
                return refuse(call, status, id);
            }
        }
        // Load balancers that look after the server's health have no token.
        let tokens = self.layer.tokens.as_ref().filter(|_| !request.uri().path().starts_with("/grpc.health."));
        match tokens.map(|tokens| tokens.admit(request.headers())) {
            None => {}
            Some(Ok(caller)) => {
                span.record("token", &*caller.name);
                call.caller = Some(caller);
            }
            Some(Err(status)) => {
                if status.code() == Code::ResourceExhausted {
                    call.metrics.rejected("token");
                }
                return refuse(call, status, id);
            }
        }
        let idle_timeout = self.layer.idle_timeout;
        let stopping = is_about_server.then(|| self.layer.calls.stopping.clone());
        let mut end = end_of_call(timeout, call.caller.as_ref(), stopping);

        let (mut parts, body) = request.into_parts();
        let (body, arrivals) = self.layer.admission.meter(body, method.sending);
        parts.extensions.insert(arrivals.clone());
        if let Some(timeout) = timeout {
            parts.extensions.insert(Deadline(call.started + timeout));
        }
        let response = self.inner.call(Request::from_parts(parts, Body::new(body)));
        Box::pin(
            async move {
                let mut response = match &mut end {
                    None => response.await?,
                    Some(ending) => tokio::select! {
                        response = response => response?,
                        status = ending => {
                            end = None;
                            status.into_http()
                        }
                    },
                };
                status::blame_caller(response.headers_mut());
                response.headers_mut().insert(REQUEST_ID, id);
                // The messages of a call without a stream are held until its answer is there.
                drop(arrivals);
                let code = response.headers().get(GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()));
                let (parts, body) = response.into_parts();
                let mut call = Some(call);
                if let Some(code) = code
                    && let Some(call) = call.take()
                {
                    call.end(code);
                }
                let body = CallBody::new(body, call, end, idle_timeout);
                Ok(Response::from_parts(parts, Body::new(body)))
            }
            .instrument(span),
        )
    }
}

/// Ends a call before it began.
fn refuse<E: Send + 'static>(
    call: Call,
    status: Status,
    id: HeaderValue,
) -> Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>> {
    call.end(status.code());
    let mut response = status.into_http::<Body>();
    response.headers_mut().insert(REQUEST_ID, id);
    Box::pin(std::future::ready(Ok(response)))
}

/// What is known of a method by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Method {
    /// For metrics; the same for all that we don't serve.
    name: &'static str,
    sending: Sending,
}

impl Method {
    fn of(path: &str) -> Self {
        const METHODS: [(&str, Sending); 20] = [
            ("ClassifyVideo", Sending::One),
            ("ClassifyVideoStream", Sending::Parts),
            ("ClassifyVideos", Sending::Many { key: Some(1) }),
            ("ListModels", Sending::One),
            ("GetModel", Sending::One),
            ("Check", Sending::One),
            // Its answers are the stream.
            ("Watch", Sending::One),
            ("ServerReflectionInfo", Sending::Many { key: None }),
            ("ServerLive", Sending::One),
            ("ServerReady", Sending::One),
            ("ModelReady", Sending::One),
            ("ServerMetadata", Sending::One),
            ("ModelMetadata", Sending::One),
            ("ModelInfer", Sending::One),
            // Its `id`.
            ("ModelStreamInfer", Sending::Many { key: Some(3) }),
            ("ModelConfig", Sending::One),
            ("ModelStatistics", Sending::One),
            ("RepositoryIndex", Sending::One),
            ("RepositoryModelLoad", Sending::One),
            ("RepositoryModelUnload", Sending::One),
        ];
        let name = path.rsplit('/').next().unwrap_or_default();
        let known = METHODS.into_iter().find(|(known, _)| *known == name);
        let (name, sending) = known.unwrap_or(("other", Sending::One));
        Self { name, sending }
    }
}

/// A call that is being worked on.
#[derive(Debug)]
struct Call {
    _admitted: Option<Admitted>,
    /// If callers have to say who they are.
    caller: Option<Caller>,
    method: &'static str,
    in_flight: Option<InFlight>,
    metrics: Arc<Metrics>,
    started: Instant,
    span: Span,
}

impl Call {
    fn end(mut self, code: Code) {
        self.record(code);
    }

    fn record(&mut self, code: Code) {
        if self.in_flight.take().is_some() {
            self.metrics.request_ended(self.method, status::code_name(code));
            #[cfg(feature = "otlp")]
            crate::telemetry::otlp::set_status(&self.span, code);
            let elapsed = self.started.elapsed();
            self.span.in_scope(|| match self.method {
                // Load balancers ask all the time.
                "Check" => debug!(?code, ?elapsed, "answered"),
                _ => info!(?code, ?elapsed, "answered"),
            });
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Nobody was there to take the end of the answer.
        self.record(Code::Cancelled);
    }
}

/// Resolves when a call has to end, whatever it does.
type End = Pin<Box<dyn Future<Output = Status> + Send>>;

/// At the call's deadline, when its token is revoked, or when the server that it asks about stops.
fn end_of_call(timeout: Option<Duration>, caller: Option<&Caller>, stopping: Option<CancellationToken>) -> Option<End> {
    if timeout.is_none() && caller.is_none() && stopping.is_none() {
        return None;
    }
    let late = timeout.map(|timeout| async move {
        tokio::time::sleep(timeout.saturating_sub(answer_time(timeout))).await;
        status::deadline_exceeded(timeout)
    });
    let revoked = caller.map(Caller::revoked).map(|revoked| async move {
        revoked.await;
        status::unknown_token()
    });
    let stopping = stopping.map(|stopping| async move {
        stopping.cancelled_owned().await;
        status::stopping("the server is stopping")
    });
    Some(Box::pin(async move {
        tokio::select! {
            status = or_never(late) => status,
            status = or_never(revoked) => status,
            status = or_never(stopping) => status,
        }
    }))
}

async fn or_never<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The body of an answer, which ends when the call has to, or when its client takes nothing of it for too long. It is not
/// asked for more then, so somebody else has to look.
struct CallBody {
    answer: Arc<Mutex<Answer>>,
    _watch: Option<AbortOnDropHandle<()>>,
}

struct Answer {
    body: Body,
    call: Option<Call>,
    end: Option<End>,
    /// What is left of a frame.
    rest: Bytes,
    /// Since when there was something to take and the client made no room for more.
    untaken: Option<tokio::time::Instant>,
    /// How the answer ends instead of as it would.
    replaced: Option<Status>,
}

/// Frames are cut to this, so that a client that takes a large one slowly is seen to take it.
const PIECE: usize = 16 << 10;

impl CallBody {
    fn new(body: Body, call: Option<Call>, end: Option<End>, idle_timeout: Duration) -> Self {
        let is_over = call.is_none();
        let answer = Answer { body, call, end, rest: Bytes::new(), untaken: None, replaced: None };
        let answer = Arc::new(Mutex::new(answer));
        let watch = (!is_over).then(|| give_up_if_untaken(Arc::clone(&answer), idle_timeout));
        Self { answer, _watch: watch.map(|watch| AbortOnDropHandle::new(tokio::spawn(watch))) }
    }
}

async fn give_up_if_untaken(answer: Arc<Mutex<Answer>>, timeout: Duration) {
    loop {
        let since = lock(&answer).untaken;
        let until = since.unwrap_or_else(tokio::time::Instant::now) + timeout;
        if since.is_some() && until <= tokio::time::Instant::now() {
            lock(&answer).replace(status::client_idle(timeout));
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

fn lock(answer: &Mutex<Answer>) -> MutexGuard<'_, Answer> {
    answer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answer {
    /// Whoever makes the answer stops: nobody takes it.
    fn replace(&mut self, status: Status) {
        (self.body, self.rest) = (Body::empty(), Bytes::new());
        self.over(status.code());
        self.replaced = Some(status);
    }

    fn over(&mut self, code: Code) {
        if let Some(call) = self.call.take() {
            call.end(code);
        }
        self.end = None;
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.untaken = None;
        let mut frame = if !self.rest.is_empty() {
            Some(Ok(Frame::data(std::mem::take(&mut self.rest))))
        } else if let Some(status) = self.replaced.take() {
            Some(trailers(status))
        } else {
            match http_body::Body::poll_frame(Pin::new(&mut self.body), context) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let Some(end) = &mut self.end else { return Poll::Pending };
                    let status = ready!(end.as_mut().poll(context));
                    self.body = Body::empty();
                    Some(trailers(status))
                }
            }
        };
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    status::blame_caller(trailers);
                    let code =
                        trailers.get(GRPC_STATUS).map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()));
                    self.over(code);
                }
                if let Some(data) = frame.data_mut() {
                    if data.len() > PIECE {
                        self.rest = data.split_off(PIECE);
                    }
                    self.untaken = Some(tokio::time::Instant::now());
                }
            }
            Some(Err(status)) => {
                let code = status.code();
                self.over(code);
            }
            None => self.over(Code::Ok),
        }
        Poll::Ready(frame)
    }
}

fn trailers(status: Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    match status.add_header(&mut trailers) {
        Ok(()) => Ok(Frame::trailers(trailers)),
        Err(_) => Err(status),
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        lock(&self.answer).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        let answer = lock(&self.answer);
        answer.call.is_none() && answer.rest.is_empty() && answer.replaced.is_none() && answer.body.is_end_stream()
    }
}

/// Whether a client says that it speaks gRPC, with messages of protobuf. A browser or a scanner would not understand the
/// answer.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    ["application/grpc", "application/grpc+proto"].iter().any(|grpc| kind.eq_ignore_ascii_case(grpc))
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
    use std::collections::BTreeMap;

    use tower::service_fn;

    use super::super::admission::MessageMemory;
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
            idle_timeout: Duration::from_secs(60),
        }
    }

    fn call(timeout: &str) -> Request<Body> {
        let call = Request::builder().header(GRPC_TIMEOUT, timeout).header(CONTENT_TYPE, "application/grpc");
        call.uri("/x.Y/ClassifyVideos").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn what_is_no_grpc_is_an_unsupported_media_type() {
        let reached = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
        let mut service = layer().layer(reached);
        let mut status = async |kind: &str| {
            let request = Request::builder().header(CONTENT_TYPE, kind).body(Body::empty()).unwrap();
            service.call(request).await.unwrap().status()
        };
        for kind in ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=utf-8"] {
            assert_eq!(status(kind).await, StatusCode::OK, "{kind}");
        }
        for kind in ["", "application/json", "application/grpc-web", "application/grpc+json", "text/html"] {
            assert_eq!(status(kind).await, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
        }
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
