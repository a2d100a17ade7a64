//! Training.

pub mod report;
