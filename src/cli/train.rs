//! `kinetoscope train`.

mod classes;
mod data;
mod loss;
mod recipe;
mod seeds;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use candle_conv3d::Precision;
use candle_core::Device;
use clap::Args as ClapArgs;
use tokio_util::sync::CancellationToken;

use super::data::DataArgs;
use super::model::{self, EngineArgs, PrecisionArg};
use crate::engine::DeviceRequest;
use crate::model::file::Model;
use crate::model::scores::{Activation, ScoreFunction};
use crate::model::spec::ClipSpec;
use crate::train::augment::Augment;
use crate::train::dataset::{CheckDepth, Dataset, Example, Finding, LabelKind, Split};
use crate::train::distributed::{Alone, Collective, CollectiveError, Tcp};
use crate::train::find_rate::{self, Rates};
use crate::train::loader::{CachedClips, Loader, LoaderOptions, Shard};
use crate::train::memory::{self, StepShape};
use crate::train::network;
use crate::train::optimizer::OptimizerConfig;
use crate::train::report::EpochRecord;
use crate::train::sgd::SgdConfig;
use crate::train::trainer::{BEST_FILE, BatchSource, LAST_FILE, Outcome, Start, TrainOptions, Trainer};
use classes::ClassCounts;
use data::{Data, SourceArgs};
use recipe::{InputArgs, NetworkArgs, RecipeArgs};
pub(super) use watch::Signals;
use watch::{Terminal, Work};

/// Train a model on labelled videos
///
/// From scratch or from a model file. `OUT/best.safetensors` and `OUT/last.safetensors` are model files that `serve` and
/// `classify` take; `history.csv`, `curves.png` and `tensorboard/` tell how it went. An interrupt saves and stops with status
/// 130 (a termination: 143); `--resume` goes on as if it had never stopped.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,

    #[command(flatten)]
    sources: SourceArgs,

    /// Folder for the results, made if it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    out: Option<PathBuf>,

    /// Decode every video whole, list those that can't be used or lack frames that their container promises, and train nothing
    #[arg(long)]
    check: bool,

    /// Raise the learning rate from step to step, write the losses to OUT/learning-rates.csv and .png, say where they fall
    /// fastest, and train nothing
    #[arg(long, conflicts_with_all = ["check", "resume"])]
    find_lr: bool,

    /// Train once with each of these seeds, into OUT/seed-N, and print the best epochs with their mean and standard deviation
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with_all = ["check", "find_lr", "seed"])]
    seeds: Vec<u64>,

    /// Go on with the run in OUT; begin if there is none
    #[arg(long)]
    resume: bool,

    #[command(flatten)]
    network: NetworkArgs,

    #[command(flatten)]
    input: InputArgs,

    #[command(flatten)]
    recipe: RecipeArgs,

    #[command(flatten)]
    engine: EngineArgs,

    /// Where the network is: `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,

    /// What a GPU computes with, bf16 if absent; weights stay f32. CPUs compute in f32
    #[arg(long, value_enum, value_name = "TYPE")]
    precision: Option<PrecisionArg>,

    /// Threads that decode videos
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    loader_threads: u16,

    /// Batches decoded ahead
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    prefetch: u16,

    /// Minutes after which a checkpoint is written in the midst of an epoch
    #[arg(long, value_name = "MINUTES", default_value_t = 15)]
    checkpoint_minutes: u64,

    #[command(flatten)]
    world: WorldArgs,
}

/// One of several processes that train together (docs/training.md).
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Several processes")]
struct WorldArgs {
    /// Number of this process, from 0
    #[arg(long, env = "RANK", value_name = "N", default_value_t = 0)]
    rank: usize,

    /// How many processes train together
    #[arg(long, env = "WORLD_SIZE", value_name = "N", default_value_t = 1,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    world_size: usize,

    /// Where process 0 listens: its host
    #[arg(long, env = "MASTER_ADDR", value_name = "HOST", default_value = "127.0.0.1")]
    master_addr: String,

    /// Where process 0 listens: its port
    #[arg(long, env = "MASTER_PORT", value_name = "PORT", default_value_t = 29500)]
    master_port: u16,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.check {
        let Data { dataset, .. } = data::open(&args.data, &args.recipe, None).context("the data can't be used")?;
        return check(&dataset, usize::from(args.loader_threads));
    }
    let out = args.out.clone().context("--out is missing")?;
    let signals = Signals::listen("saving after this step")?;
    rayon::ThreadPoolBuilder::new().num_threads(args.engine.threads()).build_global().context("can't start threads")?;
    if args.seeds.is_empty() {
        return Ok(train(&args, &out, &signals)?.code);
    }
    seeds::run(args, &out, &signals)
}

/// How a training ended.
struct Ended {
    code: ExitCode,
    /// It was told to stop.
    stopped: bool,
    /// The best epoch, if there was one.
    best: Option<EpochRecord>,
}

fn train(args: &Args, out: &Path, signals: &Signals) -> anyhow::Result<Ended> {
    let opened = data::open(&args.data, &args.recipe, args.resume.then_some(out)).context("the data can't be used")?;
    let dataset = &opened.dataset;
    let augment = args.input.augment(&dataset.classes);
    let counts = ClassCounts::of(dataset);
    args.recipe.check_labels(dataset.kind)?;
    let class_weights = args.recipe.class_weights(dataset, counts.train())?;
    let shares = args.sources.shares(&opened, &args.recipe)?;
    let model = starting_model(args, dataset, out)?;
    let device = parse_device(&args.device)?;
    let precision = choose_precision(args.precision, &device)?;
    if device.is_cpu() {
        candle_conv3d::keep_freed_memory();
    }
    let WorldArgs { rank, world_size, .. } = args.world;
    let cache = args.sources.cache()?;
    let train = LoaderOptions {
        shares,
        cache: cache.clone(),
        ..loader_options(args, dataset, dataset.train.len(), augment.clone(), Shard { rank, world_size })
    };
    let train = loader(&model, &dataset.train, train);
    // Each process validates its own part, none twice.
    let part: Vec<Example> = dataset.validation.iter().skip(rank).step_by(world_size).cloned().collect();
    let validation = loader_options(args, dataset, part.len(), Augment::NONE, Shard::ALL);
    let validation = LoaderOptions { cache: cache.map(|cache| CachedClips { clips: 1, ..cache }), ..validation };
    let validation = loader(&model, &part, validation);

    let batches = BatchSource::batches_per_epoch(&train);
    let mut options = args.recipe.options(batches, args.network.fine_tunes(), dataset.kind, device);
    options.precision = precision;
    options.begin_at = options.begin_at.named(&model.spec.architecture)?;
    options.loss.class_weights = class_weights;
    options.checkpoint_interval = Duration::from_secs(args.checkpoint_minutes.saturating_mul(60));
    for (name, value) in [
        ("batch size", args.recipe.batch_size().to_string()),
        ("seed", args.recipe.seed().to_string()),
        ("sampler", if args.recipe.balances() { "balanced" } else { "all" }.to_owned()),
    ] {
        options.settings.set(name, value);
    }
    args.sources.describe(&opened, &mut options.settings);
    options.settings.set_with_earlier("augmentation", augment.to_string(), augment.earlier_texts());

    if options.device.is_cpu() {
        check_memory(args, &model, &options)?;
    }

    if args.find_lr {
        let code = tell_rate(&model, &options, &train, out, signals)?;
        return Ok(Ended { code, stopped: false, best: None });
    }
    let start = if args.resume { Start::Resume } else { Start::New };
    let collective = match args.world.join(signals.token()) {
        Ok(collective) => collective,
        Err(CollectiveError::Stopped) => {
            eprintln!("kinetoscope: stopped before the training began");
            return Ok(Ended { code: signals.exit_code(), stopped: true, best: None });
        }
        Err(error) => return Err(error.into()),
    };
    let recipe = args.recipe.describe(&options);
    let work = Work {
        epochs: options.epochs,
        train_clips: BatchSource::clips_per_epoch(&train) as u64,
        validation_clips: BatchSource::clips_per_epoch(&validation) as u64,
    };
    let mut trainer = Trainer::open(&model, options, out, start, collective)?;
    let mut terminal = Terminal::new(rank == 0, work);
    if rank == 0 {
        println!(
            "{}: {} training and {} validation clips an epoch, {} classes",
            model.spec.architecture,
            dataset.train.len(),
            dataset.validation.len(),
            dataset.classes.len()
        );
        println!("{}", counts.line());
        match dataset.kind {
            LabelKind::Single => {}
            LabelKind::Soft => println!("labels are parts of classes that add up to 1 (soft labels)"),
            LabelKind::Multi => println!("videos may show several classes: the model will answer with sigmoids"),
        }
        println!("{recipe}");
        if let (Some(warning), false) = (counts.warning(), args.recipe.knows_of_imbalance()) {
            eprintln!("kinetoscope: warning: {warning}");
        }
        println!("{augment}");
        let progress = trainer.progress();
        if progress.step > 0 {
            println!("going on in epoch {} after {} steps", progress.epoch + 1, progress.step);
        }
    }
    let outcome = trainer.run(&train, &validation, signals.token(), &mut terminal);
    let outcome = outcome.map_err(|error| name_memory_flags(error.into(), &args.recipe))?;
    drop(terminal);

    let unreadable = [train.unreadable(), validation.unreadable()].concat();
    if !unreadable.is_empty() {
        eprintln!("{} videos could not be decoded; in training, others took their places:", unreadable.len());
        unreadable.iter().for_each(|one| eprintln!("  {}: {}", one.video.display(), one.error));
    }
    match outcome {
        Outcome::Finished | Outcome::NoBetter => {
            if rank == 0 {
                if outcome == Outcome::NoBetter {
                    println!("ended early: no epoch was better than the best one for as long as --early-stop says");
                }
                println!("trained {} and {}", out.join(BEST_FILE).display(), out.join(LAST_FILE).display());
            }
            Ok(Ended { code: ExitCode::SUCCESS, stopped: false, best: trainer.best_record() })
        }
        Outcome::Stopped => {
            eprintln!("kinetoscope: stopped and saved; --resume goes on");
            Ok(Ended { code: signals.exit_code(), stopped: true, best: trainer.best_record() })
        }
    }
}

/// Tries learning rates and tells the best one to begin with.
fn tell_rate(
    model: &Model,
    options: &TrainOptions,
    train: &Loader,
    out: &Path,
    signals: &Signals,
) -> anyhow::Result<ExitCode> {
    const STEPS: u32 = 100;
    // AdamW's steps are as long as the rate says, whatever the gradients are.
    let (from, to) = match options.optimizer {
        OptimizerConfig::Sgd(_) => (1e-5, 10.0),
        OptimizerConfig::AdamW { .. } => (1e-7, 1.0),
    };
    let points = find_rate::find(model, options, Rates { from, to, steps: STEPS }, train, signals.token())?;
    find_rate::write(&points, out)?;
    if signals.token().is_cancelled() {
        return Ok(signals.exit_code());
    }
    let curve = out.join(find_rate::CURVE_FILE);
    match find_rate::suggestion(&points) {
        Some(rate) => println!("the loss falls fastest at --lr {rate:.2e}; {} shows it", curve.display()),
        None => println!("the loss falls at no learning rate; {} shows it", curve.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The network to begin with: that of a model file, with a new last layer for other classes, or a new one.
fn starting_model(args: &Args, dataset: &Dataset, out: &Path) -> anyhow::Result<Model> {
    let seed = args.recipe.seed();
    let name = args.network.name_or(out);
    let Some(init) = args.network.init() else {
        let clip = args.input.clip(ClipSpec::default());
        let mut spec = args.network.spec(name, dataset.classes.clone(), clip, args.input.preprocessing()?)?;
        spec.scores = score_function(dataset);
        return network::from_scratch(spec, seed).context("no such network");
    };
    let model = model::load(Some(init))?;
    let same_classes = model.spec.labels == dataset.classes;
    let mut spec = model.spec.clone();
    args.network.describe(&mut spec, name, &format!("{} version {}", model.spec.name, model.spec.version));
    spec.labels.clone_from(&dataset.classes);
    spec.clip = args.input.clip(spec.clip);
    // A temperature is that of other weights.
    spec.scores = score_function(dataset);
    if same_classes {
        return Ok(Model::new(spec, model.tensors)?);
    }
    tracing::info!(was = model.spec.labels.len(), is = dataset.classes.len(), "other classes: the last layer is new");
    Ok(network::with_head(model, spec, seed)?)
}

fn score_function(dataset: &Dataset) -> ScoreFunction {
    let activation = match dataset.kind {
        LabelKind::Single | LabelKind::Soft => Activation::Softmax,
        LabelKind::Multi => Activation::Sigmoid,
    };
    ScoreFunction { activation, ..ScoreFunction::default() }
}

fn loader(model: &Model, examples: &[Example], options: LoaderOptions) -> Loader {
    Loader::new(Arc::from(examples), model.spec.clip, model.spec.preprocessing, options)
}

/// For so many examples of `dataset`.
fn loader_options(args: &Args, dataset: &Dataset, examples: usize, augment: Augment, shard: Shard) -> LoaderOptions {
    let batch_size = args.recipe.batch_size();
    LoaderOptions {
        batch_size,
        threads: usize::from(args.loader_threads),
        prefetch_batches: usize::from(args.prefetch),
        seed: args.recipe.seed(),
        // A last batch of few clips would move weights and statistics as much as a whole one.
        drop_last: augment.train && examples >= batch_size * shard.world_size,
        balanced: augment.train && args.recipe.balances(),
        parts_of: (dataset.kind != LabelKind::Single).then_some(dataset.classes.len()),
        augment,
        shard,
        ..LoaderOptions::default()
    }
}

/// Refuses a training whose first step would take more memory than there is, with the options that take less.
fn check_memory(args: &Args, model: &Model, options: &TrainOptions) -> anyhow::Result<()> {
    let Some(free) = memory::available() else { return Ok(()) };
    let optimizer_states = match options.optimizer {
        OptimizerConfig::Sgd(SgdConfig { momentum, .. }) => usize::from(momentum > 0.0),
        OptimizerConfig::AdamW { .. } => 2,
    };
    let shape = StepShape {
        model,
        first_group: options.begin_at.group(&model.spec.architecture)?,
        states: optimizer_states + usize::from(options.average_decay.is_some()),
        prefetch: usize::from(args.prefetch),
    };
    let batch_size = args.recipe.batch_size();
    let wanted = shape.bytes(batch_size);
    if wanted <= free {
        return Ok(());
    }
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let [takes, free_text] = [wanted, free].map(gigabytes);
    match (1..batch_size).rev().find(|&smaller| shape.bytes(smaller) <= free) {
        Some(smaller) => {
            let accumulate = (options.accumulate * batch_size).div_ceil(smaller);
            bail!(
                "a step with --batch-size {batch_size} takes about {takes} of memory; {free_text} are free. --batch-size {smaller} \
                 --accumulate {accumulate} makes steps of as many clips with about {}",
                gigabytes(shape.bytes(smaller))
            )
        }
        None => bail!(
            "a step takes about {} of memory even with --batch-size 1; {free_text} are free. Smaller clips (--clip-size, \
             --clip-frames), a smaller network (--depth, --width) or a later --begin-at take less",
            gigabytes(shape.bytes(1))
        ),
    }
}

/// A GPU says that its memory is out, and not what helps.
fn name_memory_flags(error: anyhow::Error, recipe: &RecipeArgs) -> anyhow::Error {
    if !format!("{error:#}").to_lowercase().contains("out of memory") {
        return error;
    }
    error.context(format!(
        "there is too little memory for a step with --batch-size {}: a smaller one with a larger --accumulate makes the same step",
        recipe.batch_size()
    ))
}

fn check(dataset: &Dataset, threads: usize) -> anyhow::Result<ExitCode> {
    let total = Split::ALL.iter().map(|&split| dataset.split(split).len()).sum::<usize>();
    let bar = indicatif::ProgressBar::new(total as u64);
    let findings = dataset.check(CheckDepth::Whole, threads, |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    for split in Split::ALL {
        println!("{split}: {} videos", dataset.split(split).len());
    }
    let incomplete = findings.iter().filter(|(_, finding)| matches!(finding, Finding::Incomplete { .. })).count();
    println!(
        "{} classes, {} videos that can't be used, {incomplete} that are not whole",
        dataset.classes.len(),
        findings.len() - incomplete
    );
    for (split, finding) in &findings {
        println!("  {split}: {}: {finding}", finding.video().display());
    }
    let counts = ClassCounts::of(dataset);
    print!("\n{}", counts.table());
    if let Some(warning) = counts.warning() {
        eprintln!("kinetoscope: warning: {warning}");
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse_device(name: &str) -> anyhow::Result<Device> {
    let number = match name.parse::<DeviceRequest>() {
        Ok(DeviceRequest::Cpu) => return Ok(Device::Cpu),
        Ok(DeviceRequest::AllGpus) => 0,
        Ok(DeviceRequest::Gpu(number)) => number,
        Err(allowed) => bail!("device is {name:?}; {allowed}"),
    };
    network::gpu(number).with_context(|| format!("can't use {name}"))
}

fn choose_precision(asked: Option<PrecisionArg>, device: &Device) -> anyhow::Result<Precision> {
    match (asked.map(Precision::from), device.is_cpu()) {
        (None | Some(Precision::F32), true) => Ok(Precision::F32),
        (Some(precision), true) => bail!("precision is {precision}; CPUs train in f32"),
        (Some(Precision::F16), false) => bail!("precision is f16, whose range small gradients leave; bf16 is as fast"),
        (precision, false) => Ok(precision.unwrap_or_default()),
    }
}

impl WorldArgs {
    fn join(&self, stop: &CancellationToken) -> Result<Box<dyn Collective>, CollectiveError> {
        const TIMEOUT: Duration = Duration::from_secs(600);
        if self.world_size == 1 {
            return Ok(Box::new(Alone));
        }
        let address = format!("{}:{}", self.master_addr, self.master_port);
        Ok(Box::new(Tcp::connect(self.rank, self.world_size, &address, TIMEOUT, stop.clone())?))
    }
}
