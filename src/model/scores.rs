//! From a network's logits to the scores of its classes.

use serde::{Deserialize, Serialize};

use super::softmax;

/// How the logits of a clip become scores, as a model file says it. Without it: softmax of the logits as they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreFunction {
    /// What the divided logits go through.
    #[serde(default)]
    pub activation: Activation,
    /// Divides the logits first, so that scores are as high as they are often right; 1 leaves them as they are.
    #[serde(default = "one")]
    pub temperature: f64,
}

/// What logits go through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// A clip shows one class: scores add up to 1.
    #[default]
    Softmax,
    /// A clip may show any number of classes: each score is from 0 to 1, whatever the others are.
    Sigmoid,
}

const fn one() -> f64 {
    1.0
}

impl ScoreFunction {
    /// Temperatures that a model file may have.
    pub const TEMPERATURES: std::ops::RangeInclusive<f64> = 0.01..=100.0;

    /// Whether this is what a model file without it means.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a clip may show several classes.
    pub fn is_multi_label(&self) -> bool {
        self.activation == Activation::Sigmoid
    }

    /// The scores of a clip's logits, one for each class, 0 to 1.
    pub fn scores(&self, logits: &[f32]) -> Vec<f32> {
        self.activation.scores(logits, self.temperature)
    }
}

impl Default for ScoreFunction {
    fn default() -> Self {
        Self { activation: Activation::Softmax, temperature: one() }
    }
}

impl std::fmt::Display for ScoreFunction {
    /// Such as `softmax of logits / 1.7`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.activation {
            Activation::Softmax => f.write_str("softmax of logits")?,
            Activation::Sigmoid => f.write_str("sigmoid of logits, several labels at a time")?,
        }
        if self.temperature != one() { write!(f, ", temperature {:.4}", self.temperature) } else { Ok(()) }
    }
}

impl Activation {
    /// The scores of `logits / temperature`, 0 to 1.
    pub fn scores(self, logits: &[f32], temperature: f64) -> Vec<f32> {
        match self {
            Self::Softmax if temperature == one() => softmax(logits),
            Self::Softmax => softmax(&divided(logits, temperature)),
            Self::Sigmoid => {
                let sigmoid = |logit: &f32| (1.0 / (1.0 + f64::from(-logit).exp())) as f32;
                divided(logits, temperature).iter().map(sigmoid).collect()
            }
        }
    }

    /// Logits that give these scores at temperature 1; those of softmax up to a constant.
    pub fn logits(self, scores: &[f32]) -> Vec<f32> {
        // A score that is rounded to 0 or 1 stands for the next one that isn't.
        let log = |score: f32| score.max(f32::MIN_POSITIVE).ln();
        match self {
            Self::Softmax => scores.iter().map(|&score| log(score)).collect(),
            Self::Sigmoid => {
                let highest = 1.0 - f32::EPSILON / 2.0;
                let logit = |score: f32| log(score) - (1.0 - score.min(highest)).ln();
                scores.iter().map(|&score| logit(score)).collect()
            }
        }
    }
}

fn divided(logits: &[f32], temperature: f64) -> Vec<f32> {
    logits.iter().map(|&logit| (f64::from(logit) / temperature) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 3] = [2.0, -1.0, 0.5];

    #[test]
    fn without_a_temperature_scores_are_the_softmax_to_the_bit() {
        assert_eq!(ScoreFunction::default().scores(&LOGITS), softmax(&LOGITS));
        assert!(ScoreFunction::default().is_default());
    }

    #[test]
    fn temperature_divides_logits() {
        let warm = ScoreFunction { temperature: 2.0, ..ScoreFunction::default() };
        assert_eq!(warm.scores(&LOGITS), softmax(&[1.0, -0.5, 0.25]));
    }

    #[test]
    fn sigmoids_are_of_each_class_alone() {
        let scores = Activation::Sigmoid.scores(&[0.0, 1000.0, -1000.0, 3f32.ln()], 1.0);
        assert_eq!(scores[..3], [0.5, 1.0, 0.0]);
        assert!((scores[3] - 0.75).abs() < 1e-6);
    }

    #[test]
    fn scores_tell_the_logits_that_they_are_of() {
        for activation in [Activation::Softmax, Activation::Sigmoid] {
            let again = activation.scores(&activation.logits(&activation.scores(&LOGITS, 1.0)), 3.0);
            let wanted = activation.scores(&LOGITS, 3.0);
            assert!(again.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{again:?}, not {wanted:?}");
            assert!(activation.logits(&[0.0, 1.0]).iter().all(|logit| logit.is_finite()));
        }
    }

    #[test]
    fn model_files_say_it_in_words() {
        let parse = |json: &str| serde_json::from_str::<ScoreFunction>(json);
        assert_eq!(parse("{}").unwrap(), ScoreFunction::default());
        let multi = parse(r#"{"activation": "sigmoid", "temperature": 1.5}"#).unwrap();
        assert_eq!(multi.to_string(), "sigmoid of logits, several labels at a time, temperature 1.5000");
        assert!(parse(r#"{"temprature": 1.5}"#).is_err());
    }
}
