//! Kinetoscope: a video action-recognition server.

pub mod bench;
pub mod engine;
pub mod model;
