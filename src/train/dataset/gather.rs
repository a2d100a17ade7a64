//! What all formats have in common: labelled names become examples, once the files are found and all is checked.

mod several;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::copies::warning_of_copies;
use super::divide::Division;
use super::error::{DatasetError, Listing};
use super::{DataSpec, Dataset, Example, LabelKind, Split, SplitRule};
use crate::video::TimeRange;

/// A labelled name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Labelled {
    pub(super) id: String,
    pub(super) label: String,
    /// `None` where the format has no splits.
    pub(super) split: Option<Split>,
    pub(super) range: TimeRange,
    /// How much of it, from 0 to 1; 1 unless the format says otherwise.
    pub(super) weight: f32,
}

/// All that a format says.
#[derive(Debug)]
pub(super) struct Gathered {
    /// What was read.
    pub(super) source: PathBuf,
    /// Where the files are.
    pub(super) videos: PathBuf,
    /// In the order that the format defines, if it does.
    pub(super) classes: Option<Vec<String>>,
    /// Labelled videos and their files.
    pub(super) found: Vec<(Labelled, PathBuf)>,
    /// Labelled videos whose files are not there, as file names.
    pub(super) missing: Vec<(Labelled, String)>,
    /// Classes are folders: a class without videos is one that somebody made.
    pub(super) in_folders: bool,
    /// Examples are parts of videos, and two labels may be of the same part.
    pub(super) has_overlaps: bool,
    /// Videos show several classes, as the format says.
    pub(super) has_several: bool,
    /// A file of each folder of a class without videos.
    pub(super) others: Vec<PathBuf>,
    /// Classes of each split, those without videos included.
    seen: BTreeMap<Option<Split>, BTreeSet<String>>,
    pub(super) warnings: Vec<String>,
}

impl Gathered {
    pub(super) fn new(source: &Path) -> Self {
        Self {
            source: source.to_owned(),
            videos: source.to_owned(),
            classes: None,
            found: Vec::new(),
            missing: Vec::new(),
            in_folders: false,
            has_overlaps: false,
            has_several: false,
            others: Vec::new(),
            seen: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    /// Nothing yet, of the annotations `source` for the files below `videos`.
    pub(super) fn of_annotations(source: &Path, videos: &Path) -> Self {
        Self { videos: videos.to_owned(), ..Self::new(source) }
    }

    /// Learns that there is a class, whether it has videos or not.
    pub(super) fn see_class(&mut self, split: Option<Split>, label: &str) {
        self.seen.entry(split).or_default().insert(label.to_owned());
    }

    /// Checks all that can be known without opening a video.
    pub(super) fn into_dataset(mut self, spec: &DataSpec) -> Result<Dataset, DatasetError> {
        for (labelled, _) in &self.found {
            self.seen.entry(labelled.split).or_default().insert(labelled.label.clone());
        }
        for (labelled, _) in &self.missing {
            self.seen.entry(labelled.split).or_default().insert(labelled.label.clone());
        }
        self.refuse_nothing_found()?;
        let kind = self.label_kind(spec.labels);
        if kind == LabelKind::Single {
            if self.has_overlaps {
                self.leave_out_overlaps();
            }
            self.drop_duplicates()?;
        }
        let classes = self.class_order(spec)?;
        self.compare_splits()?;
        let numbers: HashMap<&str, usize> = classes.iter().enumerate().map(|(i, class)| (class.as_str(), i)).collect();
        let mut dataset = Dataset { classes: classes.clone(), root: self.videos.clone(), kind, ..Dataset::default() };
        let mut undivided = Vec::new();
        for (split, example) in self.examples(kind, &numbers)? {
            match split {
                Some(split) => dataset.split_mut(split).push(example),
                None => undivided.push(example),
            }
        }
        self.divide(undivided, spec, &mut dataset)?;
        self.refuse_empty_classes(&dataset)?;
        self.warnings.extend(warning_of_copies(&dataset));
        self.report_missing(&mut dataset);
        Ok(dataset)
    }

    /// Sets a part apart for validation where the data names none, and says so where nobody asked for it.
    fn divide(
        &mut self,
        mut undivided: Vec<Example>,
        spec: &DataSpec,
        dataset: &mut Dataset,
    ) -> Result<(), DatasetError> {
        let has_no_splits = !undivided.is_empty();
        let fraction = spec.validation_fraction;
        let trains_alone = !has_no_splits && dataset.validation.is_empty() && !dataset.train.is_empty();
        let sets_apart = trains_alone && fraction > 0.0 && spec.split_rule == SplitRule::Stem;
        if sets_apart {
            undivided.append(&mut dataset.train);
        }
        if has_no_splits || sets_apart {
            let division = Division {
                rule: spec.split_rule,
                fraction,
                in_folders: self.in_folders,
                root: &self.videos,
                spares_single_videos: sets_apart,
            };
            let by_class = several::by_rarest_class(undivided, dataset.classes.len());
            self.warnings.extend(division.divide(by_class, dataset)?);
        }
        let (train, validation) = (dataset.train.len(), dataset.validation.len());
        if train > 0 && validation == 0 {
            self.warnings.push(
                "there are no validation videos: nothing tells how good the model is on videos that it has not seen, and \
                 the latest one counts as the best"
                    .to_owned(),
            );
        } else if sets_apart {
            self.warnings.push(format!(
                "the data names no validation videos: {validation} of {} training videos are set apart \
                 (--validation-fraction; 0 trains on all)",
                train + validation
            ));
        }
        Ok(())
    }

    fn refuse_nothing_found(&self) -> Result<(), DatasetError> {
        match self.missing.first() {
            Some((_, example)) if self.found.is_empty() => Err(DatasetError::AllMissing {
                annotated: self.missing.len(),
                videos: self.videos.clone(),
                example: example.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Parts of videos that show several classes at once teach neither of them.
    fn leave_out_overlaps(&mut self) {
        let mut labels: HashMap<(PathBuf, TimeRange), BTreeSet<String>> = HashMap::new();
        for (labelled, video) in &self.found {
            labels.entry((video.clone(), labelled.range)).or_default().insert(labelled.label.clone());
        }
        let before = self.found.len();
        self.found.retain(|(labelled, video)| labels[&(video.clone(), labelled.range)].len() == 1);
        let left_out = before - self.found.len();
        if left_out > 0 {
            self.warnings.push(format!(
                "{left_out} segment(s) have more than one label and are left out; `train --loss bce` takes several labels"
            ));
        }
    }

    /// The same part of the same file may stand there twice, but must mean the same then.
    fn drop_duplicates(&mut self) -> Result<(), DatasetError> {
        let mut first: HashMap<(PathBuf, TimeRange), (String, Option<Split>)> = HashMap::new();
        let (mut labels, mut splits, mut twice) = (BTreeSet::new(), BTreeSet::new(), 0);
        self.found.retain(|(labelled, video)| {
            let key = (video.clone(), labelled.range);
            let Some((label, split)) = first.get(&key) else {
                first.insert(key, (labelled.label.clone(), labelled.split));
                return true;
            };
            if *label != labelled.label {
                labels.insert(format!("{} ({label}, {})", labelled.id, labelled.label));
            } else if *split != labelled.split {
                splits.insert(labelled.id.clone());
            }
            twice += 1;
            false
        });
        if !labels.is_empty() {
            return Err(DatasetError::TwoLabels(Listing(labels.into_iter().collect())));
        }
        if !splits.is_empty() {
            return Err(DatasetError::TwoSplits(Listing(splits.into_iter().collect())));
        }
        if twice > 0 {
            self.warnings.push(format!("{twice} example(s) are listed more than once; each counts once"));
        }
        Ok(())
    }

    fn class_order(&self, spec: &DataSpec) -> Result<Vec<String>, DatasetError> {
        let labels: BTreeSet<&String> = self.seen.values().flatten().collect();
        let ordered = match &spec.classes {
            Some(list) => Some((list.clone(), read_class_list(list)?)),
            None => self.classes.clone().map(|classes| (self.source.clone(), classes)),
        };
        let classes = match ordered {
            None => labels.into_iter().cloned().collect(),
            Some((list, classes)) => {
                let named: BTreeSet<&String> = classes.iter().collect();
                let unlisted: Vec<String> = labels.difference(&named).map(|label| (*label).clone()).collect();
                if !unlisted.is_empty() {
                    return Err(DatasetError::UnlistedClasses { list, classes: Listing(unlisted) });
                }
                classes
            }
        };
        if classes.len() < 2 {
            return Err(DatasetError::TooFewClasses { classes: Listing(classes) });
        }
        Ok(classes)
    }

    /// No split may have classes that nothing is learnt of. Where classes are folders, none may lack one either.
    fn compare_splits(&self) -> Result<(), DatasetError> {
        let none = BTreeSet::new();
        let classes_of = |split: Split| self.seen.get(&Some(split)).unwrap_or(&none);
        let train = classes_of(Split::Train);
        if train.is_empty() {
            return Ok(());
        }
        for split in [Split::Validation, Split::Test] {
            let unknown: Vec<String> = classes_of(split).difference(train).cloned().collect();
            if !unknown.is_empty() {
                return Err(DatasetError::UnknownClasses { split, classes: Listing(unknown) });
            }
        }
        let validation = classes_of(Split::Validation);
        let lacking: Vec<String> = train.difference(validation).cloned().collect();
        if self.in_folders && !validation.is_empty() && !lacking.is_empty() {
            let why = "labels differ: the training split has them".to_owned();
            return Err(DatasetError::EmptyClasses { split: Split::Validation, classes: Listing(lacking), why });
        }
        Ok(())
    }

    fn refuse_empty_classes(&self, dataset: &Dataset) -> Result<(), DatasetError> {
        // Annotations of a validation or test split alone are there to be evaluated, not trained on.
        let split = match (dataset.train.is_empty(), dataset.validation.is_empty()) {
            (false, _) => Split::Train,
            (true, false) => Split::Validation,
            (true, true) if dataset.test.is_empty() => Split::Train,
            (true, true) => Split::Test,
        };
        let mut counts = vec![0usize; dataset.classes.len()];
        for label in dataset.split(split).iter().flat_map(|example| &example.labels) {
            counts[label.class] += 1;
        }
        let empty: Vec<String> =
            (0..counts.len()).filter(|&i| counts[i] == 0).map(|i| dataset.classes[i].clone()).collect();
        if !empty.is_empty() && (split == Split::Train || self.in_folders) {
            let why = if self.in_folders {
                let endings = super::folders::VIDEO_EXTENSIONS.join(", ");
                let found = self.others.first().map_or(String::new(), |file| format!("; found {}", file.display()));
                format!(
                    "files that count as videos end in {endings}; pictures are frames of one video where a folder has several{found}"
                )
            } else {
                format!("{} of the annotated videos were not found in {}", self.missing.len(), self.videos.display())
            };
            return Err(DatasetError::EmptyClasses { split, classes: Listing(empty), why });
        }
        if let [only] = dataset.train.as_slice() {
            return Err(DatasetError::OneVideoInAll(only.id.clone()));
        }
        Ok(())
    }

    fn report_missing(&mut self, dataset: &mut Dataset) {
        if !self.missing.is_empty() {
            let annotated: usize = Split::ALL.iter().map(|split| dataset.split(*split).len()).sum();
            let missing: Vec<String> = self.missing.drain(..).map(|(_, file)| file).collect();
            self.warnings.push(format!(
                "{} of {} annotated videos are not in {}: {}",
                missing.len(),
                missing.len() + annotated,
                self.videos.display(),
                Listing(missing.clone())
            ));
            dataset.missing = missing;
        }
        dataset.warnings = std::mem::take(&mut self.warnings);
    }
}

/// One class a line, with or without a number before it.
pub(super) fn read_class_list(path: &Path) -> Result<Vec<String>, DatasetError> {
    let text = read_text(path)?;
    let classes: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| match line.split_once(char::is_whitespace) {
            Some((number, name)) if number.parse::<u32>().is_ok() => name.trim().to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    let mut seen = BTreeSet::new();
    if let Some(line) = classes.iter().position(|class| !seen.insert(class)) {
        let detail = format!("class {:?} is listed twice", classes[line]);
        return Err(DatasetError::Malformed { path: path.to_owned(), line: None, detail });
    }
    Ok(classes)
}

/// A text file as a whole.
pub(super) fn read_text(path: &Path) -> Result<String, DatasetError> {
    std::fs::read_to_string(path).map_err(|error| DatasetError::Read { path: path.to_owned(), error })
}
