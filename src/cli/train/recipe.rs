//! Arguments that say what is trained, on which clips, and how.

use std::path::{Path, PathBuf};

use candle_core::Device;
use clap::{Args, ValueEnum};

use crate::cli::model::ShortcutArg;
use crate::convert::read_preprocessing;
use crate::hub::ModelSource;
use crate::model::spec::{Architecture, ClipSpec, Family, ModelSpec, Preprocessing, Stem};
use crate::train::augment::{Augment, ColorJitter, TrainCrop};
use crate::train::network::Layer;
use crate::train::optimizer::OptimizerConfig;
use crate::train::schedule::Schedule;
use crate::train::sgd::SgdConfig;
use crate::train::trainer::TrainOptions;

/// Which network.
#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// Model file to begin with, or one on the Hugging Face Hub as hf:ORG/REPO[/FILE][@REVISION]; a new network if absent.
    /// Its last layer is new if its classes are others than the data's
    #[arg(long, value_name = "FILE")]
    init: Option<ModelSource>,

    /// Depth of a new network
    #[arg(long, value_name = "N", default_value_t = 18, conflicts_with = "init")]
    depth: u32,

    /// Shortcut of a new network
    #[arg(long, value_enum, default_value = "b", conflicts_with = "init")]
    shortcut: ShortcutArg,

    /// Times the channels of all layers of a new network
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, conflicts_with = "init")]
    width: f64,

    /// Name by which requests choose the model; that of OUT if absent
    #[arg(long)]
    name: Option<String>,

    /// Version of the weights
    #[arg(long, default_value = "1")]
    weights_version: String,

    /// Licence of the weights, as an SPDX expression; that of the model to begin with if absent
    #[arg(long)]
    license: Option<String>,
}

impl NetworkArgs {
    pub(super) fn init(&self) -> Option<&ModelSource> {
        self.init.as_ref()
    }

    pub(super) fn fine_tunes(&self) -> bool {
        self.init.is_some()
    }

    /// `--name`, or a name made of that of the folder `out`.
    pub(super) fn name_or(&self, out: &Path) -> String {
        let folder = || {
            let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
            let name: String = name.chars().map(allowed).take(128).collect();
            if name.is_empty() { "model".to_owned() } else { name }
        };
        self.name.clone().unwrap_or_else(folder)
    }

    /// What a new network says about itself.
    pub(super) fn spec(
        &self,
        name: String,
        labels: Vec<String>,
        clip: ClipSpec,
        preprocessing: Preprocessing,
    ) -> ModelSpec {
        let architecture = Architecture {
            family: Family::ResNet3d,
            depth: self.depth,
            shortcut: self.shortcut.into(),
            widen_factor: self.width,
            stem: Stem::AUTHORS,
        };
        let mut spec = ModelSpec {
            name: String::new(),
            version: String::new(),
            trained: true,
            license: None,
            origin: None,
            architecture,
            clip,
            preprocessing,
            labels,
        };
        self.describe(&mut spec, name, "random weights");
        spec
    }

    /// Name, version, licence and origin of what will be trained from `beginning`.
    pub(super) fn describe(&self, spec: &mut ModelSpec, name: String, beginning: &str) {
        spec.name = name;
        spec.version.clone_from(&self.weights_version);
        spec.trained = true;
        if self.license.is_some() {
            spec.license.clone_from(&self.license);
        }
        let version = env!("CARGO_PKG_VERSION");
        spec.origin = Some(format!("trained by kinetoscope {version} from {beginning}"));
    }
}

/// Which clips.
#[derive(Debug, Args)]
pub(super) struct InputArgs {
    /// How frames become a new network's input: 2018, 2020, torchvision or a JSON file, as for `convert`
    #[arg(long, value_name = "NAME|FILE", default_value = "2020", conflicts_with = "init")]
    preprocessing: PathBuf,

    /// Frames in a clip; if absent those of the model to begin with, 16 for a new network
    #[arg(long, value_name = "N")]
    clip_frames: Option<usize>,

    /// Height and width of clips in pixels; if absent those of the model to begin with, 112 for a new network
    #[arg(long, value_name = "PIXELS")]
    clip_size: Option<usize>,

    /// Take every N-th frame; if absent as the model to begin with, each one for a new network
    #[arg(long, value_name = "N")]
    temporal_stride: Option<usize>,

    /// Which part of the frames clips show in training
    #[arg(long, value_enum, default_value = "corner")]
    crop: CropArg,

    /// Mirror no clips: for classes that have a direction
    #[arg(long)]
    no_flip: bool,

    /// Vary brightness, contrast and saturation of clips by up to this part
    #[arg(long, value_name = "PART")]
    color_jitter: Option<f64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CropArg {
    /// A corner or the middle at one of five scales, as the paper
    Corner,
    /// A random area and aspect ratio, as the authors' newer code
    RandomResized,
    /// The middle, as in serving
    Center,
}

impl InputArgs {
    /// `beginning` but for what was given.
    pub(super) fn clip(&self, beginning: ClipSpec) -> ClipSpec {
        ClipSpec {
            frames: self.clip_frames.unwrap_or(beginning.frames),
            size: self.clip_size.unwrap_or(beginning.size),
            temporal_stride: self.temporal_stride.unwrap_or(beginning.temporal_stride),
        }
    }

    pub(super) fn preprocessing(&self) -> anyhow::Result<Preprocessing> {
        Ok(read_preprocessing(&self.preprocessing)?)
    }

    pub(super) fn augment(&self) -> Augment {
        let crop = match self.crop {
            CropArg::Corner => TrainCrop::CornerMultiScale,
            CropArg::RandomResized => TrainCrop::RANDOM_RESIZED,
            CropArg::Center => TrainCrop::Center,
        };
        let jitter = |part| ColorJitter { brightness: part, contrast: part, saturation: part };
        Augment { crop, flip: !self.no_flip, color_jitter: self.color_jitter.map(jitter), ..Augment::PAPER }
    }
}

/// How to train. The defaults are the paper's (section 3.2.1) but for the batch, which wants more memory than most have:
/// `--batch-size 32 --accumulate 8` makes up its 256 clips.
#[derive(Debug, Args)]
pub(super) struct RecipeArgs {
    /// Passes over the training videos
    #[arg(long, value_name = "N", default_value_t = 50)]
    epochs: u64,

    /// Clips that go through the network at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch_size: u16,

    /// Batches whose gradients make one step of the weights
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    accumulate: u16,

    /// First layer that is trained: conv1 (all), layer1, layer2, layer3, layer4 or fc. Those before stay as they are
    #[arg(long, value_name = "LAYER", default_value = "conv1")]
    begin_at: Layer,

    /// Normalise by the statistics of the weights to begin with, and keep them
    #[arg(long)]
    freeze_norm: bool,

    /// Rule that moves the weights
    #[arg(long, value_enum, default_value = "sgd")]
    optimizer: OptimizerArg,

    /// Learning rate; if absent 0.1 for a new network and 0.01 with --init, a hundredth of it for AdamW
    #[arg(long, value_name = "RATE", value_parser = positive)]
    lr: Option<f64>,

    /// Times the learning rate for all layers but the last
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = positive)]
    backbone_lr_factor: f64,

    /// Part of the last step that SGD keeps
    #[arg(long, value_name = "PART", default_value_t = 0.9, value_parser = part)]
    momentum: f64,

    /// Part of the gradient that SGD leaves out of its momentum
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = part, conflicts_with = "nesterov")]
    dampening: f64,

    /// Nesterov's momentum
    #[arg(long)]
    nesterov: bool,

    /// Part of each weight that is added to its gradient (AdamW: taken off the weight)
    #[arg(long, value_name = "PART", default_value_t = 0.001, value_parser = part)]
    weight_decay: f64,

    /// How the learning rate falls
    #[arg(long, value_enum, default_value = "plateau")]
    schedule: ScheduleArg,

    /// Epochs at whose start a multistep schedule falls
    #[arg(long, value_name = "EPOCH,...", value_delimiter = ',', required_if_eq("schedule", "multistep"))]
    milestones: Vec<u64>,

    /// Epochs without a lower validation loss after which a plateau schedule falls
    #[arg(long, value_name = "EPOCHS", default_value_t = 10)]
    patience: u64,

    /// What the learning rate is multiplied with when it falls
    #[arg(long, value_name = "FACTOR", default_value_t = 0.1, value_parser = part)]
    gamma: f64,

    /// Epochs in which the learning rate rises evenly at the beginning
    #[arg(long, value_name = "EPOCHS", default_value_t = 0)]
    warmup_epochs: u64,

    /// Seed of the weights, the order of examples and the augmentation
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerArg {
    Sgd,
    #[value(name = "adamw")]
    AdamW,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScheduleArg {
    /// When the validation loss stays, as the paper
    Plateau,
    /// At --milestones
    Multistep,
    /// Never
    Constant,
}

impl RecipeArgs {
    pub(super) fn batch_size(&self) -> usize {
        usize::from(self.batch_size)
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Options for epochs of so many batches.
    pub(super) fn options(&self, batches_per_epoch: usize, fine_tunes: bool, device: Device) -> TrainOptions {
        let usual = if fine_tunes { 0.01 } else { 0.1 };
        let optimizer = match self.optimizer {
            OptimizerArg::Sgd => OptimizerConfig::Sgd(SgdConfig {
                learning_rate: self.lr.unwrap_or(usual),
                momentum: self.momentum,
                dampening: self.dampening,
                nesterov: self.nesterov,
                weight_decay: self.weight_decay,
            }),
            OptimizerArg::AdamW => OptimizerConfig::AdamW {
                learning_rate: self.lr.unwrap_or(usual / 100.0),
                weight_decay: self.weight_decay,
            },
        };
        let schedule = match self.schedule {
            ScheduleArg::Constant => Schedule::Constant,
            ScheduleArg::Multistep => Schedule::MultiStep { milestones: self.milestones.clone(), gamma: self.gamma },
            ScheduleArg::Plateau => Schedule::Plateau { patience: self.patience, gamma: self.gamma },
        };
        let accumulate = usize::from(self.accumulate);
        TrainOptions {
            warmup_steps: self.warmup_epochs * batches_per_epoch.div_ceil(accumulate) as u64,
            backbone_factor: self.backbone_lr_factor,
            begin_at: self.begin_at,
            frozen_norm: self.freeze_norm,
            ..TrainOptions::new(self.epochs, accumulate, optimizer, schedule, device)
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("allowed are numbers above 0".to_owned()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("allowed are numbers from 0 to 1".to_owned()),
    }
}
