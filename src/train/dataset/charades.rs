//! Charades: labelled parts of videos.
//!
//! ```text
//! Charades_v1_train.csv     id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
//!                           46GP8,HR43,Kitchen,6,7,Yes,...,c092 11.90 21.20;c147 0.00 12.60,24.83
//! Charades_v1_classes.txt   c000 Holding some clothes
//! ```
//!
//! The videos are `46GP8.*`. A video shows several actions, each at its time; trained on one label, each action is an example.
//! The test list becomes the validation split: there is no third one.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::error::{DatasetError, malformed_csv};
use super::folders::split_of_file;
use super::gather::{Gathered, Labelled, read_text};
use super::lookup::VideoFiles;
use super::{Split, TimeRange};

const CLASS_LIST: &str = "Charades_v1_classes.txt";

#[derive(Deserialize)]
struct Row {
    id: String,
    actions: String,
}

/// Whether `text` is the header of such a table.
pub(super) fn matches(text: &str) -> bool {
    let columns: Vec<&str> = text.lines().next().unwrap_or_default().split(',').map(str::trim).collect();
    columns.contains(&"id") && columns.contains(&"actions") && columns.contains(&"script")
}

pub(super) fn read(path: &Path, text: &str, files: &VideoFiles, gathered: &mut Gathered) -> Result<(), DatasetError> {
    let list = path.with_file_name(CLASS_LIST);
    let mut names: HashMap<String, String> = HashMap::new();
    if list.exists() {
        let lines = read_text(&list)?;
        let pairs = lines.lines().filter_map(|line| line.trim().split_once(' '));
        names.extend(pairs.map(|(code, name)| (code.to_owned(), name.trim().to_owned())));
    }
    let split = split_of_file(path).map(|split| if split == Split::Test { Split::Validation } else { split });
    let malformed = |line: Option<u64>, detail| DatasetError::Malformed { path: path.to_owned(), line, detail };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let mut unlabelled = 0;
    for (number, row) in reader.deserialize().enumerate() {
        let Row { id, actions } = row.map_err(|error| malformed_csv(path, &error))?;
        unlabelled += usize::from(actions.is_empty());
        for (action, text) in actions.split(';').filter(|action| !action.trim().is_empty()).enumerate() {
            let words: Vec<&str> = text.split_whitespace().collect();
            let seconds = |text: &str| text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            let (code, start, end) = match words.as_slice() {
                [code, start, end] => (*code, seconds(start), seconds(end)),
                _ => ("", None, None),
            };
            let (Some(start), Some(end)) = (start, end) else {
                let detail = format!("found the action {text:?}; expected a class, a start and an end");
                return Err(malformed(Some(number as u64 + 2), detail));
            };
            if start >= end {
                continue;
            }
            let label = names.get(code).map_or(code, String::as_str).to_owned();
            let range = TimeRange { start, end: Some(end) };
            let labelled = Labelled { id: format!("{id}#{action}"), label, split, range, weight: 1.0 };
            gathered.look_up(files, std::slice::from_ref(&id), labelled);
        }
    }
    gathered.warn_of_unlabelled(unlabelled);
    gathered.has_overlaps = true;
    gathered.has_several = true;
    Ok(())
}
