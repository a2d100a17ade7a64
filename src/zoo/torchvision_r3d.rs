//! 3D ResNets with the names of torchvision's `VideoResNet`: `stem.0`, `stem.1`, `layer1.0.conv1.0`, ... `r3d_18` is one.

use std::fmt;

use candle_conv3d::graph::Graph;
use serde::{Deserialize, Serialize};

use super::resnet3d::{self, Names, Shortcut, Stem};
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, residual};
use crate::model::spec::ClipSpec;

/// Settings of a 3D ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Config(pub resnet3d::Config);

/// Every convolution of a block is the first member of a sequence.
const NAMES: Names =
    Names { stem: ["stem.0", "stem.1"], block: |number| [format!("conv{number}.0"), format!("conv{number}.1")] };

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "torchvision R3D-{}", self.0.depth)?;
        self.0.fmt_variations(f, Stem::TORCHVISION)
    }
}

impl Family for Config {
    const MARKER: &'static str = "stem.0.weight";

    fn standard() -> Self {
        Self(resnet3d::Config { stem: Stem::TORCHVISION, ..resnet3d::Config::paper(18, Shortcut::B) })
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        self.0.graph_named(&NAMES, clip, classes)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        // Their convolutions have parts.
        let is_factored = shapes.has("layer1.0.conv1.0.0.weight");
        (shapes.has(Self::MARKER) && !is_factored).then(|| {
            let found = resnet3d::Config::detect_named(shapes, Self::MARKER, ".0.weight", Stem::TORCHVISION);
            found.map(|(config, classes)| (Self(config), classes))
        })
    }

    fn layer_groups(&self) -> Vec<LayerGroup> {
        residual::layer_groups("stem", &["stem"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r3d_18_has_torchvisions_names_and_parameters() {
        let graph = Config::standard().graph(ClipSpec::default(), 400).unwrap();
        let trained = graph.parameters().filter(|parameter| !parameter.name.contains("running"));
        // torchvision's metadata.
        assert_eq!(trained.map(candle_conv3d::graph::Parameter::len).sum::<usize>(), 33_371_472);
        for name in ["stem.0.weight", "stem.1.bias", "layer2.0.conv1.1.running_mean", "layer2.0.downsample.1.weight"] {
            assert!(graph.parameters().any(|parameter| parameter.name == name), "{name} is missing");
        }
        assert_eq!((graph.multiply_adds() + 500_000) / 1_000_000, 40_697, "torchvision's metadata, in millions");
    }
}
