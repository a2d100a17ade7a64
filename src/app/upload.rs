//! One video that is classified while it is uploaded.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

use super::{App, AppError, ClassifyRequest, Incoming, Room, VideoSource, send};
use crate::classify::scores::{LabelScore, top_labels};
use crate::classify::{Classification, ClassifyOptions, ClipScores};
use crate::metrics::Stage;
use crate::model::spec::ModelSpec;
use crate::video::{Source, SpoolError, SpoolOptions, SpoolWriter, spool};

/// Bytes of an upload that stay in memory; more go to a file. Not counted with the memory for messages: an upload that
/// waited for memory there while it holds some could wait for ever.
const SPOOL_MEMORY: usize = 1 << 20;

/// Scores of clips that wait to be told.
const CLIPS_AHEAD: usize = 16;

const PROGRESS_PERIOD: Duration = Duration::from_millis(500);

/// The next bytes of an upload.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) bytes: Bytes,
    /// Their memory, if it is accounted for.
    pub(crate) room: Option<Room>,
}

/// What is told while a video is uploaded and classified.
#[derive(Debug, Clone, PartialEq)]
pub enum UploadEvent {
    /// The next clip's answer.
    Clip(ClipLabels),
    /// How far the call is.
    Progress(Progress),
    /// The answer. The last event.
    Classification(Box<Classification>),
}

/// The labels of one clip.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipLabels {
    /// Presentation time of the first frame.
    pub start: Duration,
    /// Presentation time at which the last frame ends.
    pub end: Duration,
    /// Best first.
    pub labels: Vec<LabelScore>,
    /// Pooled features; empty unless asked for.
    pub embedding: Vec<f32>,
    /// A JPEG; empty unless asked for.
    pub preview: Vec<u8>,
}

impl ClipLabels {
    fn new(clip: ClipScores, model: &ModelSpec, options: &ClassifyOptions) -> Self {
        let probabilities: Vec<f64> = clip.probabilities.iter().map(|&score| score.into()).collect();
        Self {
            start: clip.start,
            end: clip.end,
            labels: top_labels(&probabilities, &model.labels, options.top_k, options.score_threshold),
            embedding: if options.embedding { clip.embedding } else { Vec::new() },
            preview: clip.preview,
        }
    }
}

/// How far a call is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub received_bytes: u64,
    /// Clips classified.
    pub clips: u64,
    /// Presentation time at which the last of them ends; `None` before the first.
    pub position: Option<Duration>,
}

impl App {
    /// Classifies a video while its `chunks` come, and tells what happens, the answer being the last event.
    pub(crate) async fn classify_upload<I: Incoming<Item = Chunk>>(
        &self,
        permit: OwnedSemaphorePermit,
        request: &ClassifyRequest,
        chunks: I,
        events: &mpsc::Sender<Result<UploadEvent, I::Error>>,
    ) -> Result<(), I::Error> {
        let idle_timeout = self.options.pace.idle_timeout;
        let engine = self.engine(&request.model)?;
        let options = request.options();
        let (received, received_bytes) = watch::channel(0u64);
        let (reader, receive) = self.receive(chunks, &received);
        let (clip_sender, clips) = mpsc::channel(CLIPS_AHEAD);
        let classify = async {
            // The sender ends with this block, and with it the stream of clips.
            let clip_sender = clip_sender;
            self.run(&engine, reader, &options, Some(&clip_sender)).await
        };
        let tell = tell_progress(clips, received_bytes, events, idle_timeout, |clip| {
            ClipLabels::new(clip, engine.spec(), &options)
        });
        let told = async { tokio::try_join!(classify, tell) };
        let (classification, ()) = tokio::select! {
            told = told => told?,
            error = receive => return Err(error),
        };
        drop(permit);
        // If nobody is there to take it, the call ends anyway.
        send(events, UploadEvent::Classification(Box::new(classification)), idle_timeout).await?;
        Ok(())
    }

    /// Classifies a video that is here or that a URI names, and tells what happens, the answer being the last event.
    pub(crate) async fn classify_with_events(
        &self,
        video: VideoSource,
        request: &ClassifyRequest,
        events: &mpsc::Sender<Result<UploadEvent, AppError>>,
    ) -> Result<(), AppError> {
        let idle_timeout = self.options.pace.idle_timeout;
        let (model, _) = self.model(&request.model)?;
        let (clip_sender, clips) = mpsc::channel(CLIPS_AHEAD);
        let received = match &video {
            VideoSource::Content(content) => content.len() as u64,
            VideoSource::Uri(_) | VideoSource::Local(_) => 0,
        };
        let classify = async {
            // The sender ends with this block, and with it the stream of clips.
            let clip_sender = clip_sender;
            self.classify(video, request, Some(&clip_sender)).await
        };
        let labels = |clip| ClipLabels::new(clip, &model, &request.options);
        let tell = tell_progress(clips, watch::channel(received).1, events, idle_timeout, labels);
        let (classification, ()) = tokio::try_join!(classify, tell)?;
        send(events, UploadEvent::Classification(Box::new(classification)), idle_timeout).await?;
        Ok(())
    }

    /// Where an upload can be decoded from, and what receives it, which ends only if that fails.
    fn receive<I: Incoming<Item = Chunk>>(
        &self,
        mut chunks: I,
        received: &watch::Sender<u64>,
    ) -> (Source, impl Future<Output = I::Error>) {
        let cancel = CancellationToken::new();
        let cancel_on_drop = cancel.clone().drop_guard();
        let max_bytes = self.services.classifier.limits().max_bytes;
        let options = SpoolOptions { max_memory: SPOOL_MEMORY, max_bytes, directory: self.options.spool.clone() };
        let (writer, reader) = spool(options, cancel);
        let receive = async move {
            let _cancel_on_drop = cancel_on_drop;
            let begun = Instant::now();
            match write_chunks(&mut chunks, writer, received).instrument(info_span!("receive")).await {
                Ok(bytes) => {
                    self.services.metrics.received(bytes);
                    self.services.metrics.stage(Stage::Receive, begun.elapsed());
                    // From now on it counts among the videos that are worked on. It is not refused any more, as its bytes
                    // are here; how many there can be is bounded by the uploads.
                    let _permit = self.spare_video_permit();
                    std::future::pending().await
                }
                Err(error) => error,
            }
        };
        (Source::Spool(reader), receive)
    }
}

/// Tells of each clip, and how far the call is.
async fn tell_progress<E>(
    mut clips: mpsc::Receiver<ClipScores>,
    received_bytes: watch::Receiver<u64>,
    events: &mpsc::Sender<Result<UploadEvent, E>>,
    idle_timeout: Duration,
    labels: impl Fn(ClipScores) -> ClipLabels,
) -> Result<(), AppError> {
    let mut progress = Progress::default();
    let mut period = tokio::time::interval_at((Instant::now() + PROGRESS_PERIOD).into(), PROGRESS_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            clip = clips.recv() => {
                let Some(clip) = clip else { return Ok(()) };
                progress.clips += 1;
                progress.position = Some(clip.end);
                UploadEvent::Clip(labels(clip))
            }
            _ = period.tick() => {
                progress.received_bytes = *received_bytes.borrow();
                UploadEvent::Progress(progress)
            }
        };
        if !send(events, event, idle_timeout).await? {
            return Ok(());
        }
    }
}

/// Writes chunks to the spool and gives the number of their bytes. A decoder that wants no more ends it early.
async fn write_chunks<I: Incoming<Item = Chunk>>(
    chunks: &mut I,
    mut writer: SpoolWriter,
    received: &watch::Sender<u64>,
) -> Result<u64, I::Error> {
    let mut bytes = 0;
    while let Some(Chunk { bytes: chunk, room }) = chunks.next().await? {
        if chunk.is_empty() {
            continue;
        }
        bytes += chunk.len() as u64;
        // Writing may wait for a disk.
        let write = tokio::task::spawn_blocking(move || {
            let written = writer.write(&chunk);
            (writer, written)
        });
        let (rest, written) = write.await.map_err(|error| AppError::internal(&error))?;
        writer = rest;
        // The message's memory is free again: its bytes are in the spool.
        drop(room);
        received.send_replace(bytes);
        match written {
            Ok(()) => {}
            Err(SpoolError::Unwanted) => return Ok(bytes),
            Err(error) => return Err(AppError::from(error).into()),
        }
    }
    writer.finish();
    Ok(bytes)
}
