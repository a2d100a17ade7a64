//! Training: from labelled videos to a model file.
//!
//! ```text
//! folders or annotations
//!   -> dataset    lists of examples, checked
//!   -> loader     clips at random times and crops (augment), decoded by threads, in batches
//! ```

pub mod augment;
pub mod dataset;
pub mod loader;
pub mod prepare;
