//! Calls that send many messages over one stream, each with an answer of its own: `ClassifyVideos`, for batch jobs, and
//! the inference protocol's `ModelStreamInfer`.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::{Request, Status, Streaming};
use tracing::{Instrument, info_span};

use super::admission::{Arrivals, Arrived};
use super::proto::classify_videos_response::Result as Answer;
use super::proto::{ClassifyVideosRequest, ClassifyVideosResponse};
use super::quote::cut;
use super::request::Deadline;
use super::service::{self, Service};
use super::status;
use super::stream::{Answers, send};

/// Answers each message of a call with what `answer` makes of it, or of the refusal of it, in the order in which that ends.
/// When the server stops, it reads no more of them, answers those that it has, and ends with UNAVAILABLE.
pub(super) fn answer_each<M, A, F>(
    service: Service,
    request: Request<Streaming<M>>,
    answer: impl Fn(Service, M, Option<Status>, Option<Deadline>) -> F + Send + 'static,
) -> Result<Answers<A>, Status>
where
    M: Send + 'static,
    A: Send + 'static,
    F: Future<Output = A> + Send + 'static,
{
    let stream = service.stream()?;
    Ok(Answers::of(|answers| run(service, stream, request, answers, answer)))
}

async fn run<M, A, F>(
    service: Service,
    _stream: OwnedSemaphorePermit,
    request: Request<Streaming<M>>,
    answers: mpsc::Sender<Result<A, Status>>,
    answer: impl Fn(Service, M, Option<Status>, Option<Deadline>) -> F,
) -> Result<(), Status>
where
    A: Send + 'static,
    F: Future<Output = A> + Send + 'static,
{
    let idle_timeout = service.options.pace.idle_timeout;
    let deadline = service::deadline(request.extensions());
    let arrivals = request.extensions().get::<Arrivals>().cloned().unwrap_or_default();
    let mut messages = request.into_inner();
    let mut drained = service.drained.clone();
    // A message keeps its share until its answer is on its way, so a client that takes no answers is read no further.
    let shares = Arc::new(Semaphore::new(service.options.videos_per_stream.max(1)));
    // Ends the work when the call ends.
    let mut work = JoinSet::new();
    let stops = loop {
        let next = async {
            let share = Arc::clone(&shares).acquire_owned().await.expect("never closed");
            Ok::<_, Status>((share, messages.message().await?))
        };
        let (share, message) = tokio::select! {
            next = next => next?,
            Some(ended) = work.join_next() => {
                ended.map_err(|error| status::internal(&error))??;
                continue;
            }
            _ = drained.wait_for(|drained| *drained) => break true,
        };
        let Some(message) = message else { break false };
        let (room, refused) = arrivals.take().map_or((None, None), |Arrived { room, refused }| (room, refused));
        let answer = answer(service.clone(), message, refused, deadline);
        let (service, answers) = (service.clone(), answers.clone());
        let one = async move {
            let answer = {
                let _batch_place = service.batch_places.acquire().await;
                let _place = service.places.acquire().await;
                answer.await
            };
            drop(room);
            let sent = send(&answers, answer, idle_timeout).await;
            drop(share);
            // If nobody is there to take the answer, the call ends anyway.
            sent.map(drop)
        };
        work.spawn(one.in_current_span());
    };
    while let Some(ended) = work.join_next().await {
        ended.map_err(|error| status::internal(&error))??;
    }
    if stops { Err(status::stopping("the server is stopping: send what has no answer to another one")) } else { Ok(()) }
}

pub(super) fn classify(
    service: Service,
    request: Request<Streaming<ClassifyVideosRequest>>,
) -> Result<Answers<ClassifyVideosResponse>, Status> {
    answer_each(service, request, |service, ClassifyVideosRequest { key, video, options }, refused, deadline| {
        let span = info_span!("video", key = &*cut(&key));
        let work = async move {
            let answer = match refused {
                Some(status) => Err(status),
                None => service.classify_message(video, &options.unwrap_or_default(), deadline).await,
            };
            let answer = match answer {
                Ok(classification) => Answer::Classification(classification),
                Err(status) => Answer::Error(status::to_video_error(&status)),
            };
            ClassifyVideosResponse { key, result: Some(answer) }
        };
        work.instrument(span)
    })
}
