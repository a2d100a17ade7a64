//! From the logits of clips to the labels of a video: softmax a clip, mean over clips, best labels, segments.

use std::time::Duration;

/// How a video is cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentMode {
    /// A segment a clip.
    Clips,
    /// Neighbouring clips with the same best label become one segment.
    Merged,
}

/// A class and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScore {
    /// Position among the model's labels.
    pub index: usize,
    /// The class's name.
    pub label: String,
    /// Mean softmax, 0 to 1.
    pub score: f32,
}

/// Labels of a part of a video.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Presentation time of the first frame.
    pub start: Duration,
    /// Presentation time at which the last frame ends.
    pub end: Duration,
    /// Best first.
    pub labels: Vec<LabelScore>,
    /// Clips in this segment.
    pub clips: usize,
}

/// One clip's share of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipScores {
    /// Presentation time of the first frame.
    pub start: Duration,
    /// Presentation time at which the last frame ends.
    pub end: Duration,
    /// Softmax, one for each class.
    pub probabilities: Vec<f32>,
}

/// Softmax of one clip's logits, stable for any finite values; a logit that is not finite gives NaN.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - max).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| (value / sum) as f32).collect()
}

/// Mean over clips, one for each class; empty without clips. In f64, so that a video of hours loses nothing.
pub fn mean(clips: &[ClipScores]) -> Vec<f64> {
    let Some(first) = clips.first() else { return Vec::new() };
    let mut mean = vec![0.0; first.probabilities.len()];
    for clip in clips {
        for (sum, &probability) in mean.iter_mut().zip(&clip.probabilities) {
            *sum += f64::from(probability);
        }
    }
    mean.iter_mut().for_each(|sum| *sum /= clips.len() as f64);
    mean
}

/// The best `top_k` (or all) labels of at least `threshold`, best first; equal scores in the order of the classes.
pub fn top_labels(probabilities: &[f64], labels: &[String], top_k: Option<usize>, threshold: f32) -> Vec<LabelScore> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b)));
    order.truncate(top_k.unwrap_or(usize::MAX));
    order
        .into_iter()
        .map(|index| LabelScore { index, label: labels[index].clone(), score: probabilities[index] as f32 })
        .filter(|label| label.score >= threshold)
        .collect()
}

/// Cuts a video into segments; `top` turns mean probabilities into labels.
pub fn segments(clips: &[ClipScores], mode: SegmentMode, top: impl Fn(&[f64]) -> Vec<LabelScore>) -> Vec<Segment> {
    let groups: Vec<&[ClipScores]> = match mode {
        SegmentMode::Clips => clips.chunks(1).collect(),
        SegmentMode::Merged => clips.chunk_by(|a, b| best(&a.probabilities) == best(&b.probabilities)).collect(),
    };
    groups
        .into_iter()
        .map(|group| Segment {
            start: group[0].start,
            end: group[group.len() - 1].end,
            labels: top(&mean(group)),
            clips: group.len(),
        })
        .collect()
}

/// Index of the best class, the first of equal ones.
fn best(probabilities: &[f32]) -> Option<usize> {
    (0..probabilities.len()).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]).then(b.cmp(&a)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(second: u64, probabilities: &[f32]) -> ClipScores {
        ClipScores {
            start: Duration::from_secs(second),
            end: Duration::from_secs(second + 1),
            probabilities: probabilities.to_vec(),
        }
    }

    fn labels() -> Vec<String> {
        ["run", "jump", "swim"].map(str::to_owned).to_vec()
    }

    fn indices(labels: &[LabelScore]) -> Vec<usize> {
        labels.iter().map(|label| label.index).collect()
    }

    #[test]
    fn softmax_survives_large_logits() {
        let scores = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(scores, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn video_score_is_the_mean_of_clip_softmax_and_not_of_logits() {
        // Mean of logits would favour class 0: one very sure clip against two that disagree.
        let clips = [[9.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 0.0]];
        let clips: Vec<_> = clips.iter().map(|logits| clip(0, &softmax(logits))).collect();
        let top = top_labels(&mean(&clips), &labels(), Some(1), 0.0);
        assert_eq!(indices(&top), [1]);
    }

    #[test]
    fn labels_are_best_first_and_ties_keep_class_order() {
        let top = top_labels(&[0.25, 0.5, 0.25], &labels(), None, 0.0);
        assert_eq!(indices(&top), [1, 0, 2]);
        assert_eq!(indices(&top_labels(&[0.25, 0.5, 0.25], &labels(), None, 0.3)), [1]);
        assert_eq!(indices(&top_labels(&[0.25, 0.5, 0.25], &labels(), Some(9), 0.0)), [1, 0, 2]);
    }

    #[test]
    fn neighbours_with_the_same_best_label_are_merged() {
        let clips = [clip(0, &[0.6, 0.4]), clip(1, &[0.8, 0.2]), clip(2, &[0.1, 0.9]), clip(3, &[0.7, 0.3])];
        let top = |probabilities: &[f64]| top_labels(probabilities, &labels(), Some(1), 0.0);
        let merged = segments(&clips, SegmentMode::Merged, top);
        assert_eq!(merged.iter().map(|segment| segment.clips).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(merged[0].end, Duration::from_secs(2));
        assert!((merged[0].labels[0].score - 0.7).abs() < 1e-6);
        assert_eq!(segments(&clips, SegmentMode::Clips, top).len(), 4);
    }

    #[test]
    fn no_clips_have_no_scores() {
        assert!(mean(&[]).is_empty());
    }
}
