//! The messages of the Open Inference Protocol, generated from `proto/inference/grpc_service.proto`.

#![allow(missing_docs, unreachable_pub, clippy::all)]

tonic::include_proto!("inference");

/// The compiled definitions, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("inference");
