//! The HTTP client below the stores: it decides whom to connect to, follows no redirects and waits for nobody for ever.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::address;
use crate::pace::{Pace, PaceClock};

/// Connecting takes no longer to servers that are there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to a server that are kept for the next request, and how long.
const IDLE_CONNECTIONS: usize = 4;
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Stands for the length of a body whose server does not say it.
pub(super) const UNKNOWN_LENGTH: u64 = i64::MAX as u64;

/// Of an error's page, more is of no interest.
const LONGEST_ERROR_PAGE: usize = 64 << 10;

/// An answer that means something to who asked for a video; found again among the causes of the store's errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// 401 or 403.
    #[error("the server denies access")]
    Denied,
    /// 404 or 410.
    #[error("the server has no such file")]
    NotFound,
    /// 416, which an empty file answers to any range.
    #[error("the server has no such range")]
    OutOfRange,
    /// A part of the file, but not which, or not of how many bytes.
    #[error("the server does not say which part of the file it sends")]
    PartUnknown,
    /// Another of the answers that say that the request is at fault.
    #[error("the server answers {0}")]
    Rejected(StatusCode),
    /// A redirect.
    #[error("the server redirects")]
    Redirect,
    /// An address that is not public.
    #[error("the host has no public address")]
    PrivateAddress,
    /// A connection without encryption, which the store's settings don't allow.
    #[error("the connection would not be encrypted")]
    Plain,
}

impl Refusal {
    /// Looks for one among an error and its causes.
    pub(super) fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        causes(error).find_map(|cause| cause.downcast_ref::<Self>()).copied()
    }
}

/// An error and its causes, the deepest last.
pub(super) fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// Makes the clients of stores.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tls: Tls,
    /// How fast a server has to send.
    pace: Pace,
}

/// Whose server a client talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Anybody's, plain or encrypted. Its refusals are final and tell of the URI.
    Web,
    /// A cloud's. Its store reads the pages with which it refuses.
    Cloud { allows_plain: bool },
}

#[derive(Clone)]
struct Tls(TlsConnector);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Connector {
    /// Trusts the system's roots, which `SSL_CERT_FILE` and `SSL_CERT_DIR` replace.
    pub(super) fn new(pace: Pace) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Tls(TlsConnector::from(Arc::new(config))), pace })
    }

    /// The client for URIs of the web, if need be to public addresses only.
    pub(super) fn web_client(&self, public_only: bool) -> HttpClient {
        self.client(Purpose::Web, public_only, CONNECT_TIMEOUT)
    }

    fn client(&self, purpose: Purpose, public_only: bool, connect_timeout: Duration) -> HttpClient {
        let dialer =
            Dialer { tls: self.tls.0.clone(), public_only, timeout: connect_timeout.min(self.pace.idle_timeout) };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
            .build(dialer);
        HttpClient::new(Requests { client, purpose, pace: self.pace })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let option = |key| options.get_config_value(&key);
        let allows_plain = option(ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        let connect_timeout =
            option(ClientConfigKey::ConnectTimeout).and_then(|time| humantime::parse_duration(&time).ok());
        let purpose = Purpose::Cloud { allows_plain };
        Ok(self.client(purpose, false, connect_timeout.unwrap_or(CONNECT_TIMEOUT)))
    }
}

/// One client for many stores.
#[derive(Debug)]
pub(super) struct SharedClient(pub(super) HttpClient);

impl HttpConnector for SharedClient {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// Sends requests.
#[derive(Debug)]
struct Requests {
    client: Client<Dialer, HttpRequestBody>,
    purpose: Purpose,
    pace: Pace,
}

impl Requests {
    async fn answer(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_refused = |refusal| HttpError::new(HttpErrorKind::Unknown, refusal);
        let is_web = self.purpose == Purpose::Web;
        if self.purpose == (Purpose::Cloud { allows_plain: false }) && request.uri().scheme_str() != Some("https") {
            return Err(is_refused(Refusal::Plain));
        }
        let response = timeout(self.pace.idle_timeout, self.client.request(request)).await;
        let response = response.map_err(|late| HttpError::new(HttpErrorKind::Timeout, late))?.map_err(|error| {
            let kind = match Refusal::find(&error) {
                Some(_) => HttpErrorKind::Unknown,
                None if error.is_connect() => HttpErrorKind::Connect,
                None => HttpErrorKind::Interrupted,
            };
            HttpError::new(kind, error)
        })?;
        let status = response.status();
        match status {
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(is_refused(Refusal::OutOfRange)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if is_web => {
                return Err(is_refused(Refusal::Denied));
            }
            StatusCode::NOT_FOUND | StatusCode::GONE if is_web => return Err(is_refused(Refusal::NotFound)),
            status if status.is_redirection() && is_web => return Err(is_refused(Refusal::Redirect)),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {}
            status if status.is_client_error() && is_web => return Err(is_refused(Refusal::Rejected(status))),
            _ => {}
        }
        let (mut parts, body) = response.into_parts();
        if status == StatusCode::PARTIAL_CONTENT && !has_known_part(&parts.headers) {
            return Err(is_refused(Refusal::PartUnknown));
        }
        if status.is_success() {
            // Stores want a length; bodies that come in chunks or end with the connection have none.
            parts.headers.entry(header::CONTENT_LENGTH).or_insert(UNKNOWN_LENGTH.into());
        }
        let body = Patient { body, clock: PaceClock::new(self.pace) };
        let body = if status.is_success() {
            HttpResponseBody::new(body)
        } else {
            let cut = Limited::new(body, LONGEST_ERROR_PAGE);
            HttpResponseBody::new(cut.map_err(|error| HttpError::new_boxed(HttpErrorKind::Decode, error)))
        };
        Ok(HttpResponse::from_parts(parts, body))
    }
}

/// Whether an answer of a part says which it is, and of how many bytes.
fn has_known_part(headers: &HeaderMap) -> bool {
    let known = || {
        let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
        let (part, len) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, end) = part.split_once('-')?;
        let [start, end, len] = [start, end, len].map(|number| number.parse::<u64>().ok());
        Some(start? <= end? && end? < len?)
    };
    known().unwrap_or(false)
}

#[async_trait::async_trait]
impl HttpService for Requests {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.answer(request).await
    }
}

/// A body whose sender may neither fall silent nor send too slowly.
struct Patient {
    body: hyper::body::Incoming,
    clock: PaceClock,
}

impl Body for Patient {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            self.clock.received(bytes);
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))),
            );
        }
        let too_slow = ready!(self.clock.poll_too_slow(context));
        Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Timeout, too_slow))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Opens connections, to the addresses that it has looked at.
#[derive(Clone)]
struct Dialer {
    tls: TlsConnector,
    public_only: bool,
    timeout: Duration,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("public_only", &self.public_only).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("refused: {0}")]
    Refused(#[source] Refusal),
    #[error("the URI has no host")]
    NoHost,
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    #[error("no connection within {0:?}")]
    Late(Duration),
}

impl Dialer {
    async fn dial(self, uri: Uri) -> Result<TokioIo<Stream>, DialError> {
        let host = uri.host().ok_or(DialError::NoHost)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        // Those that were looked at are those that are connected to: there is no second look-up.
        let allowed = addresses.into_iter().filter(|at| !self.public_only || address::is_public(at.ip()));
        let allowed: Vec<SocketAddr> = allowed.collect();
        if allowed.is_empty() {
            return Err(DialError::Refused(Refusal::PrivateAddress));
        }
        let stream = TcpStream::connect(allowed.as_slice()).await?;
        stream.set_nodelay(true)?;
        if !is_tls {
            return Ok(TokioIo::new(Stream(Box::new(stream))));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| DialError::NoHost)?;
        Ok(TokioIo::new(Stream(Box::new(self.tls.connect(name, stream).await?))))
    }
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (dialer, limit) = (self.clone(), self.timeout);
        Box::pin(async move { timeout(limit, dialer.dial(uri)).await.unwrap_or(Err(DialError::Late(limit))) })
    }
}

/// A connection, encrypted or not.
struct Stream(Box<dyn ReadWrite>);

trait ReadWrite: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ReadWrite for T {}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, out)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
