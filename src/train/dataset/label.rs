//! What an example shows: one class, parts of several, or any number at a time.

use crate::video::TimeRange;

/// A class that an example shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Label {
    /// Index into [`Dataset::classes`](super::Dataset::classes).
    pub class: usize,
    /// How much of it, from 0 to 1.
    pub weight: f32,
    /// When it shows it; all the time if [`TimeRange::ALL`].
    pub range: TimeRange,
}

impl Label {
    /// The one class of an example.
    pub const fn of(class: usize) -> Self {
        Self { class, weight: 1.0, range: TimeRange::ALL }
    }
}

/// What the examples of a dataset are labelled with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LabelKind {
    /// One class each.
    #[default]
    Single,
    /// Parts of classes that add up to 1, as when people disagree: soft labels.
    Soft,
    /// Any number of classes at a time.
    Multi,
}

/// How labels are read where a video has several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LabelMode {
    /// As the data is: several where the format says so, parts of 1 where weights add up to that, one otherwise.
    #[default]
    Auto,
    /// One a video, or parts that add up to 1. Parts of videos with several labels are left out, or an error.
    Single,
    /// Any number at a time: all that are of one video belong together.
    Multi,
}
