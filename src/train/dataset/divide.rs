//! Sets a part of the videos apart for validation where the data doesn't say which they are.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::error::{DatasetError, Listing};
use super::folders::without_video_ending;
use super::split_list::{SPLIT_FILE, SplitList};
use super::{Dataset, Example, Split, SplitRule};
use crate::model::counter::CounterStream;

/// How to divide.
pub(super) struct Division<'a> {
    pub(super) rule: SplitRule,
    /// Part of each class's examples.
    pub(super) fraction: f64,
    /// Ids are paths with endings.
    pub(super) in_folders: bool,
    /// Where a split may be written down.
    pub(super) root: &'a Path,
    /// A class of one video stays in training. Otherwise it is refused.
    pub(super) spares_single_videos: bool,
}

/// Examples that have to stay together.
struct Group {
    name: String,
    examples: Vec<Example>,
}

impl Division<'_> {
    /// Adds the examples of each class to the training and validation splits: those that are listed as it is written there, the
    /// others by a hash of the name. So the split is the same whatever order the files have, and hardly another when some are
    /// added. Gives what a person should know.
    pub(super) fn divide(
        &self,
        classes: Vec<Vec<Example>>,
        dataset: &mut Dataset,
    ) -> Result<Option<String>, DatasetError> {
        let written = match self.rule {
            SplitRule::Stem => SplitList::read(self.root)?,
            SplitRule::FileName => None,
        };
        let (mut single, mut unlisted) = (Vec::new(), 0);
        // Of videos with parts of several classes.
        let mut known: HashMap<PathBuf, Split> = HashMap::new();
        for (class, examples) in classes.into_iter().enumerate().filter(|(_, examples)| !examples.is_empty()) {
            let mut parts: BTreeMap<Split, Vec<Example>> = BTreeMap::new();
            let mut rest = Vec::new();
            for example in examples {
                let below = example.video.strip_prefix(self.root).unwrap_or(&example.video);
                match written.as_ref().map(|list| list.get(&below.to_string_lossy())) {
                    Some(Some(split)) => parts.entry(split).or_default().push(example),
                    Some(None) => {
                        unlisted += 1;
                        parts.entry(Split::Train).or_default().push(example);
                    }
                    None => rest.push(example),
                }
            }
            let count = rest.len();
            let groups = self.groups(rest);
            if groups.len() == 1 && self.fraction > 0.0 && !self.spares_single_videos {
                single.push(dataset.classes[class].clone());
            }
            let wanted = ((count as f64 * self.fraction).round() as usize).max(usize::from(self.fraction > 0.0));
            let (last, mut taken) = (groups.len().saturating_sub(1), 0);
            for (number, group) in groups.into_iter().enumerate() {
                let before = group.examples.iter().find_map(|example| known.get(&example.video)).copied();
                let by_hash = if taken < wanted && number < last { Split::Validation } else { Split::Train };
                let split = before.unwrap_or(by_hash);
                if split == Split::Validation {
                    taken += group.examples.len();
                }
                known.extend(group.examples.iter().map(|example| (example.video.clone(), split)));
                parts.entry(split).or_default().extend(group.examples);
            }
            for (split, mut part) in parts {
                part.sort_by(|a, b| a.id.cmp(&b.id));
                dataset.split_mut(split).append(&mut part);
            }
        }
        if !single.is_empty() {
            return Err(DatasetError::OneVideo(Listing(single)));
        }
        dataset.divided = true;
        Ok((unlisted > 0).then(|| {
            format!("{unlisted} video(s) are not in {}; they are trained on", self.root.join(SPLIT_FILE).display())
        }))
    }

    /// The examples that have to stay together, in the order of a hash of their names.
    fn groups(&self, examples: Vec<Example>) -> Vec<Group> {
        let mut groups: Vec<Group> = match self.rule {
            SplitRule::FileName => examples
                .into_iter()
                .map(|example| Group { name: example.id.clone(), examples: vec![example] })
                .collect(),
            SplitRule::Stem => {
                let recordings = examples.iter().filter_map(|example| recording(&example.id));
                // Where a class has one recording only, its videos are all that can be divided.
                let by_recording = recordings.collect::<std::collections::BTreeSet<_>>().len() > 1;
                let mut by_key: BTreeMap<String, Vec<Example>> = BTreeMap::new();
                for example in examples {
                    let key = match recording(&example.id).filter(|_| by_recording) {
                        Some(recording) => recording.to_owned(),
                        None => example.video.to_string_lossy().into_owned(),
                    };
                    by_key.entry(key).or_default().push(example);
                }
                let name = |examples: &[Example]| {
                    let first = examples.iter().map(|example| example.id.as_str()).min().unwrap_or_default();
                    let stem = if self.in_folders { without_video_ending(first) } else { first };
                    recording(first).filter(|_| by_recording).unwrap_or(stem).to_owned()
                };
                by_key.into_values().map(|examples| Group { name: name(&examples), examples }).collect()
            }
        };
        groups.sort_by_cached_key(|group| {
            // Two files may differ by their endings alone.
            let id = group.examples.first().map(|example| example.id.clone());
            (CounterStream::new(0, &group.name).bits(0), id)
        });
        groups
    }
}

/// The recording that a clip of UCF-101 was cut from: `v_Archery_g08` of `v_Archery_g08_c01`. Clips of one recording show the
/// same people in the same place, so that a network knows them again.
fn recording(id: &str) -> Option<&str> {
    let (recording, clip) = without_video_ending(id).rsplit_once("_c")?;
    let (_, number) = recording.rsplit_once("_g")?;
    let is_number = |text: &str| !text.is_empty() && text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(clip) && is_number(number)).then_some(recording)
}
