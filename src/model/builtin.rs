//! The model that answers when no other is given: camera motion.
//!
//! `scripts/train-default-model.sh` trains it; `weights/README.md` says on what, and how good it is.

use super::file::{self, Model, ModelFileError};
use super::spec::ModelSpec;

const FILE: &[u8] = include_bytes!("../../weights/camera-motion/model.safetensors");

/// The built-in model.
pub fn model() -> Result<Model, ModelFileError> {
    Model::from_bytes(FILE)
}

/// What the built-in model says about itself.
///
/// # Panics
///
/// Never: the file is part of the program, and a test reads it.
pub fn spec() -> ModelSpec {
    file::read_spec(FILE).expect("the built-in model is a model file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_model_is_valid_and_small() {
        let model = model().unwrap();
        assert!(model.spec.trained && model.spec.license.is_some());
        assert_eq!(crate::zoo::output_lens(&model.graph)[0], 10);
        assert!(FILE.len() < 6_000_000);
    }
}
