//! How to train, and what of it must stay the same.

use std::collections::BTreeMap;
use std::time::Duration;

use candle_conv3d::Precision;
use candle_core::Device;

use crate::train::checkpoint::Metric;
use crate::train::loss::{LossConfig, Mix};
use crate::train::network::BeginAt;
use crate::train::optimizer::OptimizerConfig;
use crate::train::schedule::Schedule;

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
    pub settings: BTreeMap<String, String>,
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
            settings: BTreeMap::new(),
        }
    }
}

/// What must stay the same over the processes of a run and when it is resumed. The number of epochs may grow.
pub(super) fn all_settings(options: &TrainOptions, world_size: usize) -> BTreeMap<String, String> {
    let mut settings = options.settings.clone();
    for (name, value) in [
        ("accumulate", options.accumulate.to_string()),
        ("optimizer", options.optimizer.to_string()),
        ("backbone learning rate factor", options.backbone_factor.to_string()),
        ("schedule", options.schedule.to_string()),
        ("warm-up steps", options.warmup_steps.to_string()),
        ("first trained layer", options.begin_at.to_string()),
        ("frozen batch norm", options.frozen_norm.to_string()),
        (
            "class weights",
            options.loss.class_weights.as_ref().map_or_else(|| "none".to_owned(), |weights| list(weights)),
        ),
        ("label smoothing", options.loss.label_smoothing.to_string()),
        ("mixup", options.mix.mixup.to_string()),
        ("cutmix", options.mix.cutmix.to_string()),
        ("gradient clipping", options.clip_norm.map_or_else(|| "none".to_owned(), |norm| norm.to_string())),
        ("average of weights", options.average_decay.map_or_else(|| "none".to_owned(), |decay| decay.to_string())),
        ("metric of the best epoch", options.best_by.to_string()),
        ("number of processes", world_size.to_string()),
        ("precision", options.precision.to_string()),
    ] {
        settings.insert(name.to_owned(), value);
    }
    settings
}

fn list(numbers: &[f32]) -> String {
    numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(", ")
}
