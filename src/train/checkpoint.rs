//! All that a later process needs to go on with a training as if it had never stopped, in one safetensors file.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::schedule::Plateau;
use super::settings::Settings;
use crate::model::file::{ModelFileError, read_metadata, write_whole};
use crate::model::spec::{ClipSpec, ModelSpec};

/// Key in the safetensors `__metadata__` under which [`Progress`] stands as JSON.
const PROGRESS_KEY: &str = "kinetoscope.training";

const MODEL_PREFIX: &str = "model.";
const OPTIMIZER_PREFIX: &str = "optimizer.";
const AVERAGE_PREFIX: &str = "average.";

/// A training between two steps.
#[derive(Debug)]
pub struct Checkpoint {
    /// Everything but tensors.
    pub progress: Progress,
    /// The weights by parameter.
    pub weights: HashMap<String, Tensor>,
    /// The optimiser's tensors.
    pub optimizer: HashMap<String, Tensor>,
    /// The average of the weights over steps, if there is one.
    pub average: HashMap<String, Tensor>,
}

/// Where a training is. Random numbers come from a counter, so that no generator has a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// What is trained.
    pub spec: ModelSpec,
    /// What must be the same when a run is resumed, by name.
    pub settings: BTreeMap<String, String>,
    /// Epochs that are over.
    pub epoch: u64,
    /// Batches of the epoch under way that are used up.
    pub batch: u64,
    /// Optimiser steps in all.
    pub step: u64,
    /// Of the epoch under way.
    pub tally: Tally,
    /// Of the schedule.
    pub plateau: Plateau,
    /// The best epoch so far.
    pub best: Option<Best>,
}

/// What has been counted of an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Sum of the clips' losses, as the bits of an f64: decimal digits might round.
    loss_bits: u64,
    /// Clips whose best score was their label's.
    pub correct: u64,
    /// Clips.
    pub clips: u64,
    /// Time spent.
    pub milliseconds: u64,
    /// Part of it spent waiting for batches.
    pub waited_milliseconds: u64,
}

/// How good the best epoch was. Floats are kept as their bits, because decimal digits might round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Its number, from 0; `None` in checkpoints of the first versions.
    #[serde(default)]
    epoch: Option<u64>,
    /// Validation clips whose best score was their label's.
    correct: u64,
    /// Mean accuracy of the classes, or where clips show several mean average precision.
    #[serde(default)]
    mean_class_bits: u64,
    loss_bits: u64,
}

/// What makes one epoch better than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// More clips right.
    Accuracy,
    /// A higher mean of the classes' accuracies, each counting alike however many clips it has.
    MeanClassAccuracy,
    /// A higher mean of the classes' average precisions, where clips show several classes.
    MeanAveragePrecision,
    /// A lower loss.
    Loss,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accuracy => "accuracy",
            Self::MeanClassAccuracy => "mean class accuracy",
            Self::MeanAveragePrecision => "mean average precision",
            Self::Loss => "loss",
        })
    }
}

impl Tally {
    /// Counts a batch with this mean loss.
    pub fn add(&mut self, loss: f64, correct: u64, clips: u64) {
        self.loss_bits = (self.loss_sum() + loss * clips as f64).to_bits();
        self.correct += correct;
        self.clips += clips;
    }

    /// A tally of sums.
    pub fn of_sums(loss_sum: f64, correct: u64, clips: u64) -> Self {
        Self { loss_bits: loss_sum.to_bits(), correct, clips, ..Self::default() }
    }

    /// Sum of the clips' losses.
    pub fn loss_sum(&self) -> f64 {
        f64::from_bits(self.loss_bits)
    }

    /// Mean loss of a clip.
    pub fn loss(&self) -> f64 {
        self.loss_sum() / self.clips.max(1) as f64
    }

    /// Part of the clips that were right, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.clips.max(1) as f64
    }
}

impl Best {
    /// The result of epoch `epoch`, counted from 0.
    pub fn of(tally: &Tally, mean_over_classes: Option<f64>, epoch: u64) -> Self {
        let mean_class_bits = mean_over_classes.unwrap_or_else(|| tally.accuracy()).to_bits();
        Self { epoch: Some(epoch), correct: tally.correct, mean_class_bits, loss_bits: tally.loss().to_bits() }
    }

    /// Its number, from 1.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch.map(|epoch| epoch + 1)
    }

    /// Whether this epoch is better than another one: by the metric, or as good by it at a lower loss.
    pub fn beats(&self, other: &Self, metric: Metric) -> bool {
        let [loss, other_loss] = [self, other].map(|of| f64::from_bits(of.loss_bits));
        let mean = |of: &Self| f64::from_bits(of.mean_class_bits);
        let ordering = match metric {
            Metric::Accuracy => self.correct.cmp(&other.correct),
            Metric::MeanClassAccuracy | Metric::MeanAveragePrecision => mean(self).total_cmp(&mean(other)),
            Metric::Loss => Ordering::Equal,
        };
        ordering.is_gt() || (ordering.is_eq() && loss < other_loss)
    }
}

/// Why a training can't be resumed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// Not a safetensors file.
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// Another safetensors file.
    #[error("the file has no `{PROGRESS_KEY}` entry in its metadata: it is no checkpoint of `kinetoscope train`")]
    NoProgress,
    /// An entry that does not parse.
    #[error("the checkpoint's description does not parse: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A run with other settings.
    #[error("the checkpoint is of another training: its {setting} is {found}, now it is {wanted}")]
    Settings {
        /// Which one differs.
        setting: String,
        /// In the checkpoint.
        found: String,
        /// Now.
        wanted: String,
    },
    /// A tensor is missing, or candle refused one.
    #[error("the checkpoint does not fit: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Checkpoint {
    /// Writes the checkpoint. Whatever ends this process or fills the disk, `path` is the old file or the whole new one.
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let metadata = HashMap::from([(PROGRESS_KEY.to_owned(), serde_json::to_string(&self.progress)?)]);
        let named = |prefix: &'static str, tensors: &HashMap<String, Tensor>| {
            let tensors = tensors.iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor.clone()));
            tensors.collect::<Vec<_>>()
        };
        let mut tensors = HashMap::new();
        tensors.extend(named(MODEL_PREFIX, &self.weights));
        tensors.extend(named(OPTIMIZER_PREFIX, &self.optimizer));
        tensors.extend(named(AVERAGE_PREFIX, &self.average));
        Ok(write_whole(path, &tensors, metadata)?)
    }

    /// Reads a checkpoint; the tensors are on the CPU. `None` if there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ModelFileError::Io { path: path.to_owned(), error }.into()),
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
        let progress = Progress::of_metadata(metadata.metadata().as_ref())?;
        let [mut weights, mut optimizer, mut average] = [(); 3].map(|()| HashMap::new());
        for (name, tensor) in candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)? {
            if let Some(name) = name.strip_prefix(MODEL_PREFIX) {
                weights.insert(name.to_owned(), tensor);
            } else if let Some(name) = name.strip_prefix(OPTIMIZER_PREFIX) {
                optimizer.insert(name.to_owned(), tensor);
            } else if let Some(name) = name.strip_prefix(AVERAGE_PREFIX) {
                average.insert(name.to_owned(), tensor);
            }
        }
        Ok(Some(Self { progress, weights, optimizer, average }))
    }
}

impl Progress {
    /// Reads where the training of a checkpoint is, and no tensors. `None` if there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ModelFileError::Io { path: path.to_owned(), error }.into()),
        };
        Self::of_metadata(Some(&read_metadata(&file, path)?)).map(Some)
    }

    fn of_metadata(metadata: Option<&HashMap<String, String>>) -> Result<Self, CheckpointError> {
        let progress = metadata.and_then(|entries| entries.get(PROGRESS_KEY)).ok_or(CheckpointError::NoProgress)?;
        let mut progress: Self = serde_json::from_str(progress)?;
        // One whose number nobody wrote down is taken for the latest, so that an early end waits long enough.
        let latest = progress.epoch.saturating_sub(1);
        if let Some(best) = &mut progress.best {
            best.epoch.get_or_insert(latest);
        }
        Ok(progress)
    }

    /// A training before its first step.
    pub fn new(spec: ModelSpec, settings: BTreeMap<String, String>, plateau: Plateau) -> Self {
        Self { spec, settings, epoch: 0, batch: 0, step: 0, tally: Tally::default(), plateau, best: None }
    }

    /// Epochs that are over since the best one.
    pub fn epochs_since_best(&self) -> u64 {
        let best = self.best.and_then(|best| best.epoch);
        best.map_or(0, |best| self.epoch.saturating_sub(best + 1))
    }

    /// Refuses to go on with another network or other settings than the run began with.
    /// Other words of earlier versions for the same settings are no difference.
    pub fn check(&self, spec: &ModelSpec, settings: &Settings) -> Result<(), CheckpointError> {
        let differs = |setting: &str, found: String, wanted: String| CheckpointError::Settings {
            setting: setting.to_owned(),
            found,
            wanted,
        };
        if self.spec.architecture != spec.architecture {
            let (found, wanted) = (self.spec.architecture.to_string(), spec.architecture.to_string());
            return Err(differs("architecture", found, wanted));
        }
        if self.spec.labels != spec.labels {
            let pairs = || self.spec.labels.iter().zip(&spec.labels);
            let (found, wanted) = match pairs().find(|(found, wanted)| found != wanted) {
                Some((found, wanted)) => (format!("{found:?}"), format!("{wanted:?}")),
                None => (format!("{} long", self.spec.labels.len()), format!("{} long", spec.labels.len())),
            };
            return Err(differs("list of classes", found, wanted));
        }
        if let Some((setting, found, wanted)) = settings.difference(&self.settings) {
            return Err(differs(&setting, found, wanted));
        }
        if self.spec.clip != spec.clip || self.spec.preprocessing != spec.preprocessing {
            let text = |spec: &ModelSpec| {
                let ClipSpec { frames, size, temporal_stride } = spec.clip;
                let frames = format!("{frames} frames of {size} pixels, each {temporal_stride}. of the video's");
                // JSON is how people write preprocessing themselves.
                format!("{frames}, {}", serde_json::to_string(&spec.preprocessing).unwrap_or_default())
            };
            return Err(differs("clip and preprocessing", text(&self.spec), text(spec)));
        }
        Ok(())
    }
}
