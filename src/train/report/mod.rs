//! What a person sees of a training run, and what is left of it: `history.csv` and `curves.png` with a row and a point
//! an epoch, TensorBoard event files in `tensorboard/`, a table row and progress bars on the terminal.
//!
//! A run that is resumed leaves the same files as one that never stopped: when it reports a step or an epoch, what an
//! earlier process reported of that one and of later ones is forgotten.

pub(super) mod canvas;
mod curves;
mod history;
mod progress;
mod rates;
mod script;
mod tensorboard;
mod unifont;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use progress::Progress;

use super::evaluate::{Strip, confusion_picture, strips_picture};
use super::find_rate;
use super::validation::Validated;
use crate::model::spec::ModelSpec;
use history::History;
use tensorboard::Run;

/// One epoch in numbers. Accuracies are of clips, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochRecord {
    /// The epoch's number, from 1.
    pub epoch: u64,
    /// Of the last step.
    pub learning_rate: f64,
    /// Mean over the epoch's clips.
    pub train_loss: f64,
    /// Of the epoch's clips, as they were seen in training.
    pub train_accuracy: f64,
    /// Mean over the validation clips; `None` if there was no validation.
    pub validation_loss: Option<f64>,
    /// Of the validation clips; `None` if there was no validation.
    pub validation_accuracy: Option<f64>,
    /// Mean over the classes of the accuracy of their validation clips; `None` if there was no validation.
    pub validation_mean_class_accuracy: Option<f64>,
    /// Mean over the classes of the average precision of the validation clips, where those show several classes.
    pub validation_mean_average_precision: Option<f64>,
    /// Training speed.
    pub clips_per_second: f64,
    /// Part of the training time that went into waiting for data, from 0 to 1.
    pub waited_fraction: f64,
    /// Training and validation together.
    pub elapsed: Duration,
}

impl EpochRecord {
    /// What stands above the rows that records are displayed as, where clips show one class.
    pub const TABLE_HEADER: &str = concat!(
        "        learning   train    train   valid.    valid.    a class   clips    waited\n",
        " epoch      rate    loss accuracy     loss  accuracy  (in mean)      /s  for data      time"
    );
    /// The same where clips show several classes: a clip is right if its best label is one of them.
    pub const MULTI_LABEL_HEADER: &str = concat!(
        "        learning   train    train   valid.    valid.     valid.   clips    waited\n",
        " epoch      rate    loss     hits     loss      hits        mAP      /s  for data      time"
    );

    /// The header that belongs to this record.
    pub fn table_header(&self) -> &'static str {
        match self.validation_mean_average_precision {
            Some(_) => Self::MULTI_LABEL_HEADER,
            None => Self::TABLE_HEADER,
        }
    }
}

/// A row of the table below [`EpochRecord::TABLE_HEADER`].
impl fmt::Display for EpochRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |value: f64| format!("{:.2}%", 100.0 * value);
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        write!(
            f,
            "{:>6} {:>9} {:>7.4} {:>8} {:>8} {:>9} {:>10} {:>7.1} {:>9} {:>9}",
            self.epoch,
            short(self.learning_rate),
            self.train_loss,
            percent(self.train_accuracy),
            or_dash(self.validation_loss.map(|loss| format!("{loss:.4}"))),
            or_dash(self.validation_accuracy.map(percent)),
            or_dash(self.validation_mean_class_accuracy.or(self.validation_mean_average_precision).map(percent)),
            self.clips_per_second,
            percent(self.waited_fraction),
            clock(self.elapsed),
        )
    }
}

/// Writes what is left of a training run; see the module.
#[derive(Debug)]
pub struct Report {
    history: History,
    curves: PathBuf,
    train: Run,
    validation: Run,
    /// Whether an earlier process may have reported steps, epochs that this one is about to report.
    stale_steps: bool,
    stale_epochs: bool,
}

/// Why a run can't be reported.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Another run's files.
    #[error("{} has {epochs} epochs of another run; resume that one or take another folder", path.display())]
    Exists {
        /// The history.
        path: PathBuf,
        /// Its rows.
        epochs: usize,
    },
    /// A history that this program didn't write.
    #[error("{} can't be resumed: line {line} is {found:?}, not {expected}", path.display())]
    History {
        /// The history.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// The disk.
    #[error("can't write {}", path.display())]
    Io {
        /// What was to be read or written.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
}

impl Report {
    /// The report in the folder `out`, which is made if it isn't there. With `resume`, that of an earlier process goes
    /// on; without, one that has epochs already is refused.
    pub fn create(out: &Path, resume: bool) -> Result<Self, ReportError> {
        fs::create_dir_all(out).map_err(at(out))?;
        let history = History::open(&out.join("history.csv"), resume)?;
        let run = |name: &str| {
            let folder = out.join("tensorboard").join(name);
            Run::open(&folder, resume).map_err(at(&folder))
        };
        let (train, validation) = (run("train")?, run("validation")?);
        let curves = out.join("curves.png");
        Ok(Self { history, curves, train, validation, stale_steps: resume, stale_epochs: resume })
    }

    /// Reports one optimiser step: its loss and learning rate go to TensorBoard.
    pub fn step(&mut self, step: u64, loss: f64, learning_rate: f64) -> Result<(), ReportError> {
        if std::mem::take(&mut self.stale_steps) {
            self.train.forget_from(step, "step/")?;
        }
        self.train.scalars(step, &[("step/loss", loss), ("step/learning_rate", learning_rate)])
    }

    /// Reports the end of an epoch: a row in the history, points in TensorBoard and in the picture of the curves.
    pub fn epoch(&mut self, record: &EpochRecord) -> Result<(), ReportError> {
        if std::mem::take(&mut self.stale_epochs) {
            self.train.forget_from(record.epoch, "epoch/")?;
            self.validation.forget_from(record.epoch, "epoch/")?;
        }
        self.history.add(*record)?;
        // Training and validation are runs of the same tags, so that TensorBoard draws them into the same charts.
        let train = [
            ("epoch/loss", record.train_loss),
            ("epoch/accuracy", record.train_accuracy),
            ("epoch/learning_rate", record.learning_rate),
            ("epoch/clips_per_second", record.clips_per_second),
            ("epoch/waited_fraction", record.waited_fraction),
        ];
        self.train.scalars(record.epoch, &train)?;
        let validation = [
            ("epoch/loss", record.validation_loss),
            ("epoch/accuracy", record.validation_accuracy),
            ("epoch/mean_class_accuracy", record.validation_mean_class_accuracy),
            ("epoch/mean_average_precision", record.validation_mean_average_precision),
        ];
        let validation: Vec<_> = validation.into_iter().filter_map(|(tag, value)| Some((tag, value?))).collect();
        if !validation.is_empty() {
            self.validation.scalars(record.epoch, &validation)?;
        }
        curves::draw(self.history.records()).save(&self.curves).map_err(at(&self.curves))
    }

    /// Reports with what the run is done: a table that TensorBoard shows as text.
    pub fn settings(&mut self, spec: &ModelSpec, settings: &BTreeMap<String, String>) -> Result<(), ReportError> {
        let architecture = [("architecture".to_owned(), spec.architecture.to_string())];
        let rows = architecture.iter().map(|(name, value)| (name, value)).chain(settings);
        let rows = rows.map(|(name, value)| format!("| {name} | {} |\n", value.replace('|', "\\|")));
        let table = format!("| setting | value |\n|---|---|\n{}", rows.collect::<String>());
        self.train.text("settings", &table)
    }

    /// Reports what the network makes of the validation clips after an epoch: the confusion matrix and some clips, as
    /// pictures in TensorBoard.
    pub(super) fn pictures(&mut self, epoch: u64, validated: &Validated, spec: &ModelSpec) -> Result<(), ReportError> {
        let strips: Vec<Strip> = validated.shown.iter().map(|shown| Strip::of_frame(shown, &spec.labels)).collect();
        let has_confusion = !spec.scores.is_multi_label();
        let confusion = has_confusion.then(|| confusion_picture(&validated.confusion, &spec.labels)).flatten();
        let pictures = [("epoch/confusion", confusion), ("epoch/examples", strips_picture(&strips))];
        for (tag, picture) in pictures {
            // One that would be too large for anybody to open is left out.
            if let Some(picture) = picture {
                self.validation.picture(epoch, tag, &picture)?;
            }
        }
        Ok(())
    }

    /// The epochs so far, those of earlier processes included.
    pub fn records(&self) -> &[EpochRecord] {
        self.history.records()
    }
}

/// Writes a table and a curve of learning rates to the folder `out`, which is made if it isn't there.
pub(super) fn write_rates(
    out: &Path,
    table_file: &str,
    table: &str,
    curve_file: &str,
    points: &[find_rate::Point],
) -> Result<(), ReportError> {
    fs::create_dir_all(out).map_err(at(out))?;
    let (table_path, curve_path) = (out.join(table_file), out.join(curve_file));
    crate::replacement::write_whole(&table_path, table.as_bytes()).map_err(at(&table_path))?;
    rates::draw(points).save(&curve_path).map_err(at(&curve_path))
}

fn at(path: &Path) -> impl Fn(io::Error) -> ReportError + '_ {
    |source| ReportError::Io { path: path.to_owned(), source }
}

/// A number in few characters: `0.1`, `0.00025`, `1e-7`.
fn short(value: f64) -> String {
    let rounded: f64 = format!("{value:.2e}").parse().unwrap_or(value);
    if rounded != 0.0 && rounded.abs() < 1e-5 { format!("{rounded:e}") } else { rounded.to_string() }
}

/// `0:07`, `12:34`, `1:02:03`.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn record(epoch: u64) -> EpochRecord {
        EpochRecord {
            epoch,
            learning_rate: 0.1,
            train_loss: 2.0 / (1.0 + epoch as f64),
            train_accuracy: 0.5,
            validation_loss: Some(1.5),
            validation_accuracy: Some(0.25),
            validation_mean_class_accuracy: Some(0.125),
            validation_mean_average_precision: None,
            clips_per_second: 12.5,
            waited_fraction: 0.015,
            elapsed: Duration::from_secs(83),
        }
    }

    /// All files with their contents, wall times of TensorBoard left out by comparing lengths only.
    fn left_behind(out: &Path) -> (String, u64, u64) {
        let events = |run| {
            let path = out.join("tensorboard").join(run).join("events.out.tfevents.kinetoscope");
            fs::metadata(path).unwrap().len()
        };
        (fs::read_to_string(out.join("history.csv")).unwrap(), events("train"), events("validation"))
    }

    #[test]
    fn a_resumed_run_looks_like_one_that_never_stopped() {
        let run = |report: &mut Report, epochs: std::ops::Range<u64>| {
            for epoch in epochs {
                for step in 3 * epoch..3 * epoch + 3 {
                    report.step(step, 1.0, 0.1).unwrap();
                }
                report.epoch(&record(epoch)).unwrap();
            }
        };
        let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(&mut Report::create(whole.path(), false).unwrap(), 0..5);
        run(&mut Report::create(stopped.path(), false).unwrap(), 0..4);
        // The checkpoint was of the end of epoch 1.
        let mut resumed = Report::create(stopped.path(), true).unwrap();
        assert_eq!(resumed.records().len(), 4);
        run(&mut resumed, 2..5);
        assert_eq!(left_behind(stopped.path()), left_behind(whole.path()));
        assert!(stopped.path().join("curves.png").exists());
    }

    #[test]
    fn epochs_of_another_run_are_not_overwritten() {
        let out = tempfile::tempdir().unwrap();
        // A run that ended before its first epoch did is in nobody's way.
        Report::create(out.path(), false).unwrap();
        Report::create(out.path(), false).unwrap().epoch(&record(0)).unwrap();
        let refused = Report::create(out.path(), false).unwrap_err();
        assert!(matches!(refused, ReportError::Exists { epochs: 1, .. }), "{refused}");
    }

    #[test]
    fn rows_stand_below_their_header() {
        let row = record(3).to_string();
        assert_eq!(row, "     3       0.1  0.5000   50.00%   1.5000    25.00%     12.50%    12.5     1.50%      1:23");
        let header = EpochRecord::TABLE_HEADER.lines().last().unwrap();
        assert_eq!(row.len(), header.len());
        assert_eq!(row.len(), EpochRecord::MULTI_LABEL_HEADER.lines().last().unwrap().len());
        let without = EpochRecord {
            validation_loss: None,
            validation_accuracy: None,
            validation_mean_class_accuracy: None,
            ..record(3)
        };
        let without = without.to_string();
        assert_eq!(row.len(), without.len());
    }

    #[test]
    fn learning_rates_are_short() {
        let numbers = [0.1, 0.1 * 0.1 * 0.1, 0.00025, 1e-7, 0.0, 0.1 / 3.0].map(short);
        assert_eq!(numbers, ["0.1", "0.001", "0.00025", "1e-7", "0", "0.0333"]);
    }
}
