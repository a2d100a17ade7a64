//! Why a model is not served.

use std::io;
use std::path::PathBuf;

use crate::engine::ExecutorError;
use crate::hub::{HubError, HubModel};
use crate::model::file::ModelFileError;

/// Why a model is not served, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// A file or directory can't be read.
    #[error("can't read {}: {error}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Not a model file, or a broken one.
    #[error("can't load the model {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: ModelFileError,
    },
    /// The hub or its cache gives no file.
    #[error("can't get the model {name}: {error}")]
    Hub {
        /// On the hub.
        name: HubModel,
        /// Why.
        error: HubError,
    },
    /// The network can't be built.
    #[error("can't build the model {name}: {error}")]
    Build {
        /// Of the model.
        name: String,
        /// What is wrong.
        error: ExecutorError,
    },
    /// Two files of one name and version.
    #[error("{} holds {name} version {version}, as another model does; their names or versions must differ", path.display())]
    Duplicate {
        /// The later one.
        path: PathBuf,
        /// Of both.
        name: String,
        /// Of both.
        version: String,
    },
    /// A `NAME/VERSION` directory that holds no model file, or several.
    #[error("{} holds {actual} model files; a version has one", path.display())]
    Version {
        /// The directory.
        path: PathBuf,
        /// How many.
        actual: usize,
    },
    /// It takes more memory than is left to models.
    #[error("{name} takes {bytes} bytes of memory; of the {limit} that models may take, {taken} are taken")]
    Memory {
        /// Of the model.
        name: String,
        /// What it takes.
        bytes: u64,
        /// What the others take, the one that it would replace included.
        taken: u64,
        /// What all may take.
        limit: u64,
    },
    /// No file holds the model.
    #[error("no model {name} was found")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// A server has one model at least.
    #[error("no model would be left")]
    Last,
    /// The paths hold no model.
    #[error("no model was found: a directory has *.safetensors, or NAME/VERSION/*.safetensors")]
    Empty,
}

impl RepositoryError {
    /// What callers may know: all but the paths.
    pub fn public(&self) -> String {
        match self {
            Self::File { error: ModelFileError::Io { .. }, .. } | Self::Io { .. } => "it can't be read".to_owned(),
            Self::File { error, .. } => error.to_string(),
            Self::Hub { error, .. } => error.public(),
            Self::Duplicate { .. } => "another model has its name and version".to_owned(),
            Self::Version { actual, .. } => format!("its version has {actual} model files instead of one"),
            _ => self.to_string(),
        }
    }
}
