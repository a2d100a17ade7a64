//! Several sources of labelled videos as one dataset.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::error::{DatasetError, Listing};
use super::{Dataset, Example, LabelKind, Split};

/// Datasets as one: its classes are those of all, in the order of the first one if the others have the same, by name otherwise. Gives
/// how many training examples are of each, one source after the other.
pub(super) fn join(sources: Vec<(&Path, Dataset)>) -> Result<(Dataset, Vec<usize>), DatasetError> {
    let kind = common_kind(&sources)?;
    let classes = common_classes(&sources);
    let numbers: HashMap<String, usize> =
        classes.iter().enumerate().map(|(number, class)| (class.clone(), number)).collect();
    let root = sources.first().map(|(_, first)| first.root.clone()).unwrap_or_default();
    let mut joined = Dataset { classes, root, kind, ..Dataset::default() };
    let names = names(&sources);
    let mut counts = Vec::new();
    for ((_, mut source), name) in sources.into_iter().zip(names) {
        counts.push(source.train.len());
        let number_of: Vec<usize> = source.classes.iter().map(|class| numbers[class]).collect();
        for split in Split::ALL {
            let examples = std::mem::take(source.split_mut(split)).into_iter().map(|mut example: Example| {
                example.id = format!("{name}/{}", example.id);
                example.labels.iter_mut().for_each(|label| label.class = number_of[label.class]);
                example
            });
            joined.split_mut(split).extend(examples);
        }
        joined.divided |= source.divided;
        joined.missing.append(&mut source.missing);
        joined.warnings.append(&mut source.warnings);
    }
    joined.warnings.extend(warning_of_shared_videos(&joined));
    Ok((joined, counts))
}

fn common_kind(sources: &[(&Path, Dataset)]) -> Result<LabelKind, DatasetError> {
    let kinds: Vec<LabelKind> = sources.iter().map(|(_, source)| source.kind).collect();
    let is_multi = |kind: &LabelKind| *kind == LabelKind::Multi;
    match (kinds.iter().any(is_multi), kinds.iter().all(is_multi)) {
        (true, false) => {
            let of = |wanted: bool| {
                let found = sources.iter().find(|(_, source)| is_multi(&source.kind) == wanted);
                found.map_or_else(String::new, |(path, _)| path.display().to_string())
            };
            Err(DatasetError::DifferentLabels { several: of(true), one: of(false) })
        }
        (true, true) => Ok(LabelKind::Multi),
        (false, _) if kinds.contains(&LabelKind::Soft) => Ok(LabelKind::Soft),
        (false, _) => Ok(LabelKind::Single),
    }
}

fn common_classes(sources: &[(&Path, Dataset)]) -> Vec<String> {
    let first = sources.first().map(|(_, first)| first.classes.clone()).unwrap_or_default();
    let sets: Vec<BTreeSet<&String>> = sources.iter().map(|(_, source)| source.classes.iter().collect()).collect();
    if sets.iter().all(|set| *set == sets[0]) {
        return first;
    }
    sets.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().cloned().collect()
}

/// What examples of each source are called by: the last part of its path, with a number where two have the same.
fn names(sources: &[(&Path, Dataset)]) -> Vec<String> {
    let last =
        |path: &Path| path.file_name().map_or_else(|| "data".to_owned(), |name| name.to_string_lossy().into_owned());
    let mut seen: HashMap<String, usize> = HashMap::new();
    let name = |(path, _): &(&Path, Dataset)| {
        let name = last(path);
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        if *times == 1 { name } else { format!("{name}-{times}") }
    };
    sources.iter().map(name).collect()
}

/// The same files in two splits, as when two sources overlap.
fn warning_of_shared_videos(dataset: &Dataset) -> Option<String> {
    let videos = |split: Split| dataset.split(split).iter().map(|example| &example.video).collect::<BTreeSet<_>>();
    let train = videos(Split::Train);
    let held_out = [Split::Validation, Split::Test].map(videos);
    let shared: BTreeSet<String> = held_out
        .iter()
        .flatten()
        .filter(|video| train.contains(*video))
        .map(|video| video.display().to_string())
        .collect();
    (!shared.is_empty()).then(|| {
        let count = shared.len();
        let shared = Listing(shared.into_iter().collect());
        format!("{count} video(s) are trained on in one source and held out in another: {shared}")
    })
}
