//! The CSV files of Kinetics.
//!
//! ```text
//! label,youtube_id,time_start,time_end,split
//! testifying,---QUuC4vJs,84,94,train
//! ```
//!
//! The videos are `---QUuC4vJs_000084_000094.*` or `---QUuC4vJs.*`, in one folder or in one for each label.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::TimeRange;
use super::error::DatasetError;
use super::folders::split_named;
use super::gather::{Gathered, Labelled};
use super::lookup::VideoFiles;

#[derive(Deserialize)]
struct Row {
    label: Option<String>,
    youtube_id: String,
    time_start: f64,
    time_end: f64,
    split: Option<String>,
}

/// Whether the first line of a file is the header of such a table.
pub(super) fn is_table(path: &Path) -> bool {
    let mut line = String::new();
    let read = File::open(path).and_then(|file| BufReader::new(file.take(1024)).read_line(&mut line));
    read.is_ok() && line.split(',').any(|column| column.trim().trim_matches('"') == "youtube_id")
}

pub(super) fn read(source: &Path, tables: &[PathBuf], videos: &Path) -> Result<Gathered, DatasetError> {
    let files = VideoFiles::below(videos)?;
    let mut gathered = Gathered::of_annotations(source, videos);
    let mut unlabelled = 0;
    for table in tables {
        let malformed = |line: Option<u64>, detail| DatasetError::Malformed { path: table.clone(), line, detail };
        let broken = |error: csv::Error| malformed(error.position().map(csv::Position::line), error.to_string());
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(table).map_err(broken)?;
        for (number, row) in reader.deserialize().enumerate() {
            let Row { label, youtube_id, time_start, time_end, split } = row.map_err(broken)?;
            let Some(label) = label.filter(|label| !label.is_empty()) else {
                unlabelled += 1;
                continue;
            };
            let split = split.filter(|split| !split.is_empty());
            let known = split.as_deref().map(|name| {
                let detail = format!("found split {name:?}; expected train, validate or test");
                split_named(name).ok_or_else(|| malformed(Some(number as u64 + 2), detail))
            });
            let timed = format!("{youtube_id}_{time_start:06.0}_{time_end:06.0}");
            let labelled = Labelled { id: timed.clone(), label, split: known.transpose()?, range: TimeRange::ALL };
            gathered.look_up(&files, &[timed, youtube_id], labelled);
        }
    }
    gathered.warn_of_unlabelled(unlabelled);
    Ok(gathered)
}
