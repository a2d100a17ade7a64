//! The loop over epochs: batches to weights, weights to files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_conv3d::Precision;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::augment::Draws;
use super::average::Average;
use super::checkpoint::{Best, Checkpoint, CheckpointError, Metric, Progress, Tally};
use super::distributed::{Collective, CollectiveError};
use super::loader::{Batch, Loader, LoaderError};
use super::lock::{FolderLock, LockError};
use super::loss::{Criterion, Loss, LossConfig, Mix};
use super::network::{Layer, Network};
use super::optimizer::{Optimizer, OptimizerConfig, clip_norm};
use super::report::{EpochRecord, Report, ReportError};
use super::schedule::{Schedule, Scheduler};
use super::validation::{Validated, count_correct};
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

    /// What people call an example of a batch: its name in the dataset.
    fn name(&self, example: usize) -> String {
        format!("example {example}")
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

    fn name(&self, example: usize) -> String {
        Loader::example(self, example).id.clone()
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
            begin_at: Layer::Conv1,
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
    /// No epoch was better than an earlier one for as long as [`TrainOptions::early_stop`] says.
    NoBetter,
    /// It was told to stop; a checkpoint is written.
    Stopped,
}

/// A pass over examples. Epochs are numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Of an epoch.
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
        /// From 1.
        epoch: u64,
        /// From 1, over all epochs.
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
    #[error("process {rank} was started with {what} than process 0")]
    Disagreement {
        /// Its rank.
        rank: usize,
        /// What is not the same.
        what: &'static str,
    },
    /// The folder is another process's.
    #[error(transparent)]
    Lock(#[from] LockError),
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
    criterion: Criterion,
    average: Option<Average>,
    scheduler: Scheduler,
    progress: Progress,
    options: TrainOptions,
    out: PathBuf,
    /// Of rank 0.
    report: Option<Report>,
    collective: Box<dyn Collective>,
    saved: Saved,
    /// Whether weights and optimiser are those after `progress.step` steps: not while a step changes them.
    whole: bool,
    /// Held as long as files are written.
    _lock: Option<FolderLock>,
}

/// The latest checkpoint.
#[derive(Debug)]
struct Saved {
    at: Instant,
    /// Epochs and batches that it knows.
    place: (u64, u64),
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
        let writes = collective.rank() == 0;
        // A folder that isn't there is made only once nothing else can be refused.
        let mut lock = if writes && out.exists() { Some(FolderLock::take(out)?) } else { None };
        let found = Checkpoint::read(&out.join(CHECKPOINT_FILE))?;
        if found.is_some() && start == Start::New {
            return Err(TrainError::Exists { folder: out.to_owned() });
        }
        let mut spec = model.spec.clone();
        spec.trained = true;
        let settings = all_settings(&options, collective.world_size());
        // All of the network goes on from the checkpoint: layers that are frozen, too.
        let beginning = match &found {
            Some(checkpoint) => {
                checkpoint.progress.check(&spec, &settings)?;
                &Model::new(checkpoint.progress.spec.clone(), checkpoint.weights.clone())?
            }
            None => model,
        };
        let network = Network::new(beginning, options.begin_at, options.frozen_norm, &options.device)?
            .with_precision(options.precision);
        let mut optimizer = Optimizer::new(network.trained(), &options.optimizer, options.backbone_factor)?;
        let criterion = Criterion::new(&options.loss, &options.device)?;
        let mut average = options.average_decay.map(|decay| Average::new(&network, decay)).transpose()?;
        let initial = options.optimizer.learning_rate();
        let mut scheduler = Scheduler::new(options.schedule.clone(), initial, options.warmup_steps);
        let progress = match found {
            Some(checkpoint) => {
                optimizer.restore(&checkpoint.optimizer, checkpoint.progress.step)?;
                if let Some(average) = &mut average {
                    average.restore(&checkpoint.average)?;
                }
                scheduler.restore(checkpoint.progress.plateau);
                checkpoint.progress
            }
            None => Progress::new(spec, settings, scheduler.state()),
        };
        if writes && lock.is_none() {
            lock = Some(FolderLock::take(out)?);
            // One that was made since the look at it.
            if out.join(CHECKPOINT_FILE).exists() {
                return Err(TrainError::Exists { folder: out.to_owned() });
            }
        }
        let report = if writes {
            let mut report = Report::create(out, start == Start::Resume)?;
            crate::replacement::remove_partial_files(out);
            report.settings(&progress.spec, &progress.settings)?;
            Some(report)
        } else {
            None
        };
        let saved = Saved { at: Instant::now(), place: (progress.epoch, progress.batch) };
        Ok(Self {
            network,
            optimizer,
            criterion,
            average,
            scheduler,
            progress,
            options,
            out: out.to_owned(),
            report,
            collective,
            saved,
            whole: true,
            _lock: lock,
        })
    }

    /// Where the training is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Trains until all epochs are over or `stop` is cancelled, which is looked at between steps. Nothing is validated if
    /// `validation` has no batches; the latest model then counts as the best.
    ///
    /// Before an error is given, all whole steps are saved, but for a training that diverged.
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
        let ended = self.run_epochs(train, validation, stop, observer);
        match ended {
            Ok(Outcome::Stopped) => self.save_checkpoint()?,
            Ok(Outcome::Finished | Outcome::NoBetter) => {}
            // The others went away, or wait for something; what is here is saved as if they had agreed.
            Err(TrainError::Collective(CollectiveError::Stopped)) => {
                self.save_checkpoint()?;
                return Ok(Outcome::Stopped);
            }
            Err(TrainError::Diverged { .. }) => {}
            Err(_) => self.save_what_is_whole(),
        }
        ended
    }

    fn run_epochs(
        &mut self,
        train: &dyn BatchSource,
        validation: &dyn BatchSource,
        stop: &CancellationToken,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        self.check_agreement()?;
        while self.progress.epoch < self.options.epochs {
            if self.options.early_stop.is_some_and(|epochs| self.progress.epochs_since_best() >= epochs) {
                return Ok(Outcome::NoBetter);
            }
            if self.train_epoch(train, stop, observer)? == Outcome::Stopped {
                return Ok(Outcome::Stopped);
            }
            let began = Instant::now();
            let Some(validated) = self.validate(validation, stop, observer)? else { return Ok(Outcome::Stopped) };
            self.end_epoch(&validated, began.elapsed(), observer)?;
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
        let Progress { epoch, batch: first, tally, .. } = self.progress;
        let total = train.batches_per_epoch() as u64;
        let mut batches = train.epoch(epoch, first as usize);
        let done = tally.clips / self.collective.world_size() as u64;
        observer.begin(Pass::Training { epoch: epoch + 1 }, train.clips_per_epoch() as u64, done);
        while self.progress.batch < total {
            let statistics = self.copy_statistics()?;
            let step = self.step(batches.as_mut(), train, stop, observer);
            if step.is_err() && self.whole {
                // Batches that were seen already moved them.
                self.put_statistics(&statistics)?;
            }
            if step? || (self.collective.world_size() == 1 && stop.is_cancelled()) {
                return Ok(Outcome::Stopped);
            }
            if self.saved.at.elapsed() >= self.options.checkpoint_interval {
                self.save_checkpoint()?;
            }
        }
        Ok(Outcome::Finished)
    }

    /// One step of the weights. Gives whether any of the processes was told to stop. An error before weights change leaves
    /// everything but running statistics as it was.
    fn step(
        &mut self,
        batches: &mut dyn Iterator<Item = Result<Batch, LoaderError>>,
        train: &dyn BatchSource,
        stop: &CancellationToken,
        observer: &mut dyn Observer,
    ) -> Result<bool, TrainError> {
        let (began, waited_before) = (Instant::now(), train.waited());
        let Progress { epoch, batch: first, step, .. } = self.progress;
        let learning_rate = self.scheduler.learning_rate(epoch, step);
        let left = train.batches_per_epoch() as u64 - first;
        let count = (self.options.accumulate.max(1) as u64).min(left);
        let alone = count == 1 && self.collective.world_size() == 1;
        let mut sum = GradientSum { alone, ..GradientSum::default() };
        for number in first..first + count {
            let batch = batches.next().ok_or(TrainError::NoBatches)??;
            let (loss, correct) = self.forward_backward(&batch, number, learning_rate, &mut sum)?;
            let clips = batch.examples.len() as u64;
            sum.tally.add(loss, correct, clips);
            observer.batch(clips, loss);
        }
        let Exchanged { mut gradients, tally, stops } = self.exchange(sum, stop)?;
        if let Some(limit) = self.options.clip_norm {
            clip_norm(&mut gradients, &self.network.trained(), limit)?;
        }
        self.whole = false;
        self.optimizer.step(&gradients, learning_rate)?;
        if let Some(average) = &mut self.average {
            average.note(&self.network, step)?;
        }
        self.progress.tally.add(tally.loss(), tally.correct, tally.clips);
        self.progress.tally.milliseconds += began.elapsed().as_millis() as u64;
        self.progress.tally.waited_milliseconds += (train.waited() - waited_before).as_millis() as u64;
        self.progress.batch += count;
        self.progress.step += 1;
        self.whole = true;
        if let Some(report) = &mut self.report {
            report.step(step, tally.loss(), learning_rate)?;
        }
        Ok(stops)
    }

    /// Adds the gradients of batch `number` of the epoch to `sum`. Gives the mean loss and how many clips were right.
    fn forward_backward(
        &self,
        batch: &Batch,
        number: u64,
        learning_rate: f64,
        sum: &mut GradientSum,
    ) -> Result<(f64, u64), TrainError> {
        let (clips, labels) = self.on_device(batch)?;
        let classes = self.progress.spec.labels.len();
        let place = number * self.collective.world_size() as u64 + self.collective.rank() as u64;
        let mut draws = Draws::new(self.options.seed, "mix", self.progress.epoch, place);
        let (clips, targets) = self.options.mix.apply(&clips, &labels, classes, &mut draws)?;
        let pass = self.network.train(&clips)?;
        let Loss { sum: loss_sum, weight } = self.criterion.loss(&pass.logits, &targets)?;
        // Classes may weigh nothing.
        let mean = (&loss_sum / weight.max(f64::MIN_POSITIVE))?;
        let loss = f64::from(mean.to_scalar::<f32>()?);
        self.check_loss(loss, learning_rate)?;
        let correct = count_correct(&pass.logits, &labels)?;
        // Parts may have different sizes: their sums are added, and divided by all clips at the end.
        let backward = if sum.alone { mean } else { loss_sum };
        sum.add(pass.backward(&backward)?, weight, &self.network.trained())?;
        Ok((loss, correct))
    }

    fn check_loss(&self, loss: f64, learning_rate: f64) -> Result<(), TrainError> {
        if loss <= self.highest_sound_loss() {
            return Ok(());
        }
        let what = if loss.is_finite() { format!("the loss is {loss:.1}") } else { format!("the loss is {loss}") };
        Err(self.diverged(what, learning_rate))
    }

    /// A hundred times the loss of guessing. Sound trainings hardly exceed that of guessing for long.
    fn highest_sound_loss(&self) -> f64 {
        100.0 * (self.progress.spec.labels.len() as f64).ln().max(1.0)
    }

    fn diverged(&self, what: String, learning_rate: f64) -> TrainError {
        let Progress { epoch, step, .. } = self.progress;
        TrainError::Diverged { epoch: epoch + 1, step: step + 1, what, learning_rate }
    }

    /// What all processes have of a step together: mean gradients over all clips, and what they counted. Running statistics
    /// become the mean of theirs, too.
    fn exchange(&mut self, sum: GradientSum, stop: &CancellationToken) -> Result<Exchanged, TrainError> {
        let trained = self.network.trained();
        let GradientSum { alone, gradients, weight, tally } = sum;
        let mut gradients = gradients.ok_or(TrainError::NoBatches)?;
        let stops = f64::from(u8::from(stop.is_cancelled()));
        let mut sums = [stops, weight, tally.loss_sum(), tally.correct as f64, tally.clips as f64];
        self.collective.sum_exact(&mut sums)?;
        let [stops, weight, loss_sum, correct, clips] = sums;
        let tally = Tally::of_sums(loss_sum, correct as u64, clips as u64);
        if self.collective.world_size() > 1 {
            self.sum_gradients(&trained, &mut gradients)?;
        }
        if !alone {
            for (_, variable) in &trained {
                if let Some(sum) = gradients.get(variable) {
                    let mean = (sum / weight.max(f64::MIN_POSITIVE))?;
                    gradients.insert(variable, mean);
                }
            }
        }
        Ok(Exchanged { gradients, tally, stops: stops > 0.0 })
    }

    /// Sums gradients over all processes, and takes the mean of their running statistics.
    fn sum_gradients(&mut self, trained: &[(String, Var)], gradients: &mut GradStore) -> Result<(), TrainError> {
        let statistics = self.network.statistics();
        let mut flat = Vec::new();
        for (_, variable) in trained {
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
            Tensor::from_slice(values, variable.shape(), &Device::Cpu)?.to_device(variable.device())
        };
        for (_, variable) in trained {
            gradients.insert(variable, take(variable)?);
        }
        let world_size = self.collective.world_size() as f64;
        for (_, variable) in &statistics {
            variable.set(&(take(variable)? / world_size)?)?;
        }
        Ok(())
    }

    fn copy_statistics(&self) -> candle_core::Result<Vec<Tensor>> {
        self.network.statistics().iter().map(|(_, variable)| variable.copy()).collect()
    }

    fn put_statistics(&self, values: &[Tensor]) -> candle_core::Result<()> {
        self.network.statistics().iter().zip(values).try_for_each(|((_, variable), value)| variable.set(value))
    }

    /// What the validation examples of all processes come to; `None` if it was told to stop.
    fn validate(
        &mut self,
        validation: &dyn BatchSource,
        stop: &CancellationToken,
        observer: &mut dyn Observer,
    ) -> Result<Option<Validated>, TrainError> {
        let own = match &self.average {
            Some(average) => {
                let own = self.network.copies()?;
                self.network.restore(average.values())?;
                Some(own)
            }
            None => None,
        };
        let validated = self.validate_network(validation, stop, observer);
        if let Some(own) = own {
            self.network.restore(&own)?;
        }
        validated
    }

    fn validate_network(
        &mut self,
        validation: &dyn BatchSource,
        stop: &CancellationToken,
        observer: &mut dyn Observer,
    ) -> Result<Option<Validated>, TrainError> {
        let mut validated = Validated::new(&self.progress.spec, validation.clips_per_epoch());
        let epoch = self.progress.epoch + 1;
        observer.begin(Pass::Validation { epoch }, validation.clips_per_epoch() as u64, 0);
        for batch in validation.epoch(0, 0) {
            if stop.is_cancelled() {
                break;
            }
            let batch = batch?;
            let (clips, labels) = self.on_device(&batch)?;
            let logits = self.network.evaluate(&clips)?;
            let loss = f64::from(cross_entropy(&logits, &labels)?.to_scalar::<f32>()?);
            validated.add(&batch, &logits, loss, |example| validation.name(example))?;
            observer.batch(batch.examples.len() as u64, loss);
        }
        if self.anyone(stop.is_cancelled())? {
            return Ok(None);
        }
        validated.join(self.collective.as_mut())?;
        Ok(Some(validated))
    }

    /// Reports an epoch and writes its files. After an error the epoch is as before: validation done, nothing else.
    fn end_epoch(
        &mut self,
        validated: &Validated,
        validation_time: Duration,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let before = (self.progress.clone(), self.scheduler.clone());
        let ended = self.try_to_end_epoch(validated, validation_time);
        match ended {
            Ok(record) => observer.epoch(&record),
            Err(_) => (self.progress, self.scheduler) = before,
        }
        ended.map(|_| ())
    }

    fn try_to_end_epoch(
        &mut self,
        validated: &Validated,
        validation_time: Duration,
    ) -> Result<EpochRecord, TrainError> {
        let trained = self.with_mean_times(self.progress.tally)?;
        let Progress { epoch, step, .. } = self.progress;
        let learning_rate = self.scheduler.learning_rate(epoch, step.saturating_sub(1));
        let has_validation = validated.tally.clips > 0;
        let judged = if has_validation { validated.tally } else { trained };
        let weights = self.weights()?;
        if let Some(what) = find_not_finite(&weights)? {
            return Err(self.diverged(format!("{what} is not finite after the epoch"), learning_rate));
        }
        if has_validation {
            self.check_validation_loss(validated.tally.loss(), learning_rate)?;
        }
        self.scheduler.note(judged.loss());
        let result = Best::of(&judged, has_validation.then(|| validated.mean_class_accuracy()).flatten(), epoch);
        let better = match &self.progress.best {
            Some(best) if has_validation => result.beats(best, self.options.best_by),
            _ => true,
        };
        if better {
            self.progress.best = Some(result);
        }

        let training_time = Duration::from_millis(trained.milliseconds);
        let record = EpochRecord {
            epoch: epoch + 1,
            learning_rate,
            train_loss: trained.loss(),
            train_accuracy: trained.accuracy(),
            validation_loss: has_validation.then(|| validated.tally.loss()),
            validation_accuracy: has_validation.then(|| validated.tally.accuracy()),
            validation_mean_class_accuracy: validated.mean_class_accuracy(),
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
            if better && has_validation {
                report.pictures(record.epoch, validated, &self.progress.spec)?;
            }
        }
        self.save_checkpoint()?;
        Ok(record)
    }

    /// A validation loss that is no number ends the training; one that is far too high is told of, since batch norms' running
    /// statistics and a high learning rate do that at the beginning of trainings that turn out well.
    fn check_validation_loss(&self, loss: f64, learning_rate: f64) -> Result<(), TrainError> {
        if !loss.is_finite() {
            return Err(self.diverged(format!("the validation loss is {loss}"), learning_rate));
        }
        if loss > self.highest_sound_loss() && self.collective.rank() == 0 {
            let epoch = self.progress.epoch + 1;
            warn!(epoch, loss, learning_rate, "the validation loss explodes: a lower --lr or --freeze-norm may help");
        }
        Ok(())
    }

    /// The weights to be served, on the CPU.
    fn weights(&self) -> candle_core::Result<std::collections::HashMap<String, Tensor>> {
        let mut weights = self.network.weights()?;
        if let Some(average) = &self.average {
            for (name, tensor) in average.values() {
                weights.insert(name.clone(), tensor.to_device(&Device::Cpu)?);
            }
        }
        Ok(weights)
    }

    fn save_checkpoint(&mut self) -> Result<(), TrainError> {
        self.progress.plateau = self.scheduler.state();
        if self.collective.rank() == 0 {
            let on_cpu = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_device(&Device::Cpu)?));
            let average = self.average.iter().flat_map(|average| average.values().clone());
            let checkpoint = Checkpoint {
                progress: self.progress.clone(),
                weights: self.network.weights()?,
                optimizer: self.optimizer.state().into_iter().map(on_cpu).collect::<candle_core::Result<_>>()?,
                average: average.map(on_cpu).collect::<candle_core::Result<_>>()?,
            };
            checkpoint.write(&self.out.join(CHECKPOINT_FILE))?;
        }
        self.saved = Saved { at: Instant::now(), place: (self.progress.epoch, self.progress.batch) };
        Ok(())
    }

    /// Saves what an error would cost otherwise. The error counts more than one here.
    fn save_what_is_whole(&mut self) {
        if !self.whole || self.saved.place == (self.progress.epoch, self.progress.batch) {
            return;
        }
        if let Err(error) = self.save_checkpoint() {
            error!(%error, "the steps since the last checkpoint can't be saved");
        }
    }

    /// The same counts with the mean of all processes' times.
    fn with_mean_times(&mut self, mut tally: Tally) -> Result<Tally, TrainError> {
        let mut times = [tally.milliseconds, tally.waited_milliseconds].map(|time| time as f64);
        self.collective.sum_exact(&mut times)?;
        let [milliseconds, waited_milliseconds] = times.map(|time| (time / self.collective.world_size() as f64) as u64);
        (tally.milliseconds, tally.waited_milliseconds) = (milliseconds, waited_milliseconds);
        Ok(tally)
    }

    /// Whether something is so in any of the processes.
    fn anyone(&mut self, here: bool) -> Result<bool, TrainError> {
        let mut count = [f64::from(u8::from(here))];
        self.collective.sum_exact(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Refuses to train with processes that were started otherwise than this one.
    fn check_agreement(&mut self) -> Result<(), TrainError> {
        let world_size = self.collective.world_size();
        if world_size == 1 {
            return Ok(());
        }
        let Progress { settings, spec, epoch, batch, step, .. } = &self.progress;
        let agreed = [
            ("other settings or data", number_of(format!("{settings:?} {spec:?}").as_bytes())),
            ("another checkpoint", number_of(format!("{epoch} {batch} {step}").as_bytes())),
            ("other weights (--init, or those of its checkpoint)", self.number_of_weights()?),
        ];
        for (what, number) in agreed {
            let mut numbers = vec![0.0; world_size];
            numbers[self.collective.rank()] = number;
            self.collective.sum_exact(&mut numbers)?;
            if let Some(rank) = numbers.iter().position(|&other| other != numbers[0]) {
                return Err(TrainError::Disagreement { rank, what });
            }
        }
        Ok(())
    }

    fn number_of_weights(&self) -> candle_core::Result<f64> {
        let weights: BTreeMap<String, Tensor> = self.network.weights()?.into_iter().collect();
        let mut digest = Sha256::new();
        for (name, tensor) in weights {
            digest.update(name);
            for value in tensor.flatten_all()?.to_vec1::<f32>()? {
                digest.update(value.to_le_bytes());
            }
        }
        Ok(number(&digest.finalize()))
    }

    fn on_device(&self, batch: &Batch) -> candle_core::Result<(Tensor, Tensor)> {
        Ok((batch.clips.to_device(&self.options.device)?, batch.labels.to_device(&self.options.device)?))
    }
}

/// Tells texts apart that are not the same.
fn number_of(text: &[u8]) -> f64 {
    number(&Sha256::digest(text))
}

/// 48 bits of a digest, which are exact in an f64.
fn number(digest: &[u8]) -> f64 {
    digest[..6].iter().fold(0.0, |number, &byte| 256.0 * number + f64::from(byte))
}

/// What all processes know after a step's batches.
struct Exchanged {
    gradients: GradStore,
    tally: Tally,
    /// Whether any of them was told to stop.
    stops: bool,
}

/// Gradients of the batches that make one step.
#[derive(Default)]
struct GradientSum {
    /// Whether one batch of this process is all: its gradients are means already, those of several are sums.
    alone: bool,
    gradients: Option<GradStore>,
    /// What sums are divided by.
    weight: f64,
    tally: Tally,
}

impl GradientSum {
    fn add(&mut self, new: GradStore, weight: f64, trained: &[(String, Var)]) -> candle_core::Result<()> {
        self.weight += weight;
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
}

/// What must stay the same over the processes of a run and when it is resumed. The number of epochs may grow.
fn all_settings(options: &TrainOptions, world_size: usize) -> BTreeMap<String, String> {
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

/// A tensor with a value that no file may hold.
fn find_not_finite(weights: &std::collections::HashMap<String, Tensor>) -> candle_core::Result<Option<String>> {
    for (name, tensor) in weights {
        if !tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()) {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}
