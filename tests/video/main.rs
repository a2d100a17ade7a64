//! The video module against media that `ffmpeg` makes here, and against reference resamplers.

#![cfg(feature = "video")]

mod broken;
mod isolation;
mod lengths;
mod media;
mod parity;
mod pillow;
mod pool;
mod ranges;
mod streaming;
mod strides;
mod times;
