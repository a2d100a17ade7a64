//! A whole server over a real socket, called by a real client.

#![cfg(feature = "video")]

mod bad_input;
mod classify;
mod cli;
mod endings;
mod evaluate;
mod health;
mod http;
mod http_client;
mod http_endings;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod hub_site;
mod inference;
mod inference_http;
mod inputs;
mod lifecycle;
#[allow(dead_code, reason = "the video tests decode with it too")]
#[path = "../video/media.rs"]
mod media;
mod models;
mod repository;
mod security;
mod streams;
mod support;
#[cfg(feature = "object-store")]
mod uris;
#[cfg(feature = "object-store")]
mod web;
