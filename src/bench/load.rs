//! How fast the loader of training makes clips, and whether that is fast enough for a network.

use std::time::{Duration, Instant};

use candle_core::Device;
use serde::Serialize;

use crate::model::file::Model;
use crate::train::loader::{Epoch, Loader, LoaderError};
use crate::train::loss::{Criterion, LossConfig};
use crate::train::network::{BeginAt, Network};

/// How many clips come from a loader of which every batch is taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoadTiming {
    /// Clips taken; those of the first batch, for which the threads had to start, not counted.
    pub clips: usize,
    /// Clips a second of wall-clock time.
    pub clips_per_second: f64,
    /// CPU time of this process for one of them, those made ahead included: comparable on a busy machine.
    pub cpu_ms_per_clip: f64,
}

/// How long a network that is trained waits for its loader.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FeedTiming {
    /// Steps; the first is not counted.
    pub steps: usize,
    /// A step with its waiting.
    pub ms_per_step: f64,
    /// Part of that time that was waiting.
    pub waited_fraction: f64,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum LoadBenchError {
    /// No batches.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] candle_core::Error),
    /// Fewer examples than a batch.
    #[error("there are no batches to measure: too few videos to train on")]
    NoBatches,
}

/// Takes batches for at least `time`, epoch after epoch.
pub fn time_loading(loader: &Loader, time: Duration) -> Result<LoadTiming, LoadBenchError> {
    let mut batches = Batches::new(loader)?;
    batches.next()?;
    let (begin, cpu_time_before, mut clips) = (Instant::now(), process_cpu_time(), 0);
    while clips == 0 || begin.elapsed() < time {
        clips += batches.next()?.examples.len();
    }
    let cpu_time = process_cpu_time() - cpu_time_before;
    Ok(LoadTiming {
        clips,
        clips_per_second: clips as f64 / begin.elapsed().as_secs_f64(),
        cpu_ms_per_clip: cpu_time.as_secs_f64() * 1e3 / clips as f64,
    })
}

/// Trains a model for at least `time` on the CPU: forward in training mode, loss and gradients. Only the
/// optimiser's step is left out, which would make waiting a smaller part.
pub fn time_feeding(loader: &Loader, model: &Model, time: Duration) -> Result<FeedTiming, LoadBenchError> {
    candle_conv3d::keep_freed_memory();
    let network = Network::new(model, &BeginAt::First, false, &Device::Cpu)?;
    let criterion = Criterion::new(&LossConfig::default(), &Device::Cpu)?;
    let mut batches = Batches::new(loader)?;
    let mut step = || -> Result<(), LoadBenchError> {
        let batch = batches.next()?;
        let pass = network.train(&batch.clips)?;
        let loss = criterion.loss(&pass.logits, &batch.labels)?.mean()?;
        pass.backward(&loss)?;
        Ok(())
    };
    step()?;
    let (begin, waited_before, mut steps) = (Instant::now(), loader.waited(), 0);
    while steps == 0 || begin.elapsed() < time {
        step()?;
        steps += 1;
    }
    let (took, waited) = (begin.elapsed(), loader.waited() - waited_before);
    Ok(FeedTiming {
        steps,
        ms_per_step: took.as_secs_f64() * 1e3 / steps as f64,
        waited_fraction: waited.as_secs_f64() / took.as_secs_f64(),
    })
}

fn process_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Batches without end.
struct Batches<'a> {
    loader: &'a Loader,
    number: u64,
    epoch: Epoch,
}

impl<'a> Batches<'a> {
    fn new(loader: &'a Loader) -> Result<Self, LoadBenchError> {
        if loader.batches_per_epoch() == 0 {
            return Err(LoadBenchError::NoBatches);
        }
        Ok(Self { loader, number: 0, epoch: loader.epoch(0, 0) })
    }

    fn next(&mut self) -> Result<crate::train::loader::Batch, LoadBenchError> {
        loop {
            if let Some(batch) = self.epoch.next() {
                return Ok(batch?);
            }
            self.number += 1;
            self.epoch = self.loader.epoch(self.number, 0);
        }
    }
}
