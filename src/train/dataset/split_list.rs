//! The split that `prepare` writes beside its output, so that training divides the new videos as the old ones were.
//!
//! ```text
//! video,split
//! run/1.mp4,train
//! run/2.mp4,validation
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::Split;
use super::error::{DatasetError, malformed_csv};
use super::folders::{split_named, without_video_ending};

/// Name of the list in the dataset's folder. Paths in it are relative to that folder.
pub const SPLIT_FILE: &str = "kinetoscope-split.csv";

/// Which split each video is of.
#[derive(Debug, Default)]
pub(in crate::train) struct SplitList {
    by_path: HashMap<String, Split>,
    by_stem: HashMap<String, Option<Split>>,
}

impl SplitList {
    /// The list in `folder`, if there is one.
    pub(in crate::train) fn read(folder: &Path) -> Result<Option<Self>, DatasetError> {
        let path = folder.join(SPLIT_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let mut list = Self::default();
        let malformed =
            |line: Option<u64>, detail: String| DatasetError::Malformed { path: path.clone(), line, detail };
        let broken = |error| malformed_csv(&path, &error);
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(&path).map_err(broken)?;
        for (number, row) in reader.deserialize().enumerate() {
            let (video, split): (String, String) = row.map_err(broken)?;
            let detail = || format!("found split {split:?}; expected train, validation or test");
            let split = split_named(&split).ok_or_else(|| malformed(Some(number as u64 + 2), detail()))?;
            let stem = without_video_ending(&video).to_owned();
            list.by_stem
                .entry(stem)
                .and_modify(|known| *known = known.filter(|&known| known == split))
                .or_insert(Some(split));
            list.by_path.insert(video, split);
        }
        Ok(Some(list))
    }

    /// The split of the video at `path` below the folder: by its whole name, or without the ending.
    pub(in crate::train) fn get(&self, path: &str) -> Option<Split> {
        let by_stem = || self.by_stem.get(without_video_ending(path)).copied().flatten();
        self.by_path.get(path).copied().or_else(by_stem)
    }

    /// Writes the list `entries` of paths below `folder`.
    pub(in crate::train) fn write(folder: &Path, entries: BTreeMap<String, Split>) -> std::io::Result<()> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["video", "split"])?;
        for (video, split) in entries {
            let split = match split {
                Split::Train => "train",
                Split::Validation => "validation",
                Split::Test => "test",
            };
            writer.write_record([video.as_str(), split])?;
        }
        let bytes = writer.into_inner().map_err(|error| error.into_error())?;
        crate::replacement::write_whole(&folder.join(SPLIT_FILE), &bytes)
    }
}
