//! `kinetoscope.v1.VideoClassificationService`.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tracing::info;

use super::proto::video_classification_service_server::VideoClassificationService;
use super::proto::{self, video};
use super::{Services, status, wire};
use crate::engine::Engine;
use crate::video::Source;

/// Serves the models of [`Services`].
#[derive(Debug, Clone)]
pub(super) struct Service {
    services: Arc<Services>,
    places: Arc<Semaphore>,
    max_requests: usize,
}

impl Service {
    pub(super) fn new(services: Arc<Services>, max_requests: usize) -> Self {
        let max_requests = max_requests.clamp(1, Semaphore::MAX_PERMITS);
        Self { services, places: Arc::new(Semaphore::new(max_requests)), max_requests }
    }

    /// The model that a request chose, or the default one.
    fn engine(&self, selector: Option<proto::ModelSelector>) -> Result<&Engine, Status> {
        let proto::ModelSelector { name, version } = selector.unwrap_or_default();
        let fits = |engine: &&Engine| {
            let spec = engine.spec();
            (name.is_empty() || spec.name == name) && (version.is_empty() || spec.version == version)
        };
        self.services.models.iter().find(fits).ok_or_else(|| {
            let known: Vec<String> = self.services.models.iter().map(|engine| engine.spec().name.clone()).collect();
            status::model_not_found(&name, &version, &known)
        })
    }
}

#[tonic::async_trait]
impl VideoClassificationService for Service {
    async fn classify_video(
        &self,
        request: Request<proto::ClassifyVideoRequest>,
    ) -> Result<Response<proto::ClassifyVideoResponse>, Status> {
        let _place = self.places.try_acquire().map_err(|_| status::overloaded(self.max_requests))?;
        let proto::ClassifyVideoRequest { video, options } = request.into_inner();
        let options = options.unwrap_or_default();
        let content = match video.and_then(|video| video.source) {
            Some(video::Source::Content(content)) => content,
            None => return Err(status::invalid("VIDEO_MISSING", "the request has no video: set video.content")),
        };
        let engine = self.engine(options.model.clone())?;
        let options = (&options)
            .try_into()
            .map_err(|error: wire::UnknownSegmentMode| status::invalid("UNKNOWN_SEGMENT_MODE", error.to_string()))?;
        let bytes = content.len();
        let classification = self
            .services
            .classifier
            .classify(engine, Source::Bytes(content), &options)
            .await
            .map_err(|error| status::from_classify_error(&error))?;
        info!(
            model = %classification.model.name,
            bytes,
            frames = classification.video.frames,
            clips = classification.video.clips,
            label = classification.labels.first().map_or("", |label| label.label.as_str()),
            "classified"
        );
        Ok(Response::new(proto::ClassifyVideoResponse { classification: Some(classification.into()) }))
    }

    async fn list_models(
        &self,
        _request: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsResponse>, Status> {
        let models = self
            .services
            .models
            .iter()
            .enumerate()
            .map(|(index, engine)| proto::Model { labels: Vec::new(), ..wire::model(engine.spec(), index == 0) });
        let limits = wire::limits(self.services.classifier.limits());
        Ok(Response::new(proto::ListModelsResponse { models: models.collect(), limits: Some(limits) }))
    }

    async fn get_model(
        &self,
        request: Request<proto::GetModelRequest>,
    ) -> Result<Response<proto::GetModelResponse>, Status> {
        let engine = self.engine(request.into_inner().model)?;
        let default = std::ptr::eq(engine, &self.services.models[0]);
        Ok(Response::new(proto::GetModelResponse { model: Some(wire::model(engine.spec(), default)) }))
    }
}
