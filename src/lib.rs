//! Kinetoscope: a video action-recognition server.

pub mod bench;
pub mod convert;
pub mod engine;
pub mod model;
#[cfg(feature = "video")]
pub mod video;
