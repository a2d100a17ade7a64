//! Training: from labelled videos to a model file.

pub mod augment;
pub mod dataset;
pub mod evaluate;
pub mod loader;
pub mod prepare;
pub mod report;
