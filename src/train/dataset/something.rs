//! Something-Something (both versions) and Jester.
//!
//! ```text
//! something-something-v2-train.json   [{"id": "78687", "label": "holding potato next to vicks vaporub bottle",
//!                                       "template": "Holding [something] next to [something]", "placeholders": [...]}, ...]
//! jester-v1-train.csv                 34870;Drumming Fingers
//! ```
//!
//! The videos are `78687.*`, or folders `78687` of frames. The split is in the name of the file. Classes of
//! Something-Something are the templates, without brackets.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::TimeRange;
use super::error::{DatasetError, malformed_json};
use super::folders::split_of_file;
use super::gather::{Gathered, Labelled};
use super::lookup::VideoFiles;

#[derive(Deserialize)]
struct Entry {
    id: String,
    template: Option<String>,
    label: Option<String>,
}

/// Whether `json` is a list of version 2.
pub(super) fn matches_json(json: &Value) -> bool {
    let first = json.as_array().and_then(|items| items.first());
    first.is_some_and(|item| item.get("id").is_some() && item.get("template").is_some())
}

/// Whether `text` is a list of Jester or version 1.
pub(super) fn matches_text(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    let number = first.split_once(';').map(|(number, _)| number.trim());
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(super) fn read_json(
    path: &Path,
    json: Value,
    files: &VideoFiles,
    gathered: &mut Gathered,
) -> Result<(), DatasetError> {
    let entries: Vec<Entry> = serde_json::from_value(json).map_err(|error| malformed_json(path, &error))?;
    let split = split_of_file(path);
    let mut unlabelled = 0;
    for Entry { id, template, label } in entries {
        let Some(label) = template.or(label).map(|label| label.replace(['[', ']'], "")) else {
            unlabelled += 1;
            continue;
        };
        let labelled = Labelled { id: id.clone(), label, split, range: TimeRange::ALL, weight: 1.0 };
        gathered.look_up(files, &[id], labelled);
    }
    gathered.warn_of_unlabelled(unlabelled);
    Ok(())
}

pub(super) fn read_text(
    path: &Path,
    text: &str,
    files: &VideoFiles,
    gathered: &mut Gathered,
) -> Result<(), DatasetError> {
    let split = split_of_file(path);
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let malformed = || DatasetError::Malformed {
            path: path.to_owned(),
            line: Some(line),
            detail: format!("found {text:?}; expected the number of a video, a semicolon and its label"),
        };
        let (id, label) = text.split_once(';').ok_or_else(malformed)?;
        let (id, label) = (id.trim().to_owned(), label.trim().to_owned());
        let labelled = Labelled { id: id.clone(), label, split, range: TimeRange::ALL, weight: 1.0 };
        gathered.look_up(files, &[id], labelled);
    }
    Ok(())
}
