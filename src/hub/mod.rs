//! Models on the [Hugging Face Hub](https://huggingface.co), by names such as `hf:ORG/REPO`.
//!
//! Files stay in the cache that Hugging Face's own tools share, as `hf-hub` lays it out; `cache` knows it, and `client` asks
//! the hub and downloads, by itself: `hf-hub`'s client waits for a silent server for ever, trusts no roots but its own and
//! checks no checksums. A file whose name in the cache is a SHA-256, as it is for all large files, has to have it.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
mod name;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

#[cfg(feature = "hub")]
pub use client::Hub;
pub use name::{HubModel, InvalidName};

/// Where a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A file, or a directory where one may be given.
    Path(PathBuf),
    /// A file on the hub.
    Hub(HubModel),
}

impl ModelSource {
    /// What begins with `hf:` is on the hub, anything else is a path.
    pub fn parse(text: OsString) -> Result<Self, InvalidName> {
        match text.to_str() {
            Some(name) if name.starts_with(name::PREFIX) => Ok(Self::Hub(name.parse()?)),
            _ => Ok(Self::Path(text.into())),
        }
    }
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Hub(model) => model.fmt(f),
        }
    }
}

/// How the hub is reached.
#[derive(Clone)]
pub struct HubOptions {
    /// Root of the hub's URLs, without a slash at its end.
    pub endpoint: String,
    /// Where downloaded files stay; `None` if nobody knows.
    pub cache: Option<PathBuf>,
    /// What the hub knows the user by.
    pub token: Option<String>,
    /// Whether to make do with the cache.
    pub offline: bool,
    /// How long the hub may send nothing.
    pub idle_timeout: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache: None,
            token: None,
            offline: false,
            idle_timeout: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret.
        let Self { endpoint, cache, offline, .. } = self;
        f.debug_struct("HubOptions")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("offline", offline)
            .finish()
    }
}

/// Why there is no file of a model on the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The program was built without the cargo feature `hub`.
    #[error("this program was built without the Hugging Face Hub (the cargo feature `hub`)")]
    NotBuilt,
    /// Neither a cache nor a home directory.
    #[error("there is no home directory for the cache: set HF_HOME")]
    NoCache,
    /// It was never downloaded, and is not to be now.
    #[error("it is not in the cache {}, and HF_HUB_OFFLINE is set", cache.display())]
    Offline {
        /// The cache.
        cache: PathBuf,
    },
    /// The hub wants to know who asks.
    #[error("the hub shows {repository} to nobody unknown, or has none: check the name, or set HF_TOKEN")]
    Unauthenticated {
        /// `ORG/REPO`.
        repository: String,
    },
    /// The hub knows who asks.
    #[error("the token may not read {repository}, or there is none: check the name and the token (HF_TOKEN)")]
    Denied {
        /// `ORG/REPO`.
        repository: String,
    },
    /// The repository has terms that were not accepted, or not by the token's owner.
    #[error("{repository} is for those who accept its terms: do that at {page}, and set HF_TOKEN to your token")]
    Gated {
        /// `ORG/REPO`.
        repository: String,
        /// Where the terms are.
        page: String,
    },
    /// There is no such thing.
    #[error("the hub has no {what}")]
    NotFound {
        /// A repository, revision or file.
        what: String,
    },
    /// No file was named and none can be meant.
    #[error("{repository} has no *.safetensors file at revision {revision}")]
    NoModel {
        /// `ORG/REPO`.
        repository: String,
        /// As it was asked for.
        revision: String,
    },
    /// No file was named and several can be meant.
    #[error("{repository} has several model files; name one, as in hf:{repository}/{}: {}", files[0], files.join(", "))]
    Ambiguous {
        /// `ORG/REPO`.
        repository: String,
        /// Their paths; two at least.
        files: Vec<String>,
    },
    /// No model is as large.
    #[error("{file} is {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// In the repository.
        file: String,
        /// Bytes.
        actual: u64,
        /// Bytes.
        limit: u64,
    },
    /// Other bytes than the hub announced, or than were once downloaded. They were removed.
    #[error("{file} has the SHA-256 {actual} instead of {expected}; it was removed from the cache")]
    Checksum {
        /// In the repository.
        file: String,
        /// What its bytes have.
        actual: String,
        /// What they should have.
        expected: String,
    },
    /// The hub is away, slow or busy.
    #[error("can't download from {endpoint}: {detail}")]
    Unavailable {
        /// Where the hub is thought to be.
        endpoint: String,
        /// What went wrong.
        detail: String,
    },
    /// What answers is no hub.
    #[error("{endpoint} does not answer as a hub does: {detail}")]
    Protocol {
        /// Where the hub is thought to be.
        endpoint: String,
        /// What was expected.
        detail: String,
    },
    /// The cache can't be read or written.
    #[error("can't use the cache at {}: {error}; HF_HOME names another place", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl HubError {
    /// What callers of a server may know: no paths, nothing of its network.
    pub fn public(&self) -> String {
        match self {
            Self::NoCache | Self::Offline { .. } | Self::Cache { .. } => "it can't be read".to_owned(),
            Self::Unavailable { .. } | Self::Protocol { .. } => "the hub can't be asked".to_owned(),
            _ => self.to_string(),
        }
    }

    /// Whether a file that was downloaded before is as good as it was: the hub or this machine has trouble.
    #[cfg(feature = "hub")]
    fn leaves_the_cached_file(&self) -> bool {
        matches!(self, Self::Checksum { .. } | Self::Unavailable { .. } | Self::Protocol { .. } | Self::Cache { .. })
    }
}

/// Finds models on the hub: in this build, nothing.
#[cfg(not(feature = "hub"))]
#[derive(Debug)]
pub struct Hub;

#[cfg(not(feature = "hub"))]
impl Hub {
    /// Options are for builds that have a hub.
    pub fn new(_: HubOptions) -> Self {
        Self
    }

    /// Says that this build can't.
    pub fn file(&self, _: &HubModel) -> Result<PathBuf, HubError> {
        Err(HubError::NotBuilt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_the_prefix_are_on_the_hub() {
        let parse = |text: &str| ModelSource::parse(text.into());
        assert_eq!(parse("org/repo").unwrap(), ModelSource::Path("org/repo".into()));
        assert_eq!(parse("./hf:x").unwrap(), ModelSource::Path("./hf:x".into()));
        assert_eq!(parse("hf:org/repo").unwrap(), ModelSource::Hub("hf:org/repo".parse().unwrap()));
        let error = parse("hf:repo").unwrap_err().to_string();
        assert!(error.contains("hf:ORG/REPO"), "{error}");
    }
}
