//! `history.csv`: a row an epoch.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{EpochRecord, ReportError, at};
use crate::replacement::write_whole;

const HEADER: &str = "epoch,learning_rate,train_loss,train_accuracy,validation_loss,validation_accuracy,\
                      validation_mean_class_accuracy,validation_mean_average_precision,clips_per_second,waited_fraction,\
                      elapsed_seconds";
/// Of versions that knew no average precision.
const EARLIER_HEADER: &str = "epoch,learning_rate,train_loss,train_accuracy,validation_loss,validation_accuracy,\
                              validation_mean_class_accuracy,clips_per_second,waited_fraction,elapsed_seconds";
/// Of the first versions, whose epochs are numbered from 0.
const FORMER_HEADER: &str = "epoch,learning_rate,train_loss,train_accuracy,validation_loss,validation_accuracy,\
                             clips_per_second,waited_fraction,elapsed_seconds";

/// The file and what it holds.
#[derive(Debug)]
pub(super) struct History {
    path: PathBuf,
    records: Vec<EpochRecord>,
}

impl History {
    /// Reads the file if it is there and is to be resumed; writes one without rows otherwise.
    pub(super) fn open(path: &Path, resume: bool) -> Result<Self, ReportError> {
        let mut history = Self { path: path.to_owned(), records: Vec::new() };
        match fs::read_to_string(path) {
            Ok(text) => {
                let records = parse(&text).map_err(|(line, expected)| ReportError::History {
                    path: path.to_owned(),
                    line,
                    found: text.lines().nth(line - 1).unwrap_or_default().to_owned(),
                    expected,
                });
                // What can't be read is somebody's all the same.
                let epochs = records.as_ref().map_or(text.lines().count(), Vec::len);
                if !resume && epochs > 0 {
                    return Err(ReportError::Exists { path: path.to_owned(), epochs });
                }
                history.records = records?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(path)(error)),
        }
        history.write()?;
        Ok(history)
    }

    pub(super) fn records(&self) -> &[EpochRecord] {
        &self.records
    }

    /// Puts the record after those of earlier epochs, and drops those of this and later ones.
    pub(super) fn add(&mut self, record: EpochRecord) -> Result<(), ReportError> {
        self.records.retain(|earlier| earlier.epoch < record.epoch);
        self.records.push(record);
        self.write()
    }

    fn write(&self) -> Result<(), ReportError> {
        let mut text = format!("{HEADER}\n");
        for record in &self.records {
            let EpochRecord { epoch, learning_rate, train_loss, train_accuracy, .. } = record;
            let EpochRecord { clips_per_second, waited_fraction, .. } = record;
            let optional = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
            let (loss, accuracy) = (optional(record.validation_loss), optional(record.validation_accuracy));
            let mean_class = optional(record.validation_mean_class_accuracy);
            let precision = optional(record.validation_mean_average_precision);
            let elapsed = record.elapsed.as_secs_f64();
            let row = writeln!(
                text,
                "{epoch},{learning_rate},{train_loss},{train_accuracy},{loss},{accuracy},{mean_class},{precision},\
                 {clips_per_second},{waited_fraction},{elapsed}"
            );
            row.expect("strings take all text");
        }
        write_whole(&self.path, text.as_bytes()).map_err(at(&self.path))
    }
}

/// The rows of a history; the error is the number of a bad line and what should stand there.
fn parse(text: &str) -> Result<Vec<EpochRecord>, (usize, String)> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let parse_row = match lines.next() {
        None => return Ok(Vec::new()),
        Some((_, HEADER)) => parse_row,
        Some((_, EARLIER_HEADER)) => parse_earlier_row,
        Some((_, FORMER_HEADER)) => parse_former_row,
        Some(_) => return Err((1, HEADER.to_owned())),
    };
    let rows =
        lines.map(|(number, line)| parse_row(line).ok_or_else(|| (number, "numbers below the header".to_owned())));
    rows.collect()
}

/// With columns that were not known yet left empty after the first `columns`.
fn parse_shorter_row(line: &str, columns: usize, unknown: &[&str]) -> Option<EpochRecord> {
    let fields: Vec<&str> = line.split(',').collect();
    let (results, times) = fields.split_at_checked(columns)?;
    parse_row(&[results, unknown, times].concat().join(","))
}

fn parse_earlier_row(line: &str) -> Option<EpochRecord> {
    parse_shorter_row(line, 7, &[""])
}

fn parse_former_row(line: &str) -> Option<EpochRecord> {
    let record = parse_shorter_row(line, 6, &["", ""])?;
    Some(EpochRecord { epoch: record.epoch + 1, ..record })
}

fn parse_row(line: &str) -> Option<EpochRecord> {
    let fields: Vec<&str> = line.split(',').collect();
    let &[
        epoch,
        learning_rate,
        train_loss,
        train_accuracy,
        loss,
        accuracy,
        mean_class,
        precision,
        clips_per_second,
        waited,
        elapsed,
    ] = fields.as_slice()
    else {
        return None;
    };
    let number = |field: &str| field.parse::<f64>().ok();
    let optional = |field: &str| if field.is_empty() { Some(None) } else { number(field).map(Some) };
    Some(EpochRecord {
        epoch: epoch.parse().ok()?,
        learning_rate: number(learning_rate)?,
        train_loss: number(train_loss)?,
        train_accuracy: number(train_accuracy)?,
        validation_loss: optional(loss)?,
        validation_accuracy: optional(accuracy)?,
        validation_mean_class_accuracy: optional(mean_class)?,
        validation_mean_average_precision: optional(precision)?,
        clips_per_second: number(clips_per_second)?,
        waited_fraction: number(waited)?,
        elapsed: Duration::try_from_secs_f64(number(elapsed)?).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.csv");
        let mut history = History::open(&path, false).unwrap();
        let first = EpochRecord { train_loss: 1.0 / 3.0, elapsed: Duration::from_millis(1_234), ..record(1) };
        let second = EpochRecord {
            validation_loss: None,
            validation_accuracy: None,
            validation_mean_class_accuracy: None,
            ..record(2)
        };
        history.add(first).unwrap();
        history.add(second).unwrap();
        assert_eq!(History::open(&path, true).unwrap().records(), [first, second]);
    }

    #[test]
    fn histories_of_earlier_versions_go_on_numbered_from_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.csv");
        fs::write(&path, format!("{FORMER_HEADER}\n0,0.1,2,0.5,1.5,0.25,12.5,0.015,83\n")).unwrap();
        let expected = EpochRecord { validation_mean_class_accuracy: None, train_loss: 2.0, ..record(1) };
        assert_eq!(History::open(&path, true).unwrap().records(), [expected]);
        fs::write(&path, format!("{EARLIER_HEADER}\n1,0.1,1,0.5,1.5,0.25,0.125,12.5,0.015,83\n")).unwrap();
        assert_eq!(History::open(&path, true).unwrap().records(), [record(1)]);
    }

    #[test]
    fn what_is_no_history_is_not_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.csv");
        for (text, bad_line) in [("a,b\n1,2\n".to_owned(), 1), (format!("{HEADER}\n1,2\n"), 2)] {
            fs::write(&path, &text).unwrap();
            let refused = History::open(&path, true).unwrap_err();
            assert!(matches!(&refused, ReportError::History { line, .. } if *line == bad_line), "{refused}");
            assert!(matches!(History::open(&path, false), Err(ReportError::Exists { .. })));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
