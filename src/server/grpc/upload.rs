//! `ClassifyVideoStream`: one video that is classified while it is uploaded.

use bytes::Bytes;
use tokio_stream::StreamExt;
use tonic::{Request, Status, Streaming};

use super::messages::Arrivals;
use super::service::{self, Answers};
use crate::app::{self, App, AppError, Chunk, ClassifyRequest, Incoming, Reason, UploadEvent};
use crate::proto::classify_video_stream_request::Payload;
use crate::proto::{ClassificationOptions, ClassifyVideoStreamRequest, ClassifyVideoStreamResponse};

pub(super) fn classify(
    app: App,
    request: Request<Streaming<ClassifyVideoStreamRequest>>,
) -> Answers<ClassifyVideoStreamResponse> {
    let events = app::Answers::<UploadEvent, Status>::of(|events| async move {
        let permit = app.upload_permit()?;
        let deadline = service::deadline(request.extensions());
        let arrivals = request.extensions().get::<Arrivals>().cloned().unwrap_or_default();
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.payload);
        let (options, first) = match first {
            Some(Payload::Options(options)) => (options, Bytes::new()),
            Some(Payload::Chunk(chunk)) => (ClassificationOptions::default(), chunk),
            None => {
                let message = "the call has no video: send chunks";
                return Err(AppError::new(Reason::VideoMissing, message).into());
            }
        };
        let request = ClassifyRequest::from_proto(options, deadline)?;
        let first = Some(Chunk { bytes: first, room: arrivals.take().and_then(|arrived| arrived.room) });
        app.classify_upload(permit, &request, Chunks { first, messages, arrivals }, &events).await
    });
    Box::pin(events.map(|event| event.map(Into::into)))
}

/// The chunks in a call's messages.
struct Chunks {
    first: Option<Chunk>,
    messages: Streaming<ClassifyVideoStreamRequest>,
    arrivals: Arrivals,
}

impl Incoming for Chunks {
    type Item = Chunk;
    type Error = Status;

    async fn next(&mut self) -> Result<Option<Chunk>, Status> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(message) = self.messages.message().await? else { return Ok(None) };
        let room = self.arrivals.take().and_then(|arrived| arrived.room);
        match message.payload {
            Some(Payload::Chunk(bytes)) => Ok(Some(Chunk { bytes, room })),
            Some(Payload::Options(_)) => {
                Err(AppError::new(Reason::OptionsNotFirst, "options may only be in the first message").into())
            }
            None => Ok(Some(Chunk::default())),
        }
    }
}
