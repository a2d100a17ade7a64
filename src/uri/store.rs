//! Videos elsewhere: on web servers and in clouds.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::HttpClient;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, GetOptions, GetResult, ObjectStore, RetryConfig};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use super::http::{Connector, Refusal, SharedClient, UNKNOWN_LENGTH, causes};
use super::location::{Location, Scheme};
use super::{OpenedUri, Opening, Prefix, UriConfigError, UriError, UriOptions, check_len};
use crate::video::{
    FIRST_PIECE, Fetch, RangedReader, Source, SpoolError, SpoolOptions, SpoolWriter, VideoError, spool,
};

/// Requests that fail for reasons that may pass are sent again so often.
const RETRIES: usize = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Bytes that stay in memory of a video whose server knows no ranges; more go to a file.
const SPOOL_MEMORY: usize = 1 << 20;

/// What is allowed elsewhere, and how to get it.
#[derive(Debug)]
pub(super) struct Stores {
    prefixes: Vec<Prefix>,
    /// Those of `prefixes` in clouds, by scheme and bucket.
    clouds: Vec<(Scheme, String, Arc<dyn ObjectStore>)>,
    web: HttpClient,
    retry: RetryConfig,
    spool: Option<PathBuf>,
}

impl Stores {
    pub(super) fn new(prefixes: Vec<Prefix>, options: &UriOptions) -> Result<Self, UriConfigError> {
        let connector = Connector::new(options.pace()).map_err(|error| UriConfigError::Tls(error.to_string()))?;
        let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2.0 };
        let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: options.idle_timeout };
        let mut clouds: Vec<(Scheme, String, Arc<dyn ObjectStore>)> = Vec::new();
        for prefix in &prefixes {
            let (scheme, bucket) = (prefix.scheme(), prefix.host());
            if scheme.is_web() || clouds.iter().any(|(known, name, _)| *known == scheme && name == bucket) {
                continue;
            }
            let store = cloud(scheme, bucket, &options.cloud_settings, connector.clone(), retry.clone());
            // Its errors tell settings by name, never their values.
            let store =
                store.map_err(|error| UriConfigError::Cloud { prefix: prefix.clone(), detail: error.to_string() })?;
            clouds.push((scheme, bucket.to_owned(), store));
        }
        Ok(Self {
            prefixes,
            clouds,
            web: connector.web_client(!options.allow_private_addresses),
            retry,
            spool: options.spool.clone(),
        })
    }

    /// Finds an allowed video.
    pub(super) async fn open(&self, location: &Location, max_bytes: u64) -> Result<OpenedUri, UriError> {
        if !self.prefixes.iter().any(|prefix| prefix.rest(location).is_some()) {
            return Err(super::NOT_BELOW);
        }
        let object = self.object(location)?;
        let (opening, failures) = Opening::new();
        let first = match object.get(Some(0..FIRST_PIECE)).await {
            Ok(first) => first,
            // Of servers that know no ranges, or not well.
            Err(object_store::Error::NotSupported { .. }) => {
                return self.spool(object, max_bytes, opening, failures).await;
            }
            Err(error) if Refusal::find(&error) == Some(Refusal::PartUnknown) => {
                return self.spool(object, max_bytes, opening, failures).await;
            }
            Err(error) if Refusal::find(&error) == Some(Refusal::OutOfRange) => return Err(VideoError::Empty.into()),
            Err(error) => return Err(error.into()),
        };
        let version = Version::of(&first);
        check_len(version.len, max_bytes)?;
        let range = first.range.clone();
        let bytes = collect(first, range.end - range.start, &opening.received).await?;
        if bytes.len() as u64 == version.len {
            return Ok(opening.opened(Source::Bytes(bytes)));
        }
        let len = version.len;
        let rest = Rest { object, version, failures, received: Arc::clone(&opening.received) };
        let reader = RangedReader::new(len, bytes, rest, opening.cancel.clone()).with_spool(self.spool.clone());
        Ok(opening.opened(Source::Ranged(reader)))
    }

    fn object(&self, location: &Location) -> Result<Object, UriError> {
        if location.scheme.is_web() {
            // The URL as it was checked, with its query; a path of the store's own would be encoded anew.
            let store = HttpBuilder::new()
                .with_url(location.to_url())
                .with_http_connector(SharedClient(self.web.clone()))
                .with_retry(self.retry.clone())
                .build()?;
            return Ok(Object { store: Arc::new(store), path: Path::ROOT });
        }
        let store =
            self.clouds.iter().find(|(scheme, bucket, _)| (*scheme, bucket) == (location.scheme, &location.host));
        let (_, _, store) = store.ok_or(super::NOT_BELOW)?;
        let path = Path::parse(location.segments.join("/"));
        let path = path.map_err(|_| UriError::NotFound)?;
        Ok(Object { store: Arc::clone(store), path })
    }

    /// Takes the whole video as it comes.
    async fn spool(
        &self,
        object: Object,
        max_bytes: u64,
        opening: Opening,
        failures: mpsc::Sender<UriError>,
    ) -> Result<OpenedUri, UriError> {
        let whole = object.get(None).await?;
        // What comes without a length is measured as it comes.
        if whole.meta.size != UNKNOWN_LENGTH {
            check_len(whole.meta.size, max_bytes)?;
        }
        let options = SpoolOptions { max_memory: SPOOL_MEMORY, max_bytes, directory: self.spool.clone() };
        let (writer, reader) = spool(options, opening.cancel.clone());
        let (cancel, received) = (opening.cancel.clone(), Arc::clone(&opening.received));
        tokio::spawn(async move {
            let mut writer = Some(writer);
            match cancel.run_until_cancelled(copy(whole, &mut writer, &received)).await {
                Some(Ok(())) => writer.into_iter().for_each(SpoolWriter::finish),
                // Told before the writer goes, which is all that the decoder learns.
                Some(Err(error)) => drop(failures.try_send(error)),
                None => {}
            }
        });
        Ok(opening.opened(Source::Spool(reader)))
    }
}

/// Brings an answer's body to a spool, until nobody wants the rest. `writer` is there but while it writes.
async fn copy(answer: GetResult, writer: &mut Option<SpoolWriter>, received: &AtomicU64) -> Result<(), UriError> {
    let mut chunks = answer.into_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let Some(mut spool) = writer.take() else { break };
        received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        // Writing may wait for a disk.
        let written = tokio::task::spawn_blocking(move || {
            let written = spool.write(&chunk);
            (spool, written)
        });
        let (spool, written) = written.await.map_err(|error| UriError::Unavailable(error.to_string()))?;
        *writer = Some(spool);
        match written {
            Ok(()) => {}
            Err(SpoolError::Unwanted) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The store of a bucket or container.
fn cloud(
    scheme: Scheme,
    bucket: &str,
    settings: &[(String, String)],
    connector: Connector,
    retry: RetryConfig,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    // The bucket comes after the settings, which may name another one.
    Ok(match scheme {
        Scheme::S3 => {
            let builder = configured(settings, "AWS_", AmazonS3Builder::new(), AmazonS3Builder::with_config);
            Arc::new(builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(connector).build()?)
        }
        Scheme::Gs => {
            let new = GoogleCloudStorageBuilder::new();
            let builder = configured(settings, "GOOGLE_", new, GoogleCloudStorageBuilder::with_config);
            Arc::new(builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(connector).build()?)
        }
        Scheme::Az => {
            let new = MicrosoftAzureBuilder::new();
            let builder = configured(settings, "AZURE_", new, MicrosoftAzureBuilder::with_config);
            Arc::new(builder.with_container_name(bucket).with_retry(retry).with_http_connector(connector).build()?)
        }
        Scheme::File | Scheme::Http | Scheme::Https => unreachable!("no clouds"),
    })
}

/// Applies the settings whose names begin with `prefix` and are known.
fn configured<B, K: std::str::FromStr>(
    settings: &[(String, String)],
    prefix: &str,
    builder: B,
    with_config: impl Fn(B, K, String) -> B,
) -> B {
    settings.iter().filter(|(name, _)| name.starts_with(prefix)).fold(builder, |builder, (name, value)| {
        match name.to_ascii_lowercase().parse() {
            Ok(key) => with_config(builder, key, value.clone()),
            Err(_) => builder,
        }
    })
}

/// A file in a store.
#[derive(Debug, Clone)]
struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
}

impl Object {
    async fn get(&self, range: Option<Range<u64>>) -> object_store::Result<GetResult> {
        let options = GetOptions { range: range.map(Into::into), ..GetOptions::default() };
        self.store.get_opts(&self.path, options).await
    }
}

/// What tells one content of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    len: u64,
    e_tag: Option<String>,
    modified_seconds: i64,
}

impl Version {
    fn of(answer: &GetResult) -> Self {
        let meta = &answer.meta;
        Self { len: meta.size, e_tag: meta.e_tag.clone(), modified_seconds: meta.last_modified.timestamp() }
    }
}

/// What of a file comes when decoding needs it.
struct Rest {
    object: Object,
    version: Version,
    failures: mpsc::Sender<UriError>,
    received: Arc<AtomicU64>,
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Fetch for Rest {
    fn fetch(&self, range: Range<u64>) -> Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>> {
        let (object, version, received) = (self.object.clone(), self.version.clone(), Arc::clone(&self.received));
        Box::pin(async move {
            let fetched = async {
                let answer = object.get(Some(range.clone())).await?;
                if Version::of(&answer) != version {
                    return Err(UriError::Unavailable("the file changed while it was read".to_owned()));
                }
                collect(answer, range.end - range.start, &received).await
            };
            fetched.await.map_err(io::Error::other)
        })
    }

    fn failed(&self, error: io::Error) {
        let error = error.downcast::<UriError>().unwrap_or_else(|error| UriError::Unavailable(error.to_string()));
        let _ = self.failures.try_send(error);
    }
}

/// The body of an answer that promised `len` bytes.
async fn collect(answer: GetResult, len: u64, received: &AtomicU64) -> Result<Bytes, UriError> {
    let broken = |actual| UriError::Unavailable(format!("{actual} bytes came where {len} were promised"));
    let mut bytes = BytesMut::with_capacity(usize::try_from(len).unwrap_or_default());
    let mut chunks = answer.into_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let actual = (bytes.len() + chunk.len()) as u64;
        if actual > len {
            return Err(broken(actual));
        }
        bytes.extend_from_slice(&chunk);
    }
    received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    if bytes.len() as u64 == len { Ok(bytes.freeze()) } else { Err(broken(bytes.len() as u64)) }
}

impl From<object_store::Error> for UriError {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
        match (Refusal::find(&error), &error) {
            (Some(Refusal::NotFound), _) | (None, NotFound { .. }) => Self::NotFound,
            (Some(Refusal::Denied), _) | (None, PermissionDenied { .. } | Unauthenticated { .. }) => Self::Denied,
            (Some(refusal @ Refusal::Rejected(_)), _) => Self::Rejected(refusal.to_string()),
            (Some(Refusal::Redirect), _) => Self::NotAllowed("the URI's server redirects to elsewhere"),
            (Some(Refusal::PrivateAddress), _) => Self::NotAllowed("the URI's host has no public address"),
            // The deepest cause: those above quote the URL, whose query may be a secret.
            _ => Self::Unavailable(causes(&error).last().unwrap_or(&error).to_string()),
        }
    }
}
