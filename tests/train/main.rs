//! Datasets and the loader, with media that `ffmpeg` makes here.

#![cfg(feature = "video")]

mod dataset;
mod loader;
#[path = "../video/media.rs"]
#[allow(dead_code, reason = "shared with the tests of the video module, which use all of it")]
mod media;
mod prepare;
