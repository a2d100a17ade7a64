//! Temperature scaling (Guo et al. 2017): the one number that logits are divided by so that scores mean what they say. The
//! order of a clip's classes stays the same.

use rayon::prelude::*;

use super::calibration::log_loss;
use crate::model::scores::Activation;

/// A video's clips and what it shows.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipLogits {
    /// Of each clip, `(clips, classes)`; for softmax up to a constant.
    pub clips: Vec<Vec<f32>>,
    /// Its classes; one for softmax.
    pub shown: Vec<usize>,
}

/// Why no temperature fits.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum TemperatureError {
    /// No videos.
    #[error("there are no videos to fit the temperature to")]
    NoVideos,
    /// The best one is beyond all that make sense.
    #[error(
        "no temperature from {LOWEST} to {HIGHEST} fits: the videos are {} to tell how sure the model may be. Take others, or more",
        if *.low { "all right, which is too little" } else { "so often wrong that nothing is left" }
    )]
    Beyond {
        /// Whether it would be lower.
        low: bool,
    },
}

const LOWEST: f64 = 0.05;
const HIGHEST: f64 = 20.0;

/// The temperature at which the right classes' scores of videos, the mean over their clips as they are answered, have the
/// least negative log likelihood.
pub fn fit_temperature(videos: &[ClipLogits], activation: Activation) -> Result<f64, TemperatureError> {
    const COARSE: usize = 24;
    const FINE: usize = 30;
    if videos.is_empty() {
        return Err(TemperatureError::NoVideos);
    }
    let (from, to) = (LOWEST.ln(), HIGHEST.ln());
    let loss = |log: f64| mean_log_loss(videos, activation, log.exp());
    // The mean over clips may have several valleys: the lowest of some points, then golden section around it.
    let point = |step: usize| from + (to - from) * step as f64 / COARSE as f64;
    let losses: Vec<f64> = (0..=COARSE).map(|step| loss(point(step))).collect();
    let lowest = (0..=COARSE).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).expect("there are some");
    if lowest == 0 || lowest == COARSE {
        return Err(TemperatureError::Beyond { low: lowest == 0 });
    }
    let (mut low, mut high) = (point(lowest - 1), point(lowest + 1));
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let inner = |low: f64, high: f64| (high - golden * (high - low), low + golden * (high - low));
    let (mut left, mut right) = inner(low, high);
    let (mut left_loss, mut right_loss) = (loss(left), loss(right));
    for _ in 0..FINE {
        if left_loss <= right_loss {
            (high, right, right_loss) = (right, left, left_loss);
            left = inner(low, high).0;
            left_loss = loss(left);
        } else {
            (low, left, left_loss) = (left, right, right_loss);
            right = inner(low, high).1;
            right_loss = loss(right);
        }
    }
    Ok(((low + high) / 2.0).exp())
}

/// Scores of a video at a temperature: the mean over its clips.
pub(super) fn scores_at(video: &ClipLogits, activation: Activation, temperature: f64) -> Vec<f64> {
    let mut sums = vec![0.0; video.clips.first().map_or(0, Vec::len)];
    for clip in &video.clips {
        let scores = clip_scores_at(clip, activation, temperature);
        sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
    }
    sums.iter().map(|sum| sum / video.clips.len() as f64).collect()
}

/// In f64, since a loss of rounded scores is flat around its lowest point.
fn clip_scores_at(logits: &[f32], activation: Activation, temperature: f64) -> Vec<f64> {
    let divided = logits.iter().map(|&logit| f64::from(logit) / temperature);
    match activation {
        Activation::Softmax => {
            let highest = divided.clone().fold(f64::NEG_INFINITY, f64::max);
            let exponentials: Vec<f64> = divided.map(|logit| (logit - highest).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            exponentials.into_iter().map(|value| value / sum).collect()
        }
        Activation::Sigmoid => divided.map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
    }
}

/// The negative log likelihood of what a video shows under its scores.
pub(super) fn video_log_loss(scores: &[f64], shown: &[usize], activation: Activation) -> f64 {
    match activation {
        Activation::Softmax => shown.first().map_or(0.0, |&class| log_loss(scores[class])),
        Activation::Sigmoid => {
            let of_class =
                |(class, &score): (usize, &f64)| log_loss(if shown.contains(&class) { score } else { 1.0 - score });
            scores.iter().enumerate().map(of_class).sum::<f64>() / scores.len().max(1) as f64
        }
    }
}

fn mean_log_loss(videos: &[ClipLogits], activation: Activation, temperature: f64) -> f64 {
    let loss =
        |video: &ClipLogits| video_log_loss(&scores_at(video, activation, temperature), &video.shown, activation);
    // Added in the order of the videos, so that the number of threads changes nothing.
    let losses: Vec<f64> = videos.par_iter().map(loss).collect();
    losses.iter().sum::<f64>() / videos.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Videos of one clip: `right` of `all` show the class whose logit is `gap` above the other.
    fn videos(gap: f32, right: usize, all: usize) -> Vec<ClipLogits> {
        (0..all)
            .map(|video| ClipLogits { clips: vec![vec![gap, 0.0]], shown: vec![usize::from(video >= right)] })
            .collect()
    }

    #[test]
    fn temperature_makes_scores_as_high_as_they_are_often_right() {
        // sigmoid(gap / T) = 0.8, so T = gap / ln 4.
        let fitted = fit_temperature(&videos(5.0, 8, 10), Activation::Softmax).unwrap();
        assert!((fitted - 5.0 / 4f64.ln()).abs() < 1e-4, "{fitted}");
        let scores = scores_at(&videos(5.0, 8, 10)[0], Activation::Softmax, fitted);
        assert!((scores[0] - 0.8).abs() < 1e-5, "{scores:?}");
    }

    #[test]
    fn sigmoids_of_each_class_are_fitted_together() {
        // Each class's logits are 3 and -3, right in 3 of 4.
        let video = |shown: &[usize]| ClipLogits { clips: vec![vec![3.0, -3.0]], shown: shown.to_vec() };
        let videos = [video(&[0]), video(&[0]), video(&[0]), video(&[1])];
        let fitted = fit_temperature(&videos, Activation::Sigmoid).unwrap();
        assert!((fitted - 3.0 / 3f64.ln()).abs() < 1e-4, "{fitted}");
    }

    #[test]
    fn the_mean_over_clips_is_what_is_fitted() {
        // Two clips that disagree give one half at any temperature; the third decides it.
        let sure = |shown: usize| ClipLogits {
            clips: vec![vec![4.0, 0.0], vec![0.0, 4.0], vec![4.0, 0.0]],
            shown: vec![shown],
        };
        let videos: Vec<ClipLogits> = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1].map(sure).to_vec();
        let fitted = fit_temperature(&videos, Activation::Softmax).unwrap();
        let score = scores_at(&videos[0], Activation::Softmax, fitted)[0];
        assert!((score - 0.6).abs() < 1e-4, "{score} at {fitted}");
    }

    #[test]
    fn videos_that_tell_nothing_are_refused() {
        assert_eq!(fit_temperature(&[], Activation::Softmax), Err(TemperatureError::NoVideos));
        let right = fit_temperature(&videos(1.0, 9, 9), Activation::Softmax);
        assert_eq!(right, Err(TemperatureError::Beyond { low: true }));
        let wrong = fit_temperature(&videos(1.0, 0, 9), Activation::Softmax);
        assert_eq!(wrong, Err(TemperatureError::Beyond { low: false }));
    }
}
