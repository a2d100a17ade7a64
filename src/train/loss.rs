//! What is minimised: cross entropy over the classes, or binary cross entropy of each class where clips show several; with classes
//! that weigh more than others, smoothed labels, and clips that are mixed of two.

use std::fmt;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::ops::log_softmax;

use super::augment::Draws;

/// How the loss of a clip is computed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossConfig {
    /// Of which scores.
    pub kind: LossKind,
    /// How much each class counts; all alike if `None`. Of binary cross entropy, how much a clip that shows the class counts
    /// beside one that doesn't (PyTorch's `pos_weight`).
    pub class_weights: Option<Vec<f32>>,
    /// Part of each label that is spread evenly over all classes, from 0 to less than 1. Of cross entropy only.
    pub label_smoothing: f64,
}

/// Which loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LossKind {
    /// Cross entropy of the softmax: a clip shows one class, or parts of several that add up to 1.
    #[default]
    CrossEntropy,
    /// The mean over classes of the binary cross entropy of their sigmoids: a clip shows any number of classes.
    BinaryCrossEntropy,
}

impl fmt::Display for LossKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CrossEntropy => "cross entropy",
            Self::BinaryCrossEntropy => "binary cross entropy",
        })
    }
}

/// Computes losses as `torch.nn.CrossEntropyLoss(weight, label_smoothing)` and `torch.nn.BCEWithLogitsLoss(pos_weight)` do.
#[derive(Debug)]
pub struct Criterion {
    kind: LossKind,
    /// `(1, classes)`.
    class_weights: Option<Tensor>,
    label_smoothing: f64,
}

/// What the clips of a batch show.
#[derive(Debug, Clone)]
pub enum Labels {
    /// One class each, `(n)`, u32.
    Classes(Tensor),
    /// Parts of classes, `(n, classes)`, f32, 0 to 1; those of a clip add up to one where it shows one class.
    Parts(Tensor),
}

impl Labels {
    /// The same on a device.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Self::Classes(classes) => Self::Classes(classes.to_device(device)?),
            Self::Parts(parts) => Self::Parts(parts.to_device(device)?),
        })
    }

    /// Parts of `classes` classes, `(n, classes)`.
    pub fn parts(&self, classes: usize) -> Result<Tensor> {
        match self {
            Self::Classes(labels) => one_hot(labels, classes),
            Self::Parts(parts) => Ok(parts.clone()),
        }
    }

    /// How many clips have their highest logit at their class; of several, at one that no other is more of.
    pub fn count_correct(&self, logits: &Tensor) -> Result<u64> {
        let best = logits.detach().argmax(1)?;
        let hits = match self {
            Self::Classes(classes) => best.eq(classes)?,
            Self::Parts(parts) => {
                let of_best = parts.gather(&best.unsqueeze(1)?, 1)?.squeeze(1)?;
                (of_best.ge(&parts.max(1)?)?.to_dtype(DType::F32)? * of_best.gt(0f32)?.to_dtype(DType::F32)?)?
            }
        };
        Ok(hits.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? as u64)
    }
}

/// The loss of a batch.
#[derive(Debug)]
pub struct Loss {
    /// Over all clips together.
    pub sum: Tensor,
    /// What the sum is divided by for its mean: the number of clips, or the sum of their classes' weights.
    pub weight: f64,
}

impl Loss {
    /// The mean over the clips; none where all their classes weigh nothing.
    pub fn mean(&self) -> Result<Tensor> {
        &self.sum / self.weight.max(f64::MIN_POSITIVE)
    }
}

impl Criterion {
    /// A criterion for networks on `device`.
    pub fn new(config: &LossConfig, device: &Device) -> Result<Self> {
        let row = |weights: &Vec<f32>| Tensor::from_slice(weights, (1, weights.len()), device);
        let class_weights = config.class_weights.as_ref().map(row).transpose()?;
        Ok(Self { kind: config.kind, class_weights, label_smoothing: config.label_smoothing })
    }

    /// The loss of `logits` `(n, classes)`.
    pub fn loss(&self, logits: &Tensor, labels: &Labels) -> Result<Loss> {
        match self.kind {
            LossKind::CrossEntropy => self.cross_entropy(logits, labels),
            LossKind::BinaryCrossEntropy => self.binary_cross_entropy(logits, labels),
        }
    }

    fn binary_cross_entropy(&self, logits: &Tensor, labels: &Labels) -> Result<Loss> {
        let (clips, classes) = logits.dims2()?;
        let shown = labels.parts(classes)?;
        // Minus the logarithm of the sigmoid's complement, ln(1 + exp(x)), without overflow; that of the sigmoid is less by x.
        let of_absent = (logits.relu()? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        let of_shown = (&of_absent - logits)?;
        let of_shown = match &self.class_weights {
            Some(weights) => of_shown.broadcast_mul(weights)?,
            None => of_shown,
        };
        let losses = ((&shown * of_shown)? + (shown.affine(-1.0, 1.0)? * of_absent)?)?;
        Ok(Loss { sum: (losses.sum_all()? / classes as f64)?, weight: clips as f64 })
    }

    fn cross_entropy(&self, logits: &Tensor, labels: &Labels) -> Result<Loss> {
        let (clips, classes) = logits.dims2()?;
        let parts = match labels {
            Labels::Classes(labels) if self.class_weights.is_none() && self.label_smoothing == 0.0 => {
                let sum = (cross_entropy(logits, labels)? * clips as f64)?;
                return Ok(Loss { sum, weight: clips as f64 });
            }
            labels => labels.parts(classes)?,
        };
        let weight = match &self.class_weights {
            Some(weights) => f64::from(parts.broadcast_mul(weights)?.sum_all()?.to_scalar::<f32>()?),
            None => clips as f64,
        };
        let smoothed = ((parts * (1.0 - self.label_smoothing))? + self.label_smoothing / classes as f64)?;
        let weighted = match &self.class_weights {
            Some(weights) => smoothed.broadcast_mul(weights)?,
            None => smoothed,
        };
        let sum = (log_softmax(logits, D::Minus1)? * weighted)?.sum_all()?.neg()?;
        Ok(Loss { sum, weight })
    }
}

fn one_hot(labels: &Tensor, classes: usize) -> Result<Tensor> {
    let classes = Tensor::arange(0, classes as u32, labels.device())?;
    labels.unsqueeze(1)?.broadcast_eq(&classes.unsqueeze(0)?)?.to_dtype(DType::F32)
}

/// Weights by which classes of few examples count as much as those of many: all examples divided by the number of classes
/// and by the examples of the class, as scikit-learn's `balanced`. A class without examples weighs nothing.
pub fn balanced_weights(counts: &[usize]) -> Vec<f32> {
    let (total, present) = (counts.iter().sum::<usize>(), counts.iter().filter(|&&count| count > 0).count());
    let weight = |&count: &usize| if count == 0 { 0.0 } else { total as f64 / (present * count) as f64 };
    counts.iter().map(|count| weight(count) as f32).collect()
}

/// Weights by which, of `total` examples, those that show a class count as much as those that don't, where each may show several:
/// examples without the class divided by those with it. 1 for a class without examples.
pub fn balanced_positive_weights(counts: &[usize], total: usize) -> Vec<f32> {
    let weight = |&count: &usize| match (count, total.saturating_sub(count)) {
        (0, _) | (_, 0) => 1.0,
        (with, without) => without as f64 / with as f64,
    };
    counts.iter().map(|count| weight(count) as f32).collect()
}

/// Clips mixed of two of the same batch: each with the one before it, the first with the last.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mix {
    /// Of mixup (Zhang et al. 2018), from 0 (none) to 1: both clips shine through. Parts are drawn from Beta(alpha, alpha).
    pub mixup: f64,
    /// Of CutMix (Yun et al. 2019), likewise: all frames of a clip show a rectangle of the other.
    pub cutmix: f64,
}

impl Mix {
    /// Clips `(n, 3, t, h, w)` and labels of `classes` classes as they are mixed by what `draws` says. With both kinds,
    /// half of the batches is mixed by each.
    pub(super) fn apply(
        self,
        clips: &Tensor,
        labels: &Labels,
        classes: usize,
        draws: &mut Draws,
    ) -> Result<(Tensor, Labels)> {
        let count = clips.dim(0)?;
        let Self { mixup, cutmix } = self;
        if count < 2 || (mixup == 0.0 && cutmix == 0.0) {
            return Ok((clips.clone(), labels.clone()));
        }
        let cuts = cutmix > 0.0 && (mixup == 0.0 || draws.unit() < 0.5);
        let part = beta(if cuts { cutmix } else { mixup }, draws);
        let others: Vec<u32> = (0..count as u32).map(|clip| (clip + count as u32 - 1) % count as u32).collect();
        let others = Tensor::new(others, clips.device())?;
        let other_clips = clips.index_select(&others, 0)?;
        let (mixed, part) = if cuts {
            let (height, width) = (clips.dim(3)?, clips.dim(4)?);
            let [top, left, box_height, box_width] = rectangle(height, width, 1.0 - part, draws);
            let mask: Vec<f32> = (0..height * width)
                .map(|pixel| {
                    let (y, x) = (pixel / width, pixel % width);
                    let inside = (top..top + box_height).contains(&y) && (left..left + box_width).contains(&x);
                    f32::from(u8::from(!inside))
                })
                .collect();
            let keeps = Tensor::from_vec(mask, (1, 1, 1, height, width), clips.device())?;
            let takes = keeps.affine(-1.0, 1.0)?;
            let mixed = (clips.broadcast_mul(&keeps)? + other_clips.broadcast_mul(&takes)?)?;
            (mixed, 1.0 - (box_height * box_width) as f64 / (height * width) as f64)
        } else {
            (((clips * part)? + (other_clips * (1.0 - part))?)?, part)
        };
        let own = labels.parts(classes)?;
        let theirs = own.index_select(&others, 0)?;
        Ok((mixed, Labels::Parts(((own * part)? + (theirs * (1.0 - part))?)?)))
    }
}

/// A draw from Beta(alpha, alpha) with alpha from 0 to 1 (Jöhnk 1964).
fn beta(alpha: f64, draws: &mut Draws) -> f64 {
    loop {
        let [x, y] = [(); 2].map(|()| draws.unit().powf(1.0 / alpha));
        let sum = x + y;
        if sum > 0.0 && sum <= 1.0 {
            return x / sum;
        }
        // With small alphas both powers are often too small for an f64: then all is of one clip.
        if sum == 0.0 {
            return if draws.unit() < 0.5 { 0.0 } else { 1.0 };
        }
    }
}

/// Top, left, height and width of a rectangle somewhere in a picture that has `part` of its area, but for what is beyond
/// its sides.
fn rectangle(height: usize, width: usize, part: f64, draws: &mut Draws) -> [usize; 4] {
    let side = part.sqrt();
    let mut span = |length: usize| {
        let (half, middle) = ((side * length as f64 / 2.0).round() as usize, draws.below(length as u64) as usize);
        let from = middle.saturating_sub(half);
        (from, (middle + half).min(length) - from)
    };
    let ((top, box_height), (left, box_width)) = (span(height), span(width));
    [top, left, box_height, box_width]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [[f32; 3]; 3] = [[2.0, -1.0, 0.5], [0.0, 0.3, -0.7], [-1.2, 0.4, 3.0]];

    fn mean(config: &LossConfig, labels: &[u32]) -> f32 {
        let logits = Tensor::new(&LOGITS, &Device::Cpu).unwrap();
        let labels = Labels::Classes(Tensor::new(labels, &Device::Cpu).unwrap());
        let Loss { sum, weight } = Criterion::new(config, &Device::Cpu).unwrap().loss(&logits, &labels).unwrap();
        sum.to_scalar::<f32>().unwrap() / weight as f32
    }

    /// The definition in f64, summed over classes one by one.
    fn defined(weights: [f64; 3], smoothing: f64, labels: &[usize]) -> f64 {
        let (mut sum, mut weight) = (0.0, 0.0);
        for (logits, &label) in LOGITS.iter().zip(labels) {
            let logits = logits.map(f64::from);
            let log_total = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            for class in 0..3 {
                let target = if class == label { 1.0 - smoothing } else { 0.0 } + smoothing / 3.0;
                sum += weights[class] * target * (log_total - logits[class]);
            }
            weight += weights[label];
        }
        sum / weight
    }

    #[test]
    fn weights_and_smoothing_are_those_of_pytorch() {
        let labels = [0, 2, 2];
        for (weights, smoothing) in [([1.0; 3], 0.0), ([1.0; 3], 0.1), ([3.0, 0.5, 1.5], 0.0), ([3.0, 0.5, 1.5], 0.2)] {
            let class_weights = (weights != [1.0; 3]).then(|| weights.map(|weight| weight as f32).to_vec());
            let config = LossConfig { class_weights, label_smoothing: smoothing, ..LossConfig::default() };
            let (actual, expected) = (mean(&config, &labels), defined(weights, smoothing, &labels.map(|l| l as usize)));
            assert!((f64::from(actual) - expected).abs() < 1e-6, "{weights:?}, {smoothing}: {actual}, not {expected}");
        }
    }

    #[test]
    fn binary_cross_entropy_is_that_of_pytorch() {
        let shown = [[1.0f32, 0.0, 1.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0]];
        let labels = Labels::Parts(Tensor::new(&shown, &Device::Cpu).unwrap());
        for weights in [None, Some(vec![3.0f32, 0.5, 1.5])] {
            let kind = LossKind::BinaryCrossEntropy;
            let config = LossConfig { kind, class_weights: weights.clone(), label_smoothing: 0.0 };
            let logits = Tensor::new(&LOGITS, &Device::Cpu).unwrap();
            let actual = Criterion::new(&config, &Device::Cpu).unwrap().loss(&logits, &labels).unwrap().mean().unwrap();
            let one = |(clip, class): (usize, usize)| {
                let (logit, shown) = (f64::from(LOGITS[clip][class]), f64::from(shown[clip][class]));
                let weight = weights.as_ref().map_or(1.0, |weights| f64::from(weights[class]));
                weight * shown * (1.0 + (-logit).exp()).ln() + (1.0 - shown) * (1.0 + logit.exp()).ln()
            };
            let expected = (0..9).map(|place| one((place / 3, place % 3))).sum::<f64>() / 9.0;
            let actual = f64::from(actual.to_scalar::<f32>().unwrap());
            assert!((actual - expected).abs() < 1e-6, "{weights:?}: {actual}, not {expected}");
        }
        let far = Tensor::new(&[[1000f32, -1000.0]], &Device::Cpu).unwrap();
        let wrong = Labels::Parts(Tensor::new(&[[0f32, 1.0]], &Device::Cpu).unwrap());
        let config = LossConfig { kind: LossKind::BinaryCrossEntropy, ..LossConfig::default() };
        let loss = Criterion::new(&config, &Device::Cpu).unwrap().loss(&far, &wrong).unwrap();
        assert_eq!(loss.sum.to_scalar::<f32>().unwrap(), 1000.0);
    }

    #[test]
    fn clip_of_several_classes_is_right_if_its_best_logit_is_of_one_of_them() {
        let logits = Tensor::new(&LOGITS, &Device::Cpu).unwrap();
        let correct = |labels: Labels| labels.count_correct(&logits).unwrap();
        assert_eq!(correct(Labels::Classes(Tensor::new(&[0u32, 1, 1], &Device::Cpu).unwrap())), 2);
        let several = [[1.0f32, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]];
        assert_eq!(correct(Labels::Parts(Tensor::new(&several, &Device::Cpu).unwrap())), 1);
        let soft = [[0.6f32, 0.4, 0.0], [0.3, 0.7, 0.0], [0.5, 0.3, 0.2]];
        assert_eq!(correct(Labels::Parts(Tensor::new(&soft, &Device::Cpu).unwrap())), 2);
    }

    #[test]
    fn examples_that_show_a_class_weigh_as_much_as_those_that_do_not() {
        assert_eq!(balanced_positive_weights(&[2, 8, 0, 10], 10), [4.0, 0.25, 1.0, 1.0]);
    }

    #[test]
    fn balanced_classes_weigh_the_same_in_sum() {
        let counts = [30, 3, 3, 0];
        let weights = balanced_weights(&counts);
        let sums: Vec<f32> = counts.iter().zip(&weights).map(|(&count, weight)| count as f32 * weight).collect();
        assert_eq!(sums, [12.0, 12.0, 12.0, 0.0]);
    }

    #[test]
    fn mixed_clips_have_the_labels_of_what_they_show() {
        let colors = [0.0f32, 1.0, 10.0];
        let pixels: Vec<f32> = colors.iter().flat_map(|&color| vec![color; 3 * 2 * 16 * 16]).collect();
        let clips = Tensor::from_vec(pixels, (3, 3, 2, 16, 16), &Device::Cpu).unwrap();
        let labels = Labels::Classes(Tensor::new(&[0u32, 1, 2], &Device::Cpu).unwrap());
        for (kind, mix) in [("mixup", Mix { mixup: 0.8, cutmix: 0.0 }), ("cutmix", Mix { mixup: 0.0, cutmix: 1.0 })] {
            for seed in 0..20 {
                let (mixed, parts) = mix.apply(&clips, &labels, 3, &mut Draws::new(seed, "mix", 0, 0)).unwrap();
                let Labels::Parts(parts) = parts else { panic!("{kind} did not mix") };
                let parts = parts.to_vec2::<f32>().unwrap();
                let means = mixed.flatten_from(1).unwrap().mean(1).unwrap().to_vec1::<f32>().unwrap();
                for (clip, (parts, mean)) in parts.iter().zip(means).enumerate() {
                    let expected: f32 = parts.iter().zip(colors).map(|(part, color)| part * color).sum();
                    assert!((expected - mean).abs() < 1e-3, "{kind} {seed}, clip {clip}: {parts:?} but {mean}");
                    assert!((parts.iter().sum::<f32>() - 1.0).abs() < 1e-6);
                }
            }
        }
        let alone = clips.narrow(0, 0, 1).unwrap();
        let mix = Mix { mixup: 0.5, cutmix: 0.5 };
        let one = Labels::Classes(Tensor::new(&[0u32], &Device::Cpu).unwrap());
        let (_, labels) = mix.apply(&alone, &one, 3, &mut Draws::new(1, "mix", 0, 0)).unwrap();
        assert!(matches!(labels, Labels::Classes(_)), "one clip has nothing to be mixed with");
    }

    #[test]
    fn beta_draws_have_the_right_spread() {
        for alpha in [0.1, 0.4, 1.0] {
            let mut draws = Draws::new(1, "beta", 0, 0);
            let values: Vec<f64> = (0..20_000).map(|_| beta(alpha, &mut draws)).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.01 && (variance - expected).abs() < 0.01, "{alpha}: {mean}, {variance}");
        }
    }
}
