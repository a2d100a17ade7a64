//! `kinetoscope.v1.VideoClassificationService`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, watch};
use tonic::{Extensions, Request, Response, Status, Streaming};
use tracing::{Instrument, info, info_span};

use super::proto::video_classification_service_server::VideoClassificationService;
use super::proto::{self, video};
use super::request::Deadline;
use super::stream::Answers;
use super::{Reason, ServeOptions, Services, batch, status, stream, wire};
use crate::classify::{Classification, ClassifyOptions, ClipScores};
use crate::engine::Engine;
use crate::video::Source;

/// What an answer takes from the last clip to the client: `partial_at_deadline` answers this much earlier.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// Serves the models of [`Services`].
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) services: Arc<Services>,
    pub(super) options: ServeOptions,
    /// One for each video that is worked on.
    pub(super) places: Arc<Semaphore>,
    /// Those of them that videos of [`batch`] may have, so that batch jobs leave room for others.
    pub(super) batch_places: Arc<Semaphore>,
    /// Those of them that videos may have that are fetched, so that slow sources leave room for others.
    uri_places: Arc<Semaphore>,
    /// One for each call of [`stream`].
    uploads: Arc<Semaphore>,
    /// One for each call of [`batch`].
    streams: Arc<Semaphore>,
    pub(super) is_ready: watch::Receiver<bool>,
    /// Whether the server stops.
    pub(super) drained: watch::Receiver<bool>,
}

impl Service {
    pub(super) fn new(
        services: Arc<Services>,
        options: ServeOptions,
        is_ready: watch::Receiver<bool>,
        drained: watch::Receiver<bool>,
    ) -> Self {
        let max_requests = options.max_requests.clamp(1, Semaphore::MAX_PERMITS);
        let max_streams = options.max_streams.clamp(1, Semaphore::MAX_PERMITS);
        let max_uploads = options.max_uploads.clamp(1, Semaphore::MAX_PERMITS);
        let options = ServeOptions { max_requests, max_streams, max_uploads, ..options };
        let most = (max_requests - max_requests / 4).max(1);
        Self {
            services,
            options,
            places: Arc::new(Semaphore::new(max_requests)),
            batch_places: Arc::new(Semaphore::new(most)),
            uri_places: Arc::new(Semaphore::new(most)),
            uploads: Arc::new(Semaphore::new(max_uploads)),
            streams: Arc::new(Semaphore::new(max_streams)),
            is_ready,
            drained,
        }
    }

    /// The model that a request chose, or the default one.
    pub(super) fn engine(&self, selector: Option<&proto::ModelSelector>) -> Result<Arc<Engine>, Status> {
        let (name, version) = selector.map_or(("", ""), |selector| (&selector.name, &selector.version));
        let served = self.services.models.served();
        served
            .find(name, version)
            .cloned()
            .ok_or_else(|| status::model_not_found(name, version, served.engines().map(|engine| engine.spec().id())))
    }

    /// A place for one video, or a refusal.
    pub(super) fn place(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.places.try_acquire().map_err(|_| self.overloaded())
    }

    fn overloaded(&self) -> Status {
        self.services.metrics.rejected("requests");
        status::overloaded(self.options.max_requests)
    }

    /// Leave to upload a video in chunks, or a refusal: as there are too many uploads, or so many videos that this one
    /// would only wait when it is here.
    pub(super) fn upload(&self) -> Result<OwnedSemaphorePermit, Status> {
        if self.places.available_permits() == 0 {
            return Err(self.overloaded());
        }
        Arc::clone(&self.uploads).try_acquire_owned().map_err(|_| {
            self.services.metrics.rejected("uploads");
            status::too_many_uploads(self.options.max_uploads)
        })
    }

    /// A place for one call of many videos, or a refusal.
    pub(super) fn stream(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            self.services.metrics.rejected("streams");
            status::too_many_streams(self.options.max_streams)
        })
    }

    /// Options as sent, checked, with the deadline of their call.
    pub(super) fn options(
        &self,
        options: &proto::ClassificationOptions,
        deadline: Option<Deadline>,
    ) -> Result<ClassifyOptions, Status> {
        let checked: ClassifyOptions = options
            .try_into()
            .map_err(|error: wire::OptionsError| status::invalid(error.reason(), error.to_string()))?;
        let answer_by = deadline
            .filter(|_| options.partial_at_deadline)
            .map(|Deadline(at)| at.checked_sub(ANSWER_TIME).unwrap_or_else(Instant::now));
        Ok(ClassifyOptions { answer_by, ..checked })
    }

    /// Classifies one video.
    pub(super) async fn classify(
        &self,
        engine: &Engine,
        source: Source,
        options: &ClassifyOptions,
        clips: Option<&mpsc::Sender<ClipScores>>,
    ) -> Result<Classification, Status> {
        let classifier = &self.services.classifier;
        let classification = classifier
            .classify(engine, source, options, clips)
            .await
            .map_err(|error| status::from_classify_error(&error))?;
        info!(
            model = %classification.model.name,
            frames = classification.video.frames,
            clips = classification.video.clips,
            label = classification.labels.first().map_or("", |label| label.label.as_str()),
            "classified"
        );
        Ok(classification)
    }

    /// Classifies a video that one message brought or named.
    pub(super) async fn classify_message(
        &self,
        video: Option<proto::Video>,
        options: &proto::ClassificationOptions,
        deadline: Option<Deadline>,
    ) -> Result<proto::VideoClassification, Status> {
        let source = video.and_then(|video| video.source).ok_or_else(|| {
            status::invalid(Reason::VideoMissing, "the request has no video: set video.content or video.uri")
        })?;
        if let video::Source::Content(content) = &source {
            self.services.metrics.received(content.len() as u64);
        }
        let engine = self.engine(options.model.as_ref())?;
        let options = self.options(options, deadline)?;
        let classification = match source {
            video::Source::Content(content) => self.classify(&engine, Source::Bytes(content), &options, None).await?,
            video::Source::Uri(uri) => self.classify_uri(&engine, &uri, &options).await?,
        };
        Ok(classification.into())
    }

    async fn classify_uri(
        &self,
        engine: &Engine,
        uri: &str,
        options: &ClassifyOptions,
    ) -> Result<Classification, Status> {
        let _place = self.uri_places.try_acquire().map_err(|_| self.overloaded())?;
        let max_bytes = self.services.classifier.limits().max_bytes;
        let opening = self.options.uris.open(uri, max_bytes).instrument(info_span!("open_uri"));
        let mut opened = opening.await.map_err(status::from_uri_error)?;
        let source = opened.source();
        let result = tokio::select! {
            error = opened.failed() => Err(status::from_uri_error(error)),
            result = self.classify(engine, source, options, None) => match opened.failure() {
                // Decoding suffers too when its bytes don't come, but does not know why.
                Some(error) => Err(status::from_uri_error(error)),
                None => result,
            },
        };
        self.services.metrics.received(opened.received());
        result
    }
}

/// The deadline of a call.
pub(super) fn deadline(extensions: &Extensions) -> Option<Deadline> {
    extensions.get().copied()
}

#[tonic::async_trait]
impl VideoClassificationService for Service {
    type ClassifyVideoStreamStream = Answers<proto::ClassifyVideoStreamResponse>;
    type ClassifyVideosStream = Answers<proto::ClassifyVideosResponse>;

    async fn classify_video(
        &self,
        request: Request<proto::ClassifyVideoRequest>,
    ) -> Result<Response<proto::ClassifyVideoResponse>, Status> {
        let _place = self.place()?;
        let deadline = deadline(request.extensions());
        let proto::ClassifyVideoRequest { video, options } = request.into_inner();
        let classification = self.classify_message(video, &options.unwrap_or_default(), deadline).await?;
        Ok(Response::new(proto::ClassifyVideoResponse { classification: Some(classification) }))
    }

    async fn classify_video_stream(
        &self,
        request: Request<Streaming<proto::ClassifyVideoStreamRequest>>,
    ) -> Result<Response<Self::ClassifyVideoStreamStream>, Status> {
        Ok(Response::new(stream::classify(self.clone(), request)))
    }

    async fn classify_videos(
        &self,
        request: Request<Streaming<proto::ClassifyVideosRequest>>,
    ) -> Result<Response<Self::ClassifyVideosStream>, Status> {
        batch::classify(self.clone(), request).map(Response::new)
    }

    async fn list_models(
        &self,
        _request: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsResponse>, Status> {
        let served = self.services.models.served();
        let describe = |(index, engine): (usize, &Arc<Engine>)| proto::Model {
            labels: Vec::new(),
            ..wire::model(engine.spec(), index == 0)
        };
        let models = served.engines().enumerate().map(describe).collect();
        let limits = wire::limits(self.services.classifier.limits());
        Ok(Response::new(proto::ListModelsResponse { models, limits: Some(limits) }))
    }

    async fn get_model(
        &self,
        request: Request<proto::GetModelRequest>,
    ) -> Result<Response<proto::GetModelResponse>, Status> {
        let engine = self.engine(request.into_inner().model.as_ref())?;
        let default = self.engine(None)?.spec().id() == engine.spec().id();
        Ok(Response::new(proto::GetModelResponse { model: Some(wire::model(engine.spec(), default)) }))
    }
}
