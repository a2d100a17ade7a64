//! Which learning rate to begin with: one that rises from step to step shows where the loss falls fastest and where it flies
//! apart (Smith 2017).

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::loss::Criterion;
use super::network::Network;
use super::optimizer::{Optimizer, clip_norm};
use super::report::{self, ReportError};
use super::trainer::{BatchSource, TrainError, TrainOptions};
use crate::model::file::Model;

/// The table of rates and losses, in the folder of a run.
pub const TABLE_FILE: &str = "learning-rates.csv";
/// Their curve.
pub const CURVE_FILE: &str = "learning-rates.png";

/// Learning rates to try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// The first one.
    pub from: f64,
    /// The last one.
    pub to: f64,
    /// How many, at equal factors: a step each.
    pub steps: u32,
}

impl Rates {
    fn at(&self, step: u32) -> f64 {
        self.from * (self.to / self.from).powf(f64::from(step) / f64::from(self.steps.max(2) - 1))
    }
}

/// A learning rate, and the loss there: the mean of those so far, late ones weighing more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Of the step.
    pub rate: f64,
    /// Smoothed.
    pub loss: f64,
}

/// Trains `model` for a step at each of `rates`, or until the loss is four times its lowest or `stop` is cancelled.
pub fn find(
    model: &Model,
    options: &TrainOptions,
    rates: Rates,
    train: &dyn BatchSource,
    stop: &CancellationToken,
) -> Result<Vec<Point>, TrainError> {
    /// Part of the smoothed loss that each step keeps.
    const KEPT: f64 = 0.9;
    const FLOWN_APART: f64 = 4.0;
    let network =
        Network::new(model, &options.begin_at, options.frozen_norm, &options.device)?.with_precision(options.precision);
    let mut optimizer = Optimizer::new(network.backbone_and_head(), &options.optimizer, options.backbone_factor)?;
    let criterion = Criterion::new(&options.loss, &options.device)?;
    let batches = (0..).flat_map(|epoch| train.epoch(epoch, 0));
    let (mut points, mut sum, mut lowest) = (Vec::new(), 0.0, f64::INFINITY);
    if train.batches_per_epoch() == 0 {
        return Err(TrainError::NoBatches);
    }
    for (step, batch) in (0..rates.steps).zip(batches) {
        if stop.is_cancelled() {
            break;
        }
        let batch = batch?;
        let clips = batch.clips.to_device(&options.device)?;
        let labels = batch.labels.to_device(&options.device)?;
        let pass = network.train(&clips)?;
        let mean = criterion.loss(&pass.logits, &labels)?.mean()?;
        let loss = f64::from(mean.to_scalar::<f32>()?);
        // The first losses would count for nothing: the mean is divided by what it has in sum.
        sum = KEPT * sum + (1.0 - KEPT) * loss;
        let smoothed = sum / (1.0 - KEPT.powi(step as i32 + 1));
        if !smoothed.is_finite() || smoothed > FLOWN_APART * lowest {
            break;
        }
        lowest = lowest.min(smoothed);
        let rate = rates.at(step);
        points.push(Point { rate, loss: smoothed });
        let mut gradients = pass.backward(&mean)?;
        if let Some(limit) = options.clip_norm {
            clip_norm(&mut gradients, &network.trained(), limit)?;
        }
        optimizer.step(&gradients, rate)?;
    }
    Ok(points)
}

/// The learning rate at which the loss falls fastest. `None` if it never does.
pub fn suggestion(points: &[Point]) -> Option<f64> {
    /// Steps over which the fall is taken, so that no single batch decides.
    const SPAN: usize = 5;
    let fall = |window: &[Point]| window[0].loss - window[window.len() - 1].loss;
    let steepest = points.windows(SPAN).max_by(|a, b| fall(a).total_cmp(&fall(b)))?;
    (fall(steepest) > 0.0).then(|| steepest[SPAN / 2].rate)
}

/// Writes the table and the curve to the folder `out`, which is made if it isn't there.
pub fn write(points: &[Point], out: &Path) -> Result<(), ReportError> {
    let mut table = "learning_rate,loss\n".to_owned();
    points.iter().for_each(|point| table += &format!("{},{}\n", point.rate, point.loss));
    report::write_rates(out, TABLE_FILE, &table, CURVE_FILE, points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_by_equal_factors() {
        let rates = Rates { from: 1e-4, to: 1.0, steps: 5 };
        let all: Vec<f64> = (0..5).map(|step| rates.at(step)).collect();
        assert!((all[0] - 1e-4).abs() < 1e-12 && (all[4] - 1.0).abs() < 1e-12, "{all:?}");
        assert!(all.windows(2).all(|pair| (pair[1] / pair[0] - 10.0).abs() < 1e-9), "{all:?}");
    }

    #[test]
    fn the_rate_where_the_loss_falls_fastest_is_suggested() {
        let point = |step: u32| {
            let rate = 1e-5 * 10f64.powf(f64::from(step) / 10.0);
            // Falls around 1e-2, rises from 1e-1 on.
            let loss = 2.0 - 1.5 / (1.0 + (1e-2 / rate).powi(2)) + (rate / 0.2).powi(2);
            Point { rate, loss }
        };
        let points: Vec<Point> = (0..46).map(point).collect();
        let suggested = suggestion(&points).unwrap();
        assert!((5e-3..3e-2).contains(&suggested), "{suggested}");
        let rising: Vec<Point> = (0..20).map(|step| Point { rate: f64::from(step), loss: f64::from(step) }).collect();
        assert_eq!([suggestion(&[]), suggestion(&points[..3]), suggestion(&rising)], [None; 3]);
    }
}
