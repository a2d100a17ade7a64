//! One video that is here as a whole, or that a URI names.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::{Instrument, info, info_span};

use super::{App, AppError, Deadline};
use crate::classify::{Classification, ClassifyOptions, ClipScores};
use crate::engine::Engine;
use crate::video::Source;

/// Chooses a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelSelector {
    /// The default model if empty.
    pub name: String,
    /// The preferred version if empty.
    pub version: String,
}

/// How a video is to be classified.
#[derive(Debug, Clone, Default)]
pub struct ClassifyRequest {
    /// By which model.
    pub model: ModelSelector,
    /// How, and what to answer.
    pub options: ClassifyOptions,
    /// When to answer.
    pub deadline: Option<Deadline>,
    /// Whether to answer shortly before the deadline with what is known by then, instead of failing.
    pub partial_at_deadline: bool,
}

/// Where a video's bytes are.
#[derive(Debug, Clone)]
pub enum VideoSource {
    /// The whole encoded file.
    Content(Bytes),
    /// Where the server gets it.
    Uri(String),
    /// A file or a pipe of this machine.
    Local(Source),
}

impl ClassifyRequest {
    /// The options, with when to answer.
    pub(super) fn options(&self) -> ClassifyOptions {
        let deadline = self.deadline.filter(|_| self.partial_at_deadline);
        ClassifyOptions { answer_by: deadline.map(|deadline| deadline.answer_by()), ..self.options }
    }
}

impl App {
    /// The model that a request chose, or the default one.
    pub(crate) fn engine(&self, model: &ModelSelector) -> Result<Arc<Engine>, AppError> {
        let served = self.services.models.served();
        let ModelSelector { name, version } = model;
        let known = || served.engines().map(|engine| engine.spec().id());
        served.find(name, version).cloned().ok_or_else(|| AppError::model_not_found(name, version, known()))
    }

    /// Classifies one video, or refuses it if there are too many. The clips' scores go to `clips`, if there is one.
    pub async fn classify(
        &self,
        video: VideoSource,
        request: &ClassifyRequest,
        clips: Option<&mpsc::Sender<ClipScores>>,
    ) -> Result<Classification, AppError> {
        let _permit = self.video_permit()?;
        self.classify_permitted(video, request, clips).await
    }

    /// Classifies one video for which there is a permit.
    pub(crate) async fn classify_permitted(
        &self,
        video: VideoSource,
        request: &ClassifyRequest,
        clips: Option<&mpsc::Sender<ClipScores>>,
    ) -> Result<Classification, AppError> {
        if let VideoSource::Content(content) = &video {
            self.services.metrics.received(content.len() as u64);
        }
        let engine = self.engine(&request.model)?;
        let options = request.options();
        match video {
            VideoSource::Content(content) => self.run(&engine, Source::Bytes(content), &options, clips).await,
            VideoSource::Local(source) => self.run(&engine, source, &options, clips).await,
            VideoSource::Uri(uri) => self.classify_uri(&engine, &uri, &options, clips).await,
        }
    }

    async fn classify_uri(
        &self,
        engine: &Engine,
        uri: &str,
        options: &ClassifyOptions,
        clips: Option<&mpsc::Sender<ClipScores>>,
    ) -> Result<Classification, AppError> {
        let _permit = self.uri_permit()?;
        let max_bytes = self.services.classifier.limits().max_bytes;
        let mut opened = self.options.uris.open(uri, max_bytes).instrument(info_span!("open_uri")).await?;
        let source = opened.source();
        let result = tokio::select! {
            error = opened.failed() => Err(error.into()),
            result = self.run(engine, source, options, clips) => match opened.failure() {
                // Decoding suffers too when its bytes don't come, but does not know why.
                Some(error) => Err(error.into()),
                None => result,
            },
        };
        self.services.metrics.received(opened.received());
        result
    }

    /// Decodes and classifies.
    pub(super) async fn run(
        &self,
        engine: &Engine,
        source: Source,
        options: &ClassifyOptions,
        clips: Option<&mpsc::Sender<ClipScores>>,
    ) -> Result<Classification, AppError> {
        let classification = self.services.classifier.classify(engine, source, options, clips).await?;
        info!(
            model = %classification.model.name,
            frames = classification.video.frames,
            clips = classification.video.clips,
            label = classification.labels.first().map_or("", |label| label.label.as_str()),
            "classified"
        );
        Ok(classification)
    }
}
