//! Training: datasets and the loader with media that `ffmpeg` makes here, optimisers beside PyTorch's, and whole runs.

#![cfg(feature = "video")]

mod command;
mod dataset;
mod formats;
#[path = "../golden/mod.rs"]
mod golden;
mod loader;
mod losses;
#[path = "../video/media.rs"]
#[allow(dead_code, reason = "shared with the tests of the video module, which use all of it")]
mod media;
mod mirrored;
mod optimizer;
mod prepare;
mod trainer;
