//! Wide ResNets (Zagoruyko & Komodakis 2016) in 3D, as in 3D-ResNets-PyTorch of 2018 (`models/wide_resnet.py`): bottlenecks with a
//! wide middle. Names are those of the 3D ResNet.

use std::fmt;

use candle_conv3d::graph::Graph;
use serde::{Deserialize, Serialize};

use super::residual::{self, HEAD, NARROW_EXPANSION, WIDTHS};
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Channels of the stem. The factor does not change them.
const STEM_WIDTH: usize = 64;

/// Settings of a wide ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 50, 101, 152 or 200.
    pub depth: u32,
    /// Multiplies the channels of every block, not of the stem; 2 in the published network.
    pub widen_factor: f64,
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wide 3D ResNet-{}, factor {}", self.depth, self.widen_factor)
    }
}

impl Family for Config {
    const MARKER: &'static str = "conv1.weight";

    fn standard() -> Self {
        Self { depth: 50, widen_factor: 2.0 }
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        let counts = residual::bottleneck_stages("wide-resnet", self.depth)?;
        let widths = residual::scaled_widths(WIDTHS, self.widen_factor)?;
        let mut graph = graph_of(clip)?;
        let x = residual::authors_stem(&mut graph, STEM_WIDTH)?;
        let x = residual::add_stages(&mut graph, x, counts, widths, |graph, block| {
            residual::narrow_bottleneck(graph, block, 1)
        })?;
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        const POINTWISE: &str = "[channels, channels, 1, 1, 1]";
        let [middle, ..] = shapes.shape::<5>("layer1.0.conv1.weight", POINTWISE).ok()?;
        let [_, from, ..] = shapes.shape::<5>("layer1.0.conv2.weight", "[channels, channels, 3, 3, 3]").ok()?;
        let [out, ..] = shapes.shape::<5>("layer1.0.conv3.weight", POINTWISE).ok()?;
        let is_narrow = out == middle * NARROW_EXPANSION && from == middle;
        (shapes.has(Self::MARKER) && is_narrow).then(|| {
            let depth = residual::detect_depth(shapes, &["conv1.weight"], "conv3.weight")?;
            let widen_factor = residual::detect_factor(shapes, "layer4.0.conv1.weight", POINTWISE, WIDTHS)?;
            Ok((Self { depth, widen_factor }, shapes.classes("fc.weight")?))
        })
    }

    fn layer_groups(&self) -> Vec<LayerGroup> {
        residual::layer_groups("conv1", &["conv1", "bn1"])
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{mega_products, parameter_count, parameter_shape, shapes_of};
    use super::*;

    #[test]
    fn wide_resnet_50_has_the_authors_tensors_and_products() {
        let graph = Config::standard().graph(ClipSpec::default(), 400).unwrap();
        // `sum(p.numel() for p in model.parameters())` of the authors' code.
        assert_eq!(parameter_count(&graph), 158_248_272);
        assert_eq!(mega_products(&graph), 26_240);
        for (name, shape) in [
            ("conv1.weight", &[64, 3, 7, 7, 7][..]),
            ("layer1.0.conv1.weight", &[128, 64, 1, 1, 1]),
            ("layer1.0.conv2.weight", &[128, 128, 3, 3, 3]),
            ("layer1.0.conv3.weight", &[256, 128, 1, 1, 1]),
            ("layer4.0.conv2.weight", &[1024, 1024, 3, 3, 3]),
            ("fc.weight", &[400, 2048]),
        ] {
            assert_eq!(parameter_shape(&graph, name), Some(shape.to_vec()), "{name}");
        }
    }

    #[test]
    fn settings_are_read_from_tensors() {
        for config in [Config { depth: 50, widen_factor: 0.5 }, Config { depth: 101, widen_factor: 1.0 }] {
            let graph = config.graph(ClipSpec::default(), 7).unwrap();
            assert_eq!(Config::detect(&shapes_of(&graph)), Some(Ok((config, 7))));
        }
    }
}
