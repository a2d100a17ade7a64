//! Whether scores mean what they say: of the videos that a model gives 80%, 80% should be right.

use serde::Serialize;

/// Bins of equal width between scores of 0 and 1, as in Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
const BINS: usize = 15;

/// A predicted class's score, and whether the prediction is right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Confidence {
    /// 0 to 1.
    pub score: f32,
    /// Whether the video shows the class.
    pub right: bool,
}

/// How far scores are from how often they are right.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// Mean distance of score and accuracy over the bins, each weighing as many predictions as it has (ECE), 0 to 1.
    pub expected_calibration_error: f64,
    /// The largest distance of a bin (MCE), 0 to 1.
    pub maximum_calibration_error: f64,
    /// Mean score minus accuracy: above 0 the model is too sure of itself, below 0 not enough.
    pub overconfidence: f64,
    /// Mean of minus the logarithm of what the right class scores.
    pub negative_log_likelihood: f64,
    /// 15 bins of equal width; a score on the border of two is of the lower one.
    pub bins: Vec<Bin>,
}

/// The predictions whose scores are between two borders.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bin {
    /// Scores are above this; 0 is of the first bin.
    pub from: f64,
    /// And not above this.
    pub to: f64,
    /// Predictions.
    pub predictions: u64,
    /// Their mean score; `None` without predictions.
    pub mean_score: Option<f64>,
    /// The part of them that is right; `None` without predictions.
    pub accuracy: Option<f64>,
}

impl Calibration {
    /// Of these predictions, whose right classes have this mean negative log likelihood; `None` without predictions.
    pub fn of(predictions: &[Confidence], negative_log_likelihood: f64) -> Option<Self> {
        if predictions.is_empty() {
            return None;
        }
        let mut sums = [(0u64, 0.0, 0u64); BINS];
        for &Confidence { score, right } in predictions {
            let (count, scores, hits) = &mut sums[bin_of(f64::from(score))];
            *count += 1;
            *scores += f64::from(score);
            *hits += u64::from(right);
        }
        let border = |bin: usize| bin as f64 / BINS as f64;
        let bin = |(number, &(predictions, scores, hits)): (usize, &(u64, f64, u64))| {
            let mean = |sum: f64| (predictions > 0).then(|| sum / predictions as f64);
            let (mean_score, accuracy) = (mean(scores), mean(hits as f64));
            Bin { from: border(number), to: border(number + 1), predictions, mean_score, accuracy }
        };
        let bins: Vec<Bin> = sums.iter().enumerate().map(bin).collect();
        let total = predictions.len() as f64;
        let distances = || bins.iter().map(|bin| (bin.predictions as f64 / total, bin.distance().abs()));
        let overconfidence = bins.iter().map(|bin| bin.predictions as f64 / total * bin.distance()).sum();
        Some(Self {
            expected_calibration_error: distances().map(|(part, distance)| part * distance).sum(),
            maximum_calibration_error: distances().map(|(_, distance)| distance).fold(0.0, f64::max),
            overconfidence,
            negative_log_likelihood,
            bins,
        })
    }
}

impl Bin {
    /// Mean score minus accuracy; 0 without predictions.
    fn distance(&self) -> f64 {
        self.mean_score.zip(self.accuracy).map_or(0.0, |(score, accuracy)| score - accuracy)
    }
}

fn bin_of(score: f64) -> usize {
    let place = (score * BINS as f64).ceil() as usize;
    place.saturating_sub(1).min(BINS - 1)
}

/// Minus the logarithm of a score, of which one that is rounded to 0 does not make infinity.
pub(super) fn log_loss(score: f64) -> f64 {
    -score.max(f64::from(f32::MIN_POSITIVE)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(predictions: &[(f32, bool)]) -> Calibration {
        let predictions: Vec<Confidence> =
            predictions.iter().map(|&(score, right)| Confidence { score, right }).collect();
        Calibration::of(&predictions, 0.5).unwrap()
    }

    #[test]
    fn error_is_the_mean_distance_of_score_and_accuracy() {
        // By hand: bin (0.8, 0.867] has 4 of mean 0.85 and 2 right; bin (0.933, 1] has 1 of 0.95, right.
        let calibration = of(&[(0.85, true), (0.85, true), (0.85, false), (0.85, false), (0.95, true)]);
        let expected = 0.8 * 0.35 + 0.2 * 0.05;
        assert!((calibration.expected_calibration_error - expected).abs() < 1e-6, "{calibration:?}");
        assert!((calibration.maximum_calibration_error - 0.35).abs() < 1e-6);
        assert!((calibration.overconfidence - (0.8 * 0.35 - 0.2 * 0.05)).abs() < 1e-6);
        assert_eq!(calibration.bins.iter().map(|bin| bin.predictions).sum::<u64>(), 5);
        assert_eq!((calibration.bins[0].mean_score, calibration.bins[12].accuracy), (None, Some(0.5)));
    }

    #[test]
    fn scores_on_borders_are_of_the_lower_bin() {
        assert_eq!([0.0, 1e-9, 0.2, 0.2 + 1e-9, 1.0].map(bin_of), [0, 0, 2, 3, 14]);
    }

    #[test]
    fn nothing_predicted_has_no_calibration() {
        assert_eq!(Calibration::of(&[], 0.0), None);
        assert!(log_loss(0.0).is_finite());
    }
}
