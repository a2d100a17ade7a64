//! Certificates and tokens that come from files, and are read again when these change.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::tls::{Tls, TlsError, TlsFiles};
use super::{Tokens, TokensError};
use crate::file_stamp::FileStamp;

/// How often files are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// Why a server can't start with its credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Tokens.
    #[error(transparent)]
    Tokens(#[from] TokensError),
}

/// What a server proves itself with and whom it lets call, with the files that say so.
#[derive(Debug)]
pub struct Credentials {
    tls: Option<(Watched<TlsFiles>, Tls)>,
    tokens: Option<(Watched<PathBuf>, Tokens)>,
    /// What was said last about certificates that are not valid.
    invalid: Vec<String>,
}

impl Credentials {
    /// Reads the files. Says which certificates are not valid now.
    pub fn read(tls: Option<TlsFiles>, tokens: Option<PathBuf>) -> Result<Self, CredentialsError> {
        // Looked at before they are read: what changes in between is read again.
        let tls = match tls.map(Watched::new) {
            Some(watched) => {
                let tls = Tls::new(&watched.files.read()?)?;
                Some((watched, tls))
            }
            None => None,
        };
        let tokens = match tokens.map(Watched::new) {
            Some(watched) => {
                let tokens = Tokens::read(&watched.files)?;
                Some((watched, tokens))
            }
            None => None,
        };
        let mut credentials = Self { tls, tokens, invalid: Vec::new() };
        credentials.check_validity(SystemTime::now());
        Ok(credentials)
    }

    /// What encrypts connections.
    pub fn tls(&self) -> Option<Tls> {
        self.tls.as_ref().map(|(_, tls)| tls.clone())
    }

    /// Who may call.
    pub fn tokens(&self) -> Option<Tokens> {
        self.tokens.as_ref().map(|(_, tokens)| tokens.clone())
    }

    /// Reads the files again whenever they change or `asked` says so; for ever.
    pub async fn watch(mut self, mut asked: tokio::sync::mpsc::Receiver<()>) {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_asked = tokio::select! {
                _ = period.tick() => false,
                Some(()) = asked.recv() => true,
            };
            // Files may be far away.
            let refresh = tokio::task::spawn_blocking(move || {
                self.refresh(is_asked);
                self
            });
            match refresh.await {
                Ok(same) => self = same,
                Err(error) => {
                    warn!(%error, "certificates and tokens are no longer read again");
                    return;
                }
            }
        }
    }

    /// Reads again what changed, or all if `is_asked`. What can't be used changes nothing.
    pub fn refresh(&mut self, is_asked: bool) {
        if let Some((watched, tls)) = &mut self.tls {
            let (change, files) = (watched.look(is_asked), watched.files.clone());
            watched.read(change, "certificates", || tls.replace(&files.read()?));
        }
        if let Some((watched, tokens)) = &mut self.tokens {
            let (change, path) = (watched.look(is_asked), watched.files.clone());
            watched.read(change, "tokens", || tokens.replace(&path));
        }
        self.check_validity(SystemTime::now());
    }

    /// Tells once of each certificate that is not valid.
    fn check_validity(&mut self, now: SystemTime) {
        let invalid = self.tls.as_ref().map_or_else(Vec::new, |(_, tls)| tls.invalid_at(now));
        for problem in invalid.iter().filter(|problem| !self.invalid.contains(problem)) {
            warn!(%problem, "a certificate is not valid now");
        }
        self.invalid = invalid;
    }
}

/// Files that are looked at from time to time.
#[derive(Debug)]
struct Watched<F> {
    files: F,
    /// As they were when they were read last.
    stamps: Vec<Option<FileStamp>>,
    /// Whether they could not be used then, and whether that was told.
    failed: Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failed {
    No,
    /// Once: a certificate may have changed and its key not yet.
    Once,
    Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// The files are what they were when they could not be used.
    Again,
    New,
    /// Whether or not they changed.
    Asked,
}

trait Files {
    fn paths(&self) -> Vec<&Path>;
}

impl Files for TlsFiles {
    fn paths(&self) -> Vec<&Path> {
        TlsFiles::paths(self).collect()
    }
}

impl Files for PathBuf {
    fn paths(&self) -> Vec<&Path> {
        vec![self]
    }
}

impl<F: Files> Watched<F> {
    fn new(files: F) -> Self {
        let stamps = stamps(&files);
        Self { files, stamps, failed: Failed::No }
    }

    fn look(&mut self, is_asked: bool) -> Change {
        let before = std::mem::replace(&mut self.stamps, stamps(&self.files));
        match self.failed {
            _ if is_asked => Change::Asked,
            _ if before != self.stamps => Change::New,
            Failed::Once => Change::Again,
            Failed::No | Failed::Told => Change::None,
        }
    }

    fn read<E: std::fmt::Display>(&mut self, change: Change, what: &str, read: impl FnOnce() -> Result<(), E>) {
        if change == Change::None {
            return;
        }
        match read() {
            Ok(()) => {
                info!("{what} were read again");
                self.failed = Failed::No;
            }
            Err(_) if change == Change::New => self.failed = Failed::Once,
            Err(error) => {
                warn!(what, %error, "what changed can't be used; what was read before goes on");
                self.failed = Failed::Told;
            }
        }
    }
}

/// Links are followed, as those of Kubernetes' secrets are swapped.
fn stamps(files: &impl Files) -> Vec<Option<FileStamp>> {
    files.paths().into_iter().map(|path| std::fs::metadata(path).ok().as_ref().map(FileStamp::of)).collect()
}
