//! `kinetoscope.v1.VideoClassificationService`.

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::{many, upload};
use crate::app::{App, AppError, ClassifyRequest, Deadline, Reason, VideoSource};
use crate::classify::Classification;
use crate::proto::video_classification_service_server::VideoClassificationService;
use crate::proto::{self, video};

/// Answers of a stream.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// gRPC's way to [`App`].
#[derive(Debug, Clone)]
pub(crate) struct Service(pub(crate) App);

/// The deadline of a call.
pub(crate) fn deadline(extensions: &Extensions) -> Option<Deadline> {
    extensions.get().copied()
}

/// What a message brings or names.
fn source(video: Option<proto::Video>) -> Result<VideoSource, AppError> {
    match video.and_then(|video| video.source) {
        Some(video::Source::Content(content)) => Ok(VideoSource::Content(content)),
        Some(video::Source::Uri(uri)) => Ok(VideoSource::Uri(uri)),
        None => {
            let message = "the request has no video: set video.content or video.uri";
            Err(AppError::new(Reason::VideoMissing, message))
        }
    }
}

impl Service {
    /// Classifies a video that one message brought or named, for which there is a permit.
    pub(super) async fn classify_message(
        &self,
        video: Option<proto::Video>,
        options: Option<proto::ClassificationOptions>,
        deadline: Option<Deadline>,
    ) -> Result<Classification, AppError> {
        let source = source(video)?;
        let request = ClassifyRequest::from_proto(options.unwrap_or_default(), deadline)?;
        self.0.classify_permitted(source, &request, None).await
    }
}

#[tonic::async_trait]
impl VideoClassificationService for Service {
    type ClassifyVideoStreamStream = Answers<proto::ClassifyVideoStreamResponse>;
    type ClassifyVideosStream = Answers<proto::ClassifyVideosResponse>;

    async fn classify_video(
        &self,
        request: Request<proto::ClassifyVideoRequest>,
    ) -> Result<Response<proto::ClassifyVideoResponse>, Status> {
        let _permit = self.0.video_permit()?;
        let deadline = deadline(request.extensions());
        let proto::ClassifyVideoRequest { video, options } = request.into_inner();
        let classification = self.classify_message(video, options, deadline).await?;
        Ok(Response::new(proto::ClassifyVideoResponse { classification: Some(classification.into()) }))
    }

    async fn classify_video_stream(
        &self,
        request: Request<Streaming<proto::ClassifyVideoStreamRequest>>,
    ) -> Result<Response<Self::ClassifyVideoStreamStream>, Status> {
        Ok(Response::new(upload::classify(self.0.clone(), request)))
    }

    async fn classify_videos(
        &self,
        request: Request<Streaming<proto::ClassifyVideosRequest>>,
    ) -> Result<Response<Self::ClassifyVideosStream>, Status> {
        many::classify(self.clone(), request).map(Response::new)
    }

    async fn list_models(
        &self,
        _request: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsResponse>, Status> {
        Ok(Response::new(proto::ListModelsResponse::of(&self.0)))
    }

    async fn get_model(
        &self,
        request: Request<proto::GetModelRequest>,
    ) -> Result<Response<proto::GetModelResponse>, Status> {
        let selector = request.into_inner().model.map(Into::into).unwrap_or_default();
        let (spec, default) = self.0.model(&selector)?;
        Ok(Response::new(proto::GetModelResponse { model: Some(proto::model(&spec, default)) }))
    }
}

impl proto::ListModelsResponse {
    /// All models without their labels, and what the server takes.
    pub(crate) fn of(app: &App) -> Self {
        let models = app.models();
        let describe = |(index, spec)| proto::Model { labels: Vec::new(), ..proto::model(spec, index == 0) };
        Self {
            models: models.iter().map(|spec| &**spec).enumerate().map(describe).collect(),
            limits: Some(proto::limits(app.limits())),
        }
    }
}
