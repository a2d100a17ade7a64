//! Pre-activation ResNets (He et al. 2016, "Identity mappings") in 3D, as in 3D-ResNets-PyTorch of 2018
//! (`models/pre_act_resnet.py`): norm and ReLU come before each convolution. Nothing follows a block's sum, and no norm stands
//! before the head, so features may be negative. Names are those of the 3D ResNet.

use std::fmt;

use candle_conv3d::graph::{Graph, NodeId};
use serde::{Deserialize, Serialize};

use super::residual::{self, Block, EPSILON, HEAD, WIDTHS, stages};
use super::resnet3d::Shortcut;
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Settings of a pre-activation ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 10, 18, 34, 50, 101, 152 or 200.
    pub depth: u32,
    /// Multiplies the channels of every layer; 1 in the published network.
    pub widen_factor: f64,
}

fn block(graph: &mut Graph, block: &Block<'_>, bottleneck: bool) -> Result<NodeId, ArchitectureError> {
    let &Block { name, input, width, stride } = block;
    let convs = residual::block_convs(width, stride, bottleneck);
    let mut x = input;
    for (index, config) in convs.iter().enumerate() {
        let [conv, norm] = ["conv", "bn"].map(|layer| format!("{name}.{layer}{}", index + 1));
        x = graph.batch_norm(&norm, x, EPSILON)?;
        x = graph.relu(x)?;
        x = graph.conv(&conv, x, config)?;
    }
    // It takes the block's input as it is, before its norm.
    let shortcut = residual::add_shortcut(graph, block, residual::channels_of(&convs), Shortcut::B, EPSILON)?;
    Ok(graph.add(x, shortcut)?)
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pre-activation 3D ResNet-{}", self.depth)?;
        residual::fmt_factor(f, self.widen_factor)
    }
}

impl Family for Config {
    const MARKER: &'static str = "conv1.weight";

    fn standard() -> Self {
        Self { depth: 200, widen_factor: 1.0 }
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        let (counts, bottleneck) = stages(self.depth)?;
        let widths = residual::scaled_widths(WIDTHS, self.widen_factor)?;
        let mut graph = graph_of(clip)?;
        let x = residual::authors_stem(&mut graph, widths[0])?;
        let x = residual::add_stages(&mut graph, x, counts, widths, |graph, next| block(graph, next, bottleneck))?;
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        // A norm before its convolution has the channels that come in, one behind it those that go out.
        let (conv, norm) = if shapes.has("layer1.0.conv3.weight") {
            ("layer1.0.conv3.weight", "layer1.0.bn3.weight")
        } else {
            ("layer2.0.conv1.weight", "layer2.0.bn1.weight")
        };
        let [out, from, ..] = shapes.shape::<5>(conv, "[channels, channels, t, h, w]").ok()?;
        let [normalised] = shapes.shape(norm, "[channels]").ok()?;
        (shapes.has(Self::MARKER) && normalised == from && from != out).then(|| {
            let depth = residual::detect_depth(shapes, &["conv1.weight"], "conv3.weight")?;
            let expected = "[channels, channels, t, h, w]";
            let widen_factor = residual::detect_factor(shapes, "layer4.0.conv1.weight", expected, WIDTHS)?;
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
    fn preact_resnet_200_has_the_authors_tensors_and_products() {
        let graph = Config::standard().graph(ClipSpec::default(), 400).unwrap();
        // `sum(p.numel() for p in model.parameters())` of the authors' code.
        assert_eq!(parameter_count(&graph), 127_419_088);
        assert_eq!(mega_products(&graph), 25_805);
        for (name, shape) in [
            ("layer1.0.bn1.weight", &[64][..]),
            ("layer1.0.bn3.weight", &[64]),
            ("layer1.1.bn1.weight", &[256]),
            ("layer2.0.bn1.weight", &[256]),
            ("layer2.0.downsample.0.weight", &[512, 256, 1, 1, 1]),
            ("fc.weight", &[400, 2048]),
        ] {
            assert_eq!(parameter_shape(&graph, name), Some(shape.to_vec()), "{name}");
        }
    }

    #[test]
    fn settings_are_read_from_tensors() {
        for config in [Config { depth: 18, widen_factor: 0.5 }, Config { depth: 50, widen_factor: 1.0 }] {
            let graph = config.graph(ClipSpec::default(), 7).unwrap();
            assert_eq!(Config::detect(&shapes_of(&graph)), Some(Ok((config, 7))));
        }
    }
}
