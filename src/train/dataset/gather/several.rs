//! Videos with several labels: parts of 1, or any number at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use super::{Gathered, Labelled};
use crate::train::dataset::error::{DatasetError, Listing};
use crate::train::dataset::{Example, Label, LabelKind, LabelMode, Split};
use crate::video::TimeRange;

/// The labels of one video, or of a part of one.
type Entries = Vec<(Labelled, PathBuf)>;

impl Gathered {
    /// What the labels are, where `mode` doesn't say.
    pub(super) fn label_kind(&self, mode: LabelMode) -> LabelKind {
        let has_parts = self.found.iter().any(|(labelled, _)| labelled.weight != 1.0);
        match mode {
            LabelMode::Multi => LabelKind::Multi,
            LabelMode::Single if has_parts => LabelKind::Soft,
            LabelMode::Single => LabelKind::Single,
            LabelMode::Auto if has_parts && self.unbalanced().is_empty() => LabelKind::Soft,
            LabelMode::Auto if self.has_several || has_parts => LabelKind::Multi,
            LabelMode::Auto => LabelKind::Single,
        }
    }

    /// The examples with their splits, in the order of the annotations.
    pub(super) fn examples(
        &mut self,
        kind: LabelKind,
        numbers: &HashMap<&str, usize>,
    ) -> Result<Vec<(Option<Split>, Example)>, DatasetError> {
        let class = |labelled: &Labelled| numbers[labelled.label.as_str()];
        if kind == LabelKind::Single {
            let found = std::mem::take(&mut self.found);
            let example = |(labelled, video): (Labelled, PathBuf)| {
                let class = class(&labelled);
                (labelled.split, Example::of_class(labelled.id, video, class, labelled.range))
            };
            return Ok(found.into_iter().map(example).collect());
        }
        if kind == LabelKind::Soft {
            let unbalanced = self.unbalanced();
            if !unbalanced.is_empty() {
                return Err(DatasetError::Weights(Listing(unbalanced)));
            }
        }
        let groups = match kind {
            LabelKind::Multi => grouped(std::mem::take(&mut self.found), |(_, video)| video.clone()),
            _ => grouped(std::mem::take(&mut self.found), |(labelled, video)| (video.clone(), labelled.range)),
        };
        let in_two: Vec<String> =
            groups.iter().filter(|group| splits(group).len() > 1).map(|group| self.id(group)).collect();
        if !in_two.is_empty() {
            return Err(DatasetError::TwoSplits(Listing(in_two)));
        }
        Ok(groups.into_iter().map(|group| (group[0].0.split, joined(self.id(&group), &group, class))).collect())
    }

    /// The name of a video, of which `46GP8#0` and `46GP8#1` are parts.
    fn id(&self, group: &Entries) -> String {
        let first = &group[0].0.id;
        let video = first.rsplit_once('#').map(|(video, _)| video).filter(|_| self.has_overlaps);
        video.unwrap_or(first).to_owned()
    }

    /// Videos, or parts of them, whose weights don't add up to 1.
    fn unbalanced(&self) -> Vec<String> {
        const ROUNDED: f32 = 1e-3;
        let mut sums: HashMap<(&PathBuf, TimeRange), (f32, &str)> = HashMap::new();
        for (labelled, video) in &self.found {
            sums.entry((video, labelled.range)).or_insert((0.0, &labelled.id)).0 += labelled.weight;
        }
        let ids: BTreeSet<&str> =
            sums.into_values().filter(|(sum, _)| (sum - 1.0).abs() > ROUNDED).map(|(_, id)| id).collect();
        ids.into_iter().map(str::to_owned).collect()
    }
}

/// Entries with the same key together, in the order of their first ones.
fn grouped<K: std::hash::Hash + Eq>(entries: Entries, key: impl Fn(&(Labelled, PathBuf)) -> K) -> Vec<Entries> {
    let mut places = HashMap::new();
    let mut groups: Vec<Entries> = Vec::new();
    for entry in entries {
        let place = *places.entry(key(&entry)).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Vec::new());
        }
        groups[place].push(entry);
    }
    groups
}

fn splits(group: &Entries) -> BTreeSet<Option<Split>> {
    group.iter().map(|(labelled, _)| labelled.split).collect()
}

/// One example of all labels of a video. Where they are of different parts, it is the whole video, and each label has its time.
fn joined(id: String, group: &Entries, class: impl Fn(&Labelled) -> usize) -> Example {
    let first = group[0].0.range;
    let same = group.iter().all(|(labelled, _)| labelled.range == first);
    let mut labels: Vec<Label> = Vec::new();
    for (labelled, _) in group {
        let range = if same { TimeRange::ALL } else { labelled.range };
        let label = Label { class: class(labelled), weight: labelled.weight, range };
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    Example { id, video: group[0].1.clone(), labels, range: if same { first } else { TimeRange::ALL } }
}

/// The examples of each class, those of several classes in that of the fewest examples, so that each has some in all splits.
pub(super) fn by_rarest_class(examples: Vec<Example>, classes: usize) -> Vec<Vec<Example>> {
    let mut counts = vec![0usize; classes];
    for label in examples.iter().flat_map(|example| &example.labels) {
        counts[label.class] += 1;
    }
    let mut by_class: BTreeMap<usize, Vec<Example>> = (0..classes).map(|class| (class, Vec::new())).collect();
    for example in examples {
        let rarest = example.labels.iter().map(|label| label.class).min_by_key(|&class| (counts[class], class));
        by_class.entry(rarest.unwrap_or(0)).or_default().push(example);
    }
    by_class.into_values().collect()
}
