//! One step of the weights: gradients of this process's batches, those of all processes together, and what moves by them.

use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use tokio_util::sync::CancellationToken;

use super::{BatchSource, Observer, TrainError, Trainer};
use crate::train::augment::Draws;
use crate::train::checkpoint::{Progress, Tally};
use crate::train::loader::{Batch, LoaderError};
use crate::train::optimizer::clip_norm;

impl Trainer {
    /// One step of the weights. Gives whether any of the processes was told to stop. An error before weights change leaves
    /// everything but running statistics as it was.
    pub(super) fn step(
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
        let loss_of_batch = self.criterion.loss(&pass.logits, &targets)?;
        let mean = loss_of_batch.mean()?;
        let loss = f64::from(mean.to_scalar::<f32>()?);
        self.check_loss(loss, learning_rate)?;
        let correct = labels.count_correct(&pass.logits)?;
        // Parts may have different sizes: their sums are added, and divided by all clips at the end.
        let backward = if sum.alone { mean } else { loss_of_batch.sum };
        sum.add(pass.backward(&backward)?, loss_of_batch.weight, &self.network.trained())?;
        Ok((loss, correct))
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
