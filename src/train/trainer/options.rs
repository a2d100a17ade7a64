//! How to train, and what of it must stay the same.

use std::time::Duration;

use candle_conv3d::Precision;
use candle_core::Device;

use crate::train::checkpoint::Metric;
use crate::train::loss::{LossConfig, Mix};
use crate::train::network::BeginAt;
use crate::train::optimizer::OptimizerConfig;
use crate::train::schedule::Schedule;
use crate::train::settings::Settings;

/// How to train.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Passes over the training examples.
    pub epochs: u64,
    /// Batches whose gradients make one step, at least 1. Batch norms still see one batch at a time.
    pub accumulate: usize,
    /// What moves the weights.
    pub optimizer: OptimizerConfig,
    /// Times the learning rate for all layers but the last.
    pub backbone_factor: f64,
    /// How the learning rate falls.
    pub schedule: Schedule,
    /// Steps in which it rises at the beginning.
    pub warmup_steps: u64,
    /// The first layer that is trained.
    pub begin_at: BeginAt,
    /// Whether batch norms keep their statistics.
    pub frozen_norm: bool,
    /// What is minimised.
    pub loss: LossConfig,
    /// Clips that are mixed of two.
    pub mix: Mix,
    /// Of what is drawn to mix clips.
    pub seed: u64,
    /// Longest that all gradients together may be; longer ones are scaled down.
    pub clip_norm: Option<f64>,
    /// Part of the average of the weights over steps that each step keeps. With it, the average is what is validated and
    /// written.
    pub average_decay: Option<f64>,
    /// What makes an epoch the best one.
    pub best_by: Metric,
    /// Epochs without a better one after which the training ends.
    pub early_stop: Option<u64>,
    /// Time after which a checkpoint is written in the midst of an epoch.
    pub checkpoint_interval: Duration,
    /// Where the network is.
    pub device: Device,
    /// What it computes with there; CPUs compute in f32.
    pub precision: Precision,
    /// What else must be the same when the run is resumed (data, batch size, seed), by name.
    pub settings: Settings,
}

impl TrainOptions {
    /// All layers trained at one learning rate without warm-up, a checkpoint every 15 minutes.
    pub fn new(epochs: u64, accumulate: usize, optimizer: OptimizerConfig, schedule: Schedule, device: Device) -> Self {
        Self {
            epochs,
            accumulate,
            optimizer,
            backbone_factor: 1.0,
            schedule,
            warmup_steps: 0,
            begin_at: BeginAt::First,
            frozen_norm: false,
            loss: LossConfig::default(),
            mix: Mix::default(),
            seed: 1,
            clip_norm: None,
            average_decay: None,
            best_by: Metric::Accuracy,
            early_stop: None,
            checkpoint_interval: Duration::from_secs(15 * 60),
            device,
            precision: Precision::F32,
            settings: Settings::default(),
        }
    }
}

/// What must stay the same over the processes of a run and when it is resumed. The number of epochs may grow.
pub(super) fn all_settings(options: &TrainOptions, world_size: usize) -> Settings {
    let mut settings = options.settings.clone();
    // The first versions wrote these as they stand in the program.
    let (optimizer, schedule) = (format!("{:?}", options.optimizer), format!("{:?}", options.schedule));
    settings.set_with_earlier("optimizer", options.optimizer.to_string(), vec![optimizer]);
    settings.set_with_earlier("schedule", options.schedule.to_string(), vec![schedule]);
    let or_none = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| value.to_string());
    let weights = options.loss.class_weights.as_ref();
    for (name, value) in [
        ("accumulate", options.accumulate.to_string()),
        ("backbone learning rate factor", options.backbone_factor.to_string()),
        ("warm-up steps", options.warmup_steps.to_string()),
        ("first trained layer", options.begin_at.to_string()),
        ("frozen batch norm", options.frozen_norm.to_string()),
        ("class weights", weights.map_or_else(|| "none".to_owned(), |weights| list(weights))),
        ("loss", options.loss.kind.to_string()),
        ("label smoothing", options.loss.label_smoothing.to_string()),
        ("mixup", options.mix.mixup.to_string()),
        ("cutmix", options.mix.cutmix.to_string()),
        ("gradient clipping", or_none(options.clip_norm)),
        ("average of weights", or_none(options.average_decay)),
        ("metric of the best epoch", options.best_by.to_string()),
        ("number of processes", world_size.to_string()),
        ("precision", options.precision.to_string()),
    ] {
        settings.set(name, value);
    }
    settings
}

fn list(numbers: &[f32]) -> String {
    numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::sgd::SgdConfig;

    #[test]
    fn texts_of_the_first_versions_mean_the_same() {
        let found = |texts: &[(&str, &str)]| {
            let optimizer = OptimizerConfig::Sgd(SgdConfig { learning_rate: 0.02, ..SgdConfig::default() });
            let schedule = Schedule::Plateau { patience: 10, gamma: 0.1 };
            let settings = all_settings(&TrainOptions::new(5, 1, optimizer, schedule, Device::Cpu), 1);
            settings.difference(&texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
        };
        let mut first = vec![
            ("accumulate", "1"),
            ("backbone learning rate factor", "1"),
            ("first trained layer", "conv1"),
            ("frozen batch norm", "false"),
            ("number of processes", "1"),
            (
                "optimizer",
                "Sgd(SgdConfig { learning_rate: 0.02, momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.001 })",
            ),
            ("schedule", "Plateau { patience: 10, gamma: 0.1 }"),
            ("warm-up steps", "0"),
        ];
        assert_eq!(found(&first), None);
        first[6].1 = "Plateau { patience: 9, gamma: 0.1 }";
        assert_eq!(found(&first).map(|(name, ..)| name), Some("schedule".to_owned()));
    }
}
