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
//! [`trainer::Trainer`] takes batches from any [`trainer::BatchSource`]. Several processes train one network together
//! through a [`distributed::Collective`].

pub mod adamw;
pub mod augment;
pub mod checkpoint;
pub mod dataset;
pub mod distributed;
pub mod evaluate;
pub mod loader;
pub mod network;
pub mod optimizer;
pub mod prepare;
pub mod report;
pub mod schedule;
pub mod sgd;
pub mod trainer;
