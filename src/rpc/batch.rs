//! `ClassifyVideos`: many videos over one stream, for batch jobs.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::{Request, Status, Streaming};
use tracing::{Instrument, info_span};

use super::admission::Reservations;
use super::proto::classify_videos_response::Result as Answer;
use super::proto::{ClassifyVideosRequest, ClassifyVideosResponse};
use super::service::{self, Service};
use super::status;
use super::stream::Answers;

pub(super) fn classify(
    service: Service,
    request: Request<Streaming<ClassifyVideosRequest>>,
) -> Answers<ClassifyVideosResponse> {
    Answers::of(|answers| run(service, request, answers))
}

async fn run(
    service: Service,
    request: Request<Streaming<ClassifyVideosRequest>>,
    answers: mpsc::Sender<Result<ClassifyVideosResponse, Status>>,
) -> Result<(), Status> {
    let deadline = service::deadline(request.extensions());
    let reservations = request.extensions().get::<Reservations>().cloned().unwrap_or_default();
    let mut messages = request.into_inner();
    // A video keeps its share until its answer is on its way, so a client that takes no answers is read no further.
    let shares = Arc::new(Semaphore::new(service.options.videos_per_stream.max(1)));
    // Ends the videos when the call ends.
    let mut videos = JoinSet::new();
    loop {
        let share = Arc::clone(&shares).acquire_owned().await.expect("never closed");
        let Some(ClassifyVideosRequest { key, video, options }) = messages.message().await? else { break };
        let room = reservations.take();
        let (service, answers) = (service.clone(), answers.clone());
        let span = info_span!("video", key);
        let work = async move {
            let result = {
                let _batch_place = service.batch_places.acquire().await;
                let _place = service.places.acquire().await;
                service.classify_message(video, &options.unwrap_or_default(), deadline).await
            };
            drop(room);
            let answer = match result {
                Ok(classification) => Answer::Classification(classification),
                Err(status) => Answer::Error(status::to_video_error(&status)),
            };
            let _ = answers.send(Ok(ClassifyVideosResponse { key, result: Some(answer) })).await;
            drop(share);
        };
        videos.spawn(work.instrument(span));
        while let Some(ended) = videos.try_join_next() {
            ended.map_err(|error| status::internal(&error))?;
        }
    }
    while let Some(ended) = videos.join_next().await {
        ended.map_err(|error| status::internal(&error))?;
    }
    Ok(())
}
