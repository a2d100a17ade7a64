//! A model file that is open: what it says about itself, and its weights whenever a worker is built.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use candle_conv3d::graph::Graph;

use super::RepositoryError;
use super::scan::ModelFile;
use crate::engine::{self, Devices, EngineConfig, ExecutorError};
use crate::model::builtin;
use crate::model::file::{Model, ModelFileError};
use crate::model::spec::ModelSpec;

/// A model of which the description was read and no weights.
pub(super) struct Opened {
    pub(super) spec: ModelSpec,
    pub(super) graph: Graph,
    weights: Weights,
    /// For errors.
    origin: PathBuf,
}

impl Opened {
    pub(super) fn built_in() -> Result<Self, RepositoryError> {
        Self::of(Weights::BuiltIn, "that is built in".into())
    }

    /// Opens a file. If another takes its place afterwards, the next look finds that.
    pub(super) fn file(file: &ModelFile) -> Result<Self, RepositoryError> {
        let (path, origin) = (file.path.clone(), file.origin.clone());
        let open = File::open(&path).map_err(|error| RepositoryError::Io { path: path.clone(), error })?;
        Self::of(Weights::File { path, file: open, called: file.called.clone() }, origin)
    }

    fn of(weights: Weights, origin: PathBuf) -> Result<Self, RepositoryError> {
        match weights.spec() {
            Ok((spec, graph)) => Ok(Self { spec, graph, weights, origin }),
            Err(error) => Err(RepositoryError::File { path: origin, error }),
        }
    }

    /// Reads it whole, to see whether that can be done.
    pub(super) fn check(&self) -> Result<(), RepositoryError> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<Model, RepositoryError> {
        let read = self.weights.read();
        read.map_err(|error| RepositoryError::File { path: self.origin.clone(), error })
    }

    /// Reads it and gives what makes its executors: the first of the tensors that were read here.
    pub(super) fn executors(
        self,
        config: EngineConfig,
        devices: &Devices,
    ) -> Result<Box<engine::Build>, RepositoryError> {
        let first = Mutex::new(Some(self.read()?));
        let Self { spec, weights, .. } = self;
        let read = move || {
            let read = || weights.read().map_err(|error| ExecutorError::Reload(error.to_string()));
            // Held meanwhile: workers share the file's position.
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            let model = first.take().map_or_else(read, Ok)?;
            drop(first);
            if model.spec != spec {
                return Err(ExecutorError::Reload("its file was overwritten by another model".to_owned()));
            }
            Ok(Arc::new(model))
        };
        Ok(devices.build(config, Box::new(read)))
    }
}

/// Where an engine's weights are read, whenever a worker is built anew, so that nobody holds them in between.
enum Weights {
    BuiltIn,
    /// Open, so that it stays the same file when another takes its place.
    File {
        path: PathBuf,
        file: File,
        called: Option<(String, String)>,
    },
}

impl Weights {
    /// What a file says about itself.
    fn spec(&self) -> Result<(ModelSpec, Graph), ModelFileError> {
        match self {
            Self::BuiltIn => {
                let spec = builtin::spec();
                let graph = spec.validate()?;
                Ok((spec, graph))
            }
            Self::File { path, file, called } => {
                let (mut spec, graph) = Model::read_spec(file, path)?;
                rename(&mut spec, called.as_ref())?;
                Ok((spec, graph))
            }
        }
    }

    fn read(&self) -> Result<Model, ModelFileError> {
        let Self::File { path, file, called } = self else { return builtin::model() };
        let mut model = Model::read_open(file, path)?;
        rename(&mut model.spec, called.as_ref())?;
        Ok(model)
    }
}

/// Calls a model as its directories do.
fn rename(spec: &mut ModelSpec, called: Option<&(String, String)>) -> Result<(), ModelFileError> {
    if let Some((name, version)) = called {
        (spec.name, spec.version) = (name.clone(), version.clone());
        spec.validate()?;
    }
    Ok(())
}
