//! What can be wrong with a dataset.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Split;

/// Why labelled videos can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder could not be read.
    #[error("can't read {}: {error}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Neither class folders nor annotations of a known format.
    #[error("{} is no dataset: found {found}; expected {expected}", .path.display())]
    Unrecognised {
        /// What was to be opened.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What could be.
        expected: &'static str,
    },
    /// Folders in which it is not clear what is what.
    #[error("{found}; {advice}")]
    Layout {
        /// What is there.
        found: String,
        /// How it can be told.
        advice: String,
    },
    /// An annotation file is of a known format, but broken.
    #[error("{}{}: {detail}", .path.display(), .line.map_or(String::new(), |line| format!(":{line}")))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, from 1, where that is known.
        line: Option<u64>,
        /// What was found and what was expected.
        detail: String,
    },
    /// One class or none.
    #[error("found {}{}; at least two are needed to tell apart", plural(.classes, "class", "classes"), .classes.after_colon())]
    TooFewClasses {
        /// Those found.
        classes: Listing,
    },
    /// A class without a video to train on.
    #[error("no {split} videos of {}: {classes}; {why}", plural(.classes, "class", "classes"))]
    EmptyClasses {
        /// Where they are missing.
        split: Split,
        /// The classes.
        classes: Listing,
        /// What could be the reason.
        why: String,
    },
    /// Classes with one video, where some are to be set apart for validation.
    #[error("only one video of {0}; a class needs two, one to train on and one for validation")]
    OneVideo(Listing),
    /// Only one video to train on.
    #[error("only one video to train on: {0}")]
    OneVideoInAll(String),
    /// A split has classes that the training split has not.
    #[error("labels differ: the {split} split has {}: {classes}, which the training split has not", plural(.classes, "class", "classes"))]
    UnknownClasses {
        /// The split with more classes.
        split: Split,
        /// The classes.
        classes: Listing,
    },
    /// Classes that the list of classes does not name.
    #[error("{} of the annotations not in the list of classes {}: {classes}", plural(.classes, "class", "classes"), .list.display())]
    UnlistedClasses {
        /// The list of classes.
        list: PathBuf,
        /// Those that it lacks.
        classes: Listing,
    },
    /// None of the annotated videos is there.
    #[error("none of the {annotated} annotated videos was found in {}, for example {example}; --videos names their folder", .videos.display())]
    AllMissing {
        /// How many were looked for.
        annotated: usize,
        /// Where.
        videos: PathBuf,
        /// The file names that the first one may have.
        example: String,
    },
    /// The same video with two labels.
    #[error("labelled as more than one class: {0}. Models that are trained with --loss bce know several")]
    TwoLabels(Listing),
    /// Weights that are no parts of 1, where a video shows one class.
    #[error("weights of labels don't add up to 1: {0}. With `train --loss bce` they need not")]
    Weights(Listing),
    /// Sources of which some have one label a video and others several.
    #[error("videos of {several} show several classes, those of {one} one: --loss says how to read both")]
    DifferentLabels {
        /// A source with several.
        several: String,
        /// A source with one.
        one: String,
    },
    /// The same video in two splits.
    #[error("in more than one split: {0}")]
    TwoSplits(Listing),
    /// Not a part of 1.
    #[error("the validation fraction is {fraction}; it is from 0 to less than 1")]
    ValidationFraction {
        /// What was asked for.
        fraction: f64,
    },
}

/// JSON that is not what its format says.
pub(super) fn malformed_json(path: &Path, error: &serde_json::Error) -> DatasetError {
    let line = (error.line() > 0).then_some(error.line() as u64);
    DatasetError::Malformed { path: path.to_owned(), line, detail: error.to_string() }
}

/// A table that is not what its format says.
pub(super) fn malformed_csv(path: &Path, error: &csv::Error) -> DatasetError {
    let line = error.position().map(csv::Position::line);
    DatasetError::Malformed { path: path.to_owned(), line, detail: error.to_string() }
}

/// Names of things; shows the first few.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing(pub Vec<String>);

impl Listing {
    const SHOWN: usize = 8;

    fn after_colon(&self) -> String {
        if self.0.is_empty() { String::new() } else { format!(": {self}") }
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(Self::SHOWN)];
        f.write_str(&shown.join(", "))?;
        let more = self.0.len() - shown.len();
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

fn plural(listing: &Listing, one: &str, many: &str) -> String {
    let count = listing.0.len();
    format!("{count} {}", if count == 1 { one } else { many })
}
