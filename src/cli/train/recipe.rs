//! Arguments that say what is trained, on which clips, and how.

use std::path::{Path, PathBuf};

use anyhow::bail;
use candle_core::Device;
use clap::{Args, ValueEnum};
use tracing::warn;

use super::loss::{ClassWeightsArg, LossArg};
use crate::cli::model::ShortcutArg;
use crate::convert::read_preprocessing;
use crate::hub::ModelSource;
use crate::model::scores::ScoreFunction;
use crate::model::spec::{ClipSpec, ModelSpec, Preprocessing};
use crate::train::augment::{Augment, ColorJitter, TrainCrop};
use crate::train::checkpoint::Metric;
use crate::train::dataset::{Dataset, LabelKind, LabelMode, Listing, Mirrored, mirrored_classes};
use crate::train::loss::{LossConfig, LossKind, Mix};
use crate::train::network::BeginAt;
use crate::train::optimizer::OptimizerConfig;
use crate::train::schedule::Schedule;
use crate::train::sgd::SgdConfig;
use crate::train::trainer::TrainOptions;
use crate::zoo::{Architecture, ArchitectureError, resnet3d};

/// Which network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkArgs {
    /// Model file to begin with, or one on the Hugging Face Hub as hf:ORG/REPO[/FILE][@REVISION]; a new network if absent.
    /// Its last layer is new if its classes are others than the data's
    #[arg(long, value_name = "FILE")]
    init: Option<ModelSource>,

    /// Family of a new network
    #[arg(
        long,
        value_name = "NAME",
        default_value = "resnet3d",
        value_parser = clap::builder::PossibleValuesParser::new(Architecture::FAMILIES),
        conflicts_with = "init"
    )]
    family: String,

    /// Setting of a new network, such as depth=34 or stem.max_pool=false; repeatable. `inspect` shows those of a model
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::super::model::parse_setting, conflicts_with = "init")]
    config: Vec<(String, String)>,

    /// Depth of a new network; 18 for a 3D ResNet if absent
    #[arg(long, value_name = "N", conflicts_with = "init")]
    depth: Option<u32>,

    /// Shortcut of a new network; b for a 3D ResNet if absent
    #[arg(long, value_enum, conflicts_with = "init")]
    shortcut: Option<ShortcutArg>,

    /// Channel multiplier of a new network; 1 if absent
    #[arg(long, value_name = "FACTOR", conflicts_with = "init")]
    width: Option<f64>,

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
    ) -> Result<ModelSpec, ArchitectureError> {
        let architecture = self.architecture()?;
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
            scores: ScoreFunction::default(),
        };
        self.describe(&mut spec, name, "random weights");
        Ok(spec)
    }

    /// A new network: the family's, with the settings that are given.
    fn architecture(&self) -> Result<Architecture, ArchitectureError> {
        let mut architecture = match self.family.as_str() {
            "resnet3d" => Architecture::ResNet3d(resnet3d::Config::paper(18, resnet3d::Shortcut::B)),
            family => Architecture::standard(family)?,
        };
        let shortcut = self.shortcut.map(|shortcut| match shortcut {
            ShortcutArg::A => "a".to_owned(),
            ShortcutArg::B => "b".to_owned(),
        });
        let flags = [
            ("depth", self.depth.map(|depth| depth.to_string())),
            ("shortcut", shortcut),
            ("widen_factor", self.width.map(|width| format!("{width:?}"))),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                architecture = architecture.with_setting(key, &value)?;
            }
        }
        for (key, value) in &self.config {
            architecture = architecture.with_setting(key, value)?;
        }
        Ok(architecture)
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
#[command(next_help_heading = "Clips")]
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

    /// Mirror no clips: for classes that have a direction. Where names of classes differ by one alone (left and right), none are
    /// mirrored in any case
    #[arg(long)]
    no_flip: bool,

    /// Mirror half of the clips although names of classes differ by a direction
    #[arg(long, conflicts_with = "no_flip")]
    flip: bool,

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

    /// How clips are varied, for these classes. Warns of those that mirroring would mix up.
    pub(super) fn augment(&self, classes: &[String]) -> Augment {
        let crop = match self.crop {
            CropArg::Corner => TrainCrop::CornerMultiScale,
            CropArg::RandomResized => TrainCrop::RANDOM_RESIZED,
            CropArg::Center => TrainCrop::Center,
        };
        let jitter = |part| ColorJitter { brightness: part, contrast: part, saturation: part };
        let flip = !self.no_flip && self.mirrors(classes);
        Augment { crop, flip, color_jitter: self.color_jitter.map(jitter), ..Augment::PAPER }
    }

    /// Whether clips of these classes are mirrored, where nobody forbids it.
    fn mirrors(&self, classes: &[String]) -> bool {
        let mirrored = mirrored_classes(classes);
        if mirrored.is_empty() {
            return true;
        }
        let pairs = Listing(mirrored.iter().map(|Mirrored { one, other }| format!("{one} / {other}")).collect());
        if self.flip {
            warn!(%pairs, "clips are mirrored although classes differ by a direction");
        } else {
            warn!(%pairs, "clips are not mirrored, as classes differ by a direction; --flip mirrors them all the same");
        }
        self.flip
    }
}

const OPTIMIZER: &str = "Optimizer";

/// How to train. What is not given is that of `--preset`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Recipe")]
pub(super) struct RecipeArgs {
    /// What is usual for a kind of training, for all that no other option gives: the values are printed at the start and
    /// stand in docs/training.md. If absent `paper`, at a tenth of the learning rate with --init
    #[arg(long, value_enum, value_name = "NAME")]
    preset: Option<PresetArg>,

    /// Passes over the training videos
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,

    /// Clips that go through the network at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch_size: u16,

    /// Batches whose gradients make one step of the weights
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    accumulate: u16,

    /// First group of layers that is trained: stem (all), layer1, layer2, layer3, layer4 or head. Those before stay as they
    /// are
    #[arg(long, value_name = "LAYER")]
    begin_at: Option<BeginAt>,

    /// Normalise by the statistics of the weights to begin with, and keep them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    freeze_norm: Option<bool>,

    /// Rule that moves the weights
    #[arg(long, value_enum, help_heading = OPTIMIZER)]
    optimizer: Option<OptimizerArg>,

    /// Learning rate; a hundredth of the preset's for AdamW if absent
    #[arg(long, value_name = "RATE", value_parser = positive, help_heading = OPTIMIZER)]
    lr: Option<f64>,

    /// Times the learning rate for all layers but the last
    #[arg(long, value_name = "FACTOR", value_parser = positive, help_heading = OPTIMIZER)]
    backbone_lr_factor: Option<f64>,

    /// Part of the last step that SGD keeps
    #[arg(long, value_name = "PART", default_value_t = 0.9, value_parser = part, help_heading = OPTIMIZER)]
    momentum: f64,

    /// Part of the gradient that SGD leaves out of its momentum
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = part, conflicts_with = "nesterov", help_heading = OPTIMIZER)]
    dampening: f64,

    /// Nesterov's momentum
    #[arg(long, help_heading = OPTIMIZER)]
    nesterov: bool,

    /// Part of each weight that is added to its gradient (AdamW: taken off the weight)
    #[arg(long, value_name = "PART", value_parser = part, help_heading = OPTIMIZER)]
    weight_decay: Option<f64>,

    /// How the learning rate falls
    #[arg(long, value_enum)]
    schedule: Option<ScheduleArg>,

    /// Epochs after which a multistep schedule falls
    #[arg(long, value_name = "EPOCH,...", value_delimiter = ',', required_if_eq("schedule", "multistep"), help_heading = OPTIMIZER)]
    milestones: Vec<u64>,

    /// Epochs without a lower validation loss after which a plateau schedule falls
    #[arg(long, value_name = "EPOCHS", default_value_t = 10, help_heading = OPTIMIZER)]
    patience: u64,

    /// What the learning rate is multiplied with when a plateau or multistep schedule falls
    #[arg(long, value_name = "FACTOR", default_value_t = 0.1, value_parser = part, help_heading = OPTIMIZER)]
    gamma: f64,

    /// Epochs in which the learning rate rises evenly at the beginning
    #[arg(long, value_name = "EPOCHS")]
    warmup_epochs: Option<u64>,

    /// What is minimised: `cross-entropy` where a video shows one class, `bce` (binary cross entropy) where it may show several,
    /// as those of Charades do. If absent as the labels of the data are, which is said
    #[arg(long, value_enum, value_name = "LOSS")]
    loss: Option<LossArg>,

    /// Part of each label that is spread evenly over all classes
    #[arg(long, value_name = "PART", value_parser = part_below_one)]
    label_smoothing: Option<f64>,

    /// Mix clips in pairs, both shining through, by parts drawn from Beta(ALPHA, ALPHA); 0 mixes none
    #[arg(long, value_name = "ALPHA", default_value_t = 0.0, value_parser = part)]
    mixup: f64,

    /// Show a rectangle of another clip in each, of a part drawn from Beta(ALPHA, ALPHA); 0 does not
    #[arg(long, value_name = "ALPHA", default_value_t = 0.0, value_parser = part)]
    cutmix: f64,

    /// Scale gradients down that are longer than this together
    #[arg(long, value_name = "NORM", value_parser = positive)]
    clip_grad_norm: Option<f64>,

    /// Average the weights over steps, keeping this part of the average in each (0.99 for short runs, 0.9999 for long ones);
    /// the average is what is validated and written
    #[arg(long, value_name = "DECAY", value_parser = part_below_one)]
    ema: Option<f64>,

    /// How much each class counts in the loss: `balanced`, so that rare ones count as much as frequent ones, or a file of
    /// lines CLASS,WEIGHT
    #[arg(long, value_name = "balanced|FILE")]
    class_weights: Option<ClassWeightsArg>,

    /// Which videos an epoch takes
    #[arg(long, value_enum, default_value = "all")]
    sampler: SamplerArg,

    /// What makes an epoch's model the best one; if absent accuracy, or mean-average-precision where videos have several labels
    #[arg(long, value_enum, value_name = "METRIC")]
    best: Option<BestArg>,

    /// Stop after so many epochs without a better one
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u64).range(1..))]
    early_stop: Option<u64>,

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScheduleArg {
    /// When the validation loss stays, as the paper
    Plateau,
    /// After --milestones
    Multistep,
    /// Along half a cosine, to nothing at the end
    Cosine,
    /// Never
    Constant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SamplerArg {
    /// Each once
    All,
    /// As many of each class: those of rare classes several times, some of frequent ones not
    Balanced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BestArg {
    /// The highest accuracy of validation clips
    Accuracy,
    /// The highest mean of the classes' accuracies
    MeanClassAccuracy,
    /// The highest mean of the classes' average precisions (mAP), where videos have several labels
    MeanAveragePrecision,
    /// The lowest validation loss
    Loss,
}

/// A kind of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PresetArg {
    /// A model file, and some tens of videos a class at most
    FinetuneSmall,
    /// A model file, and more videos than that
    Finetune,
    /// A new network
    Scratch,
    /// A new network, as in the paper (section 3.2.1), but for its batch: --batch-size 32 --accumulate 8 makes up its 256
    /// clips
    Paper,
}

/// The values of a preset.
struct Preset {
    epochs: u64,
    /// Of SGD.
    lr: f64,
    backbone_lr_factor: f64,
    weight_decay: f64,
    schedule: ScheduleArg,
    warmup_epochs: u64,
    begin_at: BeginAt,
    freeze_norm: bool,
    label_smoothing: f64,
    early_stop: Option<u64>,
}

impl PresetArg {
    fn values(self) -> Preset {
        let paper = Preset {
            epochs: 50,
            lr: 0.1,
            backbone_lr_factor: 1.0,
            weight_decay: 0.001,
            schedule: ScheduleArg::Plateau,
            warmup_epochs: 0,
            begin_at: BeginAt::First,
            freeze_norm: false,
            label_smoothing: 0.0,
            early_stop: None,
        };
        match self {
            Self::Paper => paper,
            Self::Scratch => Preset {
                epochs: 100,
                lr: 0.05,
                schedule: ScheduleArg::Cosine,
                warmup_epochs: 5,
                label_smoothing: 0.1,
                ..paper
            },
            Self::Finetune => Preset {
                epochs: 30,
                lr: 0.01,
                schedule: ScheduleArg::Cosine,
                warmup_epochs: 2,
                freeze_norm: true,
                label_smoothing: 0.1,
                early_stop: Some(10),
                ..paper
            },
            Self::FinetuneSmall => Preset {
                epochs: 30,
                lr: 0.01,
                schedule: ScheduleArg::Cosine,
                warmup_epochs: 1,
                begin_at: BeginAt::LastStage,
                freeze_norm: true,
                label_smoothing: 0.1,
                early_stop: Some(8),
                ..paper
            },
        }
    }
}

impl RecipeArgs {
    pub(super) fn batch_size(&self) -> usize {
        usize::from(self.batch_size)
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    pub(super) fn balances(&self) -> bool {
        self.sampler == SamplerArg::Balanced
    }

    /// Whether something is done about classes of different sizes.
    pub(super) fn knows_of_imbalance(&self) -> bool {
        self.balances() || self.class_weights.is_some()
    }

    /// Weights of the classes of `dataset`, which have so many training videos each.
    pub(super) fn class_weights(&self, dataset: &Dataset, counts: &[usize]) -> anyhow::Result<Option<Vec<f32>>> {
        self.class_weights.as_ref().map(|weights| weights.of(dataset, counts)).transpose()
    }

    /// How labels are read where a video has several.
    pub(super) fn label_mode(&self) -> LabelMode {
        self.loss.map_or(LabelMode::Auto, LossArg::label_mode)
    }

    /// Refuses what makes no sense for labels of this kind.
    pub(super) fn check_labels(&self, kind: LabelKind) -> anyhow::Result<()> {
        let is_multi = kind == LabelKind::Multi;
        if is_multi && self.label_smoothing.is_some_and(|part| part > 0.0) {
            bail!("--label-smoothing is for one label a video; with several, none is spread over the others");
        }
        if is_multi && self.balances() {
            bail!("--sampler balanced is for one label a video; --class-weights balanced does the like for several");
        }
        match self.best {
            Some(BestArg::MeanClassAccuracy) if is_multi => {
                bail!(
                    "--best mean-class-accuracy is for one label a video; for several there is mean-average-precision"
                )
            }
            Some(BestArg::MeanAveragePrecision) if !is_multi => {
                bail!("--best mean-average-precision is for several labels a video (--loss bce)")
            }
            _ => Ok(()),
        }
    }

    /// Options for epochs of so many batches.
    pub(super) fn options(
        &self,
        batches_per_epoch: usize,
        fine_tunes: bool,
        kind: LabelKind,
        device: Device,
    ) -> TrainOptions {
        let mut preset = self.preset.unwrap_or(PresetArg::Paper).values();
        if self.preset.is_none() && fine_tunes {
            preset.lr /= 10.0;
        }
        let weight_decay = self.weight_decay.unwrap_or(preset.weight_decay);
        let optimizer = match self.optimizer.unwrap_or(OptimizerArg::Sgd) {
            OptimizerArg::Sgd => OptimizerConfig::Sgd(SgdConfig {
                learning_rate: self.lr.unwrap_or(preset.lr),
                momentum: self.momentum,
                dampening: self.dampening,
                nesterov: self.nesterov,
                weight_decay,
            }),
            OptimizerArg::AdamW => {
                OptimizerConfig::AdamW { learning_rate: self.lr.unwrap_or(preset.lr / 100.0), weight_decay }
            }
        };
        let epochs = self.epochs.unwrap_or(preset.epochs);
        let accumulate = usize::from(self.accumulate);
        let steps_per_epoch = batches_per_epoch.div_ceil(accumulate) as u64;
        let schedule = match self.schedule.unwrap_or(preset.schedule) {
            ScheduleArg::Constant => Schedule::Constant,
            ScheduleArg::Multistep => Schedule::MultiStep { milestones: self.milestones.clone(), gamma: self.gamma },
            ScheduleArg::Plateau => Schedule::Plateau { patience: self.patience, gamma: self.gamma },
            ScheduleArg::Cosine => Schedule::Cosine { steps: epochs * steps_per_epoch },
        };
        TrainOptions {
            warmup_steps: self.warmup_epochs.unwrap_or(preset.warmup_epochs).min(epochs) * steps_per_epoch,
            backbone_factor: self.backbone_lr_factor.unwrap_or(preset.backbone_lr_factor),
            begin_at: self.begin_at.clone().unwrap_or(preset.begin_at),
            frozen_norm: self.freeze_norm.unwrap_or(preset.freeze_norm),
            loss: match kind {
                LabelKind::Multi => LossConfig { kind: LossKind::BinaryCrossEntropy, ..LossConfig::default() },
                LabelKind::Single | LabelKind::Soft => LossConfig {
                    label_smoothing: self.label_smoothing.unwrap_or(preset.label_smoothing),
                    ..LossConfig::default()
                },
            },
            mix: Mix { mixup: self.mixup, cutmix: self.cutmix },
            seed: self.seed,
            clip_norm: self.clip_grad_norm,
            average_decay: self.ema,
            best_by: match (self.best, kind) {
                (None, LabelKind::Multi) | (Some(BestArg::MeanAveragePrecision), _) => Metric::MeanAveragePrecision,
                (None | Some(BestArg::Accuracy), _) => Metric::Accuracy,
                (Some(BestArg::MeanClassAccuracy), _) => Metric::MeanClassAccuracy,
                (Some(BestArg::Loss), _) => Metric::Loss,
            },
            early_stop: self.early_stop.or(preset.early_stop),
            ..TrainOptions::new(epochs, accumulate, optimizer, schedule, device)
        }
    }

    /// The preset and all values of the recipe that is trained by, in lines for people.
    pub(super) fn describe(&self, options: &TrainOptions) -> String {
        let preset = match self.preset.map(|preset| preset.to_possible_value()) {
            Some(Some(value)) => format!("preset {}", value.get_name()),
            _ => "no preset".to_owned(),
        };
        let TrainOptions { epochs, accumulate, optimizer, schedule, warmup_steps, .. } = options;
        let mut text = format!(
            "recipe ({preset}): {epochs} epochs, batches of {} clips, {accumulate} a step; {optimizer}",
            self.batch_size
        );
        let mut add = |words: String| text += &words;
        if options.backbone_factor != 1.0 {
            add(format!(", times {} before the last layer", options.backbone_factor));
        }
        add(format!("; schedule {schedule}"));
        if *warmup_steps > 0 {
            add(format!(" after {warmup_steps} steps of warm-up"));
        }
        if options.begin_at != BeginAt::First {
            add(format!("; trained from {} on", options.begin_at));
        }
        if options.frozen_norm {
            add("; batch norms keep their statistics".to_owned());
        }
        let LossConfig { kind, class_weights, label_smoothing } = &options.loss;
        if *kind == LossKind::BinaryCrossEntropy {
            add("; binary cross entropy of each class, since videos may show several".to_owned());
        }
        if *label_smoothing > 0.0 {
            add(format!("; labels smoothed by {label_smoothing}"));
        }
        if class_weights.is_some() {
            add("; classes are weighted".to_owned());
        }
        if self.balances() {
            add("; classes are sampled alike".to_owned());
        }
        for (name, alpha) in [("mixup", options.mix.mixup), ("cutmix", options.mix.cutmix)] {
            if alpha > 0.0 {
                add(format!("; {name} {alpha}"));
            }
        }
        if let Some(norm) = options.clip_norm {
            add(format!("; gradients of at most {norm}"));
        }
        if let Some(decay) = options.average_decay {
            add(format!("; weights averaged by {decay}"));
        }
        add(format!("; best by {}", options.best_by));
        if let Some(epochs) = options.early_stop {
            add(format!("; ends after {epochs} epochs that are no better"));
        }
        text
    }
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
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

fn part_below_one(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("allowed are numbers from 0 to less than 1".to_owned()),
    }
}
