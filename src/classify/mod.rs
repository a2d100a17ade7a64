//! From a video to its labels: decoding, the engine, and [`scores`] put together.

mod preview;
pub mod scores;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info_span;

use crate::engine::batcher::Priority;
use crate::engine::{ClipInput, Engine, EngineError, PendingClip};
use crate::metrics::{Metrics, Stage};
use crate::model::scores::ScoreFunction;
use crate::model::spec::ModelSpec;
use crate::video::{
    DecodeOptions, DecodePool, Decoding, Isolation, Limits, PartialReason, PoolOptions, PoolState, Source, TimeRange,
    VideoError, VideoSummary,
};
use scores::{LabelScore, Segment, SegmentMode, VideoScores};

/// What to answer about a video.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassifyOptions {
    /// Labels to answer, best first; `None` for all.
    pub top_k: Option<usize>,
    /// Leaves out labels that score less.
    pub score_threshold: f32,
    /// Whether and how to answer about parts of the video.
    pub segments: Option<SegmentMode>,
    /// Whether to answer with the mean of the clips' pooled features.
    pub embedding: bool,
    /// The part of the video that is classified.
    pub range: TimeRange,
    /// Every n-th clip is classified, from the first on; at least 1.
    pub clip_stride: usize,
    /// Clips that are classified at most; the rest of the video is not looked at.
    pub max_clips: Option<u64>,
    /// Whether the last, shorter clip counts only as much as it has frames; as much as the others, as in the paper, if not.
    pub weight_by_frames: bool,
    /// Whether [`ClipScores`] have previews.
    pub previews: bool,
    /// How this video shares the device with others.
    pub priority: Priority,
    /// When to answer with what is known by then.
    pub answer_by: Option<Instant>,
}

impl ClassifyOptions {
    /// Labels answered when nobody says how many.
    pub const DEFAULT_TOP_K: usize = 5;

    fn validate(&self) -> Result<(), ClassifyError> {
        if !(0.0..=1.0).contains(&self.score_threshold) {
            return Err(ClassifyError::ScoreThreshold { actual: self.score_threshold });
        }
        if self.range.end.is_some_and(|end| end <= self.range.start) {
            return Err(ClassifyError::TimeRange { range: self.range });
        }
        Ok(())
    }
}

impl Default for ClassifyOptions {
    fn default() -> Self {
        Self {
            top_k: Some(Self::DEFAULT_TOP_K),
            score_threshold: 0.0,
            segments: None,
            embedding: false,
            range: TimeRange::ALL,
            clip_stride: 1,
            max_clips: None,
            weight_by_frames: false,
            previews: false,
            priority: Priority::default(),
            answer_by: None,
        }
    }
}

/// Names a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelReference {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The labels of a video.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Classification {
    /// The model that answered.
    pub model: ModelReference,
    /// Scores of the whole video, best first.
    pub labels: Vec<LabelScore>,
    /// Scores of its parts, in order of time; empty unless asked for.
    pub segments: Vec<Segment>,
    /// Mean of the clips' pooled features; empty unless asked for.
    pub embedding: Vec<f32>,
    /// What was decoded.
    pub video: VideoSummary,
    /// Why this is not about the whole video; `None` if it is.
    pub partial: Option<Partial>,
    /// What a person should know about this answer.
    pub warnings: Vec<String>,
    /// How logits became scores.
    pub scores: ScoreFunction,
}

/// Why an answer is about a part of the video only, though nobody asked for a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// For programs.
    pub kind: PartialKind,
    /// In words, with the numbers.
    pub detail: String,
}

/// Kinds of [`Partial`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartialKind {
    /// Some packets could not be decoded.
    Corrupt,
    /// The file ends too early.
    Truncated,
    /// The container became unreadable.
    Unreadable,
    /// [`ClassifyOptions::answer_by`] came.
    Deadline,
    /// One that this version does not know.
    Unknown,
}

impl From<&PartialReason> for Partial {
    fn from(reason: &PartialReason) -> Self {
        let kind = match reason {
            PartialReason::Truncated { .. } => PartialKind::Truncated,
            PartialReason::Unreadable { .. } => PartialKind::Unreadable,
            PartialReason::CorruptPackets { .. } => PartialKind::Corrupt,
        };
        Self { kind, detail: reason.to_string() }
    }
}

impl Partial {
    fn at_deadline(clips: u64) -> Self {
        Self { kind: PartialKind::Deadline, detail: format!("the deadline came after {clips} clips") }
    }
}

/// One clip's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipScores {
    /// Presentation time of the first frame.
    pub start: Duration,
    /// Presentation time at which the last frame ends.
    pub end: Duration,
    /// Different frames in it; fewer than the model takes only where a short tail was looped.
    pub frames: usize,
    /// As the model's [`ScoreFunction`] says, one for each class.
    pub probabilities: Vec<f32>,
    /// Pooled features.
    pub embedding: Vec<f32>,
    /// The middle frame as a JPEG; empty unless asked for.
    pub preview: Vec<u8>,
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
    /// An option that makes no sense.
    #[error("the time range {:?} to {:?} is empty", range.start, range.end.unwrap_or_default())]
    TimeRange {
        /// What was asked for.
        range: TimeRange,
    },
    /// [`ClassifyOptions::answer_by`] came before the first clip was classified.
    #[error("no clip was classified before the deadline")]
    Deadline,
}

/// Decodes videos in a pool and classifies their clips.
#[derive(Debug)]
pub struct Classifier {
    limits: Limits,
    pool: DecodePool,
    metrics: Arc<Metrics>,
}

impl Classifier {
    /// A classifier that decodes in this process or in others.
    pub fn new(limits: Limits, isolation: Isolation, pool: PoolOptions, metrics: Arc<Metrics>) -> Self {
        Self { limits, pool: DecodePool::new(isolation, pool), metrics }
    }

    /// What a video may take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What the decode pool does right now.
    pub fn pool_state(&self) -> PoolState {
        self.pool.state()
    }

    /// CPU time that decoding took in this process, of videos that are done.
    pub fn decode_cpu_time(&self) -> Duration {
        self.pool.cpu_time()
    }

    /// Classifies one video; the clips' answers go to `clips`, if there is one, as they come. A receiver that takes
    /// none slows decoding down, one that is gone ends it. Dropping the future stops decoding too.
    pub async fn classify(
        &self,
        engine: &Engine,
        source: Source,
        options: &ClassifyOptions,
        clips: Option<&mpsc::Sender<ClipScores>>,
    ) -> Result<Classification, ClassifyError> {
        options.validate()?;
        let begun = Instant::now();
        let cancel = CancellationToken::new();
        let _cancel_on_drop = cancel.clone().drop_guard();
        let model = Arc::clone(engine.spec());
        let mut scores = VideoScores::new(options.segments, options.embedding, options.weight_by_frames);
        let answer_by = async {
            match options.answer_by {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(answer_by);

        let decode_options = DecodeOptions {
            limits: self.limits.clone(),
            cancel,
            range: options.range,
            clip_stride: options.clip_stride,
            max_clips_wanted: options.max_clips,
            ..DecodeOptions::default()
        };
        let mut decoding = tokio::select! {
            decoding = self.pool.decode(source, model.clip, model.preprocessing, decode_options, options.priority) => decoding,
            () = &mut answer_by => return Err(ClassifyError::Deadline),
        };
        let opened = Instant::now();
        self.metrics.stage(Stage::DecodeWait, opened - begun);
        let in_time = tokio::select! {
            ran = self.run(engine, options, &mut decoding, &mut scores, clips) => { ran?; true }
            () = &mut answer_by => false,
        };
        let video = if in_time {
            decoding.finish().await?
        } else {
            // No time to wait for the decoder.
            let so_far = decoding.stop().filter(|_| scores.clips() > 0).ok_or(ClassifyError::Deadline)?;
            VideoSummary { clips: scores.clips(), ..so_far }
        };
        self.metrics.stage(Stage::Decode, opened.elapsed());
        self.metrics.decoded(video.frames, video.corrupt_packets);
        let partial = if in_time {
            video.partial.as_ref().map(Partial::from)
        } else {
            Some(Partial::at_deadline(scores.clips()))
        };
        self.metrics.stage(Stage::Total, begun.elapsed());

        let top = |probabilities: &[f64]| {
            scores::top_labels(probabilities, &model.labels, options.top_k, options.score_threshold)
        };
        let labels = top(&scores.mean());
        let embedding = scores.mean_embedding();
        // Clips that the stride left out at the end belong to the last one that was classified.
        if in_time && options.max_clips.is_none_or(|max_clips| scores.clips() < max_clips) {
            scores.end_after(video.duration);
        }
        Ok(Classification {
            labels,
            segments: scores.into_segments(top),
            embedding,
            video,
            partial,
            warnings: warnings(&model),
            scores: model.scores,
            model: ModelReference { name: model.name.clone(), version: model.version.clone() },
        })
    }

    /// Brings decoded clips to the engine and its answers to `scores`, both at a time.
    async fn run(
        &self,
        engine: &Engine,
        options: &ClassifyOptions,
        decoding: &mut Decoding,
        scores: &mut VideoScores,
        clips: Option<&mpsc::Sender<ClipScores>>,
    ) -> Result<(), ClassifyError> {
        let queue = engine.video(options.priority);
        let geometry = engine.spec().clip;
        let (submitted, mut running) = mpsc::unbounded_channel::<(ClipPlace, PendingClip)>();
        let bring = async {
            // The engine takes a bounded number of clips of a video, so the channel holds no more than that.
            let submitted = submitted;
            while let Some(clip) = decoding.next().await {
                let decoded = Instant::now();
                let preview = if options.previews { preview::jpeg(&clip.rgb, &geometry) } else { Vec::new() };
                let place = ClipPlace { start: clip.start, end: clip.end, frames: clip.frames, preview };
                let pending = queue.submit(ClipInput::Rgb(clip.rgb.into())).await?;
                self.metrics.stage(Stage::Queue, decoded.elapsed());
                if submitted.send((place, pending)).is_err() {
                    break;
                }
            }
            Ok::<(), ClassifyError>(())
        };
        let take = async {
            let mut span = None;
            while let Some((ClipPlace { start, end, frames, preview }, pending)) = running.recv().await {
                // From the first clip's turn to the last one's answer.
                span.get_or_insert_with(|| info_span!("model"));
                let output = pending.await?;
                let probabilities = engine.spec().scores.scores(&output.logits);
                let clip = ClipScores { start, end, frames, probabilities, embedding: output.embedding, preview };
                scores.add(&clip);
                if let Some(clips) = clips {
                    clips.send(clip).await.map_err(|_| VideoError::Cancelled)?;
                }
            }
            Ok(())
        };
        tokio::try_join!(bring, take).map(|_| ())
    }
}

/// Where in the video a clip is.
struct ClipPlace {
    start: Duration,
    end: Duration,
    frames: usize,
    preview: Vec<u8>,
}

/// What a person should know about any answer of a model.
fn warnings(model: &ModelSpec) -> Vec<String> {
    if model.trained {
        return Vec::new();
    }
    vec![format!("the model {} is untrained: its labels mean nothing", model.name)]
}
