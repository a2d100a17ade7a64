//! Learning rates over time.

use std::f64::consts::PI;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How the learning rate falls. `gamma` is what it is multiplied with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls at the start of each of these epochs (counted from 0).
    MultiStep {
        /// In any order.
        milestones: Vec<u64>,
        /// Below 1.
        gamma: f64,
    },
    /// It falls when the validation loss did not for more than `patience` epochs (PyTorch's `ReduceLROnPlateau`: better is
    /// below the best times 1 - 1e-4). The paper's rule, which does this three times.
    Plateau {
        /// Epochs.
        patience: u64,
        /// Below 1.
        gamma: f64,
    },
    /// It falls along half a cosine from its beginning (after the warm-up) to nothing after so many steps in all
    /// (Loshchilov, Hutter 2017).
    Cosine {
        /// Of the whole training.
        steps: u64,
    },
}

/// In a person's words, as the settings of a run and its messages say it.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::MultiStep { milestones, gamma } => {
                let milestones: Vec<String> = milestones.iter().map(u64::to_string).collect();
                write!(f, "times {gamma} after epochs {}", milestones.join(", "))
            }
            Self::Plateau { patience, gamma } => {
                write!(f, "times {gamma} after {patience} epochs without a lower validation loss")
            }
            Self::Cosine { steps } => write!(f, "cosine over {steps} steps"),
        }
    }
}

/// What less than the best loss counts as better.
const PLATEAU_THRESHOLD: f64 = 1e-4;
/// Smallest change of the learning rate that is made.
const LEAST_CHANGE: f64 = 1e-8;

/// A schedule under way.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduler {
    schedule: Schedule,
    initial: f64,
    warmup_steps: u64,
    plateau: Plateau,
}

/// The part of a scheduler that depends on what happened. Floats are kept as their bits, because decimal digits might round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plateau {
    best_bits: u64,
    bad_epochs: u64,
    rate_bits: u64,
}

impl Scheduler {
    /// A schedule that begins at the learning rate `initial`, to which the first `warmup_steps` steps rise evenly.
    pub fn new(schedule: Schedule, initial: f64, warmup_steps: u64) -> Self {
        let plateau = Plateau { best_bits: f64::INFINITY.to_bits(), bad_epochs: 0, rate_bits: initial.to_bits() };
        Self { schedule, initial, warmup_steps, plateau }
    }

    /// The learning rate of a step, both counted from 0 over the whole training.
    pub fn learning_rate(&self, epoch: u64, step: u64) -> f64 {
        let rate = match &self.schedule {
            Schedule::Constant => self.initial,
            Schedule::MultiStep { milestones, gamma } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= epoch).count();
                self.initial * gamma.powi(passed as i32)
            }
            Schedule::Plateau { .. } => f64::from_bits(self.plateau.rate_bits),
            Schedule::Cosine { steps } => {
                let (after, of) = (step.saturating_sub(self.warmup_steps), steps.saturating_sub(self.warmup_steps));
                let part = (after as f64 / of.max(1) as f64).min(1.0);
                self.initial * (1.0 + (PI * part).cos()) / 2.0
            }
        };
        rate * ((step + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0)
    }

    /// Takes note of an epoch's validation loss (of the training loss, if nothing is validated).
    pub fn note(&mut self, loss: f64) {
        let &Schedule::Plateau { patience, gamma } = &self.schedule else { return };
        let plateau = &mut self.plateau;
        if loss < f64::from_bits(plateau.best_bits) * (1.0 - PLATEAU_THRESHOLD) {
            plateau.best_bits = loss.to_bits();
            plateau.bad_epochs = 0;
        } else {
            plateau.bad_epochs += 1;
        }
        if plateau.bad_epochs > patience {
            plateau.bad_epochs = 0;
            let rate = f64::from_bits(plateau.rate_bits);
            if rate - rate * gamma > LEAST_CHANGE {
                plateau.rate_bits = (rate * gamma).to_bits();
            }
        }
    }

    /// What a checkpoint keeps.
    pub fn state(&self) -> Plateau {
        self.plateau
    }

    /// Goes on from a [`state`](Self::state).
    pub fn restore(&mut self, state: Plateau) {
        self.plateau = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multistep_falls_at_its_milestones() {
        let schedule = Schedule::MultiStep { milestones: vec![3, 5], gamma: 0.5 };
        let scheduler = Scheduler::new(schedule, 0.8, 0);
        let rates: Vec<f64> = (0..7).map(|epoch| scheduler.learning_rate(epoch, 1000)).collect();
        assert_eq!(rates, [0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2]);
    }

    #[test]
    fn plateau_falls_when_pytorchs_does() {
        // Learning rates after each epoch by torch.optim.lr_scheduler.ReduceLROnPlateau(patience=1, factor=0.1), lr 1.
        let losses = [1.0, 0.9, 0.89999, 0.95, 0.94, 0.93, 0.92, 0.5, f64::NAN, 0.6, 0.4];
        let expected = [1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.001, 0.001];
        let mut scheduler = Scheduler::new(Schedule::Plateau { patience: 1, gamma: 0.1 }, 1.0, 0);
        for (loss, expected) in losses.into_iter().zip(expected) {
            scheduler.note(loss);
            assert!((scheduler.learning_rate(0, 0) - expected).abs() < 1e-12, "{loss}: {expected}");
        }
    }

    #[test]
    fn warm_up_rises_evenly_to_the_schedules_rate() {
        let scheduler = Scheduler::new(Schedule::Constant, 1.0, 4);
        let rates: Vec<f64> = (0..6).map(|step| scheduler.learning_rate(0, step)).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn cosine_begins_after_the_warm_up_and_ends_near_nothing() {
        let scheduler = Scheduler::new(Schedule::Cosine { steps: 12 }, 0.4, 4);
        let rates: Vec<f64> = (0..13).map(|step| scheduler.learning_rate(0, step)).collect();
        assert_eq!((rates[0], rates[3], rates[4]), (0.1, 0.4, 0.4));
        assert!((rates[8] - 0.2).abs() < 1e-12, "half way: {}", rates[8]);
        assert!(
            rates[4..].windows(2).all(|pair| pair[1] < pair[0]) && rates[11] < 0.02 && rates[12] == 0.0,
            "{rates:?}"
        );
    }

    #[test]
    fn state_goes_through_json_bit_by_bit() {
        let mut scheduler = Scheduler::new(Schedule::Plateau { patience: 0, gamma: 0.1 }, 0.1, 0);
        [0.3, 0.1 + 0.2, 0.7].into_iter().for_each(|loss| scheduler.note(loss));
        let json = serde_json::to_string(&scheduler.state()).unwrap();
        assert_eq!(serde_json::from_str::<Plateau>(&json).unwrap(), scheduler.state());
    }
}
