//! The authors' result file, which `util_scripts/eval_accuracy.py` of 3D-ResNets-PyTorch (and `utils/eval_ucf101.py`,
//! `eval_hmdb51.py` of its branch CVPR2018) read: `{"results": {VIDEO: [{"label": ..., "score": ...}, ...]}}`, with the
//! ten best labels of each video. ActivityNet's format, from which it comes, has `version` and `external_data` too.

use std::collections::{BTreeMap, HashMap};

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Answer, Evaluation};
use crate::video::TimeRange;

/// The file's content; serialised as JSON.
#[derive(Debug, Serialize)]
pub struct ResultFile<'a> {
    version: &'static str,
    results: BTreeMap<&'a str, Vec<LabelScore<'a>>>,
    external_data: BTreeMap<&'static str, &'static str>,
}

#[derive(Debug, Serialize)]
struct LabelScore<'a> {
    label: &'a str,
    score: f32,
}

impl<'a> ResultFile<'a> {
    /// The answers under the examples' ids. Labels are spelled as the dataset does, since the scripts look them up in
    /// its annotations.
    pub fn new(evaluation: &'a Evaluation, ids: &'a [String]) -> Self {
        let results = evaluation.answers().map(|(example, answer)| {
            let best = answer.video.iter().take(Answer::BEST);
            let labels = best.map(|best| LabelScore { label: evaluation.name(best.class), score: best.score });
            (ids[example].as_str(), labels.collect())
        });
        Self { version: "VERSION 1.3", results: results.collect(), external_data: BTreeMap::new() }
    }
}

/// What an earlier evaluation wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct EarlierResults {
    /// The best label of each video by its id.
    best: HashMap<String, String>,
}

/// Why the results of an earlier evaluation can't be used.
#[derive(Debug, thiserror::Error)]
pub enum EarlierResultsError {
    /// The file can't be read.
    #[error("can't read {}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Another file.
    #[error("{} is no results.json of `kinetoscope evaluate --out`: {error}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        error: serde_json::Error,
    },
}

impl EarlierResults {
    /// Reads a `results.json`.
    pub fn read(path: &Path) -> Result<Self, EarlierResultsError> {
        #[derive(Deserialize)]
        struct File {
            results: HashMap<String, Vec<Label>>,
        }
        #[derive(Deserialize)]
        struct Label {
            label: String,
        }
        let text = std::fs::read(path).map_err(|error| EarlierResultsError::Io { path: path.to_owned(), error })?;
        let file: File = serde_json::from_slice(&text)
            .map_err(|error| EarlierResultsError::Format { path: path.to_owned(), error })?;
        let best = |(id, labels): (String, Vec<Label>)| Some((id, labels.into_iter().next()?.label));
        Ok(Self { best: file.results.into_iter().filter_map(best).collect() })
    }

    /// The best label of a video; `None` if it had no answer.
    pub fn best(&self, id: &str) -> Option<&str> {
        self.best.get(id).map(String::as_str)
    }
}

/// Ids that tell all examples apart: where several parts of a video are examples, their seconds are added in the manner
/// of Kinetics, `ID_000012_000022`.
pub fn ids_with_times(examples: &[(&str, TimeRange)]) -> Vec<String> {
    let mut times: HashMap<&str, usize> = HashMap::new();
    examples.iter().for_each(|(id, _)| *times.entry(id).or_default() += 1);
    let id = |&(id, range): &(&str, TimeRange)| match (times[id], range.end) {
        (1, _) => id.to_owned(),
        (_, None) => format!("{id}_{:06}", range.start.as_secs()),
        (_, Some(end)) => format!("{id}_{:06}_{:06}", range.start.as_secs(), end.as_secs()),
    };
    examples.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::scores::Activation;

    #[test]
    fn the_file_has_the_ten_best_labels_as_the_dataset_spells_them() {
        let labels: Vec<String> = (0..12).map(|class| format!("class {class}")).collect();
        let dataset = ["class_3".to_owned()];
        let mut evaluation = Evaluation::new(&dataset, &[vec![0], vec![0]], &labels, Activation::Softmax).unwrap();
        evaluation.add(1, Answer::of_scores((0..12).map(|class| class as f32 / 16.0).collect()));
        let ids = ["never answered".to_owned(), "v_1".to_owned()];
        let file = serde_json::to_value(ResultFile::new(&evaluation, &ids)).unwrap();
        let results = file["results"].as_object().unwrap();
        assert_eq!(results.len(), 1);
        let best = results["v_1"].as_array().unwrap();
        assert_eq!(best.len(), 10);
        assert_eq!(best[0], serde_json::json!({"label": "class 11", "score": 0.6875}));
        assert_eq!(best[8]["label"], "class_3");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let read = EarlierResults::read(&path).unwrap();
        assert_eq!((read.best("v_1"), read.best("v_2")), (Some("class 11"), None));
        std::fs::write(&path, "{}").unwrap();
        assert!(EarlierResults::read(&path).unwrap_err().to_string().contains("is no results.json"));
        assert!(file["version"].is_string() && file["external_data"].is_object());
    }

    #[test]
    fn parts_of_one_video_are_told_apart_by_their_times() {
        let part = |start, end| TimeRange { start: Duration::from_secs(start), end: Some(Duration::from_secs(end)) };
        let ids = ids_with_times(&[("a", part(0, 10)), ("b", part(12, 22)), ("b", part(30, 100))]);
        assert_eq!(ids, ["a", "b_000012_000022", "b_000030_000100"]);
    }
}
