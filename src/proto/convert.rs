//! Between the messages and the types of the rest of the program.

use std::time::Duration;

use super as proto;
use crate::app::{AppError, ClassifyRequest, ClipLabels, Deadline, ModelSelector, Progress, Reason, UploadEvent};
use crate::classify::scores::{LabelScore, Segment, SegmentMode};
use crate::classify::{Classification, ClassifyOptions, ModelReference, Partial, PartialKind};
use crate::engine::batcher::Priority;
use crate::model::scores::{Activation, ScoreFunction};
use crate::model::spec::{ColorMatrix, ModelSpec, Resize};
use crate::video::{Limits, TimeRange, VideoSummary};

impl TryFrom<&proto::ClassificationOptions> for ClassifyOptions {
    type Error = AppError;

    /// What is absent or unspecified takes its default. `partial_at_deadline` needs a deadline, which is not among the
    /// options.
    fn try_from(options: &proto::ClassificationOptions) -> Result<Self, AppError> {
        let top_k = match options.top_k {
            None => Some(Self::DEFAULT_TOP_K),
            Some(0) => None,
            Some(top_k) => Some(top_k as usize),
        };
        let segments = match proto::SegmentMode::try_from(options.segments) {
            Ok(proto::SegmentMode::Unspecified) => None,
            Ok(proto::SegmentMode::Clip) => Some(SegmentMode::Clips),
            Ok(proto::SegmentMode::Merged) => Some(SegmentMode::Merged),
            Err(_) => {
                let message = format!("segments is {}; this server knows 0 to 2", options.segments);
                return Err(AppError::new(Reason::UnknownSegmentMode, message));
            }
        };
        let priority = match proto::Priority::try_from(options.priority) {
            Ok(proto::Priority::Unspecified | proto::Priority::Normal) => Priority::Normal,
            Ok(proto::Priority::Low) => Priority::Low,
            Ok(proto::Priority::High) => Priority::High,
            Err(_) => {
                let message = format!("priority is {}; this server knows 0 to 3", options.priority);
                return Err(AppError::new(Reason::UnknownPriority, message));
            }
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
            previews: options.previews,
            priority,
            answer_by: None,
        })
    }
}

fn time(name: &str, time: Option<prost_types::Duration>) -> Result<Option<Duration>, AppError> {
    let convert = |time: prost_types::Duration| {
        let prost_types::Duration { seconds, nanos } = time;
        Duration::try_from(time).map_err(|_| {
            let message = format!("{name} is {seconds} s and {nanos} ns; a time in a video is not negative");
            AppError::new(Reason::InvalidTimeRange, message)
        })
    };
    time.map(convert).transpose()
}

impl From<proto::ModelSelector> for ModelSelector {
    fn from(proto::ModelSelector { name, version }: proto::ModelSelector) -> Self {
        Self { name, version }
    }
}

impl ClassifyRequest {
    /// What a message asks for, in a call with this deadline.
    pub(crate) fn from_proto(
        options: proto::ClassificationOptions,
        deadline: Option<Deadline>,
    ) -> Result<Self, AppError> {
        Ok(Self {
            options: (&options).try_into()?,
            model: options.model.map(Into::into).unwrap_or_default(),
            deadline,
            partial_at_deadline: options.partial_at_deadline,
        })
    }
}

/// A request to a server. Its deadline belongs to the call.
impl From<&ClassifyRequest> for proto::ClassificationOptions {
    fn from(request: &ClassifyRequest) -> Self {
        let ClassifyRequest { model, options, .. } = request;
        let ModelSelector { name, version } = model.clone();
        let is_default = name.is_empty() && version.is_empty();
        Self {
            model: (!is_default).then_some(proto::ModelSelector { name, version }),
            top_k: Some(options.top_k.map_or(0, |top_k| top_k as u32)),
            score_threshold: options.score_threshold,
            segments: match options.segments {
                None => proto::SegmentMode::Unspecified,
                Some(SegmentMode::Clips) => proto::SegmentMode::Clip,
                Some(SegmentMode::Merged) => proto::SegmentMode::Merged,
            }
            .into(),
            embedding: options.embedding,
            start: (!options.range.start.is_zero()).then(|| duration(options.range.start)),
            end: options.range.end.map(duration),
            clip_stride: options.clip_stride as u32,
            max_clips: options.max_clips.unwrap_or(0),
            priority: match options.priority {
                Priority::Low => proto::Priority::Low,
                Priority::Normal => proto::Priority::Normal,
                Priority::High => proto::Priority::High,
            }
            .into(),
            partial_at_deadline: request.partial_at_deadline,
            weight_by_frames: options.weight_by_frames,
            previews: options.previews,
        }
    }
}

impl From<UploadEvent> for proto::ClassifyVideoStreamResponse {
    fn from(event: UploadEvent) -> Self {
        use proto::classify_video_stream_response::Event;
        let event = match event {
            UploadEvent::Clip(clip) => Event::Clip(clip.into()),
            UploadEvent::Progress(progress) => Event::Progress(progress.into()),
            UploadEvent::Classification(classification) => Event::Classification((*classification).into()),
        };
        Self { event: Some(event) }
    }
}

impl From<ClipLabels> for proto::ClipResult {
    fn from(ClipLabels { start, end, labels, embedding, preview }: ClipLabels) -> Self {
        Self {
            start: Some(duration(start)),
            end: Some(duration(end)),
            labels: labels.into_iter().map(Into::into).collect(),
            embedding,
            preview: preview.into(),
        }
    }
}

impl From<Progress> for proto::Progress {
    fn from(Progress { received_bytes, clips, position }: Progress) -> Self {
        Self { received_bytes, clips, position: position.map(duration) }
    }
}

impl From<Classification> for proto::VideoClassification {
    fn from(classification: Classification) -> Self {
        let Classification { model, labels, segments, embedding, video, partial, warnings, scores } = classification;
        let partial_reason = match partial.as_ref().map(|partial| partial.kind) {
            None | Some(PartialKind::Unknown) => proto::PartialReason::Unspecified,
            Some(PartialKind::Truncated) => proto::PartialReason::Truncated,
            Some(PartialKind::Unreadable) => proto::PartialReason::Unreadable,
            Some(PartialKind::Corrupt) => proto::PartialReason::Corrupt,
            Some(PartialKind::Deadline) => proto::PartialReason::Deadline,
        };
        Self {
            model: Some(proto::ModelReference { name: model.name, version: model.version }),
            labels: labels.into_iter().map(Into::into).collect(),
            segments: segments.into_iter().map(Into::into).collect(),
            embedding,
            partial: partial.is_some(),
            partial_reason: partial_reason.into(),
            partial_detail: partial.map_or_else(String::new, |partial| partial.detail),
            video: Some(video.into()),
            warnings,
            score_function: (!scores.is_default()).then(|| scores.into()),
        }
    }
}

/// What a server answered.
impl From<proto::VideoClassification> for Classification {
    fn from(answer: proto::VideoClassification) -> Self {
        let kind = match answer.partial_reason() {
            proto::PartialReason::Unspecified => PartialKind::Unknown,
            proto::PartialReason::Truncated => PartialKind::Truncated,
            proto::PartialReason::Unreadable => PartialKind::Unreadable,
            proto::PartialReason::Corrupt => PartialKind::Corrupt,
            proto::PartialReason::Deadline => PartialKind::Deadline,
        };
        let model = answer.model.unwrap_or_default();
        Self {
            model: ModelReference { name: model.name, version: model.version },
            labels: answer.labels.into_iter().map(Into::into).collect(),
            segments: answer.segments.into_iter().map(Into::into).collect(),
            embedding: answer.embedding,
            video: answer.video.unwrap_or_default().into(),
            partial: answer.partial.then_some(Partial { kind, detail: answer.partial_detail }),
            warnings: answer.warnings,
            scores: answer.score_function.map_or_else(ScoreFunction::default, Into::into),
        }
    }
}

impl From<ScoreFunction> for proto::ScoreFunction {
    fn from(scores: ScoreFunction) -> Self {
        Self { multi_label: scores.is_multi_label(), temperature: scores.temperature }
    }
}

impl From<proto::ScoreFunction> for ScoreFunction {
    fn from(proto::ScoreFunction { multi_label, temperature }: proto::ScoreFunction) -> Self {
        let activation = if multi_label { Activation::Sigmoid } else { Activation::Softmax };
        Self { activation, temperature }
    }
}

impl From<LabelScore> for proto::LabelScore {
    fn from(LabelScore { index, label, score }: LabelScore) -> Self {
        Self { index: index as u32, label, score }
    }
}

impl From<proto::LabelScore> for LabelScore {
    fn from(proto::LabelScore { index, label, score }: proto::LabelScore) -> Self {
        Self { index: index as usize, label, score }
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

impl From<proto::Segment> for Segment {
    fn from(proto::Segment { start, end, labels, clips }: proto::Segment) -> Self {
        Self {
            start: decode_duration(start),
            end: decode_duration(end),
            labels: labels.into_iter().map(Into::into).collect(),
            clips: clips as usize,
        }
    }
}

impl From<proto::VideoInfo> for VideoSummary {
    fn from(video: proto::VideoInfo) -> Self {
        Self {
            frames: video.frames,
            clips: video.clips,
            duration: decode_duration(video.duration),
            corrupt_packets: video.corrupt_packets,
            partial: None,
            width: video.width,
            height: video.height,
            codec: video.codec,
            container: video.container,
            stream_index: video.stream_index as usize,
        }
    }
}

/// A time that another process sent; zero if it is none.
fn decode_duration(time: Option<prost_types::Duration>) -> Duration {
    time.and_then(|time| time.try_into().ok()).unwrap_or_default()
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

/// Describes a model.
pub(crate) fn model(spec: &ModelSpec, default: bool) -> proto::Model {
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
        score_function: Some(spec.scores.into()),
    }
}

/// What a server takes.
pub(crate) fn limits(limits: &Limits) -> proto::Limits {
    proto::Limits {
        max_video_bytes: limits.max_bytes,
        max_frames: limits.max_frames,
        max_pixels: limits.max_pixels,
        max_duration: Some(duration(limits.max_duration)),
        max_clips: limits.max_clips,
    }
}

fn duration(duration: Duration) -> prost_types::Duration {
    // Only durations of more than 10,000 years don't fit; no container holds such.
    duration.try_into().unwrap_or_default()
}
