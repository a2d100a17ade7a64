//! Calls that send many messages over one stream: `ClassifyVideos`, for batch jobs, and the inference protocol's
//! `ModelStreamInfer`.

use std::future::Future;

use tonic::{Request, Status, Streaming};
use tracing::{Instrument, info_span};

use super::messages::{Arrivals, Arrived};
use super::service::{self, Answers, Service};
use crate::app::quote::cut;
use crate::app::{self, App, AppError, Deadline, Incoming, Item};
use crate::proto::classify_videos_response::Result as Answer;
use crate::proto::{ClassifyVideosRequest, ClassifyVideosResponse, VideoError};

/// Answers each message of a call with what `answer` makes of it, or of the refusal of it.
pub(crate) fn answer_each<M, A, F>(
    app: App,
    request: Request<Streaming<M>>,
    answer: impl Fn(Service, M, Option<AppError>, Option<Deadline>) -> F + Send + Sync + 'static,
) -> Result<Answers<A>, Status>
where
    M: Send + 'static,
    A: Send + 'static,
    F: Future<Output = A> + Send + 'static,
{
    let permit = app.stream_permit()?;
    let answers = app::Answers::of(|answers| async move {
        let deadline = service::deadline(request.extensions());
        let arrivals = request.extensions().get::<Arrivals>().cloned().unwrap_or_default();
        let messages = Messages { messages: request.into_inner(), arrivals };
        let answer = |app, message, refused| answer(Service(app), message, refused, deadline);
        app.answer_each(permit, messages, answers, answer).await
    });
    Ok(Box::pin(answers))
}

/// The messages of a call, with their memory.
struct Messages<M> {
    messages: Streaming<M>,
    arrivals: Arrivals,
}

impl<M: Send + 'static> Incoming for Messages<M> {
    type Item = Item<M>;
    type Error = Status;

    async fn next(&mut self) -> Result<Option<Item<M>>, Status> {
        let Some(message) = self.messages.message().await? else { return Ok(None) };
        let (room, refused) = self.arrivals.take().map_or((None, None), |Arrived { room, refused }| (room, refused));
        Ok(Some(Item { message, room, refused }))
    }
}

pub(super) fn classify(
    service: Service,
    request: Request<Streaming<ClassifyVideosRequest>>,
) -> Result<Answers<ClassifyVideosResponse>, Status> {
    answer_each(service.0, request, |service, ClassifyVideosRequest { key, video, options }, refused, deadline| {
        let span = info_span!("video", key = &*cut(&key));
        let work = async move {
            let answer = match refused {
                Some(error) => Err(error),
                None => service.classify_message(video, options, deadline).await,
            };
            let answer = match answer {
                Ok(classification) => Answer::Classification(classification.into()),
                Err(error) => Answer::Error(VideoError::from(&error)),
            };
            ClassifyVideosResponse { key, result: Some(answer) }
        };
        work.instrument(span)
    })
}
