//! What a look at the sources makes of the models that are served.
//!
//! What is unchanged goes on. What changed or is new is a [`Candidate`]: it is served if it can be started and no other
//! model has its name and version; otherwise what was served of its file goes on.

use std::sync::Arc;

use super::scan::{Failure, Found, ModelFile};
use super::weights::Opened;
use super::{Entry, Repository, RepositoryError, Served};
use crate::engine::Engine;

/// A file whose model is to be started.
struct Candidate {
    file: ModelFile,
    name: String,
    version: String,
    /// Until it is started.
    opened: Option<Opened>,
    /// Once it is started.
    engine: Option<Arc<Engine>>,
    /// What is served of the file.
    old: Option<Entry>,
}

impl Candidate {
    fn is_called(&self, (name, version): (&str, &str)) -> bool {
        self.name == name && self.version == version
    }

    /// Whether it takes the place of what has its name and version already.
    fn is_in_place(&self) -> bool {
        self.old.as_ref().is_some_and(|old| self.is_called(old.id()))
    }

    fn replaces(&self, entry: &Entry) -> bool {
        self.old.as_ref().is_some_and(|old| old.is(entry))
    }

    fn entry(&self) -> Option<Entry> {
        let engine = self.engine.clone()?;
        Some(Entry { file: Some(self.file.clone()), engine })
    }
}

/// A look while it goes on.
pub(super) struct Look<'a> {
    repository: &'a Repository,
    /// The only model that it is about, if it is about one.
    only: Option<&'a str>,
    /// What goes on as it is.
    kept: Vec<Entry>,
    candidates: Vec<Candidate>,
    failures: Vec<Failure>,
}

impl<'a> Look<'a> {
    pub(super) fn new(repository: &'a Repository, only: Option<&'a str>, found: Found) -> Self {
        let before = repository.served();
        let Found { files, failures, .. } = found;
        let is_other = |entry: &Entry| only.is_some_and(|name| entry.id().0 != name);
        let goes_on = |entry: &&Entry| match entry.origin() {
            Some(origin) => is_other(entry) || failures.iter().any(|failure| failure.hides(origin)),
            None => true,
        };
        let kept = before.models.iter().filter(goes_on).cloned().collect();
        let mut look = Self { repository, only, kept, candidates: Vec::new(), failures };
        for failure in &mut look.failures {
            let hidden = before.models.iter().find(|entry| entry.origin() == Some(&failure.path));
            if let Some(old) = hidden {
                failure.name = Some(old.id().0.to_owned());
            }
        }
        for file in files {
            let of_file = || before.models.iter().filter(|entry| entry.origin() == Some(&file.origin));
            let is_same = |entry: &&Entry| entry.file.as_ref().is_some_and(|old| old.stamp == file.stamp);
            if let Some(same) = of_file().find(is_same) {
                if !is_other(same) {
                    look.kept.push(same.clone());
                }
                continue;
            }
            // What another model was served of it stays, whatever it holds now.
            let old = of_file().find(|entry| !is_other(entry)).cloned();
            look.open(file, old);
        }
        // Those that keep their names first: nobody else can take these.
        look.candidates.sort_by_key(|candidate| !candidate.is_in_place());
        look.settle();
        look
    }

    /// Makes a candidate of a file that changed or is new.
    fn open(&mut self, file: ModelFile, old: Option<Entry>) {
        let is_other = |name: &str| self.only.is_some_and(|only| only != name);
        if file.called.as_ref().is_some_and(|(name, _)| is_other(name)) {
            return;
        }
        match Opened::file(&file) {
            Ok(opened) if is_other(&opened.spec.name) => {}
            Ok(opened) => {
                let (name, version) = (opened.spec.name.clone(), opened.spec.version.clone());
                self.candidates.push(Candidate { file, name, version, opened: Some(opened), engine: None, old });
            }
            Err(error) => {
                let (called, version) = file.called.unzip();
                let name = old.as_ref().map(|old| old.id().0.to_owned()).or(called);
                self.failures.push(Failure { path: file.origin, name, version, error });
                self.kept.extend(old);
            }
        }
    }

    /// Gives up candidates of which another model has the name and version, until there are none.
    fn settle(&mut self) {
        loop {
            let is_taken = |index: usize| {
                let candidate = &self.candidates[index];
                let others = self.candidates[..index].iter().map(|other| (other.name.as_str(), other.version.as_str()));
                self.kept.iter().map(Entry::id).chain(others).any(|id| candidate.is_called(id))
            };
            let Some(index) = (0..self.candidates.len()).find(|&index| is_taken(index)) else { return };
            let Candidate { name, version, file, .. } = &self.candidates[index];
            let (name, version, path) = (name.clone(), version.clone(), file.origin.clone());
            self.give_up(index, RepositoryError::Duplicate { path, name, version });
        }
    }

    fn give_up(&mut self, index: usize, error: RepositoryError) {
        let Candidate { file, name, old, .. } = self.candidates.remove(index);
        let name = old.as_ref().map(|old| old.id().0.to_owned()).or(file.called.as_ref().map(|_| name));
        let version = file.called.map(|(_, version)| version);
        self.failures.push(Failure { path: file.origin, name, version, error });
        self.kept.extend(old);
    }

    /// Starts the candidates one after the other. A look at all models serves each as soon as it can, so that the memory of
    /// those that are replaced gets free for the next ones; a look at one changes all or nothing.
    pub(super) fn start(&mut self) {
        while let Some(index) = self.candidates.iter().position(|candidate| candidate.engine.is_none()) {
            let opened = self.candidates[index].opened.take().expect("opened until it is started");
            match self.repository.start(opened, self.waiting_bytes()) {
                Ok(engine) => {
                    self.candidates[index].engine = Some(engine);
                    if self.only.is_none() {
                        self.serve_what_is_ready();
                    }
                }
                Err(error) => {
                    self.give_up(index, error);
                    self.settle();
                }
            }
        }
    }

    /// Memory of engines that were started and are not served yet.
    fn waiting_bytes(&self) -> u64 {
        let served = self.repository.served();
        let waits = |engine: &&Arc<Engine>| !served.engines().any(|other| Arc::ptr_eq(other, engine));
        self.candidates
            .iter()
            .filter_map(|candidate| candidate.engine.as_ref())
            .filter(waits)
            .map(|e| e.memory_bytes())
            .sum()
    }

    fn serve_what_is_ready(&mut self) {
        let before = self.repository.served();
        let is_pending = |name: &str| self.candidates.iter().any(|other| other.engine.is_none() && other.name == name);
        let mut models = before.models.clone();
        // What is gone goes, unless another version of it is about to come.
        models.retain(|entry| {
            self.kept.iter().any(|kept| kept.is(entry))
                || self.candidates.iter().any(|candidate| {
                    candidate.replaces(entry) || candidate.entry().is_some_and(|started| started.is(entry))
                })
                || is_pending(entry.id().0)
        });
        for candidate in &self.candidates {
            let Some(started) = candidate.entry() else { continue };
            // Another model has its name and version until it is replaced itself.
            let is_taken = |entry: &Entry| candidate.is_called(entry.id()) && !candidate.replaces(entry);
            if !models.iter().any(is_taken) {
                models.retain(|entry| !candidate.replaces(entry));
                models.push(started);
            }
        }
        let served = Served::new(models, before.refused.clone());
        for candidate in &mut self.candidates {
            if candidate.engine.as_ref().is_some_and(|engine| served.engines().any(|other| Arc::ptr_eq(other, engine)))
            {
                // It is not gone back to, and has to end for the next ones.
                candidate.old = None;
            }
        }
        self.repository.replace(served);
    }

    /// What is to be served, and what can't be.
    pub(super) fn end(self) -> (Vec<Entry>, Vec<Failure>) {
        let mut models = self.kept;
        models.extend(self.candidates.iter().filter_map(Candidate::entry));
        (models, self.failures)
    }
}
