//! The models of a server: read from files and directories at the start, and again when asked, while it serves.
//!
//! A directory holds model files, and directories `NAME/VERSION/` with one model file each, which goes by that name and
//! version whatever it calls itself. Names on the hub are looked up again at each look. A model that is replaced or removed
//! finishes the requests that it has. A file that can't be served changes nothing of what is served.

use std::cmp::{Ordering, Reverse};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::engine::{self, Devices, Engine, EngineConfig, ExecutorError};
use crate::hub::{Hub, HubError, HubModel, HubOptions, ModelSource};
use crate::metrics::Metrics;
use crate::model::builtin;
use crate::model::file::{Model, ModelFileError};

/// How often a model that was taken out is asked whether its last request has ended.
const RETIREMENT_PERIOD: Duration = Duration::from_millis(50);

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

/// What is read, and how it runs.
#[derive(Debug, Clone)]
pub struct RepositoryOptions {
    /// Model files, directories of them, and names on the hub; the built-in model if there are none.
    pub sources: Vec<ModelSource>,
    /// How the hub is reached.
    pub hub: HubOptions,
    /// Of each model.
    pub engine: EngineConfig,
    /// Where models run.
    pub devices: Devices,
    /// Memory that all models together may take, those included that are about to be replaced.
    pub max_bytes: u64,
}

/// The models of a server.
#[derive(Debug)]
pub struct Repository {
    options: RepositoryOptions,
    hub: Hub,
    metrics: Arc<Metrics>,
    /// One change at a time.
    changing: Mutex<()>,
    served: RwLock<Arc<Served>>,
}

/// Models at one moment.
#[derive(Debug, Default)]
pub struct Served {
    /// The default one first, the newest version of a name before the others.
    models: Vec<Entry>,
    /// Files that were found at the last look and are not served.
    pub refused: Vec<Refused>,
}

/// A file that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The model, or the file as long as nothing in it could be read.
    pub name: String,
    /// Of the model, if known.
    pub version: String,
    /// What is wrong.
    pub reason: String,
}

/// A file that can't be served.
struct Failure {
    /// Its origin, or the directory.
    path: PathBuf,
    /// Of the model, by its directories or as it was before.
    name: Option<String>,
    /// By its directories.
    version: Option<String>,
    error: RepositoryError,
}

impl Failure {
    fn refused(&self) -> Refused {
        let name = self.name.clone().unwrap_or_else(|| file_name(&self.path));
        Refused { name, version: self.version.clone().unwrap_or_default(), reason: self.error.public() }
    }
}

#[derive(Debug, Clone)]
struct Entry {
    /// Absent for the built-in model and for engines that came from elsewhere.
    file: Option<ModelFile>,
    engine: Arc<Engine>,
}

impl Entry {
    fn origin(&self) -> Option<&PathBuf> {
        self.file.as_ref().map(|file| &file.origin)
    }
}

/// A model file that was found.
#[derive(Debug, Clone)]
struct ModelFile {
    /// What tells it from other files, whatever it holds: its path, or its name on the hub.
    origin: PathBuf,
    /// Where it is read.
    path: PathBuf,
    /// Which of the sources it was found in.
    source: usize,
    /// Name and version by its directories.
    called: Option<(String, String)>,
    stamp: Stamp,
}

/// What tells one content of a path from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl ModelFile {
    fn find(path: PathBuf, source: usize, called: Option<(String, String)>) -> Result<Self, RepositoryError> {
        match std::fs::metadata(&path) {
            Ok(file) => Ok(Self { origin: path.clone(), path, source, called, stamp: Stamp::of(&file) }),
            Err(error) => Err(RepositoryError::Io { path, error }),
        }
    }

    fn find_on_hub(hub: &Hub, name: &HubModel, source: usize) -> Result<Self, RepositoryError> {
        let path = hub.file(name).map_err(|error| RepositoryError::Hub { name: name.clone(), error })?;
        Ok(Self { origin: name.to_string().into(), ..Self::find(path, source, None)? })
    }

    /// What its model is called, as far as that is known without reading it: `old` is what it held before.
    fn name(&self, old: Option<&Entry>) -> Option<String> {
        let called = self.called.as_ref().map(|(name, _)| name);
        old.map(|old| &old.engine.spec().name).or(called).cloned()
    }

    /// If it is changed after it was found, the next look finds that.
    fn open(&self) -> Result<(Weights, Model), RepositoryError> {
        let file = File::open(&self.path).map_err(|error| RepositoryError::Io { path: self.path.clone(), error })?;
        let weights = Weights::File { path: self.path.clone(), file, called: self.called.clone() };
        match weights.read() {
            Ok(model) => Ok((weights, model)),
            Err(error) => Err(RepositoryError::File { path: self.origin.clone(), error }),
        }
    }
}

impl Stamp {
    fn of(file: &std::fs::Metadata) -> Self {
        let modified = (file.mtime(), file.mtime_nsec());
        Self { device: file.dev(), inode: file.ino(), len: file.len(), modified }
    }
}

impl Served {
    /// All models, the default one first.
    pub fn engines(&self) -> impl Iterator<Item = &Arc<Engine>> {
        self.models.iter().map(|entry| &entry.engine)
    }

    /// The first model that fits. An empty name or version fits all.
    pub fn find(&self, name: &str, version: &str) -> Option<&Arc<Engine>> {
        self.engines().find(|engine| {
            let spec = engine.spec();
            (name.is_empty() || spec.name == name) && (version.is_empty() || spec.version == version)
        })
    }
}

impl Repository {
    /// Reads and starts all models. Files that were given themselves have to be good; of those in directories it takes
    /// one.
    pub fn open(options: RepositoryOptions, metrics: Arc<Metrics>) -> Result<Self, RepositoryError> {
        let hub = Hub::new(options.hub.clone());
        let repository = Self { options, hub, metrics, changing: Mutex::default(), served: RwLock::default() };
        if repository.options.sources.is_empty() {
            let broken = |error| RepositoryError::File { path: "that is built in".into(), error };
            let engine = repository.start(Weights::BuiltIn.read().map_err(broken)?, Weights::BuiltIn, 0)?;
            repository.replace(Served { models: vec![Entry { file: None, engine }], refused: Vec::new() });
            return Ok(repository);
        }
        let (served, failures) = repository.read(None)?;
        let none = served.models.is_empty();
        let given = |path: &PathBuf| repository.options.sources.iter().any(|source| origin(source) == *path);
        for Failure { path, error, .. } in failures {
            if none || given(&path) {
                return Err(error);
            }
            error!(%error, "a model is not served");
        }
        if none {
            return Err(RepositoryError::Empty);
        }
        repository.replace(served);
        Ok(repository)
    }

    /// A repository of running models that never change but for being removed.
    pub fn of(engines: Vec<Engine>) -> Self {
        let models = engines.into_iter().map(|engine| Entry { file: None, engine: Arc::new(engine) }).collect();
        let hub = HubOptions::default();
        let options = RepositoryOptions {
            sources: Vec::new(),
            hub: hub.clone(),
            engine: EngineConfig::default(),
            devices: Devices::Cpu,
            max_bytes: u64::MAX,
        };
        let served = RwLock::new(Arc::new(Served { models, refused: Vec::new() }));
        Self { options, hub: Hub::new(hub), metrics: Arc::default(), changing: Mutex::default(), served }
    }

    /// What is served now.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves what the paths hold now. What can't be served is told by [`Served::refused`], the first of it as an error.
    pub fn refresh(&self) -> Result<(), RepositoryError> {
        self.change(None)
    }

    /// Serves all versions of a model as the paths hold them now.
    pub fn load(&self, name: &str) -> Result<(), RepositoryError> {
        self.change(Some(name))
    }

    /// Serves a model no longer, until it is loaded again.
    pub fn unload(&self, name: &str) -> Result<(), RepositoryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let served = self.served();
        let left: Vec<Entry> = served.models.iter().filter(|entry| entry.engine.spec().name != name).cloned().collect();
        if left.len() == served.models.len() {
            return Err(RepositoryError::NotFound { name: name.to_owned() });
        }
        if left.is_empty() {
            return Err(RepositoryError::Last);
        }
        self.replace(Served { models: left, refused: served.refused.clone() });
        Ok(())
    }

    fn change(&self, name: Option<&str>) -> Result<(), RepositoryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (served, failures) = self.read(name)?;
        if served.models.is_empty() {
            return Err(RepositoryError::Empty);
        }
        let found = name.is_none_or(|name| served.find(name, "").is_some());
        self.replace(served);
        for Failure { error, .. } in &failures {
            error!(%error, "a model is not served as its file has it");
        }
        // Of a file that can't be read nobody knows which model it was to be.
        let concerns =
            |failure: &Failure| name.is_none_or(|name| failure.name.as_deref().map_or(!found, |of| of == name));
        match failures.into_iter().find(concerns) {
            Some(failure) => Err(failure.error),
            None if found => Ok(()),
            None => Err(RepositoryError::NotFound { name: name.unwrap_or_default().to_owned() }),
        }
    }

    /// What is to be served: what the paths hold now, but of models not called `name` what is served already. With the
    /// files that can't be.
    fn read(&self, name: Option<&str>) -> Result<(Served, Vec<Failure>), RepositoryError> {
        let before = self.served();
        let entry_of = |origin: &PathBuf| before.models.iter().find(|entry| entry.origin() == Some(origin));
        // Of other models the hub is not asked.
        let as_it_was = |origin: &PathBuf| {
            let entry = entry_of(origin).filter(|entry| name.is_some_and(|name| entry.engine.spec().name != name));
            entry.and_then(|entry| entry.file.clone())
        };
        let (files, mut failures) = scan(&self.options.sources, &self.hub, as_it_was)?;
        let mut models: Vec<Entry> = before.models.iter().filter(|entry| entry.file.is_none()).cloned().collect();
        for failure in &mut failures {
            if let Some(old) = entry_of(&failure.path) {
                failure.name = Some(old.engine.spec().name.clone());
                models.push(old.clone());
            }
        }
        let mut taken: u64 = before.engines().map(|engine| engine.memory_bytes()).sum();
        for file in files {
            let path = file.origin.clone();
            let old = entry_of(&path);
            let its_name = file.name(old);
            let version = file.called.as_ref().map(|(_, version)| version.clone());
            let fail = |error| failures.push(Failure { path: path.clone(), name: its_name.clone(), version, error });
            let is_other = its_name.as_ref().zip(name).is_some_and(|(its_name, name)| its_name != name);
            let is_same = old.and_then(|old| old.file.as_ref()).is_some_and(|old| old.stamp == file.stamp);
            let looked = if is_other || is_same { Ok(old.cloned()) } else { self.start_file(file, name, taken) };
            let entry = match looked {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                Err(error) => {
                    fail(error);
                    models.extend(old.cloned());
                    continue;
                }
            };
            if old.is_none_or(|old| !Arc::ptr_eq(&old.engine, &entry.engine)) {
                taken += entry.engine.memory_bytes();
            }
            let spec = entry.engine.spec();
            if models.iter().any(|other| other.engine.spec().id() == spec.id()) {
                let (name, version) = (spec.name.clone(), spec.version.clone());
                fail(RepositoryError::Duplicate { path: path.clone(), name, version });
            } else {
                models.push(entry);
            }
        }
        models.sort_by_cached_key(|Entry { file, engine }| {
            let spec = engine.spec();
            file.as_ref().map(|file| (file.source, spec.name.clone(), Reverse(Version(spec.version.clone()))))
        });
        let mut refused: Vec<Refused> = failures.iter().map(Failure::refused).collect();
        // Of those that were not looked at, what was known holds.
        let known = before.refused.iter().filter(|old| name.is_some_and(|name| old.name != name));
        let unseen: Vec<Refused> =
            known.filter(|old| refused.iter().all(|new| new.name != old.name)).cloned().collect();
        refused.extend(unseen);
        Ok((Served { models, refused }, failures))
    }

    /// Starts a file's model unless `name` is another one. Models take `taken` bytes already.
    fn start_file(&self, file: ModelFile, name: Option<&str>, taken: u64) -> Result<Option<Entry>, RepositoryError> {
        let (weights, model) = file.open()?;
        if name.is_some_and(|name| model.spec.name != name) {
            return Ok(None);
        }
        let engine = self.start(model, weights, taken)?;
        Ok(Some(Entry { file: Some(file), engine }))
    }

    fn start(&self, model: Model, weights: Weights, taken: u64) -> Result<Arc<Engine>, RepositoryError> {
        let started = Instant::now();
        let spec = model.spec.clone();
        let (config, devices) = (self.options.engine, &self.options.devices);
        let build = executors(model, weights, config, devices);
        let engine = Engine::with_workers(spec.clone(), config, devices.workers(), build, &self.metrics)
            .map_err(|error| RepositoryError::Build { name: spec.name.clone(), error })?;
        let (bytes, limit) = (engine.memory_bytes(), self.options.max_bytes);
        if taken.saturating_add(bytes) > limit {
            return Err(RepositoryError::Memory { name: spec.name, bytes, taken, limit });
        }
        info!(
            model = %spec.name,
            version = %spec.version,
            architecture = %spec.architecture,
            classes = spec.labels.len(),
            bytes,
            elapsed = ?started.elapsed(),
            "model ready"
        );
        if !spec.trained {
            warn!(model = %spec.name, "this model is untrained: its labels mean nothing; choose one with --model");
        }
        Ok(Arc::new(engine))
    }

    /// Serves these models, and ends those that are no longer among them once their last request has ended.
    fn replace(&self, new: Served) {
        let new = Arc::new(new);
        let old =
            std::mem::replace(&mut *self.served.write().unwrap_or_else(PoisonError::into_inner), Arc::clone(&new));
        for Entry { engine, .. } in &old.models {
            if !new.engines().any(|kept| Arc::ptr_eq(kept, engine)) {
                retire(Arc::clone(engine));
            }
        }
    }
}

/// Reads all models and starts none; the first that can't be served is an error.
pub fn check(sources: &[ModelSource], hub: HubOptions) -> Result<(), RepositoryError> {
    let (files, failures) = scan(sources, &Hub::new(hub), |_| None)?;
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure.error);
    }
    if files.is_empty() && !sources.is_empty() {
        return Err(RepositoryError::Empty);
    }
    let mut ids = HashSet::new();
    for file in files {
        let (_, model) = file.open()?;
        let (name, version) = model.spec.id();
        if !ids.insert((name.to_owned(), version.to_owned())) {
            let (name, version) = (name.to_owned(), version.to_owned());
            return Err(RepositoryError::Duplicate { path: file.origin, name, version });
        }
    }
    Ok(())
}

/// Ends an engine when nobody uses it any more, on a thread of its own: it waits for its workers.
fn retire(engine: Arc<Engine>) {
    std::thread::spawn(move || {
        while Arc::strong_count(&engine) > 1 {
            std::thread::sleep(RETIREMENT_PERIOD);
        }
        let (name, version) = engine.spec().id();
        info!(model = name, version, "model ended");
    });
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
    fn read(&self) -> Result<Model, ModelFileError> {
        let Self::File { path, file, called } = self else { return builtin::model() };
        let mut model = Model::read_open(file, path)?;
        if let Some((name, version)) = called {
            (model.spec.name, model.spec.version) = (name.clone(), version.clone());
            model.spec.validate()?;
        }
        Ok(model)
    }
}

/// Makes executors of a model: the first of the tensors that were read.
fn executors(model: Model, weights: Weights, config: EngineConfig, devices: &Devices) -> Box<engine::Build> {
    let spec = model.spec.clone();
    let first = Mutex::new(Some(model));
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
    devices.build(config, Box::new(read))
}

/// What tells a source from others.
fn origin(source: &ModelSource) -> PathBuf {
    match source {
        ModelSource::Path(path) => path.clone(),
        ModelSource::Hub(name) => name.to_string().into(),
    }
}

/// The model files of some sources, in order, and those that are none. The hub is asked for those that are not
/// `as_it_was`.
fn scan(
    sources: &[ModelSource],
    hub: &Hub,
    as_it_was: impl Fn(&PathBuf) -> Option<ModelFile>,
) -> Result<(Vec<ModelFile>, Vec<Failure>), RepositoryError> {
    let (mut files, mut failures) = (Vec::new(), Vec::new());
    for (source, place) in sources.iter().enumerate() {
        let path = match place {
            ModelSource::Path(path) => path,
            ModelSource::Hub(name) => {
                let path = origin(place);
                let found = as_it_was(&path).map_or_else(|| ModelFile::find_on_hub(hub, name, source), Ok);
                match found {
                    Ok(file) => files.push(file),
                    Err(error) => failures.push(Failure { path, name: None, version: None, error }),
                }
                continue;
            }
        };
        if !path.is_dir() {
            files.push(ModelFile::find(path.clone(), source, None)?);
            continue;
        }
        for path in children(path)? {
            if !path.is_dir() {
                if is_model(&path) {
                    files.push(ModelFile::find(path, source, None)?);
                }
                continue;
            }
            for version in children(&path)?.into_iter().filter(|path| path.is_dir()) {
                let mut models: Vec<PathBuf> = children(&version)?.into_iter().filter(|path| is_model(path)).collect();
                match (models.pop(), models.len()) {
                    (Some(model), 0) => {
                        files.push(ModelFile::find(model, source, Some((file_name(&path), file_name(&version))))?);
                    }
                    (_, others) => {
                        let actual = if others == 0 { 0 } else { others + 1 };
                        failures.push(Failure {
                            name: Some(file_name(&path)),
                            version: Some(file_name(&version)),
                            error: RepositoryError::Version { path: version.clone(), actual },
                            path: version,
                        });
                    }
                }
            }
        }
    }
    Ok((files, failures))
}

/// What a directory holds, by name. Hidden files are none of ours: links of Kubernetes' volumes, files being written.
fn children(directory: &Path) -> Result<Vec<PathBuf>, RepositoryError> {
    let io = |error| RepositoryError::Io { path: directory.to_owned(), error };
    let entries = std::fs::read_dir(directory).map_err(io)?.collect::<io::Result<Vec<_>>>().map_err(io)?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| !file_name(path).starts_with('.'));
    paths.sort();
    Ok(paths)
}

fn is_model(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension == "safetensors")
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A version as people count: 1.10 after 1.9, and numbers after words.
#[derive(Debug, PartialEq, Eq)]
struct Version(String);

impl Version {
    fn parts(&self) -> impl Iterator<Item = (Option<u64>, &str)> {
        self.0.split('.').map(|part| (part.parse().ok(), part))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(other.parts())
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_people_count() {
        let ordered = ["beta", "1", "1.2", "1.10", "2", "10"].map(|version| Version(version.to_owned()));
        assert!(ordered.is_sorted(), "{ordered:?}");
    }
}
