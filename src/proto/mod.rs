//! The messages of the API, generated from `proto/kinetoscope/v1/kinetoscope.proto`.

#![allow(missing_docs, unreachable_pub, clippy::all)]

mod convert;

pub(crate) use convert::{limits, model};

tonic::include_proto!("kinetoscope.v1");

/// The compiled definitions, for reflection, for JSON, and for the check against the committed set.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("kinetoscope.v1");
