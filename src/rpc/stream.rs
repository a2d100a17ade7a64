//! `ClassifyVideoStream`: one video that is classified while it is uploaded.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Status, Streaming};
use tracing::{Instrument, info_span};

use super::admission::Arrivals;
use super::proto::classify_video_stream_request::Payload;
use super::proto::classify_video_stream_response::Event;
use super::proto::{self, ClassifyVideoStreamRequest, ClassifyVideoStreamResponse};
use super::service::{self, Service};
use super::{Reason, status, wire};
use crate::metrics::Stage;
use crate::video::{Source, SpoolError, SpoolOptions, SpoolWriter, spool};

/// Bytes of an upload that stay in memory; more go to a file. Not counted with the memory for messages: an upload that
/// waited for room there while it holds some could wait for ever.
const SPOOL_MEMORY: usize = 1 << 20;

/// Answers that wait for the client to take them.
const ANSWERS_AHEAD: usize = 16;

const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// The answers of a call, made by a task of its own. Dropping them ends the task.
#[derive(Debug)]
pub(super) struct Answers<T> {
    answers: mpsc::Receiver<Result<T, Status>>,
    _task: AbortOnDropHandle<()>,
}

impl<T: Send + 'static> Answers<T> {
    /// Runs `work`, which sends answers; an error of it is the last.
    pub(super) fn of<F>(work: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> Self
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (sender, answers) = mpsc::channel(ANSWERS_AHEAD);
        let work = work(sender.clone());
        let task = async move {
            if let Err(status) = work.await {
                let _ = sender.send(Err(status)).await;
            }
        };
        let task = tokio::spawn(task.in_current_span());
        Self { answers, _task: AbortOnDropHandle::new(task) }
    }
}

impl<T> Stream for Answers<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_recv(context)
    }
}

type Sender = mpsc::Sender<Result<ClassifyVideoStreamResponse, Status>>;

pub(super) fn classify(
    service: Service,
    request: Request<Streaming<ClassifyVideoStreamRequest>>,
) -> Answers<ClassifyVideoStreamResponse> {
    Answers::of(|answers| run(service, request, answers))
}

async fn run(
    service: Service,
    request: Request<Streaming<ClassifyVideoStreamRequest>>,
    answers: Sender,
) -> Result<(), Status> {
    let upload_place = service.upload()?;
    let idle_timeout = service.options.pace.idle_timeout;
    let deadline = service::deadline(request.extensions());
    let arrivals = request.extensions().get::<Arrivals>().cloned().unwrap_or_default();
    let mut messages = request.into_inner();
    let first = messages.message().await?.and_then(|message| message.payload);
    let (options, first_chunk) = match first {
        Some(Payload::Options(options)) => (options, None),
        Some(Payload::Chunk(chunk)) => (proto::ClassificationOptions::default(), Some(chunk)),
        None => return Err(status::invalid(Reason::VideoMissing, "the call has no video: send chunks")),
    };
    let engine = service.engine(options.model.as_ref())?;
    let options = service.options(&options, deadline)?;

    let cancel = CancellationToken::new();
    let _cancel_on_drop = cancel.clone().drop_guard();
    let max_bytes = service.services.classifier.limits().max_bytes;
    let spool_options = SpoolOptions { max_memory: SPOOL_MEMORY, max_bytes, directory: service.options.spool.clone() };
    let (writer, reader) = spool(spool_options, cancel);
    let (received, received_bytes) = tokio::sync::watch::channel(0u64);
    // Ends only if the upload fails.
    let receive = async {
        let upload = Upload { messages: &mut messages, arrivals: &arrivals, received: &received };
        let begun = Instant::now();
        match upload.receive(first_chunk, writer).instrument(info_span!("receive")).await {
            Ok(bytes) => {
                service.services.metrics.received(bytes);
                service.services.metrics.stage(Stage::Receive, begun.elapsed());
                // From now on it counts among the videos that are worked on. It is not refused any more, as its bytes are
                // here; how many there can be is bounded by the uploads.
                let _place = service.places.try_acquire();
                std::future::pending().await
            }
            Err(error) => error,
        }
    };

    let (clip_sender, mut clips) = mpsc::channel(ANSWERS_AHEAD);
    let classify = async {
        // The sender ends with this block, and with it the stream of clips.
        let clip_sender = clip_sender;
        service.classify(&engine, Source::Spool(reader), &options, Some(&clip_sender)).await
    };
    let tell = async {
        let mut progress = proto::Progress::default();
        let mut period = tokio::time::interval_at((Instant::now() + PROGRESS_PERIOD).into(), PROGRESS_PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                clip = clips.recv() => {
                    let Some(clip) = clip else { return Ok(()) };
                    progress.clips += 1;
                    progress.position = Some(wire::duration(clip.end));
                    Event::Clip(wire::clip_result(clip, engine.spec(), &options))
                }
                _ = period.tick() => {
                    progress.received_bytes = *received_bytes.borrow();
                    Event::Progress(progress)
                }
            };
            if !send(&answers, ClassifyVideoStreamResponse { event: Some(event) }, idle_timeout).await? {
                return Ok(());
            }
        }
    };
    let told = async { tokio::try_join!(classify, tell) };
    let (classification, ()) = tokio::select! {
        told = told => told?,
        error = receive => return Err(error),
    };
    drop(upload_place);
    let event = Some(Event::Classification(classification.into()));
    // If nobody is there to take it, the call ends anyway.
    send(&answers, ClassifyVideoStreamResponse { event }, idle_timeout).await.map(drop)
}

/// Says whether anybody is there to take the answer; an error if it is not taken within `idle_timeout`.
pub(super) async fn send<T>(
    answers: &mpsc::Sender<Result<T, Status>>,
    answer: T,
    idle_timeout: Duration,
) -> Result<bool, Status> {
    let sent = timeout(idle_timeout, answers.send(Ok(answer))).await;
    sent.map(|sent| sent.is_ok()).map_err(|_| status::client_idle(idle_timeout))
}

struct Upload<'a> {
    messages: &'a mut Streaming<ClassifyVideoStreamRequest>,
    arrivals: &'a Arrivals,
    received: &'a tokio::sync::watch::Sender<u64>,
}

impl Upload<'_> {
    /// Writes the chunks to the spool and tells how many bytes they were. A decoder that wants no more ends it early.
    async fn receive(self, first: Option<Bytes>, mut writer: SpoolWriter) -> Result<u64, Status> {
        let mut next = first;
        let mut bytes = 0;
        loop {
            if let Some(chunk) = next.take() {
                bytes += chunk.len() as u64;
                // Writing may wait for a disk.
                let (rest, written) = tokio::task::spawn_blocking(move || {
                    let written = writer.write(&chunk);
                    (writer, written)
                })
                .await
                .map_err(|error| status::internal(&error))?;
                writer = rest;
                self.received.send_replace(bytes);
                match written {
                    Ok(()) => {}
                    Err(SpoolError::Unwanted) => return Ok(bytes),
                    Err(error) => return Err(status::from_spool_error(error)),
                }
            }
            // The message's memory is free again: its bytes are in the spool.
            drop(self.arrivals.take());
            match self.messages.message().await? {
                Some(ClassifyVideoStreamRequest { payload: Some(Payload::Chunk(chunk)) }) => next = Some(chunk),
                Some(ClassifyVideoStreamRequest { payload: Some(Payload::Options(_)) }) => {
                    return Err(status::invalid(Reason::OptionsNotFirst, "options may only be in the first message"));
                }
                Some(ClassifyVideoStreamRequest { payload: None }) => {}
                None => {
                    writer.finish();
                    return Ok(bytes);
                }
            }
        }
    }
}
