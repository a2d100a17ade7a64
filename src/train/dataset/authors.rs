//! The JSON that the scripts of 3D-ResNets-PyTorch make for every dataset.
//!
//! ```json
//! {"labels": ["archery", ...],
//!  "database": {"VIDEO": {"subset": "training", "annotations": {"label": "archery"}}, ...}}
//! ```
//!
//! The videos are `DIR/archery/VIDEO.*`, or folders `DIR/archery/VIDEO` of frames. Frame numbers that newer scripts add are those
//! of whole files. Splits may have other names, such as `train`, and classes may be in the order of the alphabet, without a list.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::error::{DatasetError, malformed_json};
use super::folders::split_named;
use super::gather::{Gathered, Labelled};
use super::lookup::VideoFiles;
use super::{Split, TimeRange};

#[derive(Deserialize)]
struct Document {
    labels: Option<Vec<String>>,
    database: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    subset: Subset,
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
struct Annotations {
    label: Option<String>,
}

/// What JSON formats call a split.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Subset(Split);

impl TryFrom<String> for Subset {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let unknown = || format!("found subset {name:?}; expected training, validation or testing");
        split_named(&name).map(Self).ok_or_else(unknown)
    }
}

impl From<Subset> for Split {
    fn from(Subset(split): Subset) -> Self {
        split
    }
}

/// Whether `json` is of this format, right or wrong.
pub(super) fn matches(json: &Value) -> bool {
    let Some(database) = json.get("database").and_then(Value::as_object) else { return false };
    // ActivityNet has a list of segments for each video.
    let one_label = |entry: &Value| entry.get("annotations").is_some_and(Value::is_object);
    json.get("labels").is_some() || database.values().any(one_label)
}

pub(super) fn read(path: &Path, json: Value, files: &VideoFiles, gathered: &mut Gathered) -> Result<(), DatasetError> {
    let document: Document = serde_json::from_value(json).map_err(|error| malformed_json(path, &error))?;
    gathered.source = path.to_owned();
    let mut unlabelled = 0;
    for (id, Entry { subset, annotations }) in document.database {
        let Some(label) = annotations.and_then(|annotations| annotations.label) else {
            unlabelled += 1;
            continue;
        };
        let labelled =
            Labelled { id: id.clone(), label, split: Some(subset.into()), range: TimeRange::ALL, weight: 1.0 };
        gathered.look_up(files, &[id], labelled);
    }
    gathered.classes = document.labels;
    gathered.warn_of_unlabelled(unlabelled);
    Ok(())
}
