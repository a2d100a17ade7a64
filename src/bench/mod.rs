//! Measures the stations of a video's path one by one.

#[cfg(feature = "video")]
pub mod decode;
#[cfg(feature = "cuda")]
pub mod gpu;
#[cfg(feature = "video")]
pub mod load;
pub mod model;
#[cfg(feature = "video")]
pub mod serve;
