//! What `classify` prints for one video: lines for people or one JSON object.

use std::time::Duration;

use serde::Serialize;

use crate::rpc::proto;

/// The answer about one video, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    video: String,
    model: String,
    frames: u64,
    clips: u64,
    duration_seconds: f64,
    labels: Vec<LabelReport>,
    partial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    partial_reason: Option<String>,
    corrupt_packets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<Vec<SegmentReport>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    embedding: Vec<f32>,
    #[serde(skip)]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LabelReport {
    index: u32,
    label: String,
    score: f32,
}

#[derive(Debug, Serialize)]
struct SegmentReport {
    start_seconds: f64,
    end_seconds: f64,
    labels: Vec<LabelReport>,
}

impl Report {
    /// `with_segments` says whether segments were asked for: their list is then printed even if it is empty.
    pub(super) fn new(video: String, answer: proto::VideoClassification, with_segments: bool) -> Self {
        let info = answer.video.unwrap_or_default();
        Self {
            video,
            model: answer.model.unwrap_or_default().name,
            frames: info.frames,
            clips: info.clips,
            duration_seconds: seconds(info.duration),
            labels: labels(answer.labels),
            partial: answer.partial,
            partial_reason: answer.partial.then_some(answer.partial_detail),
            corrupt_packets: info.corrupt_packets,
            segments: with_segments.then(|| {
                let segments = answer.segments.into_iter();
                segments
                    .map(|segment| SegmentReport {
                        start_seconds: seconds(segment.start),
                        end_seconds: seconds(segment.end),
                        labels: labels(segment.labels),
                    })
                    .collect()
            }),
            embedding: answer.embedding,
            warnings: answer.warnings,
        }
    }

    /// What to tell a person beside the answer itself.
    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// One line of JSON.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and finite numbers are JSON")
    }

    /// Lines for people.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!(
            "{} - {} frames, {} clips, {:.2} s, model {}\n",
            self.video, self.frames, self.clips, self.duration_seconds, self.model
        );
        if let Some(reason) = &self.partial_reason {
            text += &format!("  partial: {reason}\n");
        }
        for label in &self.labels {
            text += &format!("  {:6.2}%  {}\n", 100.0 * label.score, label.label);
        }
        for segment in self.segments.iter().flatten() {
            let best = segment.labels.iter().map(|label| format!("{} {:.1}%", label.label, 100.0 * label.score));
            let best = best.collect::<Vec<_>>().join(", ");
            text += &format!("  {:8.2} - {:8.2} s  {best}\n", segment.start_seconds, segment.end_seconds);
        }
        text
    }
}

fn labels(labels: Vec<proto::LabelScore>) -> Vec<LabelReport> {
    let labels = labels.into_iter();
    labels.map(|proto::LabelScore { index, label, score }| LabelReport { index, label, score }).collect()
}

fn seconds(duration: Option<prost_types::Duration>) -> f64 {
    duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default().as_secs_f64()
}
