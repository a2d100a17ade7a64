//! The JSON that the scripts of 3D-ResNets-PyTorch make for every dataset.
//!
//! ```json
//! {"labels": ["archery", ...],
//!  "database": {"VIDEO": {"subset": "training", "annotations": {"label": "archery"}}, ...}}
//! ```
//!
//! The videos are `DIR/archery/VIDEO.*`. Frame numbers that newer scripts add are those of whole files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::error::DatasetError;
use super::gather::{Gathered, Labelled};
use super::lookup::VideoFiles;
use super::recognise::malformed_json;
use super::{Split, TimeRange};

#[derive(Deserialize)]
struct Document {
    labels: Vec<String>,
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

/// What both JSON formats call the splits.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Subset {
    Training,
    Validation,
    Testing,
}

impl From<Subset> for Split {
    fn from(subset: Subset) -> Self {
        match subset {
            Subset::Training => Self::Train,
            Subset::Validation => Self::Validation,
            Subset::Testing => Self::Test,
        }
    }
}

/// Whether `json` is of this format, right or wrong.
pub(super) fn matches(json: &Value) -> bool {
    json.get("database").is_some_and(Value::is_object) && json.get("labels").is_some()
}

pub(super) fn read(path: &Path, json: Value, videos: &Path) -> Result<Gathered, DatasetError> {
    let document: Document = serde_json::from_value(json).map_err(|error| malformed_json(path, &error))?;
    let files = VideoFiles::below(videos)?;
    let mut gathered = Gathered::of_annotations(path, videos);
    let mut unlabelled = 0;
    for (id, Entry { subset, annotations }) in document.database {
        let Some(label) = annotations.and_then(|annotations| annotations.label) else {
            unlabelled += 1;
            continue;
        };
        let labelled = Labelled { id: id.clone(), label, split: Some(subset.into()), range: TimeRange::ALL };
        gathered.look_up(&files, &[id], labelled);
    }
    gathered.classes = Some(document.labels);
    gathered.warn_of_unlabelled(unlabelled);
    Ok(gathered)
}
