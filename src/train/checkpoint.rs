//! All that a later process needs to go on with a training as if it had never stopped, in one safetensors file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::schedule::Plateau;
use crate::model::file::{ModelFileError, write_whole};
use crate::model::spec::ModelSpec;

/// Key in the safetensors `__metadata__` under which [`Progress`] stands as JSON.
const PROGRESS_KEY: &str = "kinetoscope.training";

const MODEL_PREFIX: &str = "model.";
const OPTIMIZER_PREFIX: &str = "optimizer.";

/// A training between two steps.
#[derive(Debug)]
pub struct Checkpoint {
    /// Everything but tensors.
    pub progress: Progress,
    /// The weights by parameter.
    pub weights: HashMap<String, Tensor>,
    /// The optimiser's tensors.
    pub optimizer: HashMap<String, Tensor>,
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

/// How good the best epoch was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Validation clips whose best score was their label's.
    pub correct: u64,
    /// Bits of their loss, an f64.
    pub loss_bits: u64,
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
    /// The result of an epoch.
    pub fn of(tally: &Tally) -> Self {
        Self { correct: tally.correct, loss_bits: tally.loss().to_bits() }
    }

    /// Whether an epoch with this validation result is better: more clips right, or as many at a lower loss.
    pub fn is_beaten_by(&self, tally: &Tally) -> bool {
        tally.correct > self.correct || (tally.correct == self.correct && tally.loss() < f64::from_bits(self.loss_bits))
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
        Ok(write_whole(path, &tensors, metadata)?)
    }

    /// Reads a checkpoint; the tensors are on the CPU. `None` if there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ModelFileError::Io { path: path.to_owned(), error }.into()),
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
        let progress = metadata.metadata().as_ref().and_then(|entries| entries.get(PROGRESS_KEY));
        let progress = serde_json::from_str(progress.ok_or(CheckpointError::NoProgress)?)?;
        let (mut weights, mut optimizer) = (HashMap::new(), HashMap::new());
        for (name, tensor) in candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)? {
            if let Some(name) = name.strip_prefix(MODEL_PREFIX) {
                weights.insert(name.to_owned(), tensor);
            } else if let Some(name) = name.strip_prefix(OPTIMIZER_PREFIX) {
                optimizer.insert(name.to_owned(), tensor);
            }
        }
        Ok(Some(Self { progress, weights, optimizer }))
    }
}

impl Progress {
    /// Refuses to go on with another network or other settings than the run began with.
    pub fn check(&self, spec: &ModelSpec, settings: &BTreeMap<String, String>) -> Result<(), CheckpointError> {
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
        for (setting, wanted) in settings {
            let found = self.settings.get(setting).map_or("not set", String::as_str);
            if found != wanted {
                return Err(differs(setting, found.to_owned(), wanted.clone()));
            }
        }
        if self.spec.clip != spec.clip || self.spec.preprocessing != spec.preprocessing {
            let text = |spec: &ModelSpec| format!("{:?}, {:?}", spec.clip, spec.preprocessing);
            return Err(differs("clip and preprocessing", text(&self.spec), text(spec)));
        }
        Ok(())
    }
}
