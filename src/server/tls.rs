//! TLS: what the server proves itself with, and what it wants of clients. It can be replaced while the server serves.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_util::either::Either;
use tracing::{debug, warn};
use webpki::{EndEntityCert, KeyUsage};

/// Of handshakes that fail, one line in this time is enough: anybody can make them fail.
const FAILURE_PERIOD: Duration = Duration::from_secs(1);

/// Files of a certificate and its key, and of the roots of clients' certificates. All in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, with those between it and its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Roots of the certificates that clients have to show; they need none if `None`.
    pub client_ca: Option<PathBuf>,
}

/// What stands in [`TlsFiles`].
#[derive(Clone)]
pub struct TlsPem {
    /// The server's certificate, with those between it and its root.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// Roots of the certificates that clients have to show; they need none if `None`.
    pub client_ca: Option<Vec<u8>>,
}

/// Why connections can't be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("can't read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no certificate where one has to be, or a broken one.
    #[error("the {0} is no certificate in PEM")]
    Certificate(&'static str),
    /// There is no key, or a broken one.
    #[error("the key is no private key in PEM")]
    Key,
    /// The certificate and the key don't fit, or one of them is of a kind that is not served.
    #[error("the certificate and the key don't make an identity: {0}")]
    Identity(rustls::Error),
    /// The roots of clients' certificates are none.
    #[error("the clients' roots can't be used: {0}")]
    ClientCa(String),
}

impl TlsFiles {
    /// Reads the files.
    pub fn read(&self) -> Result<TlsPem, TlsError> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| TlsError::Read { path: path.to_owned(), error });
        Ok(TlsPem {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            client_ca: self.client_ca.as_deref().map(read).transpose()?,
        })
    }

    /// All of them.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        [self.certificate.as_path(), &self.key].into_iter().chain(self.client_ca.as_deref())
    }
}

/// Encrypts connections. Clones share what it proves itself with.
#[derive(Clone)]
pub struct Tls(Arc<RwLock<Identity>>);

struct Identity {
    config: Arc<ServerConfig>,
    /// Of all certificates, with what each is.
    certificates: Vec<(&'static str, CertificateDer<'static>)>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Checks that everything is there and fits.
    pub fn new(pem: &TlsPem) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(Identity::new(pem)?))))
    }

    /// Uses something else from the next connection on. If it can't be used, all stays as it is.
    pub fn replace(&self, pem: &TlsPem) -> Result<(), TlsError> {
        let identity = Identity::new(pem)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(())
    }

    /// Says of each certificate that is not valid at a time since or until when.
    pub fn invalid_at(&self, now: SystemTime) -> Vec<String> {
        let identity = self.0.read().unwrap_or_else(PoisonError::into_inner);
        identity.certificates.iter().filter_map(|(what, certificate)| invalid(what, certificate, now)).collect()
    }

    fn acceptor(&self) -> TlsAcceptor {
        let identity = self.0.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&identity.config))
    }
}

impl Identity {
    fn new(pem: &TlsPem) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates("certificate", &pem.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|_| TlsError::Key)?;
        let mut all: Vec<(&'static str, CertificateDer<'static>)> =
            chain.iter().map(|certificate| ("certificate", certificate.clone())).collect();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Identity)?;
        let builder = match &pem.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                let given = certificates("clients' root", pem)?;
                all.extend(given.iter().map(|root| ("clients' root", root.clone())));
                // Bundles hold roots of old kinds too; one that is used is enough.
                roots.add_parsable_certificates(given);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::ClientCa(error.to_string()))?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Identity)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), certificates: all })
    }
}

/// The certificates in a PEM file, at least one.
fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    certificates.ok().filter(|all| !all.is_empty()).ok_or(TlsError::Certificate(what))
}

/// Says if a certificate is not valid at a time.
fn invalid(what: &str, certificate: &CertificateDer<'_>, now: SystemTime) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let date = |at: UnixTime| {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at.as_secs());
        humantime::format_rfc3339_seconds(at).to_string()
    };
    // Validity is looked at before anything that needs a root.
    let at = UnixTime::since_unix_epoch(since_epoch);
    match certificate.verify_for_usage(&[], &[], &[], at, KeyUsage::server_auth(), None, None) {
        Err(webpki::Error::CertExpired { not_after, .. }) => Some(format!("the {what} expired at {}", date(not_after))),
        Err(webpki::Error::CertNotValidYet { not_before, .. }) => {
            Some(format!("the {what} is not valid before {}", date(not_before)))
        }
        _ => None,
    }
}

/// A connection, plain or encrypted.
pub(super) type Connection<IO> = Either<IO, Box<TlsStream<IO>>>;

/// What is encrypted, or not.
pub(super) fn inner<IO>(connection: &Connection<IO>) -> &IO {
    match connection {
        Either::Left(plain) => plain,
        Either::Right(encrypted) => encrypted.get_ref().0,
    }
}

/// Connections, after their handshakes if they are encrypted. A handshake that fails ends its own connection, with a line in
/// the log.
pub(super) struct Secured<S, IO> {
    incoming: S,
    tls: Option<Tls>,
    handshakes: JoinSet<Option<TlsStream<IO>>>,
    failures: Arc<Failures>,
}

impl<S, IO> Secured<S, IO> {
    pub(super) fn new(incoming: S, tls: Option<Tls>) -> Self {
        Self { incoming, tls, handshakes: JoinSet::new(), failures: Arc::default() }
    }
}

impl<S, IO> Stream for Secured<S, IO>
where
    S: Stream<Item = io::Result<IO>> + Unpin,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Item = io::Result<Connection<IO>>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(Some(done)) = this.handshakes.poll_join_next(context) {
                match done {
                    Ok(Some(stream)) => return Poll::Ready(Some(Ok(Either::Right(Box::new(stream))))),
                    Ok(None) | Err(_) => continue,
                }
            }
            let stream = match Pin::new(&mut this.incoming).poll_next(context) {
                Poll::Ready(Some(Ok(stream))) => stream,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) if this.handshakes.is_empty() => return Poll::Ready(None),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            };
            let Some(tls) = &this.tls else { return Poll::Ready(Some(Ok(Either::Left(stream)))) };
            this.handshakes.spawn(accept(tls.acceptor(), stream, Arc::clone(&this.failures)));
        }
    }
}

async fn accept<IO>(acceptor: TlsAcceptor, stream: IO, failures: Arc<Failures>) -> Option<TlsStream<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match acceptor.accept(stream).await {
        Ok(stream) => return Some(stream),
        // Who only asks whether somebody listens, as load balancers do.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => debug!(%error, "a connection ended unused"),
        Err(error) => failures.tell(&error.to_string()),
    }
    None
}

/// Handshakes that failed.
#[derive(Default)]
struct Failures(Mutex<(Option<Instant>, u64)>);

impl Failures {
    fn tell(&self, error: &str) {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, untold) = &mut *guard;
        if last.is_some_and(|last| last.elapsed() < FAILURE_PERIOD) {
            *untold += 1;
            return;
        }
        warn!(error, others = *untold, "a TLS handshake failed");
        (*last, *untold) = (Some(Instant::now()), 0);
    }
}
