//! The video module against media that `ffmpeg` makes here, and against reference resamplers.

#![cfg(feature = "video")]

mod broken;
mod choice;
mod containers;
mod isolation;
mod lengths;
mod losses;
mod media;
mod parity;
mod pillow;
mod pool;
mod ranges;
mod streaming;
mod strides;
mod times;
