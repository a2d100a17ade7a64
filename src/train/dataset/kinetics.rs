//! The CSV and JSON files of Kinetics.
//!
//! ```text
//! label,youtube_id,time_start,time_end,split
//! testifying,---QUuC4vJs,84,94,train
//!
//! {"---QUuC4vJs": {"annotations": {"label": "testifying", "segment": [84.0, 94.0]}, "subset": "train", ...}, ...}
//! ```
//!
//! The videos are `---QUuC4vJs_000084_000094.*` or `---QUuC4vJs.*`, in one folder or in one for each label.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::TimeRange;
use super::authors::Subset;
use super::error::{DatasetError, malformed_csv, malformed_json};
use super::folders::{split_named, split_of_file};
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
        let broken = |error| malformed_csv(table, &error);
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
            let split = known.transpose()?.or_else(|| split_of_file(table));
            let timed = timed(&youtube_id, time_start, time_end);
            let labelled = Labelled { id: timed.clone(), label, split, range: TimeRange::ALL, weight: 1.0 };
            gathered.look_up(&files, &[timed, youtube_id], labelled);
        }
    }
    gathered.warn_of_unlabelled(unlabelled);
    Ok(gathered)
}

/// A clip's name: seconds of six digits.
fn timed(youtube_id: &str, start: f64, end: f64) -> String {
    format!("{youtube_id}_{start:06.0}_{end:06.0}")
}

#[derive(Deserialize)]
struct Entry {
    annotations: Option<Annotation>,
    subset: Option<Subset>,
}

#[derive(Deserialize)]
struct Annotation {
    label: Option<String>,
    segment: Option<[f64; 2]>,
}

/// Whether `json` is the official file: videos by their names, each with its own annotation.
pub(super) fn matches_json(json: &Value) -> bool {
    let first = json.as_object().and_then(|object| object.values().next());
    first.is_some_and(|entry| entry.get("annotations").is_some_and(Value::is_object) || entry.get("subset").is_some())
}

/// Adds the videos of the official JSON file.
pub(super) fn read_json(
    path: &Path,
    json: Value,
    files: &VideoFiles,
    gathered: &mut Gathered,
) -> Result<(), DatasetError> {
    let entries: BTreeMap<String, Entry> =
        serde_json::from_value(json).map_err(|error| malformed_json(path, &error))?;
    let mut unlabelled = 0;
    for (id, Entry { annotations, subset }) in entries {
        let Some(Annotation { label: Some(label), segment }) = annotations else {
            unlabelled += 1;
            continue;
        };
        let split = subset.map(Into::into).or_else(|| split_of_file(path));
        let mut stems = vec![id.clone()];
        if let Some([start, end]) = segment {
            stems.insert(0, timed(&id, start, end));
        }
        gathered.look_up(files, &stems, Labelled { id, label, split, range: TimeRange::ALL, weight: 1.0 });
    }
    gathered.warn_of_unlabelled(unlabelled);
    Ok(())
}
