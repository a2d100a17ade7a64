//! The models: which there are, and changes of them.

use std::sync::Arc;

use super::{App, AppError, ModelSelector};
use crate::engine::Engine;
use crate::model::spec::ModelSpec;
use crate::repository::{Repository, RepositoryError};
use crate::video::Limits;

/// A model of the repository, served or not.
#[derive(Debug, Clone)]
pub(crate) struct IndexEntry {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Whether it takes requests.
    pub(crate) is_ready: bool,
    /// Why not; empty if it does.
    pub(crate) reason: String,
}

impl App {
    /// All models; the default one first.
    pub(crate) fn models(&self) -> Vec<Arc<ModelSpec>> {
        self.services.models.served().engines().map(|engine| Arc::clone(engine.spec())).collect()
    }

    /// A model, and whether it is the default one.
    pub(crate) fn model(&self, model: &ModelSelector) -> Result<(Arc<ModelSpec>, bool), AppError> {
        let engine = self.engine(model)?;
        let is_default = self.engine(&ModelSelector::default())?.spec().id() == engine.spec().id();
        Ok((Arc::clone(engine.spec()), is_default))
    }

    /// What a video may take.
    pub(crate) fn limits(&self) -> &Limits {
        self.services.classifier.limits()
    }

    /// A model's engine, or those of all models without a name.
    pub(crate) fn engines(&self, model: &ModelSelector) -> Result<Vec<Arc<Engine>>, AppError> {
        match model.name.is_empty() {
            true => Ok(self.services.models.served().engines().cloned().collect()),
            false => Ok(vec![self.engine(model)?]),
        }
    }

    /// All versions of a model.
    pub(crate) fn versions(&self, name: &str) -> Vec<String> {
        let models = self.models().into_iter().filter(|spec| spec.name == name);
        models.map(|spec| spec.version.clone()).collect()
    }

    /// All models, those too whose files can't be served.
    pub(crate) fn index(&self) -> Vec<IndexEntry> {
        let served = self.services.models.served();
        let running = served.engines().map(|engine| {
            let (spec, is_ready) = (engine.spec(), engine.state().is_serving());
            let reason = if is_ready { "" } else { "its worker is starting" };
            IndexEntry { name: spec.name.clone(), version: spec.version.clone(), is_ready, reason: reason.to_owned() }
        });
        let refused = served.refused.iter().cloned().map(|file| IndexEntry {
            name: file.name,
            version: file.version,
            is_ready: false,
            reason: file.reason,
        });
        running.chain(refused).collect()
    }

    /// Serves all versions of a model as its files have them now.
    pub(crate) async fn load_model(&self, name: String) -> Result<(), AppError> {
        self.change_models(move |models| models.load(&name)).await
    }

    /// Serves a model no longer. Running requests finish.
    pub(crate) async fn unload_model(&self, name: String) -> Result<(), AppError> {
        self.change_models(move |models| models.unload(&name)).await
    }

    async fn change_models(
        &self,
        change: impl FnOnce(&Repository) -> Result<(), RepositoryError> + Send + 'static,
    ) -> Result<(), AppError> {
        if !self.options.model_control {
            return Err(AppError::no_model_control());
        }
        let models = Arc::clone(&self.services.models);
        // Goes on if the caller leaves: a change that was begun is not taken back.
        let changed = tokio::task::spawn_blocking(move || change(&models)).await;
        Ok(changed.map_err(|error| AppError::internal(&error))??)
    }
}
