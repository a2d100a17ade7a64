//! `kinetoscope train`.

mod recipe;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use candle_conv3d::Precision;
use candle_core::Device;
use clap::Args as ClapArgs;
use sha2::{Digest, Sha256};

use super::data::DataArgs;
use super::model::{self, EngineArgs, PrecisionArg};
use crate::engine::DeviceRequest;
use crate::model::file::Model;
use crate::model::spec::ClipSpec;
use crate::train::augment::Augment;
use crate::train::dataset::{CheckDepth, Dataset, Example, Split};
use crate::train::distributed::{Alone, Collective, Tcp};
use crate::train::loader::{Loader, LoaderOptions, Shard};
use crate::train::network;
use crate::train::trainer::{BEST_FILE, BatchSource, LAST_FILE, Outcome, Start, Trainer};
use recipe::{InputArgs, NetworkArgs, RecipeArgs};
use watch::{Signals, Terminal};

/// Train a model on labelled videos
///
/// From scratch or from a model file. `OUT/best.safetensors` and `OUT/last.safetensors` are model files that `serve` and
/// `classify` take; `history.csv`, `curves.png` and `tensorboard/` tell how it went. An interrupt saves and stops with status
/// 130 (a termination: 143); `--resume` goes on as if it had never stopped.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    data: DataArgs,

    /// Folder for the results, made if it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    out: Option<PathBuf>,

    /// Open every video, decode its first clip, list those that can't be used, and train nothing
    #[arg(long)]
    check: bool,

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
    let dataset = args.data.open().context("the data can't be used")?;
    if args.check {
        return check(&dataset, usize::from(args.loader_threads));
    }
    let out = args.out.as_deref().context("--out is missing")?;
    let model = starting_model(&args, &dataset, out)?;
    let device = parse_device(&args.device)?;
    let precision = choose_precision(args.precision, &device)?;
    if device.is_cpu() {
        candle_conv3d::keep_freed_memory();
    }
    rayon::ThreadPoolBuilder::new().num_threads(args.engine.threads()).build_global().context("can't start threads")?;

    let WorldArgs { rank, world_size, .. } = args.world;
    let train = loader(&args, &model, &dataset.train, args.input.augment(), Shard { rank, world_size });
    // Each process validates its own part, none twice.
    let part: Vec<Example> = dataset.validation.iter().skip(rank).step_by(world_size).cloned().collect();
    let validation = loader(&args, &model, &part, Augment::NONE, Shard::ALL);

    let mut options = args.recipe.options(BatchSource::batches_per_epoch(&train), args.network.fine_tunes(), device);
    options.precision = precision;
    options.checkpoint_interval = Duration::from_secs(args.checkpoint_minutes.saturating_mul(60));
    let data = format!("{} examples, digest {}", dataset.train.len(), digest(&dataset));
    for (name, value) in [
        ("data", data),
        ("batch size", args.recipe.batch_size().to_string()),
        ("seed", args.recipe.seed().to_string()),
        ("augmentation", format!("{:?}", args.input.augment())),
    ] {
        options.settings.insert(name.to_owned(), value);
    }

    let signals = Signals::listen()?;
    let start = if args.resume { Start::Resume } else { Start::New };
    let collective = args.world.join()?;
    let epochs = options.epochs;
    let mut trainer = Trainer::open(&model, options, out, start, collective)?;
    let mut terminal = Terminal::new(rank == 0, epochs);
    if rank == 0 {
        println!(
            "{}: {} training and {} validation clips an epoch, {} classes",
            model.spec.architecture,
            dataset.train.len(),
            dataset.validation.len(),
            dataset.classes.len()
        );
        let progress = trainer.progress();
        if progress.step > 0 {
            println!("going on in epoch {} after {} steps", progress.epoch, progress.step);
        }
    }
    let outcome = trainer.run(&train, &validation, signals.token(), &mut terminal)?;
    drop(terminal);

    let unreadable = [train.unreadable(), validation.unreadable()].concat();
    if !unreadable.is_empty() {
        eprintln!("{} videos could not be decoded; others took their places:", unreadable.len());
        unreadable.iter().for_each(|one| eprintln!("  {}: {}", one.video.display(), one.error));
    }
    match outcome {
        Outcome::Finished => {
            if rank == 0 {
                println!("trained {} and {}", out.join(BEST_FILE).display(), out.join(LAST_FILE).display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped => {
            eprintln!("kinetoscope: stopped and saved; --resume goes on");
            Ok(signals.exit_code())
        }
    }
}

/// The network to begin with: that of a model file, with a new last layer for other classes, or a new one.
fn starting_model(args: &Args, dataset: &Dataset, out: &Path) -> anyhow::Result<Model> {
    let seed = args.recipe.seed();
    let name = args.network.name_or(out);
    let Some(init) = args.network.init() else {
        let clip = args.input.clip(ClipSpec::default());
        let spec = args.network.spec(name, dataset.classes.clone(), clip, args.input.preprocessing()?);
        return network::from_scratch(spec, seed).context("no such network");
    };
    let model = model::load(Some(init))?;
    let same_classes = model.spec.labels == dataset.classes;
    let mut spec = model.spec.clone();
    args.network.describe(&mut spec, name, &format!("{} version {}", model.spec.name, model.spec.version));
    spec.labels.clone_from(&dataset.classes);
    spec.clip = args.input.clip(spec.clip);
    if same_classes {
        return Ok(Model::new(spec, model.tensors)?);
    }
    tracing::info!(was = model.spec.labels.len(), is = dataset.classes.len(), "other classes: the last layer is new");
    Ok(network::with_head(model, spec, seed)?)
}

fn loader(args: &Args, model: &Model, examples: &[Example], augment: Augment, shard: Shard) -> Loader {
    let batch_size = args.recipe.batch_size();
    let options = LoaderOptions {
        batch_size,
        threads: usize::from(args.loader_threads),
        prefetch_batches: usize::from(args.prefetch),
        seed: args.recipe.seed(),
        // A last batch of few clips would move weights and statistics as much as a whole one.
        drop_last: augment.train && examples.len() >= batch_size * shard.world_size,
        augment,
        shard,
    };
    Loader::new(Arc::from(examples), model.spec.clip, model.spec.preprocessing, options)
}

fn check(dataset: &Dataset, threads: usize) -> anyhow::Result<ExitCode> {
    let total = Split::ALL.iter().map(|&split| dataset.split(split).len()).sum::<usize>();
    let bar = indicatif::ProgressBar::new(total as u64);
    let unreadable = dataset.check(CheckDepth::FirstClip, threads, |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    for split in Split::ALL {
        println!("{split}: {} videos", dataset.split(split).len());
    }
    println!("{} classes, {} videos that can't be used", dataset.classes.len(), unreadable.len());
    for (split, one) in &unreadable {
        println!("  {split}: {}: {}", one.video.display(), one.error);
    }
    Ok(if unreadable.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tells one dataset from another, and the same one at another place not.
fn digest(dataset: &Dataset) -> String {
    let mut digest = Sha256::new();
    for Example { id, class, range, .. } in dataset.train.iter().chain(&dataset.validation) {
        digest.update(format!("{id}\n{class}\n{range:?}\n"));
    }
    digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
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
    fn join(&self) -> anyhow::Result<Box<dyn Collective>> {
        const TIMEOUT: Duration = Duration::from_secs(600);
        if self.world_size == 1 {
            return Ok(Box::new(Alone));
        }
        let address = format!("{}:{}", self.master_addr, self.master_port);
        Ok(Box::new(Tcp::connect(self.rank, self.world_size, &address, TIMEOUT)?))
    }
}
