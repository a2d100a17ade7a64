//! Measures the stations of a video's path one by one.

pub mod model;
