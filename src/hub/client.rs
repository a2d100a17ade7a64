//! Asks the hub what a name means, downloads it, and falls back on what was downloaded before.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tracing::{debug, info, warn};
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, RequestBuilder};

use super::cache::{CachedRepository, Download, hexadecimal, is_hash, is_sha256};
use super::name::{HubModel, is_path};
use super::{HubError, HubOptions};
use crate::digest::digest_rest;
use crate::model::file::MAX_FILE_BYTES;

/// Connecting takes no longer to servers that are there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What fails for a reason that may pass is tried so often.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// The hub names the files of a repository in one answer; more than this is none of a repository of models.
const LONGEST_LIST: u64 = 16 << 20;

/// The file that is meant if a repository has several and none is named.
const USUAL_FILE: &str = "model.safetensors";

const COMMIT: &str = "x-repo-commit";
const CHECKSUM: &str = "x-linked-etag";
const LENGTH: &str = "x-linked-size";
const ERROR_CODE: &str = "x-error-code";

/// Finds models on the hub and in its cache.
#[derive(Debug)]
pub struct Hub {
    options: HubOptions,
    /// Files whose checksum was right, as they were then.
    checked: Mutex<HashMap<PathBuf, (u64, Option<SystemTime>)>>,
}

impl Hub {
    /// Asks nobody yet.
    pub fn new(options: HubOptions) -> Self {
        Self { options, checked: Mutex::default() }
    }

    /// The model's file in the cache. Asks the hub what the name means now and downloads what is not there; if the hub or
    /// this machine has trouble, what the name meant when it was last asked is good enough. A commit that is there is not
    /// asked for.
    pub fn file(&self, model: &HubModel) -> Result<PathBuf, HubError> {
        let cache = self.options.cache.as_deref().ok_or(HubError::NoCache)?;
        let place = CachedRepository::new(cache, model);
        if self.options.offline {
            return self.cached(&place, model)?.ok_or_else(|| HubError::Offline { cache: cache.to_owned() });
        }
        // Of a commit too, only the hub knows whether a file that was not named is the only one.
        if model.is_commit()
            && model.file().is_some()
            && let Ok(Some(path)) = self.cached(&place, model)
        {
            return Ok(path);
        }
        let error = match self.current(&place, model) {
            Err(error) if error.leaves_the_cached_file() => error,
            found => return found,
        };
        let Ok(Some(path)) = self.cached(&place, model) else { return Err(error) };
        warn!(%model, %error, "a model is used as it was downloaded before");
        Ok(path)
    }

    /// What the name meant when the hub was last asked, if that was downloaded.
    fn cached(&self, place: &CachedRepository, model: &HubModel) -> Result<Option<PathBuf>, HubError> {
        let commit = if model.is_commit() { Some(model.revision().to_owned()) } else { place.known_commit() };
        let Some(commit) = commit else { return Ok(None) };
        let file = match model.file() {
            Some(file) => file.to_owned(),
            None => match choose(model, place.files(&commit)) {
                Err(HubError::NoModel { .. }) => return Ok(None),
                file => file?,
            },
        };
        let Some(path) = place.file(&commit, &file) else { return Ok(None) };
        let blob = path.canonicalize().unwrap_or_else(|_| path.clone());
        let checksum = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.check(&path, &file, checksum)?;
        Ok(Some(path))
    }

    /// What the name means now.
    fn current(&self, place: &CachedRepository, model: &HubModel) -> Result<PathBuf, HubError> {
        let client = Client::new(&self.options);
        let file = match model.file() {
            Some(file) => file.to_owned(),
            None => choose(model, client.files(model)?)?,
        };
        let found = client.find(model, &file)?;
        let there = place.file(&found.commit, &file);
        let good = |path: &Path| match self.check(path, &file, &found.checksum) {
            Ok(()) => Ok(true),
            Err(error @ HubError::Checksum { .. }) => {
                warn!(%model, %error, "a model is downloaded anew");
                Ok(false)
            }
            Err(error) => Err(error),
        };
        let path = match there {
            Some(path) if good(&path)? => path,
            _ => {
                // Of another commit, or by another name.
                let blob = place.blob(&found.checksum);
                if !blob.exists() || !good(&blob)? {
                    self.download(&client, place, model, &file, &found)?;
                }
                place.link(&found.commit, &file, &found.checksum)?
            }
        };
        if !model.is_commit() {
            place.set_commit(&found.commit)?;
        }
        Ok(path)
    }

    /// Removes a file that has not its checksum. One that was right and is unchanged is not read again.
    fn check(&self, path: &Path, file: &str, expected: &str) -> Result<(), HubError> {
        if !is_sha256(expected) {
            return Ok(());
        }
        let blob = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let error = |error| HubError::Cache { path: blob.clone(), error };
        let mut opened = std::fs::File::open(&blob).map_err(error)?;
        let metadata = opened.metadata().map_err(error)?;
        let stamp = (metadata.len(), metadata.modified().ok());
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.get(&blob) == Some(&stamp) {
            return Ok(());
        }
        let mut bytes = Sha256::new();
        digest_rest(&mut opened, &mut bytes).map_err(error)?;
        let actual = hexadecimal(bytes);
        if actual == expected {
            checked.insert(blob, stamp);
            return Ok(());
        }
        // What can't be removed is found out again.
        let _ = std::fs::remove_file(&blob);
        let _ = std::fs::remove_file(path);
        Err(HubError::Checksum { file: file.to_owned(), actual, expected: expected.to_owned() })
    }

    fn download(
        &self,
        client: &Client<'_>,
        place: &CachedRepository,
        model: &HubModel,
        file: &str,
        found: &Found,
    ) -> Result<(), HubError> {
        let begun = Instant::now();
        let Some(mut download) = place.begin(&found.checksum, self.options.idle_timeout)? else { return Ok(()) };
        info!(%model, file, commit = found.commit, bytes = found.bytes, "downloading a model");
        let mut receiving = Receiving::go_on(&mut download, found.bytes)?;
        let mut resumed = receiving.bytes > 0;
        let bar = Bar::new(file, found.bytes);
        let (mut tries, mut most) = (0, receiving.bytes);
        loop {
            tries += 1;
            match client.receive(model, file, found, &mut download, &mut receiving, &bar) {
                Ok(()) => {}
                Err(error @ HubError::Unavailable { .. }) if tries < TRIES => {
                    debug!(%model, %error, "trying again");
                    if receiving.bytes > most {
                        (tries, most) = (0, receiving.bytes);
                    }
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err(error) => return Err(error),
            }
            let actual = hexadecimal(std::mem::take(&mut receiving.digest));
            if actual == found.checksum || !is_sha256(&found.checksum) {
                break;
            }
            // What an earlier try left may be to blame.
            if resumed {
                resumed = false;
                receiving.begin_anew(&mut download)?;
                continue;
            }
            download.discard();
            let expected = found.checksum.clone();
            return Err(HubError::Checksum { file: file.to_owned(), actual, expected });
        }
        download.keep()?;
        drop(bar);
        info!(%model, bytes = found.bytes, elapsed = ?begun.elapsed(), "downloaded the model");
        Ok(())
    }
}

/// The file that is meant if none is named.
fn choose(model: &HubModel, mut files: Vec<String>) -> Result<String, HubError> {
    /// Parts of a large model are many, and none of them is a model of ours.
    const SHOWN: usize = 20;

    let repository = model.repository().to_owned();
    files.retain(|file| file.ends_with(".safetensors") && is_path(file));
    files.sort();
    match (files.len(), files.iter().position(|file| file == USUAL_FILE)) {
        (0, _) => Err(HubError::NoModel { repository, revision: model.revision().to_owned() }),
        (1, _) => Ok(files.swap_remove(0)),
        (_, Some(usual)) => Ok(files.swap_remove(usual)),
        (count, None) => {
            if count > SHOWN {
                files.truncate(SHOWN);
                files.push("...".to_owned());
            }
            Err(HubError::Ambiguous { repository, files })
        }
    }
}

/// What a file of a repository is at a revision.
struct Found {
    commit: String,
    checksum: String,
    bytes: u64,
}

/// What has been received of a file.
struct Receiving {
    bytes: u64,
    digest: Sha256,
}

impl Receiving {
    /// After what an earlier try left.
    fn go_on(download: &mut Download, expected: u64) -> Result<Self, HubError> {
        let mut receiving = Self { bytes: 0, digest: Sha256::new() };
        let read = digest_rest(&mut download.file, &mut receiving.digest);
        receiving.bytes = read.map_err(|error| download.error(error))?;
        if receiving.bytes > expected {
            receiving.begin_anew(download)?;
        }
        Ok(receiving)
    }

    fn begin_anew(&mut self, download: &mut Download) -> Result<(), HubError> {
        *self = Self { bytes: 0, digest: Sha256::new() };
        let emptied = download.file.set_len(0).and_then(|()| download.file.rewind());
        emptied.map_err(|error| download.error(error))
    }
}

/// Asks the hub.
struct Client<'a> {
    options: &'a HubOptions,
    agent: Agent,
}

impl<'a> Client<'a> {
    /// Trusts the system's roots, which `SSL_CERT_FILE` and `SSL_CERT_DIR` replace, and takes the usual variables' proxy.
    fn new(options: &'a HubOptions) -> Self {
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots = roots.iter().map(|root| Certificate::from_der(root).to_owned());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::from(roots))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("kinetoscope/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // The token is for the hub, not for where it keeps files.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(options.idle_timeout))
            .timeout_per_read(Some(options.idle_timeout))
            .build();
        Self { options, agent: config.into() }
    }

    /// Paths of all files of the model's repository.
    fn files(&self, model: &HubModel) -> Result<Vec<String>, HubError> {
        #[derive(Deserialize)]
        struct Info {
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let (endpoint, repository) = (&self.options.endpoint, model.repository());
        let url = format!("{endpoint}/api/models/{repository}/revision/{}", encoded(model.revision()));
        let mut response = self.send(|| self.request(self.agent.get(&url)).call())?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(&response, model, None));
        }
        let list = response.body_mut().with_config().limit(LONGEST_LIST).reader();
        let info: Info = serde_json::from_reader(list).map_err(|error| self.protocol(error.to_string()))?;
        Ok(info.siblings.into_iter().map(|sibling| sibling.rfilename).collect())
    }

    /// What a file of the model's repository is at its revision.
    fn find(&self, model: &HubModel, file: &str) -> Result<Found, HubError> {
        /// More than for a repository that was renamed twice.
        const REDIRECTS: usize = 5;

        let mut url = self.url(model, model.revision(), file);
        for _ in 0..REDIRECTS {
            let ask = || self.request(self.agent.head(&url)).config().max_redirects(0).build().call();
            let response = self.send(ask)?;
            let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            if !response.status().is_success() && !response.status().is_redirection() {
                return Err(self.refusal(&response, model, Some(file)));
            }
            // Within the hub; others lead to where it keeps the file.
            let elsewhere = header(header::LOCATION.as_str()).filter(|location| location.starts_with('/'));
            if let (true, Some(path)) = (response.status().is_redirection(), elsewhere) {
                url = format!("{}{path}", origin(&url).ok_or_else(|| self.protocol("its redirect".to_owned()))?);
                continue;
            }
            let tag = |value: &str| value.trim_start_matches("W/").trim_matches('"').to_owned();
            let missing = |name| self.protocol(format!("no {name} for {file}"));
            let commit = header(COMMIT).map(tag).filter(|commit| is_hash(commit)).ok_or_else(|| missing(COMMIT))?;
            let checksum = header(CHECKSUM).or(header(header::ETAG.as_str())).map(tag);
            let checksum = checksum.filter(|checksum| is_hash(checksum)).ok_or_else(|| missing(CHECKSUM))?;
            let bytes = header(LENGTH).or(header(header::CONTENT_LENGTH.as_str()));
            let actual = bytes.and_then(|bytes| bytes.parse().ok()).ok_or_else(|| missing(LENGTH))?;
            if actual > MAX_FILE_BYTES {
                return Err(HubError::TooLarge { file: file.to_owned(), actual, limit: MAX_FILE_BYTES });
            }
            return Ok(Found { commit, checksum, bytes: actual });
        }
        Err(self.protocol("it redirects in circles".to_owned()))
    }

    /// Receives what is missing of a file.
    fn receive(
        &self,
        model: &HubModel,
        file: &str,
        found: &Found,
        download: &mut Download,
        receiving: &mut Receiving,
        bar: &Bar,
    ) -> Result<(), HubError> {
        bar.0.set_position(receiving.bytes);
        if receiving.bytes == found.bytes {
            return Ok(());
        }
        let url = self.url(model, &found.commit, file);
        let range = format!("bytes={}-", receiving.bytes);
        let ask = || {
            let request = self.request(self.agent.get(&url));
            if receiving.bytes > 0 { request.header(header::RANGE, &range).call() } else { request.call() }
        };
        let response = self.send(ask)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(&response, receiving.bytes) => {}
            // A server that knows no ranges.
            StatusCode::OK => receiving.begin_anew(download)?,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                receiving.begin_anew(download)?;
                return Err(self.unavailable("it sent another part of the file than was asked for".to_owned()));
            }
            _ => return Err(self.refusal(&response, model, Some(file))),
        }
        // One byte more shows that there are more.
        let mut body = response.into_body().into_reader().take(found.bytes - receiving.bytes + 1);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.unavailable(describe(&error))),
            };
            let chunk = &buffer[..read];
            download.file.write_all(chunk).map_err(|error| download.error(error))?;
            receiving.digest.update(chunk);
            receiving.bytes += read as u64;
            bar.0.set_position(receiving.bytes);
        }
        match receiving.bytes {
            bytes if bytes == found.bytes => Ok(()),
            bytes => {
                let detail = format!("{bytes} bytes of {file} came where {} were promised", found.bytes);
                if bytes > found.bytes {
                    receiving.begin_anew(download)?;
                }
                Err(self.unavailable(detail))
            }
        }
    }

    fn url(&self, model: &HubModel, revision: &str, file: &str) -> String {
        format!("{}/{}/resolve/{}/{file}", self.options.endpoint, model.repository(), encoded(revision))
    }

    fn request<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        let request = request.header(header::ACCEPT_ENCODING, "identity");
        match &self.options.token {
            Some(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// Sends a request, again if it fails for a reason that may pass at once.
    fn send(&self, request: impl Fn() -> Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, HubError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (detail, passes) = match request() {
                Ok(response) if !is_busy(response.status()) => return Ok(response),
                Ok(response) => (format!("it answered {}", response.status()), true),
                Err(error) => (describe(&error), passes(&error)),
            };
            if !passes || tries == TRIES {
                return Err(self.unavailable(detail));
            }
            debug!(detail, "asking the hub again");
            std::thread::sleep(PAUSE);
        }
    }

    /// What an answer other than the one that was asked for means.
    fn refusal(&self, response: &Response<Body>, model: &HubModel, file: Option<&str>) -> HubError {
        let repository = model.repository().to_owned();
        let code = response.headers().get(ERROR_CODE).and_then(|code| code.to_str().ok());
        match (response.status(), code) {
            (_, Some("GatedRepo")) => {
                let page = format!("{}/{repository}", self.options.endpoint);
                HubError::Gated { repository, page }
            }
            (StatusCode::UNAUTHORIZED, _) if self.options.token.is_none() => HubError::Unauthenticated { repository },
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => HubError::Denied { repository },
            (StatusCode::NOT_FOUND, code) => {
                let revision = model.revision();
                let what = match (code, file) {
                    (Some("RepoNotFound"), _) => format!("repository {repository}"),
                    (Some("RevisionNotFound"), _) => format!("revision {revision} of {repository}"),
                    (_, Some(file)) => format!("file {file} in {repository} at revision {revision}"),
                    (_, None) => format!("repository {repository} with a revision {revision}"),
                };
                HubError::NotFound { what }
            }
            (status, _) => self.unavailable(format!("it answered {status}")),
        }
    }

    fn unavailable(&self, detail: String) -> HubError {
        HubError::Unavailable { endpoint: self.options.endpoint.clone(), detail }
    }

    fn protocol(&self, detail: String) -> HubError {
        HubError::Protocol { endpoint: self.options.endpoint.clone(), detail }
    }
}

/// A branch with slashes is one part of a URL's path.
fn encoded(revision: &str) -> String {
    revision.replace('/', "%2F")
}

fn origin(url: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    Some(format!("{}://{}", url.scheme_str()?, url.authority()?))
}

/// Whether an answer is the rest of a file from a byte on.
fn begins_at(response: &Response<Body>, at: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
    start == Some(at)
}

fn is_busy(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// Whether the next request may have an answer: a connection broke, as those that were kept for long do.
fn passes(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => error.kind() != io::ErrorKind::ConnectionRefused,
        ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// An error with its causes.
fn describe(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let deeper = error.to_string();
        if !text.contains(&deeper) {
            text += &format!(": {deeper}");
        }
        cause = error.source();
    }
    text
}

/// A bar on the terminal, if there is one.
struct Bar(ProgressBar);

impl Bar {
    fn new(file: &str, bytes: u64) -> Self {
        let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
        let bar = ProgressBar::new(bytes).with_style(style.expect("the template is right"));
        Self(bar.with_message(file.to_owned()))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
