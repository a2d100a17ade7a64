//! What `classify` prints for one video: lines for people or one JSON object.

use serde::{Serialize, Serializer};
use std::ffi::OsStr;

use super::name::escaped;
use super::time::{self, Form};
use crate::classify::Classification;
use crate::classify::scores::LabelScore;

/// The answer about one video, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    video: String,
    /// Whether the name is no UTF-8 text, so that `video` is written as [`escaped`] does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    video_escaped: bool,
    model: String,
    model_version: String,
    frames: u64,
    clips: u64,
    duration_seconds: f64,
    width: u32,
    height: u32,
    codec: String,
    container: String,
    stream_index: usize,
    /// Where scores are the sigmoids of several labels, and not a softmax.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    multi_label: bool,
    /// What logits were divided by, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    labels: Vec<LabelReport>,
    partial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    partial_reason: Option<String>,
    corrupt_packets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<Vec<SegmentReport>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    embedding: Vec<f32>,
    /// For people.
    #[serde(skip)]
    title: String,
    #[serde(skip)]
    threshold: f32,
    #[serde(skip)]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LabelReport {
    index: usize,
    label: String,
    #[serde(serialize_with = "as_far_as_it_is_known")]
    score: f32,
}

#[derive(Debug, Serialize)]
struct SegmentReport {
    start_seconds: f64,
    end_seconds: f64,
    clips: usize,
    labels: Vec<LabelReport>,
}

/// What was asked for besides labels of the whole video.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// Segments, whose list is then printed even if it is empty.
    pub(super) segments: bool,
    /// The least score of a label.
    pub(super) threshold: f32,
}

impl Report {
    pub(super) fn new(name: &OsStr, answer: Classification, asked: Asked) -> Self {
        let Classification { model, video: info, scores, .. } = answer;
        let (video, video_escaped) = match name.to_str() {
            Some(text) => (text.to_owned(), false),
            None => (escaped(name).into_owned(), true),
        };
        Self {
            video,
            video_escaped,
            model: model.name,
            model_version: model.version,
            frames: info.frames,
            clips: info.clips,
            duration_seconds: info.duration.as_secs_f64(),
            width: info.width,
            height: info.height,
            codec: info.codec,
            container: info.container,
            stream_index: info.stream_index,
            multi_label: scores.is_multi_label(),
            temperature: (scores.temperature != 1.0).then_some(scores.temperature),
            labels: labels(answer.labels),
            partial: answer.partial.is_some(),
            partial_reason: answer.partial.map(|partial| partial.detail),
            corrupt_packets: info.corrupt_packets,
            segments: asked.segments.then(|| {
                let segments = answer.segments.into_iter();
                segments
                    .map(|segment| SegmentReport {
                        start_seconds: segment.start.as_secs_f64(),
                        end_seconds: segment.end.as_secs_f64(),
                        clips: segment.clips,
                        labels: labels(segment.labels),
                    })
                    .collect()
            }),
            embedding: answer.embedding,
            title: escaped(name).into_owned(),
            threshold: asked.threshold,
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
            "{} - {} frames, {} {}, {}, {}x{}, model {}\n",
            self.title,
            self.frames,
            self.clips,
            if self.clips == 1 { "clip" } else { "clips" },
            time::length(self.duration_seconds),
            self.width,
            self.height,
            self.model
        );
        if let Some(reason) = &self.partial_reason {
            text += &format!("  partial: {reason}\n");
        }
        for label in &self.labels {
            text += &format!("  {:6.2}%  {}\n", 100.0 * label.score, label.label);
        }
        if self.labels.is_empty() {
            text += &format!("  {}\n", self.no_label());
        }
        let segments = self.segments.as_deref().unwrap_or_default();
        let form = Form::of(segments.last().map_or(0.0, |last| last.end_seconds));
        let unit = if form == Form::Seconds { " s" } else { "" };
        for segment in segments {
            let best = segment.labels.iter().map(|label| format!("{} {:.1}%", label.label, 100.0 * label.score));
            let best = best.collect::<Vec<_>>().join(", ");
            let best = if best.is_empty() { self.no_label() } else { best };
            let (start, end) = (form.time(segment.start_seconds), form.time(segment.end_seconds));
            text += &format!("  {start:>8} - {end:>8}{unit}  {best}\n");
        }
        if !self.embedding.is_empty() {
            text += &format!("  embedding of {} values, which --json prints\n", self.embedding.len());
        }
        text
    }

    fn no_label(&self) -> String {
        // In tenths: 0.6 as f32 is a little more.
        format!("no label scores {}% or more", (1000.0 * f64::from(self.threshold)).round() / 10.0)
    }
}

/// Writes a score to six decimals: the next digit of an f32 is noise of the sum.
fn as_far_as_it_is_known<S: Serializer>(score: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((f64::from(*score) * 1e6).round() / 1e6)
}

fn labels(labels: Vec<LabelScore>) -> Vec<LabelReport> {
    labels.into_iter().map(|LabelScore { index, label, score }| LabelReport { index, label, score }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::time::Duration;

    use super::*;
    use crate::classify::ModelReference;
    use crate::classify::scores::Segment;
    use crate::model::scores::ScoreFunction;
    use crate::video::VideoSummary;

    fn label(score: f32) -> LabelScore {
        LabelScore { index: 3, label: "static".to_owned(), score }
    }

    fn segment(start: u64, end: u64, labels: Vec<LabelScore>) -> Segment {
        let time = |seconds| Duration::from_millis(1000 * seconds + 500);
        Segment { start: time(start), end: time(end), labels, clips: 1 }
    }

    fn answer(seconds: u64) -> Classification {
        Classification {
            model: ModelReference { name: "camera".to_owned(), version: "2".to_owned() },
            video: VideoSummary {
                frames: 40,
                clips: 3,
                duration: Duration::from_secs(seconds),
                width: 160,
                height: 120,
                codec: "h264".to_owned(),
                container: "mov".to_owned(),
                stream_index: 1,
                corrupt_packets: 0,
                partial: None,
            },
            labels: Vec::new(),
            segments: Vec::new(),
            embedding: Vec::new(),
            partial: None,
            warnings: Vec::new(),
            scores: ScoreFunction::default(),
        }
    }

    fn report(name: &[u8], answer: Classification) -> Report {
        Report::new(OsStr::from_bytes(name), answer, Asked { segments: true, threshold: 0.6 })
    }

    #[test]
    fn a_part_without_a_label_says_so() {
        let segments = vec![segment(0, 9, vec![label(0.75)]), segment(9, 70, Vec::new())];
        let text = report(b"a.mp4", Classification { segments, ..answer(70) }).to_text();
        assert_eq!(
            text,
            "a.mp4 - 40 frames, 3 clips, 1:10, 160x120, model camera\n  no label scores 60% or more\n   \
             0:00.50 -  0:09.50  static 75.0%\n   0:09.50 -  1:10.50  no label scores 60% or more\n"
        );
    }

    #[test]
    fn json_tells_what_was_decoded_and_by_which_model() {
        let labels = vec![label(f32::from_bits(0.998f32.to_bits() + 1)), label(1.0), label(0.1), label(3e-9)];
        let report = report(b"a.mp4", Classification { labels, ..answer(2) });
        let value: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        let expected = serde_json::json!({
            "video": "a.mp4", "model": "camera", "model_version": "2", "width": 160, "height": 120, "codec": "h264",
            "container": "mov", "stream_index": 1, "frames": 40, "clips": 3, "duration_seconds": 2.0,
        });
        for (key, expected) in expected.as_object().unwrap() {
            assert_eq!(&value[key], expected, "{key}");
        }
        let scores: Vec<String> =
            value["labels"].as_array().unwrap().iter().map(|label| label["score"].to_string()).collect();
        assert_eq!(scores, ["0.998", "1.0", "0.1", "0.0"]);
    }

    #[test]
    fn a_name_that_is_no_text_is_escaped_and_marked() {
        let odd = report(b"a\xff\\.mp4", answer(2));
        let value: serde_json::Value = serde_json::from_str(&odd.to_json()).unwrap();
        assert_eq!((&value["video"], &value["video_escaped"]), (&r"a\xff\\.mp4".into(), &true.into()));
        let plain = report(b"a\\.mp4", answer(2));
        let value: serde_json::Value = serde_json::from_str(&plain.to_json()).unwrap();
        assert_eq!((&value["video"], value.get("video_escaped")), (&r"a\.mp4".into(), None));
    }

    #[test]
    fn an_embedding_is_told_of_and_printed_in_json() {
        let report = report(b"a.mp4", Classification { embedding: vec![0.5; 3], ..answer(2) });
        assert!(report.to_text().ends_with("  embedding of 3 values, which --json prints\n"), "{}", report.to_text());
        assert!(report.to_json().contains("\"embedding\":[0.5,0.5,0.5]"));
    }
}
