//! ResNeXt (Xie et al. 2017) in 3D, as in 3D-ResNets-PyTorch of 2018 (`models/resnext.py`): bottlenecks whose middle convolution
//! has groups. Names are those of the 3D ResNet.

use std::fmt;

use candle_conv3d::graph::Graph;
use serde::{Deserialize, Serialize};

use super::residual::{self, HEAD};
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Channels of the bottlenecks' middles in the four stages.
const WIDTHS: [u16; 4] = [128, 256, 512, 1024];

/// Channels of the stem.
const STEM_WIDTH: f64 = 64.0;

/// Settings of a ResNeXt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 50, 101, 152 or 200.
    pub depth: u32,
    /// Groups of the middle convolutions; 32 in the published networks.
    pub cardinality: usize,
    /// Multiplies the channels of every layer; 1 in the published networks.
    pub widen_factor: f64,
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResNeXt-{}, {} groups", self.depth, self.cardinality)?;
        residual::fmt_factor(f, self.widen_factor)
    }
}

impl Family for Config {
    const MARKER: &'static str = "conv1.weight";

    fn standard() -> Self {
        Self { depth: 101, cardinality: 32, widen_factor: 1.0 }
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        let counts = residual::bottleneck_stages("resnext", self.depth)?;
        let widths = residual::scaled_widths(WIDTHS, self.widen_factor)?;
        let mut graph = graph_of(clip)?;
        let x = residual::authors_stem(&mut graph, (STEM_WIDTH * self.widen_factor) as usize)?;
        let x = residual::add_stages(&mut graph, x, counts, widths, |graph, block| {
            residual::narrow_bottleneck(graph, block, self.cardinality)
        })?;
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        let [middle, per_group, ..] =
            shapes.shape::<5>("layer1.0.conv2.weight", "[channels, channels, 3, 3, 3]").ok()?;
        let has_groups = shapes.has(Self::MARKER) && per_group > 0 && per_group < middle;
        (has_groups && shapes.has("layer1.0.conv3.weight")).then(|| {
            let depth = residual::detect_depth(shapes, &["conv1.weight"], "conv3.weight")?;
            let expected = "[channels, channels, 1, 1, 1]";
            let widen_factor = residual::detect_factor(shapes, "layer4.0.conv1.weight", expected, WIDTHS)?;
            Ok((Self { depth, cardinality: middle / per_group, widen_factor }, shapes.classes("fc.weight")?))
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
    fn resnext_101_has_the_authors_tensors_and_products() {
        let graph = Config::standard().graph(ClipSpec::default(), 400).unwrap();
        // `sum(p.numel() for p in model.parameters())` of the authors' code.
        assert_eq!(parameter_count(&graph), 48_340_816);
        assert_eq!(mega_products(&graph), 9_568);
        for (name, shape) in [
            ("conv1.weight", &[64, 3, 7, 7, 7][..]),
            ("layer1.0.conv1.weight", &[128, 64, 1, 1, 1]),
            ("layer1.0.conv2.weight", &[128, 4, 3, 3, 3]),
            ("layer1.0.conv3.weight", &[256, 128, 1, 1, 1]),
            ("layer1.0.downsample.0.weight", &[256, 64, 1, 1, 1]),
            ("layer4.0.conv2.weight", &[1024, 32, 3, 3, 3]),
            ("fc.weight", &[400, 2048]),
        ] {
            assert_eq!(parameter_shape(&graph, name), Some(shape.to_vec()), "{name}");
        }
    }

    #[test]
    fn settings_are_read_from_tensors() {
        for config in [
            Config { depth: 50, cardinality: 32, widen_factor: 0.25 },
            Config { depth: 152, cardinality: 16, widen_factor: 1.0 },
        ] {
            let graph = config.graph(ClipSpec::default(), 7).unwrap();
            assert_eq!(Config::detect(&shapes_of(&graph)), Some(Ok((config, 7))));
        }
    }

    #[test]
    fn groups_that_do_not_fit_and_depths_without_bottlenecks_are_refused() {
        let refused = |config: Config| config.graph(ClipSpec::default(), 7).unwrap_err().to_string();
        let error = refused(Config { cardinality: 3, ..Config::standard() });
        assert!(error.contains("layer1.0.conv2"), "{error}");
        let error = refused(Config { depth: 18, ..Config::standard() });
        assert_eq!(error, "depth of resnext: 18 has no bottlenecks; allowed are 50, 101, 152 and 200");
    }
}
