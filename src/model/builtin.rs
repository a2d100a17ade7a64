//! The model that answers when no other is given: a small network for camera motion, not yet trained.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::counter;
use super::file::{Model, ModelFileError};
use super::spec::{Architecture, ClipSpec, Family, ModelSpec, Preprocessing, Shortcut, Stem};

/// Motions of a camera.
const LABELS: [&str; 10] = [
    "static",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "zoom in",
    "zoom out",
    "roll clockwise",
    "roll counter-clockwise",
    "shake",
];

/// Seed of the untrained weights; any would do.
const SEED: u64 = 1;

/// What the built-in model says about itself.
pub fn spec() -> ModelSpec {
    ModelSpec {
        name: "camera-motion-untrained".to_owned(),
        version: "0".to_owned(),
        trained: false,
        license: Some("MIT OR Apache-2.0".to_owned()),
        origin: Some("He-initialised by Kinetoscope; a stand-in until a trained model is built in".to_owned()),
        architecture: Architecture {
            family: Family::ResNet3d,
            depth: 10,
            shortcut: Shortcut::B,
            widen_factor: 0.25,
            stem: Stem::AUTHORS,
        },
        clip: ClipSpec::default(),
        preprocessing: Preprocessing::AUTHORS_2020,
        labels: LABELS.map(str::to_owned).to_vec(),
    }
}

/// The built-in model. The same on every machine.
pub fn model() -> Result<Model, ModelFileError> {
    initialise(spec(), SEED)
}

/// A model with He-uniform convolutions (He et al. 2015; variance 2 / fan-in) and neutral batch norms, made from a
/// counter and so the same everywhere.
pub fn initialise(spec: ModelSpec, seed: u64) -> Result<Model, ModelFileError> {
    let layout = spec.validate()?;
    let mut tensors = HashMap::new();
    for parameter in layout.parameters() {
        let len = parameter.shape.iter().product();
        let values: Vec<f32> = match parameter.shape.as_slice() {
            [_, _, ..] => counter::weight(seed, &parameter.name, &parameter.shape),
            _ if parameter.name.ends_with(".bias") || parameter.name.ends_with(".running_mean") => vec![0.0; len],
            _ => vec![1.0; len],
        };
        tensors.insert(parameter.name, Tensor::from_vec(values, parameter.shape, &Device::Cpu)?);
    }
    Model::new(spec, tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_model_is_valid_and_says_that_it_is_untrained() {
        let model = model().unwrap();
        assert!(!model.spec.trained);
        assert_eq!(model.layout.classes, LABELS.len());
    }
}
