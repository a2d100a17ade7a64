//! What a model says about one video.

/// What a model says about an example.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Scores of the video, one for each of the model's labels.
    pub scores: Vec<f32>,
    /// The ten best of them, best first; equal ones in the order of the labels.
    pub video: Vec<Score>,
    /// The best labels of each clip, at least five if there are so many.
    pub clips: Vec<Vec<usize>>,
    /// Scores of each clip `(clips, labels)`; empty unless something is fitted to them.
    pub clip_scores: Vec<Vec<f32>>,
    /// Whether it is about a part of the video, since the rest could not be decoded.
    pub partial: bool,
    /// Frames that were decoded.
    pub frames: u64,
}

/// A label's score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Index among the model's labels.
    pub class: usize,
    /// 0 to 1.
    pub score: f32,
}

impl Answer {
    /// Best labels of a video that are kept in order, as many as the authors' code writes.
    pub const BEST: usize = 10;
    /// Best labels of a clip that are kept.
    pub const BEST_OF_CLIP: usize = 5;

    /// The answer of these scores for the whole video, without clips.
    pub fn of_scores(scores: Vec<f32>) -> Self {
        let video = best(&scores, Self::BEST).into_iter().map(|class| Score { class, score: scores[class] }).collect();
        Self { scores, video, ..Self::default() }
    }

    /// The mean of clips' scores; all of them are kept if they are to be fitted to.
    pub fn of_clips(clips: Vec<Vec<f32>>, keep_scores: bool) -> Self {
        let mut sums = vec![0.0f64; clips.first().map_or(0, Vec::len)];
        clips.iter().for_each(|clip| sums.iter_mut().zip(clip).for_each(|(sum, &score)| *sum += f64::from(score)));
        let scores = sums.iter().map(|sum| (sum / clips.len() as f64) as f32).collect();
        Self::of_scores(scores).with_clips(clips, keep_scores)
    }

    /// The same with the scores of its clips.
    #[must_use]
    pub fn with_clips(self, clips: Vec<Vec<f32>>, keep_scores: bool) -> Self {
        let best_of_clips = clips.iter().map(|clip| best(clip, Self::BEST_OF_CLIP)).collect();
        Self { clips: best_of_clips, clip_scores: if keep_scores { clips } else { Vec::new() }, ..self }
    }

    /// Of one label; 0 for one that the answer doesn't have.
    pub fn score(&self, class: usize) -> f32 {
        self.scores.get(class).copied().unwrap_or(0.0)
    }

    /// The best labels, best first.
    pub fn best_first(&self) -> Vec<usize> {
        self.video.iter().map(|score| score.class).collect()
    }
}

/// The classes of the `count` highest scores, highest first; equal ones in the order of the classes.
fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn video_is_the_mean_of_its_clips() {
        let answer = Answer::of_clips(vec![vec![0.75, 0.25, 0.0], vec![0.25, 0.25, 0.5]], true);
        assert_eq!(answer.scores, [0.5, 0.25, 0.25]);
        // Of equal scores the first class is the better one.
        assert_eq!(answer.best_first(), [0, 1, 2]);
        assert_eq!(answer.clips, [[0, 1, 2], [2, 0, 1]]);
        assert_eq!(answer.clip_scores.len(), 2);
        assert!(Answer::of_clips(vec![vec![1.0]], false).clip_scores.is_empty());
    }
}
