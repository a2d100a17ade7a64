//! The loop over epochs: batches to weights, weights to files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_conv3d::Precision;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::checkpoint::{Best, Checkpoint, CheckpointError, Progress, Tally};
use super::distributed::{Collective, CollectiveError};
use super::loader::{Batch, Loader, LoaderError};
use super::network::{Layer, Network};
use super::optimizer::{Optimizer, OptimizerConfig};
use super::report::{EpochRecord, Report, ReportError};
use super::schedule::{Schedule, Scheduler};
use crate::model::file::{Model, ModelFileError};

/// The model after the latest epoch, in the folder of a run.
pub const LAST_FILE: &str = "last.safetensors";
/// The model after the epoch with the best validation.
pub const BEST_FILE: &str = "best.safetensors";
/// What [`Start::Resume`] reads.
pub const CHECKPOINT_FILE: &str = "checkpoint.safetensors";

/// Where batches come from.
pub trait BatchSource {
    /// Batches of an epoch from batch `first` on: the same whenever they are asked for.
    fn epoch(&self, epoch: u64, first: usize) -> Box<dyn Iterator<Item = Result<Batch, LoaderError>> + '_>;

    /// Batches in an epoch.
    fn batches_per_epoch(&self) -> usize;

    /// Clips in an epoch.
    fn clips_per_epoch(&self) -> usize;

    /// How long batches kept their taker waiting so far.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }
}

impl BatchSource for Loader {
    fn epoch(&self, epoch: u64, first: usize) -> Box<dyn Iterator<Item = Result<Batch, LoaderError>> + '_> {
        Box::new(Loader::epoch(self, epoch, first))
    }

    fn batches_per_epoch(&self) -> usize {
        Loader::batches_per_epoch(self)
    }

    fn clips_per_epoch(&self) -> usize {
        Loader::clips_per_epoch(self)
    }

    fn waited(&self) -> Duration {
        Loader::waited(self)
    }
}

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
    pub begin_at: Layer,
    /// Whether batch norms keep their statistics.
    pub frozen_norm: bool,
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
            begin_at: Layer::Conv1,
            frozen_norm: false,
            checkpoint_interval: Duration::from_secs(15 * 60),
            device,
            precision: Precision::F32,
            settings: BTreeMap::new(),
        }
    }
}

/// Whether a folder may hold a run already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It may not.
    New,
    /// A run there goes on; without one, a new one begins.
    Resume,
}

/// How a training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are over.
    Finished,
    /// It was told to stop; a checkpoint is written.
    Stopped,
}

/// A pass over examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Of an epoch, counted from 0.
    Training {
        /// Its number.
        epoch: u64,
    },
    /// After an epoch.
    Validation {
        /// Its number.
        epoch: u64,
    },
}

/// Is told how a training goes.
pub trait Observer {
    /// A pass over `clips` clips begins, of which `done` were seen by an earlier process.
    fn begin(&mut self, _pass: Pass, _clips: u64, _done: u64) {}

    /// A batch of the pass is over.
    fn batch(&mut self, _clips: u64, _loss: f64) {}

    /// An epoch is over, and its files are written.
    fn epoch(&mut self, _record: &EpochRecord) {}
}

/// Nobody.
impl Observer for () {}

/// Why a training ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The loss is no number, or far worse than that of guessing.
    #[error(
        "training diverged at step {step} (epoch {epoch}): {what} at learning rate {learning_rate}. The files of earlier \
         epochs are kept. A lower learning rate or a warm-up may help"
    )]
    Diverged {
        /// From 0.
        epoch: u64,
        /// From 0, over all epochs.
        step: u64,
        /// What is wrong.
        what: String,
        /// Of the step.
        learning_rate: f64,
    },
    /// Fewer examples than a batch.
    #[error("there are no batches to train on: fewer examples than one batch wants")]
    NoBatches,
    /// The folder is taken.
    #[error("{} holds a training already; --resume goes on with it", .folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// Several processes that would not do the same.
    #[error("process {rank} was started with other settings, data or checkpoint than process 0")]
    Disagreement {
        /// Its rank.
        rank: usize,
    },
    /// The data.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The model files.
    #[error(transparent)]
    Model(#[from] ModelFileError),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The other processes.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The network.
    #[error(transparent)]
    Network(#[from] candle_core::Error),
}

/// A training under way.
#[derive(Debug)]
pub struct Trainer {
    network: Network,
    optimizer: Optimizer,
    scheduler: Scheduler,
    progress: Progress,
    options: TrainOptions,
    out: PathBuf,
    /// Of rank 0.
    report: Option<Report>,
    collective: Box<dyn Collective>,
    saved: Instant,
}

impl Trainer {
    /// A training of `model` whose files are in the folder `out`.
    pub fn open(
        model: &Model,
        options: TrainOptions,
        out: &Path,
        start: Start,
        collective: Box<dyn Collective>,
    ) -> Result<Self, TrainError> {
        let found = Checkpoint::read(&out.join(CHECKPOINT_FILE))?;
        if found.is_some() && start == Start::New {
            return Err(TrainError::Exists { folder: out.to_owned() });
        }
        let network = Network::new(model, options.begin_at, options.frozen_norm, &options.device)?
            .with_precision(options.precision);
        let mut optimizer = Optimizer::new(network.trained(), &options.optimizer, options.backbone_factor)?;
        let initial = options.optimizer.learning_rate();
        let mut scheduler = Scheduler::new(options.schedule.clone(), initial, options.warmup_steps);
        let mut spec = model.spec.clone();
        spec.trained = true;
        let settings = all_settings(&options, collective.world_size());
        let progress = match found {
            Some(checkpoint) => {
                checkpoint.progress.check(&spec, &settings)?;
                network.restore(&checkpoint.weights)?;
                optimizer.restore(&checkpoint.optimizer, checkpoint.progress.step)?;
                scheduler.restore(checkpoint.progress.plateau);
                checkpoint.progress
            }
            None => Progress {
                spec,
                settings,
                epoch: 0,
                batch: 0,
                step: 0,
                tally: Tally::default(),
                plateau: scheduler.state(),
                best: None,
            },
        };
        let report = match collective.rank() {
            0 => {
                let report = Report::create(out, start == Start::Resume)?;
                crate::replacement::remove_partial_files(out);
                Some(report)
            }
            _ => None,
        };
        let out = out.to_owned();
        Ok(Self { network, optimizer, scheduler, progress, options, out, report, collective, saved: Instant::now() })
    }

    /// Where the training is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Trains until all epochs are over or `stop` is cancelled, which is looked at between steps. Nothing is validated if
    /// `validation` has no batches; the latest model then counts as the best.
    pub fn run(
        &mut self,
        train: &dyn BatchSource,
        validation: &dyn BatchSource,
        stop: &CancellationToken,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        if train.batches_per_epoch() == 0 {
            return Err(TrainError::NoBatches);
        }
        self.check_agreement()?;
        while self.progress.epoch < self.options.epochs {
            if self.train_epoch(train, stop, observer)? == Outcome::Stopped {
                self.save_checkpoint()?;
                return Ok(Outcome::Stopped);
            }
            let began = Instant::now();
            let Some(validated) = self.validate(validation, stop, observer)? else {
                self.save_checkpoint()?;
                return Ok(Outcome::Stopped);
            };
            self.end_epoch(validated, began.elapsed(), observer)?;
        }
        Ok(Outcome::Finished)
    }

    /// The rest of the epoch under way.
    fn train_epoch(
        &mut self,
        train: &dyn BatchSource,
        stop: &CancellationToken,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        let Progress { epoch, batch: first, .. } = self.progress;
        let total = train.batches_per_epoch() as u64;
        let mut batches = train.epoch(epoch, first as usize);
        observer.begin(Pass::Training { epoch }, train.clips_per_epoch() as u64, self.progress.tally.clips);
        while self.progress.batch < total {
            let (began, waited_before) = (Instant::now(), train.waited());
            let learning_rate = self.scheduler.learning_rate(epoch, self.progress.step);
            let count = (self.options.accumulate.max(1) as u64).min(total - self.progress.batch);
            let mut sum = GradientSum { parts: count, ..GradientSum::default() };
            for _ in 0..count {
                let batch = batches.next().ok_or(TrainError::NoBatches)??;
                let (loss, correct) = self.forward_backward(&batch, learning_rate, &mut sum)?;
                let clips = batch.examples.len() as u64;
                sum.tally.add(loss, correct, clips);
                observer.batch(clips, loss);
            }
            let loss = sum.tally.loss();
            self.progress.tally.add(loss, sum.tally.correct, sum.tally.clips);
            let gradients = self.average(sum)?;
            self.optimizer.step(&gradients, learning_rate)?;
            if let Some(report) = &mut self.report {
                report.step(self.progress.step, loss, learning_rate)?;
            }
            self.progress.batch += count;
            self.progress.step += 1;
            self.progress.tally.milliseconds += began.elapsed().as_millis() as u64;
            self.progress.tally.waited_milliseconds += (train.waited() - waited_before).as_millis() as u64;
            if self.anyone(stop.is_cancelled())? {
                return Ok(Outcome::Stopped);
            }
            if self.saved.elapsed() >= self.options.checkpoint_interval {
                self.save_checkpoint()?;
            }
        }
        Ok(Outcome::Finished)
    }

    /// Adds the gradients of a batch to `sum`. Gives the mean loss and how many clips were right.
    fn forward_backward(
        &self,
        batch: &Batch,
        learning_rate: f64,
        sum: &mut GradientSum,
    ) -> Result<(f64, u64), TrainError> {
        let (clips, labels) = self.on_device(batch)?;
        let pass = self.network.train(&clips)?;
        let mean = cross_entropy(&pass.logits, &labels)?;
        let loss = f64::from(mean.to_scalar::<f32>()?);
        self.check_loss(loss, pass.logits.dim(1)?, learning_rate)?;
        let correct = count_correct(&pass.logits, &labels)?;
        // Parts may have different sizes: their sums are added, and divided by all clips at the end.
        let backward = if sum.parts > 1 { (mean * batch.examples.len() as f64)? } else { mean };
        sum.add(pass.backward(&backward)?, &self.network.trained())?;
        Ok((loss, correct))
    }

    fn check_loss(&self, loss: f64, classes: usize, learning_rate: f64) -> Result<(), TrainError> {
        /// Times the loss of guessing. Sound trainings hardly exceed that of guessing for long.
        const DIVERGED: f64 = 100.0;
        let limit = DIVERGED * (classes as f64).ln().max(1.0);
        if loss <= limit {
            return Ok(());
        }
        let what = if loss.is_finite() { format!("the loss is {loss:.1}") } else { format!("the loss is {loss}") };
        let Progress { epoch, step, .. } = self.progress;
        Err(TrainError::Diverged { epoch, step, what, learning_rate })
    }

    /// The mean gradients over all clips of all processes. Running statistics become those of all processes, too.
    fn average(&mut self, sum: GradientSum) -> Result<GradStore, TrainError> {
        let trained = self.network.trained();
        let mut gradients = sum.mean(&trained)?;
        let world_size = self.collective.world_size();
        if world_size == 1 {
            return Ok(gradients);
        }
        let statistics = self.network.statistics();
        let mut flat = Vec::new();
        for (_, variable) in &trained {
            match gradients.get(variable) {
                Some(gradient) => flat.extend(gradient.flatten_all()?.to_vec1::<f32>()?),
                None => flat.resize(flat.len() + variable.elem_count(), 0.0),
            }
        }
        for (_, variable) in &statistics {
            flat.extend(variable.flatten_all()?.to_vec1::<f32>()?);
        }
        self.collective.sum(&mut flat)?;
        let mut rest = flat.as_slice();
        let mut take = |variable: &Var| {
            let (values, others) = rest.split_at(variable.elem_count());
            rest = others;
            let means: Vec<f32> = values.iter().map(|value| value / world_size as f32).collect();
            Tensor::from_vec(means, variable.shape(), &Device::Cpu)?.to_device(variable.device())
        };
        for (_, variable) in &trained {
            gradients.insert(variable, take(variable)?);
        }
        for (_, variable) in &statistics {
            variable.set(&take(variable)?)?;
        }
        Ok(gradients)
    }

    /// Losses and hits of the validation examples of all processes; `None` if it was told to stop.
    fn validate(
        &mut self,
        validation: &dyn BatchSource,
        stop: &CancellationToken,
        observer: &mut dyn Observer,
    ) -> Result<Option<Tally>, TrainError> {
        let mut tally = Tally::default();
        observer.begin(Pass::Validation { epoch: self.progress.epoch }, validation.clips_per_epoch() as u64, 0);
        for batch in validation.epoch(0, 0) {
            if stop.is_cancelled() {
                break;
            }
            let batch = batch?;
            let (clips, labels) = self.on_device(&batch)?;
            let logits = self.network.evaluate(&clips)?;
            let loss = f64::from(cross_entropy(&logits, &labels)?.to_scalar::<f32>()?);
            let clips = batch.examples.len() as u64;
            tally.add(loss, count_correct(&logits, &labels)?, clips);
            observer.batch(clips, loss);
        }
        if self.anyone(stop.is_cancelled())? {
            return Ok(None);
        }
        let mut sums = [tally.loss_sum(), tally.correct as f64, tally.clips as f64];
        self.collective.sum_exact(&mut sums)?;
        Ok(Some(Tally::of_sums(sums[0], sums[1] as u64, sums[2] as u64)))
    }

    /// Reports an epoch and writes its files.
    fn end_epoch(
        &mut self,
        validated: Tally,
        validation_time: Duration,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let trained = self.all_processes(self.progress.tally)?;
        let Progress { epoch, step, .. } = self.progress;
        let learning_rate = self.scheduler.learning_rate(epoch, step.saturating_sub(1));
        let has_validation = validated.clips > 0;
        let judged = if has_validation { validated } else { trained };
        let weights = self.network.weights()?;
        let not_finite =
            if judged.loss().is_finite() { find_not_finite(&weights)? } else { Some("the loss".to_owned()) };
        if let Some(what) = not_finite {
            let what = format!("{what} is not finite after the epoch");
            return Err(TrainError::Diverged { epoch, step, what, learning_rate });
        }
        self.scheduler.note(judged.loss());
        let better = !has_validation || self.progress.best.is_none_or(|best| best.is_beaten_by(&judged));
        if better {
            self.progress.best = Some(Best::of(&judged));
        }

        let training_time = Duration::from_millis(trained.milliseconds);
        let record = EpochRecord {
            epoch,
            learning_rate,
            train_loss: trained.loss(),
            train_accuracy: trained.accuracy(),
            validation_loss: has_validation.then(|| validated.loss()),
            validation_accuracy: has_validation.then(|| validated.accuracy()),
            clips_per_second: trained.clips as f64 / training_time.as_secs_f64().max(1e-3),
            waited_fraction: trained.waited_milliseconds as f64 / trained.milliseconds.max(1) as f64,
            elapsed: training_time + validation_time,
        };
        self.progress.epoch += 1;
        self.progress.batch = 0;
        self.progress.tally = Tally::default();
        if let Some(report) = &mut self.report {
            // All before the checkpoint: if this process is killed in between, the epoch is trained and written again.
            let model = Model::new(self.progress.spec.clone(), weights)?;
            if better {
                model.write(&self.out.join(BEST_FILE))?;
            }
            model.write(&self.out.join(LAST_FILE))?;
            report.epoch(&record)?;
        }
        self.save_checkpoint()?;
        observer.epoch(&record);
        Ok(())
    }

    fn save_checkpoint(&mut self) -> Result<(), TrainError> {
        self.saved = Instant::now();
        self.progress.plateau = self.scheduler.state();
        if self.collective.rank() > 0 {
            return Ok(());
        }
        let optimizer =
            self.optimizer.state().into_iter().map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)));
        let checkpoint = Checkpoint {
            progress: self.progress.clone(),
            weights: self.network.weights()?,
            optimizer: optimizer.collect::<Result<_, candle_core::Error>>()?,
        };
        Ok(checkpoint.write(&self.out.join(CHECKPOINT_FILE))?)
    }

    /// The sums of all processes' counts; of their times, the mean.
    fn all_processes(&mut self, tally: Tally) -> Result<Tally, TrainError> {
        let Tally { correct, clips, milliseconds, waited_milliseconds, .. } = tally;
        let counts = [correct, clips, milliseconds, waited_milliseconds].map(|count| count as f64);
        let mut sums = [tally.loss_sum(), counts[0], counts[1], counts[2], counts[3]];
        self.collective.sum_exact(&mut sums)?;
        let world_size = self.collective.world_size() as f64;
        let mut summed = Tally::of_sums(sums[0], sums[1] as u64, sums[2] as u64);
        summed.milliseconds = (sums[3] / world_size) as u64;
        summed.waited_milliseconds = (sums[4] / world_size) as u64;
        Ok(summed)
    }

    /// Whether something is so in any of the processes.
    fn anyone(&mut self, here: bool) -> Result<bool, TrainError> {
        let mut count = [f64::from(u8::from(here))];
        self.collective.sum_exact(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Refuses to train with processes that were started otherwise than this one.
    fn check_agreement(&mut self) -> Result<(), TrainError> {
        let Progress { settings, spec, epoch, batch, step, .. } = &self.progress;
        let digest = Sha256::digest(format!("{settings:?} {spec:?} {epoch} {batch} {step}"));
        // 32 bits are exact in an f64.
        let number = f64::from(u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]));
        let mut numbers = vec![0.0; self.collective.world_size()];
        numbers[self.collective.rank()] = number;
        self.collective.sum_exact(&mut numbers)?;
        match numbers.iter().position(|&other| other != numbers[0]) {
            Some(rank) => Err(TrainError::Disagreement { rank }),
            None => Ok(()),
        }
    }

    fn on_device(&self, batch: &Batch) -> candle_core::Result<(Tensor, Tensor)> {
        Ok((batch.clips.to_device(&self.options.device)?, batch.labels.to_device(&self.options.device)?))
    }
}

/// Gradients of the batches that make one step.
#[derive(Default)]
struct GradientSum {
    /// Batches that belong together. Of one the gradients are means over its clips, of several sums.
    parts: u64,
    gradients: Option<GradStore>,
    tally: Tally,
}

impl GradientSum {
    fn add(&mut self, new: GradStore, trained: &[(String, Var)]) -> candle_core::Result<()> {
        let Some(gradients) = &mut self.gradients else {
            self.gradients = Some(new);
            return Ok(());
        };
        for (_, variable) in trained {
            let sum = match (gradients.get(variable), new.get(variable)) {
                (Some(sum), Some(new)) => (sum + new)?,
                (None, Some(new)) => new.clone(),
                (_, None) => continue,
            };
            gradients.insert(variable, sum);
        }
        Ok(())
    }

    fn mean(self, trained: &[(String, Var)]) -> Result<GradStore, TrainError> {
        let mut gradients = self.gradients.ok_or(TrainError::NoBatches)?;
        if self.parts > 1 {
            for (_, variable) in trained {
                if let Some(sum) = gradients.get(variable) {
                    let mean = (sum / self.tally.clips as f64)?;
                    gradients.insert(variable, mean);
                }
            }
        }
        Ok(gradients)
    }
}

/// What must stay the same over the processes of a run and when it is resumed. The number of epochs may grow.
fn all_settings(options: &TrainOptions, world_size: usize) -> BTreeMap<String, String> {
    let mut settings = options.settings.clone();
    for (name, value) in [
        ("accumulate", options.accumulate.to_string()),
        ("optimizer", format!("{:?}", options.optimizer)),
        ("backbone learning rate factor", options.backbone_factor.to_string()),
        ("schedule", format!("{:?}", options.schedule)),
        ("warm-up steps", options.warmup_steps.to_string()),
        ("first trained layer", options.begin_at.to_string()),
        ("frozen batch norm", options.frozen_norm.to_string()),
        ("number of processes", world_size.to_string()),
        ("precision", options.precision.to_string()),
    ] {
        settings.insert(name.to_owned(), value);
    }
    settings
}

/// How many clips have their highest logit at their label.
fn count_correct(logits: &Tensor, labels: &Tensor) -> candle_core::Result<u64> {
    let hits = logits.detach().argmax(1)?.eq(labels)?.to_dtype(DType::F32)?;
    Ok(hits.sum_all()?.to_scalar::<f32>()? as u64)
}

/// A tensor with a value that no file may hold.
fn find_not_finite(weights: &std::collections::HashMap<String, Tensor>) -> candle_core::Result<Option<String>> {
    for (name, tensor) in weights {
        if !tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()) {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}
