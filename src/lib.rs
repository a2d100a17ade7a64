//! Kinetoscope: a video action-recognition server.

pub mod model;
