//! Measures the stations of a video's path one by one.

#[cfg(feature = "video")]
pub mod decode;
pub mod model;
#[cfg(feature = "video")]
pub mod serve;
