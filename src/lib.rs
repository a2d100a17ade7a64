//! Kinetoscope tells what happens in a video: a gRPC server for 3D convolutional networks (Hara, Kataoka, Satoh
//! 2017, arXiv 1708.07632, and their rivals) and the tools around it.
//!
//! # The path of a video
//!
//! ```text
//! encoded bytes
//!   -> video      frames of 8-bit RGB, cut into clips of 16, resized and cropped to 112x112
//!   -> engine     clips of many requests in batches, one worker thread a device
//!   -> model      (n, 3, 16, 112, 112) to logits (n, classes)
//!   -> classify   softmax per clip, mean over the clips of a video, best labels, segments with times
//!   -> app        use cases: one video, one that is uploaded meanwhile, many; models; permits, errors
//!   -> server     gRPC, HTTP and the Open Inference Protocol: decode the request, call `app`, encode the answer
//! ```
//!
//! Encoded bytes come from the client, or by [`uri`] from where it says that they are. A server's [`repository`] has an
//! engine for each of its models, which may be on the Hugging Face [`hub`].
//!
//! Dependencies point one way: `server` to `app` to `classify` to `engine` to `model`, `app` to `repository` to `engine` and
//! `hub`, and `app` to `uri` to `video`. [`proto`] and [`oip`] are the messages of the APIs, which only `server` and
//! [`client`] read and write; only these know tonic and axum, only `uri` knows `object_store`, only `hub` knows `hf-hub`, and
//! only `video` knows FFmpeg. The command line calls `app` for videos that it classifies itself and `client` for others.
//! Without the cargo feature `video` the stations that need a decoder (`video`, `uri`, `classify`, `app`, `server`) are left
//! out, and the rest builds where there is no FFmpeg; without `object-store`, URIs of files are the only ones that are read;
//! without `hub`, models are files of this machine.
//!
//! Whatever belongs to a model (network, geometry, normalisation, labels) stands in its file
//! ([`model::spec::ModelSpec`]), never in code. Which networks there are, and what their layers are called, only [`zoo`] knows: it
//! describes each as a graph, which is served, trained and converted as such.

#[cfg(feature = "video")]
pub mod app;
pub mod bench;
#[cfg(feature = "video")]
pub mod classify;
pub mod cli;
#[cfg(feature = "video")]
pub mod client;
pub mod config;
pub mod convert;
#[cfg(any(feature = "hub", feature = "video"))]
mod digest;
pub mod engine;
#[cfg(feature = "video")]
mod file_stamp;
pub mod hub;
pub mod metrics;
pub mod model;
#[cfg(feature = "video")]
pub mod oip;
#[cfg(feature = "video")]
mod pace;
mod priority;
#[cfg(feature = "video")]
pub mod proto;
mod replacement;
#[cfg(feature = "video")]
pub mod repository;
#[cfg(feature = "video")]
pub mod server;
pub mod telemetry;
pub mod train;
#[cfg(feature = "video")]
pub mod uri;
#[cfg(feature = "video")]
pub mod video;
pub mod zoo;
