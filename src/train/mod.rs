//! Training: from labelled videos to a model file.
//!
//! ```text
//! dataset      annotations to lists of examples
//!   -> loader      examples to batches of clips, varied by augment
//!   -> trainer     batches to weights: network forward and backward, optimizer (sgd, adamw), schedule
//!   -> checkpoint  all that a later process needs to go on; and model files
//!   -> report      history, curves, TensorBoard
//! ```
//!
//! `trainer::Trainer` takes batches from any `trainer::BatchSource`. Several processes train one network together
//! through a `distributed::Collective`. Without the cargo feature `video` only networks and optimisers are left.

pub mod adamw;
#[cfg(feature = "video")]
pub mod augment;
#[cfg(feature = "video")]
mod average;
#[cfg(feature = "video")]
pub mod checkpoint;
#[cfg(feature = "video")]
pub mod clip_cache;
#[cfg(feature = "video")]
pub mod dataset;
#[cfg(feature = "video")]
pub mod distributed;
#[cfg(feature = "video")]
pub mod evaluate;
#[cfg(feature = "video")]
pub mod find_rate;
#[cfg(feature = "video")]
pub mod loader;
#[cfg(feature = "video")]
mod lock;
#[cfg(feature = "video")]
pub mod loss;
#[cfg(feature = "video")]
pub mod memory;
pub mod network;
pub mod optimizer;
#[cfg(feature = "video")]
pub mod prepare;
#[cfg(feature = "video")]
pub mod report;
#[cfg(feature = "video")]
pub mod schedule;
#[cfg(feature = "video")]
pub mod settings;
pub mod sgd;
#[cfg(feature = "video")]
pub mod trainer;
#[cfg(feature = "video")]
mod validation;
