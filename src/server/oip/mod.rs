//! The Open Inference Protocol, version 2, so that clients of Triton and KServe work unchanged.
//!
//! Each model takes `VIDEO`, encoded videos, or `CLIPS`, their pixels; it gives `PROBABILITIES` and `EMBEDDING`, a row a
//! video or clip. [`grpc`] and [`http`] differ in how they write the same messages.

mod describe;
mod grpc;
pub(super) mod http;
mod infer;
mod json;
mod tensors;
