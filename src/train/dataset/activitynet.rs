//! ActivityNet v1.3: labelled segments, in seconds, of untrimmed videos. Each segment is an example.
//!
//! ```json
//! {"version": "VERSION 1.3", "taxonomy": [...],
//!  "database": {"ID": {"subset": "training", "duration": 82.73, "resolution": "320x240", "url": "...",
//!                      "annotations": [{"segment": [6.3, 71.6], "label": "Archery"}, ...]}, ...}}
//! ```
//!
//! The videos are `DIR/v_ID.*` or `DIR/ID.*`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::authors::Subset;
use super::error::{DatasetError, malformed_json};
use super::gather::{Gathered, Labelled};
use super::lookup::VideoFiles;
use crate::video::TimeRange;

#[derive(Deserialize)]
struct Document {
    database: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    subset: Subset,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Annotation {
    segment: [f64; 2],
    label: String,
}

/// Whether `json` is of this format, right or wrong.
pub(super) fn matches(json: &Value) -> bool {
    json.get("database").is_some_and(Value::is_object)
}

pub(super) fn read(path: &Path, json: Value, files: &VideoFiles, gathered: &mut Gathered) -> Result<(), DatasetError> {
    let document: Document = serde_json::from_value(json).map_err(|error| malformed_json(path, &error))?;
    gathered.source = path.to_owned();
    let (mut unlabelled, mut without_length) = (0, 0);
    for (id, Entry { subset, annotations }) in document.database {
        unlabelled += usize::from(annotations.is_empty());
        for (number, Annotation { segment, label }) in annotations.into_iter().enumerate() {
            let Some(range) = range(segment) else {
                without_length += 1;
                continue;
            };
            let labelled =
                Labelled { id: format!("{id}#{number}"), label, split: Some(subset.into()), range, weight: 1.0 };
            gathered.look_up(files, &[format!("v_{id}"), id.clone()], labelled);
        }
    }
    gathered.has_overlaps = true;
    gathered.warn_of_unlabelled(unlabelled);
    if without_length > 0 {
        gathered.warnings.push(format!("{without_length} segment(s) end before they begin and are left out"));
    }
    Ok(())
}

fn range([start, end]: [f64; 2]) -> Option<TimeRange> {
    let time = |seconds: f64| Duration::try_from_secs_f64(seconds.max(0.0)).ok();
    (start < end).then_some(TimeRange { start: time(start)?, end: Some(time(end)?) })
}
