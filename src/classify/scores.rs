//! From the scores of clips to the labels of a video: mean over clips, best labels, segments.

use std::time::Duration;

use super::ClipScores;

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
    /// Mean over the clips, 0 to 1.
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

/// What the clips of a video add up to.
#[derive(Debug)]
pub struct VideoScores {
    mode: Option<SegmentMode>,
    with_embedding: bool,
    weight_by_frames: bool,
    whole: Mean,
    embedding: Mean,
    segments: Vec<OpenSegment>,
}

#[derive(Debug)]
struct OpenSegment {
    start: Duration,
    end: Duration,
    best: Option<usize>,
    scores: Mean,
}

/// A weighted mean of vectors, in f64, so that a video of hours loses nothing.
#[derive(Debug, Default)]
struct Mean {
    sum: Vec<f64>,
    weight: f64,
    count: u64,
}

impl Mean {
    fn add(&mut self, values: &[f32], weight: f64) {
        self.sum.resize(values.len(), 0.0);
        for (sum, &value) in self.sum.iter_mut().zip(values) {
            *sum += weight * f64::from(value);
        }
        self.weight += weight;
        self.count += 1;
    }

    /// Empty without values.
    fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.weight).collect()
    }
}

impl VideoScores {
    /// No clips yet. All clips weigh the same, as in the paper, or, `weight_by_frames`, as much as they have different frames.
    pub fn new(mode: Option<SegmentMode>, with_embedding: bool, weight_by_frames: bool) -> Self {
        let (whole, embedding) = Default::default();
        Self { mode, with_embedding, weight_by_frames, whole, embedding, segments: Vec::new() }
    }

    /// Clips so far.
    pub fn clips(&self) -> u64 {
        self.whole.count
    }

    /// Adds the next clip in order of time. Where clips were left out, the segment before lasts until this one.
    pub fn add(&mut self, clip: &ClipScores) {
        let weight = if self.weight_by_frames { clip.frames as f64 } else { 1.0 };
        self.whole.add(&clip.probabilities, weight);
        if self.with_embedding {
            self.embedding.add(&clip.embedding, weight);
        }
        let Some(mode) = self.mode else { return };
        if let Some(before) = self.segments.last_mut() {
            before.end = clip.start;
        }
        let best = best(&clip.probabilities);
        match self.segments.last_mut() {
            Some(open) if mode == SegmentMode::Merged && open.best == best => {
                open.end = clip.end;
                open.scores.add(&clip.probabilities, weight);
            }
            _ => {
                let mut scores = Mean::default();
                scores.add(&clip.probabilities, weight);
                self.segments.push(OpenSegment { start: clip.start, end: clip.end, best, scores });
            }
        }
    }

    /// Lets the last segment last until `duration` after the start of the first, if it ends before.
    pub fn end_after(&mut self, duration: Duration) {
        let Some(end) = self.segments.first().map(|first| first.start + duration) else { return };
        if let Some(last) = self.segments.last_mut() {
            last.end = last.end.max(end);
        }
    }

    /// Mean scores, one for each class; empty without clips.
    pub fn mean(&self) -> Vec<f64> {
        self.whole.mean()
    }

    /// Mean of the pooled features; empty without clips or if not asked for.
    pub fn mean_embedding(&self) -> Vec<f32> {
        self.embedding.mean().into_iter().map(|value| value as f32).collect()
    }

    /// The segments; `top` turns mean probabilities into labels.
    pub fn into_segments(self, top: impl Fn(&[f64]) -> Vec<LabelScore>) -> Vec<Segment> {
        let segments = self.segments.into_iter();
        segments
            .map(|OpenSegment { start, end, scores, .. }| Segment {
                start,
                end,
                labels: top(&scores.mean()),
                clips: scores.count as usize,
            })
            .collect()
    }
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

/// Index of the best class, the first of equal ones.
fn best(probabilities: &[f32]) -> Option<usize> {
    (0..probabilities.len()).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]).then(b.cmp(&a)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::softmax;

    fn clip(second: u64, probabilities: &[f32]) -> ClipScores {
        ClipScores {
            start: Duration::from_secs(second),
            end: Duration::from_secs(second + 1),
            frames: 16,
            probabilities: probabilities.to_vec(),
            embedding: vec![second as f32],
            preview: Vec::new(),
        }
    }

    fn scores(mode: Option<SegmentMode>, clips: &[ClipScores]) -> VideoScores {
        let mut scores = VideoScores::new(mode, true, false);
        clips.iter().for_each(|clip| scores.add(clip));
        scores
    }

    fn labels() -> Vec<String> {
        ["run", "jump", "swim"].map(str::to_owned).to_vec()
    }

    fn indices(labels: &[LabelScore]) -> Vec<usize> {
        labels.iter().map(|label| label.index).collect()
    }

    #[test]
    fn video_score_is_the_mean_of_clip_softmax_and_not_of_logits() {
        // Mean of logits would favour class 0: one very sure clip against two that disagree.
        let clips = [[9.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 3.0, 0.0]];
        let clips: Vec<_> = clips.iter().map(|logits| clip(0, &softmax(logits))).collect();
        let top = top_labels(&scores(None, &clips).mean(), &labels(), Some(1), 0.0);
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
        let merged = scores(Some(SegmentMode::Merged), &clips).into_segments(top);
        assert_eq!(merged.iter().map(|segment| segment.clips).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(merged[0].end, Duration::from_secs(2));
        assert!((merged[0].labels[0].score - 0.7).abs() < 1e-6);
        assert_eq!(scores(Some(SegmentMode::Clips), &clips).into_segments(top).len(), 4);
    }

    #[test]
    fn segments_have_no_gaps_where_clips_were_left_out() {
        let clips = [clip(0, &[0.6, 0.4]), clip(4, &[0.8, 0.2]), clip(8, &[0.1, 0.9])];
        for (mode, spans) in
            [(SegmentMode::Merged, vec![(0, 8), (8, 11)]), (SegmentMode::Clips, vec![(0, 4), (4, 8), (8, 11)])]
        {
            let mut scores = scores(Some(mode), &clips);
            scores.end_after(Duration::from_secs(11));
            let segments = scores.into_segments(|_| Vec::new());
            let found: Vec<_> =
                segments.iter().map(|segment| (segment.start.as_secs(), segment.end.as_secs())).collect();
            assert_eq!(found, spans);
        }
    }

    #[test]
    fn looped_tail_weighs_as_much_as_its_frames_if_asked_for() {
        let tail = ClipScores { frames: 1, ..clip(1, &[0.0, 1.0]) };
        let mean = |weight_by_frames| {
            let mut scores = VideoScores::new(Some(SegmentMode::Clips), true, weight_by_frames);
            scores.add(&clip(0, &[1.0, 0.0]));
            scores.add(&tail);
            (scores.mean(), scores.mean_embedding())
        };
        assert_eq!(mean(false), (vec![0.5, 0.5], vec![0.5]));
        assert_eq!(mean(true), (vec![16.0 / 17.0, 1.0 / 17.0], vec![1.0 / 17.0]));
    }

    #[test]
    fn no_clips_have_no_scores() {
        assert!(scores(None, &[]).mean().is_empty());
    }

    #[test]
    fn embedding_is_the_mean_over_clips() {
        let scores = scores(None, &[clip(1, &[1.0]), clip(4, &[1.0])]);
        assert_eq!((scores.mean_embedding(), scores.clips()), (vec![2.5], 2));
    }
}
