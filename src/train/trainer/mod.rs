//! The loop over epochs: batches to weights, weights to files.

mod options;
mod step;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::average::Average;
use super::checkpoint::{Best, Checkpoint, CheckpointError, Progress, Tally};
use super::distributed::{Collective, CollectiveError};
use super::loader::{Batch, Loader, LoaderError};
use super::lock::{FolderLock, LockError};
use super::loss::{Criterion, Labels, LossConfig};
use super::network::Network;
use super::optimizer::Optimizer;
use super::report::{EpochRecord, Report, ReportError};
use super::schedule::Scheduler;
use super::validation::Validated;
use crate::model::file::{Model, ModelFileError};
pub use options::TrainOptions;
use options::all_settings;

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
    /// That of validation: of the same kind, nothing weighted or smoothed.
    plain_criterion: Criterion,
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
        let network = Network::new(beginning, &options.begin_at, options.frozen_norm, &options.device)?
            .with_precision(options.precision);
        let mut optimizer = Optimizer::new(network.backbone_and_head(), &options.optimizer, options.backbone_factor)?;
        let criterion = Criterion::new(&options.loss, &options.device)?;
        let plain = LossConfig { kind: options.loss.kind, ..LossConfig::default() };
        let plain_criterion = Criterion::new(&plain, &options.device)?;
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
                // In the words of this version.
                Progress { settings: settings.texts(), ..checkpoint.progress }
            }
            None => Progress::new(spec, settings.texts(), scheduler.state()),
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
            plain_criterion,
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

    /// The epoch that is the best so far, of process 0.
    pub fn best_record(&self) -> Option<EpochRecord> {
        let epoch = self.progress.best.as_ref()?.epoch()?;
        self.report.as_ref()?.records().iter().find(|record| record.epoch == epoch).copied()
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
            let loss = f64::from(self.plain_criterion.loss(&logits, &labels)?.mean()?.to_scalar::<f32>()?);
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
        let result = Best::of(&judged, has_validation.then(|| validated.mean_over_classes()).flatten(), epoch);
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
            validation_mean_average_precision: validated.mean_average_precision(),
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
    fn weights(&self) -> candle_core::Result<HashMap<String, Tensor>> {
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

    fn on_device(&self, batch: &Batch) -> candle_core::Result<(Tensor, Labels)> {
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

/// A tensor with a value that no file may hold.
fn find_not_finite(weights: &HashMap<String, Tensor>) -> candle_core::Result<Option<String>> {
    for (name, tensor) in weights {
        if !tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()) {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}
