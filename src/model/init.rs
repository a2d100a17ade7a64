//! Networks before training.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::counter;
use super::file::{Model, ModelFileError};
use super::spec::ModelSpec;

/// A model with He-uniform convolutions (He et al. 2015; variance 2 / fan-in) and neutral batch norms, made from a
/// counter and so the same everywhere.
pub fn initialise(spec: ModelSpec, seed: u64) -> Result<Model, ModelFileError> {
    let graph = spec.validate()?;
    let mut tensors = HashMap::new();
    for parameter in graph.parameters() {
        let len = parameter.len();
        let values: Vec<f32> = match parameter.shape.as_slice() {
            [_, _, ..] => counter::weight(seed, &parameter.name, &parameter.shape),
            _ if parameter.name.ends_with(".bias") || parameter.name.ends_with(".running_mean") => vec![0.0; len],
            _ => vec![1.0; len],
        };
        tensors.insert(parameter.name.clone(), Tensor::from_vec(values, parameter.shape.as_slice(), &Device::Cpu)?);
    }
    Model::new(spec, tensors)
}
