//! From a video to its labels: decoding, the engine, and [`scores`] put together.

pub mod scores;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, EngineError, PendingLogits};
use crate::model::spec::ModelSpec;
use crate::video::{Clip, DecodeOptions, Decoder, Isolation, Limits, Source, VideoError, VideoSummary};
use scores::{ClipScores, LabelScore, Segment, SegmentMode};

/// Decoded clips that wait for the engine, for each video: enough to keep both busy, little enough to bound memory.
const CLIPS_AHEAD: usize = 2;

/// What to answer about a video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassifyOptions {
    /// Labels to answer, best first; `None` for all.
    pub top_k: Option<usize>,
    /// Leaves out labels that score less.
    pub score_threshold: f32,
    /// Whether and how to answer about parts of the video.
    pub segments: Option<SegmentMode>,
}

impl ClassifyOptions {
    /// Labels answered when nobody says how many.
    pub const DEFAULT_TOP_K: usize = 5;
}

impl Default for ClassifyOptions {
    fn default() -> Self {
        Self { top_k: Some(Self::DEFAULT_TOP_K), score_threshold: 0.0, segments: None }
    }
}

/// The labels of a video.
#[derive(Debug, Clone)]
pub struct Classification {
    /// The model that answered.
    pub model: Arc<ModelSpec>,
    /// Scores of the whole video, best first.
    pub labels: Vec<LabelScore>,
    /// Scores of its parts, in order of time; empty unless asked for.
    pub segments: Vec<Segment>,
    /// What was decoded.
    pub video: VideoSummary,
    /// What a person should know about this answer.
    pub warnings: Vec<String>,
}

/// Why a video has no labels.
#[derive(Debug, thiserror::Error)]
pub enum ClassifyError {
    /// The video.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// The model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An option that makes no sense.
    #[error("score threshold is {actual}; allowed is 0 to 1")]
    ScoreThreshold {
        /// What was asked for.
        actual: f32,
    },
    /// The decoder's thread died.
    #[error("the decoder failed: {0}")]
    Decoder(String),
}

/// Decodes videos, a bounded number at a time, and classifies their clips.
#[derive(Debug)]
pub struct Classifier {
    limits: Limits,
    decoder: Arc<Decoder>,
    /// One permit a video that is being decoded.
    places: Arc<Semaphore>,
}

impl Classifier {
    /// A classifier that decodes up to `decoders` videos at a time, one thread each, in this process or in others.
    pub fn new(limits: Limits, decoders: usize, isolation: Isolation) -> Self {
        let places = Arc::new(Semaphore::new(decoders.max(1)));
        Self { limits, decoder: Arc::new(Decoder::new(isolation)), places }
    }

    /// What a video may take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Classifies one video. Dropping the future stops its decoder.
    pub async fn classify(
        &self,
        engine: &Engine,
        source: Source,
        options: &ClassifyOptions,
    ) -> Result<Classification, ClassifyError> {
        if !(0.0..=1.0).contains(&options.score_threshold) {
            return Err(ClassifyError::ScoreThreshold { actual: options.score_threshold });
        }
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        let cancel = CancellationToken::new();
        let _cancel_on_drop = cancel.clone().drop_guard();
        let (clips, mut decoded) = mpsc::channel::<Clip>(CLIPS_AHEAD);
        let decode = {
            let model = Arc::clone(engine.spec());
            let decoder = Arc::clone(&self.decoder);
            let decode_options = DecodeOptions { limits: self.limits.clone(), cancel, ..DecodeOptions::default() };
            tokio::task::spawn_blocking(move || {
                let _place = place;
                decoder.decode_clips(&source, &model.clip, &model.preprocessing, &decode_options, |clip| {
                    match clips.blocking_send(clip) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(_) => ControlFlow::Break(()),
                    }
                })
            })
        };

        let mut pending: Vec<PendingClip> = Vec::new();
        while let Some(clip) = decoded.recv().await {
            let logits = engine.submit(clip.rgb).await?;
            pending.push(PendingClip { start: clip.start, end: clip.end, logits });
        }
        let video = decode.await.map_err(|error| ClassifyError::Decoder(error.to_string()))??;

        let mut clips = Vec::with_capacity(pending.len());
        for clip in pending {
            let probabilities = scores::softmax(&clip.logits.wait().await?);
            clips.push(ClipScores { start: clip.start, end: clip.end, probabilities });
        }
        let model = Arc::clone(engine.spec());
        let warnings = warnings(&model);
        let top = |probabilities: &[f64]| {
            scores::top_labels(probabilities, &model.labels, options.top_k, options.score_threshold)
        };
        let labels = top(&scores::mean(&clips));
        let segments = options.segments.map_or_else(Vec::new, |mode| scores::segments(&clips, mode, top));
        Ok(Classification { labels, segments, video, warnings, model })
    }
}

struct PendingClip {
    start: Duration,
    end: Duration,
    logits: PendingLogits,
}

/// What a person should know about any answer of a model.
fn warnings(model: &ModelSpec) -> Vec<String> {
    if model.trained {
        return Vec::new();
    }
    vec![format!("the model {} is untrained: its labels mean nothing", model.name)]
}
