//! The models of a server: read from files and directories at the start, and again when asked, while it serves.
//!
//! A directory holds model files, and directories `NAME/VERSION/` with one model file each, which goes by that name and
//! version whatever it calls itself. Names on the hub are looked up again at each look. A model that is replaced or removed
//! finishes the requests that it has. A file that can't be served, or a directory that can't be read, changes nothing of what
//! is served.

mod error;
mod look;
mod retired;
mod scan;
mod weights;

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::engine::{Devices, Engine, EngineConfig};
use crate::hub::{Hub, HubOptions, ModelSource};
use crate::metrics::Metrics;
pub use error::RepositoryError;
use look::Look;
use retired::Retired;
use scan::{Failure, Found, ModelFile, origin, scan};
use weights::Opened;

/// How long a model that is to be started waits for memory, if those that were replaced would leave it enough.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

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
    /// Memory that all models together may take, those included that are about to be replaced, and those that were and
    /// still answer.
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
    retired: Arc<Retired>,
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

#[derive(Debug, Clone)]
struct Entry {
    /// Absent for the built-in model and for engines that came from elsewhere.
    file: Option<ModelFile>,
    engine: Arc<Engine>,
}

impl Entry {
    /// Name and version.
    fn id(&self) -> (&str, &str) {
        self.engine.spec().id()
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.engine, &other.engine)
    }

    fn origin(&self) -> Option<&PathBuf> {
        self.file.as_ref().map(|file| &file.origin)
    }
}

impl Served {
    fn new(mut models: Vec<Entry>, refused: Vec<Refused>) -> Self {
        models.sort_by_cached_key(|Entry { file, engine }| {
            let spec = engine.spec();
            file.as_ref().map(|file| (file.source, spec.name.clone(), Reverse(Version(spec.version.clone()))))
        });
        Self { models, refused }
    }

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
        let (changing, served) = (Mutex::default(), RwLock::default());
        let repository = Self { options, hub, metrics, changing, served, retired: Arc::default() };
        if repository.options.sources.is_empty() {
            let engine = repository.start(Opened::built_in()?, 0)?;
            repository.replace(Served::new(vec![Entry { file: None, engine }], Vec::new()));
            return Ok(repository);
        }
        let (models, failures) = repository.look(None);
        let refused = failures.iter().map(Failure::refused).collect();
        let given = |path: &PathBuf| repository.options.sources.iter().any(|source| origin(source) == *path);
        for failure in failures {
            let says_why = models.is_empty() && !failure.is_unreadable_directory();
            let Failure { path, error, .. } = failure;
            if says_why || given(&path) {
                return Err(error);
            }
            error!(%error, "a model is not served");
        }
        if models.is_empty() {
            return Err(RepositoryError::Empty);
        }
        repository.replace(Served::new(models, refused));
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
        let (metrics, changing, retired) = (Arc::default(), Mutex::default(), Arc::default());
        Self { options, hub: Hub::new(hub), metrics, changing, served, retired }
    }

    /// What is served now.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves what the paths hold now. What can't be served is told by [`Served::refused`], the first of it as an error.
    pub fn refresh(&self) -> Result<(), RepositoryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (models, failures) = self.look(None);
        if models.is_empty() {
            return Err(RepositoryError::Empty);
        }
        log(&failures);
        self.replace(Served::new(models, failures.iter().map(Failure::refused).collect()));
        failures.into_iter().next().map_or(Ok(()), |failure| Err(failure.error))
    }

    /// Serves all versions of a model as the paths hold them now, or changes nothing.
    pub fn load(&self, name: &str) -> Result<(), RepositoryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.served();
        let (models, failures) = self.look(Some(name));
        log(&failures);
        let mut refused: Vec<Refused> = failures.iter().map(Failure::refused).collect();
        // Of those that were not looked at, what was known holds.
        let known = before.refused.iter().filter(|old| old.name != name);
        let unseen: Vec<Refused> =
            known.filter(|old| refused.iter().all(|new| new.name != old.name)).cloned().collect();
        refused.extend(unseen);
        let found = models.iter().any(|entry| entry.id().0 == name);
        let of_model = |failure: &Failure| match &failure.name {
            Some(of) if of == name => true,
            // Of what can't be read nobody knows which model it was to be.
            None if !found => true,
            _ => before.models.iter().any(|old| old.id().0 == name && old.origin().is_some_and(|at| failure.hides(at))),
        };
        let error = match failures.into_iter().find(of_model) {
            Some(failure) => Some(failure.error),
            None if found => None,
            None => Some(RepositoryError::NotFound { name: name.to_owned() }),
        };
        let models = if error.is_none() { models } else { before.models.clone() };
        self.replace(Served::new(models, refused));
        error.map_or(Ok(()), Err)
    }

    /// Serves a model no longer, until it is loaded again.
    pub fn unload(&self, name: &str) -> Result<(), RepositoryError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let served = self.served();
        let left: Vec<Entry> = served.models.iter().filter(|entry| entry.id().0 != name).cloned().collect();
        if left.len() == served.models.len() {
            return Err(RepositoryError::NotFound { name: name.to_owned() });
        }
        if left.is_empty() {
            return Err(RepositoryError::Last);
        }
        self.replace(Served::new(left, served.refused.clone()));
        Ok(())
    }

    /// Memory of models that were replaced or removed and still answer the requests that they have, by name.
    pub fn retired_bytes(&self) -> BTreeMap<String, u64> {
        self.retired.bytes_by_name()
    }

    /// What is to be served: what the paths hold now, or, if it is about one model, what is served already but for that
    /// one. With what can't be.
    fn look(&self, only: Option<&str>) -> (Vec<Entry>, Vec<Failure>) {
        // Of other models the hub is not asked.
        let as_it_was = |origin: &PathBuf| {
            let name = only?;
            let before = self.served();
            let entry = before.models.iter().find(|entry| entry.origin() == Some(origin) && entry.id().0 != name)?;
            entry.file.clone()
        };
        let mut look = Look::new(self, only, scan(&self.options.sources, &self.hub, as_it_was));
        look.start();
        look.end()
    }

    /// Starts a model for which there is memory. Others that are not served yet take `waiting` bytes.
    fn start(&self, opened: Opened, waiting: u64) -> Result<Arc<Engine>, RepositoryError> {
        let started = Instant::now();
        let spec = opened.spec.clone();
        let (config, devices) = (self.options.engine, &self.options.devices);
        let failed = |error| RepositoryError::Build { name: spec.name.clone(), error };
        let expected = devices.memory_bytes(&opened.graph, config).map_err(failed)?;
        self.check_room(&spec.name, expected, waiting)?;
        let build = opened.executors(config, devices)?;
        let engine =
            Engine::with_workers(spec.clone(), config, devices.workers(), build, &self.metrics).map_err(failed)?;
        // On GPUs nobody knew before.
        let bytes = engine.memory_bytes();
        self.check_room(&spec.name, bytes, waiting)?;
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

    /// Whether there is memory for a model of `bytes`; if need be after a wait for those that were replaced.
    fn check_room(&self, name: &str, bytes: u64, waiting: u64) -> Result<(), RepositoryError> {
        let limit = self.options.max_bytes;
        let held = self.served().engines().map(|engine| engine.memory_bytes()).sum::<u64>() + waiting;
        let retired = match limit.checked_sub(held.saturating_add(bytes)) {
            Some(left) => match self.retired.wait_until(left, ROOM_PATIENCE) {
                retired if retired <= left => return Ok(()),
                retired => retired,
            },
            None => self.retired.bytes(),
        };
        Err(RepositoryError::Memory { name: name.to_owned(), bytes, taken: held + retired, limit })
    }

    /// Serves these models, and ends those that are no longer among them once their last request has ended.
    fn replace(&self, new: Served) {
        let new = Arc::new(new);
        let old =
            std::mem::replace(&mut *self.served.write().unwrap_or_else(PoisonError::into_inner), Arc::clone(&new));
        for Entry { engine, .. } in &old.models {
            if !new.engines().any(|kept| Arc::ptr_eq(kept, engine)) {
                self.retired.add(Arc::clone(engine));
            }
        }
    }
}

/// Reads all models and starts none; the first that can't be served is an error.
pub fn check(sources: &[ModelSource], hub: HubOptions) -> Result<(), RepositoryError> {
    let Found { files, failures, .. } = scan(sources, &Hub::new(hub), |_| None);
    let given = |path: &PathBuf| sources.iter().any(|source| origin(source) == *path);
    for failure in failures {
        if failure.is_unreadable_directory() && !given(&failure.path) {
            warn!(error = %failure.error, "a directory is passed over");
        } else {
            return Err(failure.error);
        }
    }
    if files.is_empty() && !sources.is_empty() {
        return Err(RepositoryError::Empty);
    }
    let mut ids = HashSet::new();
    for file in files {
        let opened = Opened::file(&file)?;
        opened.check()?;
        let (name, version) = (opened.spec.name, opened.spec.version);
        if !ids.insert((name.clone(), version.clone())) {
            return Err(RepositoryError::Duplicate { path: file.origin, name, version });
        }
    }
    Ok(())
}

fn log(failures: &[Failure]) {
    for Failure { error, .. } in failures {
        error!(%error, "a model is not served as its file has it");
    }
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
