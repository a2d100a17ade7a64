//! Inference on tensors: the scores and features of encoded videos or of clips, a row each.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{App, AppError, Deadline, ModelSelector};
use crate::classify::{ClassifyError, ClassifyOptions};
use crate::engine::batcher::Priority;
use crate::engine::{ClipInput, Engine};
use crate::model::spec::ModelSpec;
use crate::video::Source;

/// What a request is about.
#[derive(Debug)]
pub(crate) enum InferInput {
    /// Encoded videos.
    Videos(Vec<Bytes>),
    /// Clips.
    Clips(Vec<ClipInput>),
}

/// How to run a model on tensors.
#[derive(Debug)]
pub(crate) struct InferRequest {
    pub(crate) input: InferInput,
    pub(crate) priority: Priority,
    /// The request's own time limit.
    pub(crate) timeout: Option<Duration>,
    pub(crate) deadline: Option<Deadline>,
}

/// The row of one video or clip.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) probabilities: Vec<f32>,
    pub(crate) embedding: Vec<f32>,
}

/// What a model gave.
#[derive(Debug)]
pub(crate) struct Inference {
    pub(crate) model: Arc<ModelSpec>,
    pub(crate) rows: Vec<Row>,
}

impl App {
    /// Runs a model on one request, for which there is a permit. `read` makes it from the model's clip geometry.
    pub(crate) async fn infer<E: From<AppError>>(
        &self,
        model: &ModelSelector,
        read: impl FnOnce(&ModelSpec) -> Result<InferRequest, E>,
    ) -> Result<Inference, E> {
        let engine = self.engine(model)?;
        let InferRequest { input, priority, timeout, deadline } = read(engine.spec())?;
        let run = async {
            match input {
                InferInput::Videos(videos) => self.infer_videos(&engine, videos, priority).await,
                InferInput::Clips(clips) => infer_clips(&engine, clips, priority).await,
            }
        };
        let rest = deadline.map(|deadline| deadline.rest());
        let rows = match timeout.into_iter().chain(rest).min() {
            Some(limit) => {
                let in_time = tokio::time::timeout(limit, run).await;
                in_time.map_err(|_| AppError::deadline_exceeded(limit))??
            }
            None => run.await?,
        };
        Ok(Inference { model: Arc::clone(engine.spec()), rows })
    }

    /// One after the other: the clips of each make batches already, and the others' answers are needed anyway.
    async fn infer_videos(
        &self,
        engine: &Engine,
        videos: Vec<Bytes>,
        priority: Priority,
    ) -> Result<Vec<Row>, AppError> {
        let options = ClassifyOptions { top_k: None, embedding: true, priority, ..ClassifyOptions::default() };
        let mut rows = Vec::with_capacity(videos.len());
        for video in videos {
            self.services.metrics.received(video.len() as u64);
            let answer = self.run(engine, Source::Bytes(video), &options, None).await?;
            let mut probabilities = vec![0.0; engine.spec().labels.len()];
            for label in answer.labels {
                probabilities[label.index] = label.score;
            }
            rows.push(Row { probabilities, embedding: answer.embedding });
        }
        Ok(rows)
    }
}

async fn infer_clips(engine: &Engine, clips: Vec<ClipInput>, priority: Priority) -> Result<Vec<Row>, AppError> {
    let failed = |error| AppError::from(ClassifyError::Engine(error));
    let queue = engine.video(priority);
    let (running, mut pending) = mpsc::unbounded_channel();
    let submit = async {
        // Ends with the clips, and with it the answers.
        let running = running;
        for clip in clips {
            let clip = queue.submit(clip).await.map_err(failed)?;
            running.send(clip).map_err(|_| AppError::internal(&"nobody waits for a clip"))?;
        }
        Ok(())
    };
    let collect = async {
        let mut rows = Vec::new();
        while let Some(clip) = pending.recv().await {
            let output = clip.await.map_err(failed)?;
            rows.push(Row { probabilities: engine.spec().scores.scores(&output.logits), embedding: output.embedding });
        }
        Ok::<_, AppError>(rows)
    };
    tokio::try_join!(submit, collect).map(|((), rows)| rows)
}
