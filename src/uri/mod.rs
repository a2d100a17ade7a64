//! Videos that clients name by URI instead of sending them.
//!
//! Nothing is fetched but what an operator allowed by its [`Prefix`]: `location` says what a URI means and whether it is
//! below one. `file` opens files of this machine, `store` reads over HTTP and from S3, Google Cloud Storage and Azure,
//! with `http` below it, which decides whom to connect to. Decoding happens elsewhere, as ever; it gets bytes.

#[cfg(feature = "object-store")]
mod address;
mod file;
#[cfg(feature = "object-store")]
mod http;
mod location;
#[cfg(feature = "object-store")]
mod store;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pace::Pace;
use crate::video::{Source, SpoolError, VideoError};
pub use location::{InvalidUri, Prefix, is_uri};
use location::{Location, Scheme};

/// What may be fetched, and how.
#[derive(Clone)]
pub struct UriOptions {
    /// What a URI has to begin with; no video is taken by URI if there are none.
    pub allow: Vec<Prefix>,
    /// Whether `http` and `https` may lead to addresses that are not public: this machine, private networks, those
    /// where clouds tell secrets.
    pub allow_private_addresses: bool,
    /// Names and values of the variables by which clouds are configured, such as `AWS_REGION`.
    pub cloud_settings: Vec<(String, String)>,
    /// How long a server may send nothing while it is waited for.
    pub idle_timeout: Duration,
    /// Bytes a second that a server has to send while it is waited for, on average over [`UriOptions::idle_timeout`].
    pub min_rate: u64,
    /// Where what comes from servers without range requests is kept; the system's temporary directory if `None`.
    pub spool: Option<PathBuf>,
}

impl Default for UriOptions {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            allow_private_addresses: false,
            cloud_settings: Vec::new(),
            idle_timeout: Duration::from_secs(30),
            min_rate: Pace::default().min_rate,
            spool: None,
        }
    }
}

impl UriOptions {
    fn pace(&self) -> Pace {
        Pace { idle_timeout: self.idle_timeout, min_rate: self.min_rate, message_timeout: Duration::MAX }
    }
}

impl fmt::Debug for UriOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Among the settings are secrets.
        f.debug_struct("UriOptions").field("allow", &self.allow).finish_non_exhaustive()
    }
}

/// Why nothing can be fetched as configured.
#[derive(Debug, thiserror::Error)]
pub enum UriConfigError {
    /// The directory is not there.
    #[error("can't allow {prefix}: {error}")]
    Root {
        /// As configured.
        prefix: Prefix,
        /// Why it can't be found.
        error: std::io::Error,
    },
    /// What the cloud is configured by makes no sense.
    #[error("can't allow {prefix}: {detail}")]
    Cloud {
        /// As configured.
        prefix: Prefix,
        /// What is missing.
        detail: String,
    },
    /// TLS does not work here.
    #[error("can't set up TLS: {0}")]
    Tls(String),
    /// The program was built without the cargo feature `object-store`.
    #[error("can't allow {prefix}: this program was built to read file URIs only")]
    NotBuilt {
        /// As configured.
        prefix: Prefix,
    },
}

/// Why a URI gives no video.
#[derive(Debug, thiserror::Error)]
pub enum UriError {
    /// It is none, or none that names one thing in one way.
    #[error("the URI is not valid: {0}")]
    Invalid(#[from] InvalidUri),
    /// The operator did not allow it.
    #[error("this server does not take videos from there: {0}")]
    NotAllowed(&'static str),
    /// There is nothing.
    #[error("there is no video at the URI")]
    NotFound,
    /// There may be something, but not for this server.
    #[error("this server may not read what is at the URI")]
    Denied,
    /// Its server is away, slow or does not do what it should; the detail is for the log only.
    #[error("{0}")]
    Unavailable(String),
    /// Its server rejects the request, and would do so again; the detail is for the log only.
    #[error("{0}")]
    Rejected(String),
    /// What is there can be no video.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// It could not be kept.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// Opens URIs as [`UriOptions`] allow it; the default allows none. Clones share connections.
#[derive(Debug, Clone, Default)]
pub struct Uris(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    files: Vec<(Prefix, file::Root)>,
    #[cfg(feature = "object-store")]
    stores: Option<store::Stores>,
}

impl Uris {
    /// Finds the directories and sets up the clouds that are allowed.
    pub fn new(options: UriOptions) -> Result<Self, UriConfigError> {
        let (files, elsewhere): (Vec<_>, Vec<_>) =
            options.allow.iter().cloned().partition(|prefix| prefix.scheme() == Scheme::File);
        let open = |prefix: Prefix| match file::Root::find(&prefix) {
            Ok(root) => Ok((prefix, root)),
            Err(error) => Err(UriConfigError::Root { prefix, error }),
        };
        let files = files.into_iter().map(open).collect::<Result<_, _>>()?;
        #[cfg(feature = "object-store")]
        let stores = if elsewhere.is_empty() { None } else { Some(store::Stores::new(elsewhere, &options)?) };
        #[cfg(not(feature = "object-store"))]
        if let Some(prefix) = elsewhere.into_iter().next() {
            return Err(UriConfigError::NotBuilt { prefix });
        }
        Ok(Self(Arc::new(Inner {
            files,
            #[cfg(feature = "object-store")]
            stores,
        })))
    }

    /// Finds what a URI names, of at most `max_bytes`.
    pub async fn open(&self, uri: &str, max_bytes: u64) -> Result<OpenedUri, UriError> {
        let location: Location = uri.parse()?;
        if location.scheme == Scheme::File {
            let allowed = self.0.files.iter().find_map(|(prefix, root)| Some((root.clone(), prefix.rest(&location)?)));
            let (root, rest) = allowed.ok_or(NOT_BELOW)?;
            let opened = tokio::task::spawn_blocking(move || {
                let file = root.open(&rest)?;
                let len = file.metadata().map_err(|error| UriError::Unavailable(error.to_string()))?.len();
                check_len(len, max_bytes)?;
                Ok::<_, UriError>(file)
            });
            let file = opened.await.map_err(|error| UriError::Unavailable(error.to_string()))??;
            let (opening, _) = Opening::new();
            return Ok(opening.opened(Source::File(Arc::new(file))));
        }
        #[cfg(feature = "object-store")]
        if let Some(stores) = &self.0.stores {
            return stores.open(&location, max_bytes).await;
        }
        Err(NOT_BELOW)
    }
}

const NOT_BELOW: UriError = UriError::NotAllowed("the URI is below none of the prefixes that its operator allowed");

fn check_len(actual: u64, limit: u64) -> Result<(), VideoError> {
    match actual {
        0 => Err(VideoError::Empty),
        actual if actual > limit => Err(VideoError::TooLarge { actual, limit }),
        _ => Ok(()),
    }
}

/// A video on its way. Dropping it ends the transfer.
#[derive(Debug)]
pub struct OpenedUri {
    source: Source,
    failures: mpsc::Receiver<UriError>,
    received: Arc<AtomicU64>,
    _cancel: DropGuard,
}

impl OpenedUri {
    /// Where to decode from.
    pub fn source(&self) -> Source {
        self.source.clone()
    }

    /// Resolves when the video can't be read any further, which decoding alone would take for a broken video. Pending
    /// for ever if all goes well.
    pub async fn failed(&mut self) -> UriError {
        match self.failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// What [`OpenedUri::failed`] resolves to, if it would. Once decoding ended there is nothing that could still fail.
    pub fn failure(&mut self) -> Option<UriError> {
        self.failures.try_recv().ok()
    }

    /// Bytes that came from elsewhere so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// What belongs to an [`OpenedUri`] before it is one.
struct Opening {
    cancel: CancellationToken,
    failures: mpsc::Receiver<UriError>,
    received: Arc<AtomicU64>,
}

impl Opening {
    /// Also gives what takes the error on which reading ends.
    fn new() -> (Self, mpsc::Sender<UriError>) {
        // The first error is the one that counts.
        let (sender, failures) = mpsc::channel(1);
        (Self { cancel: CancellationToken::new(), failures, received: Arc::default() }, sender)
    }

    fn opened(self, source: Source) -> OpenedUri {
        let Self { cancel, failures, received } = self;
        OpenedUri { source, failures, received, _cancel: cancel.drop_guard() }
    }
}
