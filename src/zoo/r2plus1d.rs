//! R(2+1)D (Tran et al. 2018) as in 3D-ResNets-PyTorch (`models/resnet2p1d.py`): every 3x3x3 convolution of a 3D ResNet is a
//! 1x3x3 one, batch norm, ReLU and a 3x1x1 one. Names are `conv1_s`, `bn1_s`, `conv1_t`, `bn1_t`, ...

use std::fmt;

use candle_conv3d::graph::{ConvConfig, Graph, NodeId};
use serde::{Deserialize, Serialize};

use super::residual::{
    self, Block, EPSILON, HEAD, WIDTHS, channels, conv_norm, conv_norm_relu, factored_channels, stages,
};
use super::resnet3d::{self, Shortcut, Stem};
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Settings of an R(2+1)D: those of the 3D ResNet that it factors. `kernel_t` of the stem is that of its temporal part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Config(pub resnet3d::Config);

impl Config {
    /// Adds the spatial and the temporal part of a convolution, each with its norm, ReLU between them.
    fn factored(
        graph: &mut Graph,
        [conv, norm]: [&str; 2],
        x: NodeId,
        config: &ConvConfig,
    ) -> Result<NodeId, ArchitectureError> {
        let middle = factored_channels(channels(graph, x)?, config.channels, config.kernel);
        let [spatial, temporal] = residual::factors(config, middle);
        let x = conv_norm_relu(graph, [&format!("{conv}_s"), &format!("{norm}_s")], x, &spatial, EPSILON)?;
        conv_norm(graph, [&format!("{conv}_t"), &format!("{norm}_t")], x, &temporal, EPSILON)
    }

    fn block(&self, graph: &mut Graph, block: &Block<'_>, bottleneck: bool) -> Result<NodeId, ArchitectureError> {
        let &Block { name, input, width, stride } = block;
        let convs = residual::block_convs(width, stride, bottleneck);
        let shortcut = residual::add_shortcut(graph, block, residual::channels_of(&convs), self.0.shortcut, EPSILON)?;
        let x = residual::add_convs(graph, input, &convs, |graph, number, x, config| {
            let [conv, norm] = ["conv", "bn"].map(|layer| format!("{name}.{layer}{number}"));
            if config.kernel == [1; 3] {
                conv_norm(graph, [&conv, &norm], x, config, EPSILON)
            } else {
                Self::factored(graph, [&conv, &norm], x, config)
            }
        })?;
        residual::join(graph, x, shortcut)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "R(2+1)D-{}", self.0.depth)?;
        if self.0.shortcut == Shortcut::A {
            f.write_str(", shortcut A")?;
        }
        self.0.fmt_variations(f, Stem::AUTHORS)
    }
}

impl Family for Config {
    const MARKER: &'static str = "conv1_s.weight";

    fn standard() -> Self {
        Self(resnet3d::Config::paper(18, Shortcut::B))
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        let resnet3d::Config { depth, widen_factor, stem, .. } = self.0;
        let (block_counts, bottleneck) = stages(depth)?;
        let widths = residual::scaled_widths(WIDTHS, widen_factor)?;
        let mut graph = graph_of(clip)?;
        let input = graph.input();
        let x = Self::factored(&mut graph, ["conv1", "bn1"], input, &stem.conv(widths[0])?)?;
        let mut x = graph.relu(x)?;
        if stem.max_pool {
            x = residual::stem_pool(&mut graph, x)?;
        }
        let x = residual::add_stages(&mut graph, x, block_counts, widths, |graph, block| {
            self.block(graph, block, bottleneck)
        })?;
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        shapes.has(Self::MARKER).then(|| {
            let [_, _, kernel_t, ..] = shapes.shape::<5>("conv1_t.weight", "[channels, channels, frames, 1, 1]")?;
            let depth = residual::detect_depth(shapes, &["conv1_s.weight", "conv1.weight"], "conv3.weight")?;
            let last =
                if shapes.has("layer4.0.conv3.weight") { "layer4.0.conv1.weight" } else { "layer4.0.conv1_t.weight" };
            let widen_factor = residual::detect_factor(shapes, last, "[channels, channels, t, h, w]", WIDTHS)?;
            let stem = Stem { kernel_t, ..Stem::AUTHORS };
            let config = Self(resnet3d::Config { depth, shortcut: Shortcut::detect(shapes), widen_factor, stem });
            Ok((config, shapes.classes("fc.weight")?))
        })
    }

    fn layer_groups(&self) -> Vec<LayerGroup> {
        residual::layer_groups("conv1", &["conv1_s", "bn1_s", "conv1_t", "bn1_t"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_are_those_of_the_authors_code() {
        // `sum(p.numel() for p in model.parameters())` of `models/resnet2p1d.py` in PyTorch, 700 classes.
        for (depth, expected) in [(18, 33_575_064), (34, 63_901_400), (50, 47_650_082)] {
            let graph = Config(resnet3d::Config::paper(depth, Shortcut::B)).graph(ClipSpec::default(), 700).unwrap();
            let trained = graph.parameters().filter(|parameter| !parameter.name.contains("running"));
            assert_eq!(trained.map(candle_conv3d::graph::Parameter::len).sum::<usize>(), expected, "{depth}");
        }
    }

    #[test]
    fn names_and_middle_channels_are_the_authors() {
        let graph = Config::standard().graph(ClipSpec::default(), 700).unwrap();
        for (name, shape) in [
            ("conv1_s.weight", [110, 3, 1, 7, 7]),
            ("conv1_t.weight", [64, 110, 7, 1, 1]),
            ("layer1.0.conv1_s.weight", [144, 64, 1, 3, 3]),
            ("layer2.0.conv1_s.weight", [230, 64, 1, 3, 3]),
            ("layer2.0.conv2_s.weight", [288, 128, 1, 3, 3]),
            ("layer2.0.downsample.0.weight", [128, 64, 1, 1, 1]),
        ] {
            let found = graph.parameters().find(|parameter| parameter.name == name);
            assert_eq!(found.map(|parameter| parameter.shape.as_slice()), Some(&shape[..]), "{name}");
        }
    }
}
