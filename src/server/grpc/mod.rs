//! gRPC: messages are decoded, [`App`](crate::app::App) is called, answers are encoded.

pub(super) mod health;
mod key;
pub(super) mod many;
pub(super) mod messages;
pub(super) mod service;
pub(super) mod status;
pub(super) mod upload;
pub(super) mod web;
