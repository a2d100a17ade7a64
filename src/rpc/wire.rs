//! Between the wire format and the types of the rest of the program.

use std::time::Duration;

use super::{Reason, proto};
use crate::classify::scores::{self, LabelScore, Segment, SegmentMode};
use crate::classify::{Classification, ClassifyOptions, ClipScores, Partial};
use crate::engine::batcher::Priority;
use crate::model::spec::{ColorMatrix, ModelSpec, Resize};
use crate::video::{Limits, PartialReason, TimeRange, VideoSummary};

/// Why options make no sense.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// A value of `segments` that a newer API may know.
    #[error("segments is {0}; this server knows 0 to 2")]
    SegmentMode(i32),
    /// A value of `priority` that a newer API may know.
    #[error("priority is {0}; this server knows 0 to 3")]
    Priority(i32),
    /// A time before the video.
    #[error("{name} is {seconds} s and {nanos} ns; a time in a video is not negative")]
    Time {
        /// The option's name.
        name: &'static str,
        /// As sent.
        seconds: i64,
        /// As sent.
        nanos: i32,
    },
}

impl OptionsError {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::SegmentMode(_) => Reason::UnknownSegmentMode,
            Self::Priority(_) => Reason::UnknownPriority,
            Self::Time { .. } => Reason::InvalidTimeRange,
        }
    }
}

impl TryFrom<&proto::ClassificationOptions> for ClassifyOptions {
    type Error = OptionsError;

    /// What is absent or unspecified takes its default. `partial_at_deadline` needs a deadline, which is not among the
    /// options.
    fn try_from(options: &proto::ClassificationOptions) -> Result<Self, OptionsError> {
        let top_k = match options.top_k {
            None => Some(Self::DEFAULT_TOP_K),
            Some(0) => None,
            Some(top_k) => Some(top_k as usize),
        };
        let segments = match proto::SegmentMode::try_from(options.segments) {
            Ok(proto::SegmentMode::Unspecified) => None,
            Ok(proto::SegmentMode::Clip) => Some(SegmentMode::Clips),
            Ok(proto::SegmentMode::Merged) => Some(SegmentMode::Merged),
            Err(_) => return Err(OptionsError::SegmentMode(options.segments)),
        };
        let priority = match proto::Priority::try_from(options.priority) {
            Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Priority::Normal,
            Ok(proto::Priority::Low) => Priority::Low,
            Ok(proto::Priority::High) => Priority::High,
            Err(_) => return Err(OptionsError::Priority(options.priority)),
        };
        Ok(Self {
            top_k,
            score_threshold: options.score_threshold,
            segments,
            embedding: options.embedding,
            range: TimeRange {
                start: time("start", options.start)?.unwrap_or_default(),
                end: time("end", options.end)?,
            },
            clip_stride: options.clip_stride.max(1) as usize,
            max_clips: (options.max_clips > 0).then_some(options.max_clips),
            weight_by_frames: options.weight_by_frames,
            priority,
            answer_by: None,
        })
    }
}

fn time(name: &'static str, time: Option<prost_types::Duration>) -> Result<Option<Duration>, OptionsError> {
    let convert = |time: prost_types::Duration| {
        let prost_types::Duration { seconds, nanos } = time;
        Duration::try_from(time).map_err(|_| OptionsError::Time { name, seconds, nanos })
    };
    time.map(convert).transpose()
}

/// One clip's answer in a stream.
pub(super) fn clip_result(clip: ClipScores, model: &ModelSpec, options: &ClassifyOptions) -> proto::ClipResult {
    let probabilities: Vec<f64> = clip.probabilities.iter().map(|&score| score.into()).collect();
    let labels = scores::top_labels(&probabilities, &model.labels, options.top_k, options.score_threshold);
    proto::ClipResult {
        start: Some(duration(clip.start)),
        end: Some(duration(clip.end)),
        labels: labels.into_iter().map(Into::into).collect(),
        embedding: if options.embedding { clip.embedding } else { Vec::new() },
    }
}

impl From<Classification> for proto::VideoClassification {
    fn from(classification: Classification) -> Self {
        let Classification { model, labels, segments, embedding, video, partial, warnings } = classification;
        let partial_reason = match &partial {
            None => proto::PartialReason::Unspecified,
            Some(Partial::Video(PartialReason::Truncated { .. })) => proto::PartialReason::Truncated,
            Some(Partial::Video(PartialReason::Unreadable { .. })) => proto::PartialReason::Unreadable,
            Some(Partial::Video(PartialReason::CorruptPackets { .. })) => proto::PartialReason::Corrupt,
            Some(Partial::Deadline { .. }) => proto::PartialReason::Deadline,
        };
        Self {
            model: Some(proto::ModelReference { name: model.name.clone(), version: model.version.clone() }),
            labels: labels.into_iter().map(Into::into).collect(),
            segments: segments.into_iter().map(Into::into).collect(),
            embedding,
            partial: partial.is_some(),
            partial_reason: partial_reason.into(),
            partial_detail: partial.as_ref().map_or_else(String::new, ToString::to_string),
            video: Some(video.into()),
            warnings,
        }
    }
}

impl From<LabelScore> for proto::LabelScore {
    fn from(LabelScore { index, label, score }: LabelScore) -> Self {
        Self { index: index as u32, label, score }
    }
}

impl From<Segment> for proto::Segment {
    fn from(Segment { start, end, labels, clips }: Segment) -> Self {
        Self {
            start: Some(duration(start)),
            end: Some(duration(end)),
            labels: labels.into_iter().map(Into::into).collect(),
            clips: clips as u32,
        }
    }
}

impl From<VideoSummary> for proto::VideoInfo {
    fn from(video: VideoSummary) -> Self {
        Self {
            frames: video.frames,
            clips: video.clips,
            duration: Some(duration(video.duration)),
            width: video.width,
            height: video.height,
            codec: video.codec,
            container: video.container,
            stream_index: video.stream_index as u32,
            corrupt_packets: video.corrupt_packets,
        }
    }
}

pub(super) fn model(spec: &ModelSpec, default: bool) -> proto::Model {
    let preprocessing = &spec.preprocessing;
    proto::Model {
        name: spec.name.clone(),
        version: spec.version.clone(),
        default,
        trained: spec.trained,
        architecture: spec.architecture.to_string(),
        classes: spec.labels.len() as u32,
        labels: spec.labels.clone(),
        clip: Some(proto::ClipGeometry {
            frames: spec.clip.frames as u32,
            size: spec.clip.size as u32,
            temporal_stride: spec.clip.temporal_stride as u32,
        }),
        license: spec.license.clone().unwrap_or_default(),
        origin: spec.origin.clone().unwrap_or_default(),
        preprocessing: Some(proto::Preprocessing {
            fixed_size: match preprocessing.resize {
                Resize::ShortSide => None,
                Resize::Fixed { height, width } => {
                    Some(proto::FrameSize { height: height as u32, width: width as u32 })
                }
            },
            antialias: preprocessing.antialias,
            color_matrix: match preprocessing.color_matrix {
                ColorMatrix::Bt601 => "bt601".to_owned(),
                ColorMatrix::Tagged => "tagged".to_owned(),
            },
            pixel_divisor: preprocessing.pixel_divisor,
            mean: preprocessing.mean.to_vec(),
            std: preprocessing.std.to_vec(),
        }),
    }
}

pub(super) fn limits(limits: &Limits) -> proto::Limits {
    proto::Limits {
        max_video_bytes: limits.max_bytes,
        max_frames: limits.max_frames,
        max_pixels: limits.max_pixels,
        max_duration: Some(duration(limits.max_duration)),
        max_clips: limits.max_clips,
    }
}

pub(super) fn duration(duration: Duration) -> prost_types::Duration {
    // Only durations of more than 10,000 years don't fit; no container holds such.
    duration.try_into().unwrap_or_default()
}
