//! Labelled videos: from folders or annotation files to lists of examples.
//!
//! One submodule a format. [`Dataset::open`] tells by what it finds which one it is, reads all of it and checks all
//! that can be known without opening a video.

mod activitynet;
mod authors;
mod charades;
mod check;
mod copies;
mod divide;
mod error;
mod folders;
mod frames;
mod gather;
mod hmdb51;
mod join;
mod kinetics;
mod label;
mod lists;
mod lookup;
mod mirrored;
mod recognise;
mod something;
mod split_list;
mod table;
mod ucf101;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use check::{CheckDepth, Finding, Unreadable};
pub use error::{DatasetError, Listing};
pub(crate) use folders::is_video;
pub use label::{Label, LabelKind, LabelMode};
pub use mirrored::{Mirrored, mirrored_classes};
pub use split_list::SPLIT_FILE;
pub(super) use split_list::SplitList;
pub use table::Columns;

use tracing::warn;

use crate::video::{Source, TimeRange, VideoError};
pub use frames::frames_as_video;
pub(super) use frames::{FRAME_RATE, FrameFolder};

/// Where labelled videos are.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSpec {
    /// A folder or an annotation file; the format is recognised by the content.
    pub annotations: PathBuf,
    /// Where the videos of an annotation file are; beside it if `None`.
    pub videos: Option<PathBuf>,
    /// Names of all classes in their order, one a line, with or without a number before (as `classInd.txt`). The order is
    /// what the format defines, or else alphabetical, if `None`.
    pub classes: Option<PathBuf>,
    /// Part of each class's videos that becomes the validation split where the data has no splits; 0.2.
    pub validation_fraction: f64,
    /// Which of several official splits (UCF-101 and HMDB-51 have three); 1.
    pub split: u32,
    /// By what videos are divided where the data has no splits.
    pub split_rule: SplitRule,
    /// Which columns of a table say what; those with the usual names if `None`.
    pub columns: Option<Columns>,
    /// Whether a video may show several classes.
    pub labels: LabelMode,
}

/// By what videos are divided into training and validation where the data has no splits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SplitRule {
    /// By names without their endings, so that re-encoding changes nothing. Parts of one video stay together. Where there are
    /// training videos alone, some of them are set apart.
    #[default]
    Stem,
    /// By names with their endings, as before there was another rule. Training videos alone stay as they are.
    FileName,
}

impl DataSpec {
    /// The data at `annotations`, and all else as usual.
    pub fn new(annotations: impl Into<PathBuf>) -> Self {
        Self {
            annotations: annotations.into(),
            videos: None,
            classes: None,
            validation_fraction: 0.2,
            split: 1,
            split_rule: SplitRule::Stem,
            columns: None,
            labels: LabelMode::Auto,
        }
    }
}

/// Labelled videos in three splits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dataset {
    /// Names of the classes in the order of the network's outputs.
    pub classes: Vec<String>,
    /// What weights are fitted to.
    pub train: Vec<Example>,
    /// What tells how well that goes.
    pub validation: Vec<Example>,
    /// What is left for the end; often empty.
    pub test: Vec<Example>,
    /// Folder below which the files are.
    pub root: PathBuf,
    /// Validation videos were set apart here: the data doesn't say which they are.
    pub divided: bool,
    /// File names of annotated videos that are not there: left out of the splits. A warning tells how many.
    pub missing: Vec<String>,
    /// What a person should know, in sentences; also logged.
    pub warnings: Vec<String>,
    /// What examples are labelled with.
    pub kind: LabelKind,
}

/// One labelled video, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Name within the dataset: that of the annotations, or the path below the dataset's folder.
    pub id: String,
    /// The file, or the folder that holds a video's frames as pictures.
    pub video: PathBuf,
    /// What it shows: one label, but for those that [`Dataset::kind`] says have more. Several may have none at all.
    pub labels: Vec<Label>,
    /// The labelled part.
    pub range: TimeRange,
}

impl Example {
    /// An example of one class.
    pub fn of_class(id: String, video: PathBuf, class: usize, range: TimeRange) -> Self {
        Self { id, video, labels: vec![Label::of(class)], range }
    }

    /// The classes that it shows at least half of, at any time, in their order.
    pub fn classes(&self) -> Vec<usize> {
        let shown = self.labels.iter().filter(|label| label.weight >= 0.5).map(|label| label.class);
        shown.collect::<BTreeSet<usize>>().into_iter().collect()
    }

    /// The class that it shows the most of, the first of equal ones; `None` without labels.
    pub fn main_class(&self) -> Option<usize> {
        let heavier = |most: &'_ Label, next: &'_ Label| next.weight > most.weight;
        let main = self.labels.iter().reduce(|most, next| if heavier(most, next) { next } else { most });
        main.map(|label| label.class)
    }

    /// Where its bytes are. Those of a folder of frames are put together here, as a Motion JPEG of all of them.
    pub fn source(&self) -> Result<Source, VideoError> {
        Ok(if self.video.is_dir() {
            Source::Bytes(frames_as_video(&self.video)?)
        } else {
            Source::Path(self.video.clone())
        })
    }
}

/// Which examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Split {
    /// [`Dataset::train`].
    Train,
    /// [`Dataset::validation`].
    Validation,
    /// [`Dataset::test`].
    Test,
}

impl Split {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

impl Dataset {
    /// Reads the annotations, finds the files and checks that there is something to train on: every class has videos, and
    /// the splits agree. Of the videos, only the names are looked at; [`Dataset::check`] opens them.
    pub fn open(spec: &DataSpec) -> Result<Self, DatasetError> {
        let fraction = spec.validation_fraction;
        if !(0.0..1.0).contains(&fraction) {
            return Err(DatasetError::ValidationFraction { fraction });
        }
        let dataset = recognise::read(spec)?.into_dataset(spec)?;
        dataset.warnings.iter().for_each(|warning| warn!("{warning}"));
        Ok(dataset)
    }

    /// Opens several sources as one dataset. Gives how many training examples are of each, one source after the other.
    pub fn open_all(specs: &[DataSpec]) -> Result<(Self, Vec<usize>), DatasetError> {
        if let [only] = specs {
            let dataset = Self::open(only)?;
            let count = dataset.train.len();
            return Ok((dataset, vec![count]));
        }
        let sources: Vec<Self> = specs.iter().map(Self::open).collect::<Result<_, _>>()?;
        join::join(specs.iter().map(|spec| spec.annotations.as_path()).zip(sources).collect())
    }

    /// The examples of a split.
    pub fn split(&self, split: Split) -> &[Example] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
            Split::Test => &self.test,
        }
    }

    fn split_mut(&mut self, split: Split) -> &mut Vec<Example> {
        match split {
            Split::Train => &mut self.train,
            Split::Validation => &mut self.validation,
            Split::Test => &mut self.test,
        }
    }
}
