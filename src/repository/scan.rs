//! Which model files the sources hold.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{Refused, RepositoryError};
use crate::file_stamp::FileStamp;
use crate::hub::{Hub, HubModel, ModelSource};

/// A model file that was found.
#[derive(Debug, Clone)]
pub(super) struct ModelFile {
    /// What tells it from other files, whatever it holds: its path, or its name on the hub.
    pub(super) origin: PathBuf,
    /// Where it is read.
    pub(super) path: PathBuf,
    /// Which of the sources it was found in.
    pub(super) source: usize,
    /// Name and version by its directories.
    pub(super) called: Option<(String, String)>,
    pub(super) stamp: FileStamp,
}

/// What can't be served: a file, a name on the hub, or a directory that can't be read.
#[derive(Debug)]
pub(super) struct Failure {
    /// Its origin, or the directory.
    pub(super) path: PathBuf,
    /// Of the model, by its directories or as it was before.
    pub(super) name: Option<String>,
    /// By its directories.
    pub(super) version: Option<String>,
    pub(super) error: RepositoryError,
}

impl Failure {
    pub(super) fn refused(&self) -> Refused {
        let name = self.name.clone().unwrap_or_else(|| file_name(&self.path));
        Refused { name, version: self.version.clone().unwrap_or_default(), reason: self.error.public() }
    }

    /// Whether a model from `origin` goes on because of this: nobody knows what is there now. An empty directory of a
    /// version is no such case; its model is gone.
    pub(super) fn hides(&self, origin: &Path) -> bool {
        origin.starts_with(&self.path) && !matches!(self.error, RepositoryError::Version { actual: 0, .. })
    }

    /// Whether it is a directory that can't be listed. One may well hold no models: `lost+found` of a fresh volume.
    pub(super) fn is_unreadable_directory(&self) -> bool {
        matches!(self.error, RepositoryError::Io { .. }) && self.path.is_dir()
    }
}

/// What some sources hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In order; each but once.
    pub(super) files: Vec<ModelFile>,
    pub(super) failures: Vec<Failure>,
    origins: HashSet<PathBuf>,
}

/// Looks through the sources. What can't be read is one failure and hides nothing else. The hub is asked for those that are
/// not `as_it_was`.
pub(super) fn scan(sources: &[ModelSource], hub: &Hub, as_it_was: impl Fn(&PathBuf) -> Option<ModelFile>) -> Found {
    let mut found = Found::default();
    for (source, place) in sources.iter().enumerate() {
        match place {
            ModelSource::Path(path) if path.is_dir() => found.add_directory(path, source),
            ModelSource::Path(path) => found.add_file(path.clone(), source, None),
            ModelSource::Hub(name) => {
                let path = origin(place);
                let file = as_it_was(&path).map_or_else(|| find_on_hub(hub, name, source), Ok);
                found.add(path, None, file);
            }
        }
    }
    found
}

impl Found {
    fn add(&mut self, path: PathBuf, called: Option<(String, String)>, file: Result<ModelFile, RepositoryError>) {
        match file {
            Ok(file) => {
                if self.origins.insert(file.origin.clone()) {
                    self.files.push(file);
                }
            }
            Err(error) => {
                let (name, version) = called.unzip();
                self.failures.push(Failure { path, name, version, error });
            }
        }
    }

    fn add_file(&mut self, path: PathBuf, source: usize, called: Option<(String, String)>) {
        let file = find(path.clone(), source, called.clone());
        self.add(path, called, file);
    }

    /// Adds the files of a directory and those of its directories `NAME/VERSION/`.
    fn add_directory(&mut self, directory: &Path, source: usize) {
        for path in self.children(directory, None, None) {
            match kind(&path) {
                Ok(Kind::Model) => self.add_file(path, source, None),
                Ok(Kind::Directory) => self.add_versions(&path, source),
                Ok(Kind::Other) => {}
                Err(error) => {
                    let name = Some(file_name(&path));
                    self.fail(path, name, None, error);
                }
            }
        }
    }

    fn add_versions(&mut self, directory: &Path, source: usize) {
        let name = file_name(directory);
        for path in self.children(directory, Some(&name), None) {
            let version = file_name(&path);
            match kind(&path) {
                Ok(Kind::Directory) => self.add_version(&path, source, (name.clone(), version)),
                Ok(Kind::Model | Kind::Other) => {}
                Err(error) => self.fail(path, Some(name.clone()), Some(version), error),
            }
        }
    }

    fn add_version(&mut self, directory: &Path, source: usize, called: (String, String)) {
        let failed = self.failures.len();
        let mut models = self.children(directory, Some(&called.0), Some(&called.1));
        models.retain(|path| match kind(path) {
            Ok(kind) => matches!(kind, Kind::Model),
            Err(_) => is_called_model(path),
        });
        match (models.pop(), models.len()) {
            (Some(model), 0) => self.add_file(model, source, Some(called)),
            (None, _) if self.failures.len() > failed => {}
            (last, others) => {
                let error = RepositoryError::Version {
                    path: directory.to_owned(),
                    actual: others + usize::from(last.is_some()),
                };
                self.add(directory.to_owned(), Some(called), Err(error));
            }
        }
    }

    fn fail(&mut self, path: PathBuf, name: Option<String>, version: Option<String>, error: io::Error) {
        let error = RepositoryError::Io { path: path.clone(), error };
        self.failures.push(Failure { path, name, version, error });
    }

    /// What a directory holds, by name. Hidden files are none of ours: links of Kubernetes' volumes, files being written.
    fn children(&mut self, directory: &Path, name: Option<&str>, version: Option<&str>) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        match entries {
            Ok(entries) => {
                let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
                paths.retain(|path| !file_name(path).starts_with('.'));
                paths.sort();
                paths
            }
            Err(error) => {
                // Of a directory in a source nothing is known but that it may be a model of its name.
                let name = name.map(str::to_owned);
                self.fail(directory.to_owned(), name, version.map(str::to_owned), error);
                Vec::new()
            }
        }
    }
}

enum Kind {
    Model,
    Directory,
    /// What is none of ours.
    Other,
}

fn kind(path: &Path) -> io::Result<Kind> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(Kind::Directory),
        Ok(found) if found.is_file() && is_called_model(path) => Ok(Kind::Model),
        Ok(_) => Ok(Kind::Other),
        // A link that leads nowhere: of interest only if a model is meant.
        Err(error) if error.kind() == ErrorKind::NotFound && !is_called_model(path) => Ok(Kind::Other),
        Err(error) => Err(error),
    }
}

fn is_called_model(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

fn find(path: PathBuf, source: usize, called: Option<(String, String)>) -> Result<ModelFile, RepositoryError> {
    match std::fs::metadata(&path) {
        Ok(file) => Ok(ModelFile { origin: path.clone(), path, source, called, stamp: FileStamp::of(&file) }),
        Err(error) => Err(RepositoryError::Io { path, error }),
    }
}

fn find_on_hub(hub: &Hub, name: &HubModel, source: usize) -> Result<ModelFile, RepositoryError> {
    let path = hub.file(name).map_err(|error| RepositoryError::Hub { name: name.clone(), error })?;
    Ok(ModelFile { origin: name.to_string().into(), ..find(path, source, None)? })
}

/// What tells a source from others.
pub(super) fn origin(source: &ModelSource) -> PathBuf {
    match source {
        ModelSource::Path(path) => path.clone(),
        ModelSource::Hub(name) => name.to_string().into(),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
