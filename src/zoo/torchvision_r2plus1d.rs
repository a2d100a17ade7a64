//! R(2+1)D (Tran et al. 2018) with the names of torchvision's `VideoResNet`: `stem.0`, `layer1.0.conv1.0.0`, ... torchvision's
//! `r2plus1d_18` and the networks of IG-65M (moabitcoin/ig65m-pytorch) are some.

use std::fmt;

use candle_conv3d::graph::{ConvConfig, Graph, NodeId};
use serde::{Deserialize, Serialize};

use super::residual::{
    self, Block, EPSILON, HEAD, WIDTHS, channels, conv_norm, conv_norm_relu, factored_channels, stages,
};
use super::resnet3d::Shortcut;
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Channels between the parts of the stem's convolution: fixed, not the formula's value.
const STEM_MIDDLE: usize = 45;

/// Settings of an R(2+1)D.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 10, 18, 34, 50, 101, 152 or 200.
    pub depth: u32,
    /// From what the channels between the spatial and the temporal part of a convolution are computed.
    pub middle: Middle,
    /// Added to the variance of batch norm: 1e-5 in torchvision, 1e-3 in IG-65M. Tensors don't show it.
    pub epsilon: f64,
}

/// From which channels those between the parts of a convolution are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Middle {
    /// From the block's input and output, for all its convolutions: torchvision.
    Block,
    /// From each convolution's own input and output: IG-65M.
    Conv,
}

impl Config {
    /// Adds the parts of a convolution, `conv.0` (spatial), `conv.1` (norm), `conv.3` (temporal), and the norm behind them.
    fn factored(
        &self,
        graph: &mut Graph,
        [conv, norm]: [&str; 2],
        x: NodeId,
        middle: usize,
        config: &ConvConfig,
    ) -> Result<NodeId, ArchitectureError> {
        let [spatial, temporal] = residual::factors(config, middle);
        let part = |index: usize| if conv.is_empty() { index.to_string() } else { format!("{conv}.{index}") };
        let x = conv_norm_relu(graph, [&part(0), &part(1)], x, &spatial, self.epsilon)?;
        conv_norm(graph, [&part(3), norm], x, &temporal, self.epsilon)
    }

    fn block(&self, graph: &mut Graph, block: &Block<'_>, bottleneck: bool) -> Result<NodeId, ArchitectureError> {
        let &Block { name, input, width, stride } = block;
        let from = channels(graph, input)?;
        let convs = residual::block_convs(width, stride, bottleneck);
        let out_channels = residual::channels_of(&convs);
        let shortcut = residual::add_shortcut(graph, block, out_channels, Shortcut::B, self.epsilon)?;
        let x = residual::add_convs(graph, input, &convs, |graph, number, x, config| {
            let [conv, norm] = [0, 1].map(|part| format!("{name}.conv{number}.{part}"));
            if config.kernel == [1; 3] {
                return conv_norm(graph, [&conv, &norm], x, config, self.epsilon);
            }
            let source = if self.middle == Middle::Block { from } else { channels(graph, x)? };
            let middle = factored_channels(source, config.channels, config.kernel);
            self.factored(graph, [&conv, &norm], x, middle, config)
        })?;
        residual::join(graph, x, shortcut)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let publisher = if self.middle == Middle::Block { "torchvision" } else { "IG-65M" };
        write!(f, "{publisher} R(2+1)D-{}", self.depth)?;
        if self.epsilon != Self::usual_epsilon(self.middle) {
            write!(f, ", batch norm epsilon {:e}", self.epsilon)?;
        }
        Ok(())
    }
}

impl Config {
    /// That of the networks that were published with a kind of middle channels.
    fn usual_epsilon(middle: Middle) -> f64 {
        if middle == Middle::Block { EPSILON } else { 1e-3 }
    }
}

impl Family for Config {
    const MARKER: &'static str = "stem.0.weight";

    fn standard() -> Self {
        Self { depth: 18, middle: Middle::Block, epsilon: EPSILON }
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        let (block_counts, bottleneck) = stages(self.depth)?;
        if !(self.epsilon > 0.0 && self.epsilon <= 1.0) {
            return Err(ArchitectureError::Epsilon { actual: self.epsilon });
        }
        let mut graph = graph_of(clip)?;
        let input = graph.input();
        let stem = ConvConfig { stride: [1, 2, 2], padding: [1, 3, 3], ..ConvConfig::new(64, [3, 7, 7]) };
        let x = self.factored(&mut graph, ["stem", "stem.4"], input, STEM_MIDDLE, &stem)?;
        let x = graph.relu(x)?;
        let x = residual::add_stages(&mut graph, x, block_counts, WIDTHS.map(usize::from), |graph, block| {
            self.block(graph, block, bottleneck)
        })?;
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        let factored = ["layer1.0.conv1.0.0.weight", "layer1.0.conv2.0.0.weight"].iter().any(|name| shapes.has(name));
        (shapes.has(Self::MARKER) && shapes.has("stem.3.weight") && factored).then(|| {
            let firsts = ["conv1.0.0.weight", "conv1.0.weight"];
            let depth = residual::detect_depth(shapes, &firsts, "conv3.0.weight")?;
            // The second convolution of the second stage: from 128 channels, or from the block's 64.
            let by_conv = factored_channels(128, 128, [3; 3]);
            let middle = match shapes.shape::<5>("layer2.0.conv2.0.0.weight", "[channels, channels, 1, 3, 3]")? {
                [middle, ..] if middle == by_conv => Middle::Conv,
                _ => Middle::Block,
            };
            Ok((Self { depth, middle, epsilon: Self::usual_epsilon(middle) }, shapes.classes("fc.weight")?))
        })
    }

    fn layer_groups(&self) -> Vec<LayerGroup> {
        residual::layer_groups("stem", &["stem"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(config: Config) -> usize {
        let graph = config.graph(ClipSpec::default(), 400).unwrap();
        let trained = graph.parameters().filter(|parameter| !parameter.name.contains("running"));
        trained.map(candle_conv3d::graph::Parameter::len).sum()
    }

    #[test]
    fn parameter_counts_are_the_publishers() {
        // torchvision's metadata; the other counted in moabitcoin's code.
        assert_eq!(parameters(Config::standard()), 31_505_325);
        let ig_65m = Config { depth: 34, middle: Middle::Conv, epsilon: 1e-3 };
        assert_eq!(parameters(ig_65m), 63_697_175);
    }

    #[test]
    fn ig_65m_is_told_from_torchvision_by_its_middle_channels() {
        for config in [Config::standard(), Config { depth: 34, middle: Middle::Conv, epsilon: 1e-3 }] {
            let graph = config.graph(ClipSpec::default(), 400).unwrap();
            let shapes = TensorShapes::new(graph.parameters().map(|p| (p.name.as_str(), p.shape.as_slice())));
            assert_eq!(Config::detect(&shapes), Some(Ok((config, 400))));
        }
    }
}
