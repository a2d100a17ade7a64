//! Which format a path is of, by what is there.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::DatasetError;
use super::folders::{self, Contents, list, name_of};
use super::gather::{Gathered, read_text};
use super::{DataSpec, activitynet, authors, hmdb51, kinetics, ucf101};

const EXPECTED: &str = "a folder of class folders (with or without train, val and test above them), JSON of \
    3D-ResNets-PyTorch or ActivityNet, CSV of Kinetics, or the split lists of UCF-101 or HMDB-51";

/// Reads `spec.annotations`, whatever it is.
pub(super) fn read(spec: &DataSpec) -> Result<Gathered, DatasetError> {
    let path = &spec.annotations;
    let kind = std::fs::metadata(path).map_err(|error| DatasetError::Read { path: path.clone(), error })?;
    let beside = || path.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
    if kind.is_dir() {
        read_folder(path, spec.videos.as_deref().unwrap_or(path), spec.split)
    } else {
        read_file(path, spec.videos.as_deref().unwrap_or(&beside()))
    }
}

fn read_folder(path: &Path, videos: &Path, split: u32) -> Result<Gathered, DatasetError> {
    let contents = list(path)?;
    let tables: Vec<PathBuf> = contents.others.iter().filter(|file| kinetics::is_table(file)).cloned().collect();
    if contents.others.iter().any(|file| ucf101::is_list(file)) {
        ucf101::read(path, split, videos)
    } else if contents.others.iter().any(|file| hmdb51::is_list(file)) {
        hmdb51::read(path, split, videos)
    } else if !tables.is_empty() {
        kinetics::read(path, &tables, videos)
    } else if !contents.folders.is_empty() {
        folders::read(path)
    } else {
        Err(unrecognised(path, describe(&contents)))
    }
}

fn read_file(path: &Path, videos: &Path) -> Result<Gathered, DatasetError> {
    if kinetics::is_table(path) {
        return kinetics::read(path, &[path.to_owned()], videos);
    }
    if let Some(split) = ucf101::split_of_list(path) {
        return ucf101::read(path.parent().unwrap_or(Path::new(".")), split, videos);
    }
    if folders::is_video(path) {
        return Err(unrecognised(path, "a single video".to_owned()));
    }
    let text = read_text(path)?;
    if !text.trim_start().starts_with('{') {
        let first: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
        return Err(unrecognised(path, format!("a file that begins with {first:?}")));
    }
    let json: Value = serde_json::from_str(&text).map_err(|error| malformed_json(path, &error))?;
    if authors::matches(&json) {
        authors::read(path, json, videos)
    } else if activitynet::matches(&json) {
        activitynet::read(path, json, videos)
    } else {
        let keys: Vec<&str> = json.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).take(8).collect();
        Err(unrecognised(path, format!("JSON with the keys {}", keys.join(", "))))
    }
}

/// JSON that is not what its format says.
pub(super) fn malformed_json(path: &Path, error: &serde_json::Error) -> DatasetError {
    let line = (error.line() > 0).then_some(error.line() as u64);
    DatasetError::Malformed { path: path.to_owned(), line, detail: error.to_string() }
}

fn unrecognised(path: &Path, found: String) -> DatasetError {
    DatasetError::Unrecognised { path: path.to_owned(), found, expected: EXPECTED }
}

fn describe(Contents { videos, others, .. }: &Contents) -> String {
    match (videos.len(), others.as_slice()) {
        (0, []) => "an empty folder".to_owned(),
        (0, [first, ..]) => format!("a folder of {} other file(s) such as {}", others.len(), name_of(first)),
        (videos, _) => format!("{videos} video(s) without class folders"),
    }
}
