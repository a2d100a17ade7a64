//! Models: what a model file says ([`spec`]), the file itself ([`mod@file`]), its network as an inference plan ([`plan`]),
//! how its logits become scores ([`scores`]), networks before training ([`init`]), and the model that is built in ([`builtin`]).

pub mod builtin;
pub mod counter;
pub mod file;
pub mod init;
pub mod plan;
pub mod scores;
pub mod spec;

/// Softmax of one clip's logits, stable for any finite values; a logit that is not finite gives NaN.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - max).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| (value / sum) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_survives_large_logits() {
        let scores = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(scores, [0.5, 0.5, 0.0]);
    }
}
