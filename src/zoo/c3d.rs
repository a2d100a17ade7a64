//! C3D (Tran et al. 2015): 3x3x3 convolutions with biases, max pools, two hidden linear layers. Names are those of the PyTorch
//! ports: `conv1`, ..., `conv5b`, `fc6`, `fc7`, `fc8`.

use std::fmt;

use candle_conv3d::graph::{ConvConfig, Graph, NodeId, PoolConfig};
use serde::{Deserialize, Serialize};

use super::residual::cube;
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, graph_of};
use crate::model::spec::ClipSpec;

/// Convolutions before each pool, with their channels.
const STAGES: [&[(&str, u16)]; 5] = [
    &[("conv1", 64)],
    &[("conv2", 128)],
    &[("conv3a", 256), ("conv3b", 256)],
    &[("conv4a", 512), ("conv4b", 512)],
    &[("conv5a", 512), ("conv5b", 512)],
];

/// Channels of the hidden linear layers.
const HIDDEN: u16 = 4096;

/// Name of the last, linear layer.
const HEAD: &str = "fc8";

/// Probability with which training drops a value of a hidden linear layer.
const DROPOUT: f64 = 0.5;

/// Settings of a C3D. Its first linear layer fits one clip size only: the published networks take 16x112x112.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How the last max pool treats the odd 7x7 positions. Tensors don't show it.
    pub pool5: Pool5,
    /// Multiplies the channels of every layer; 1 in the published networks.
    pub widen_factor: f64,
}

/// Windows of the last max pool, 2x2x2 with stride 2. Of 7 positions both make 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool5 {
    /// The last window reaches beyond the input: Caffe, so the original weights.
    Ceil,
    /// The first window has one position of padding: weights that were fine-tuned in PyTorch.
    Padded,
}

impl Config {
    fn width(&self, whole: u16) -> usize {
        (f64::from(whole) * self.widen_factor) as usize
    }

    fn pool(&self, stage: usize) -> PoolConfig {
        match (stage, self.pool5) {
            (0, _) => PoolConfig::new([1, 2, 2], [1, 2, 2]),
            (4, Pool5::Ceil) => PoolConfig { ceil: true, ..PoolConfig::new([2; 3], [2; 3]) },
            (4, Pool5::Padded) => PoolConfig { padding: [0, 1, 1], ..PoolConfig::new([2; 3], [2; 3]) },
            _ => PoolConfig::new([2; 3], [2; 3]),
        }
    }

    /// Adds a linear layer, ReLU; a dropout comes before the next layer.
    fn hidden(&self, graph: &mut Graph, name: &str, x: NodeId) -> Result<NodeId, ArchitectureError> {
        let x = graph.linear(name, x, self.width(HIDDEN))?;
        Ok(graph.relu(x)?)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool5 = if self.pool5 == Pool5::Ceil { "as in Caffe" } else { "padded" };
        write!(f, "C3D, last pool {pool5}")?;
        if self.widen_factor != 1.0 {
            write!(f, ", channels x {}", self.widen_factor)?;
        }
        Ok(())
    }
}

impl Family for Config {
    const MARKER: &'static str = "conv3a.weight";

    const FIRST_BLOCK: &'static str = "conv5b.";

    fn standard() -> Self {
        Self { pool5: Pool5::Ceil, widen_factor: 1.0 }
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        if !(self.widen_factor > 0.0 && self.widen_factor <= 16.0 && self.width(STAGES[0][0].1) > 0) {
            return Err(ArchitectureError::WidenFactor { actual: self.widen_factor });
        }
        let mut graph = graph_of(clip)?;
        let mut x = graph.input();
        for (stage, convs) in STAGES.iter().enumerate() {
            for &(name, width) in *convs {
                x = graph.conv(name, x, &ConvConfig { bias: true, ..cube(self.width(width), 3, 1) })?;
                x = graph.relu(x)?;
            }
            x = graph.max_pool(x, &self.pool(stage))?;
        }
        let x = graph.flatten(x)?;
        let x = self.hidden(&mut graph, "fc6", x)?;
        let x = graph.dropout(x, DROPOUT)?;
        let features = self.hidden(&mut graph, "fc7", x)?;
        let x = graph.dropout(features, DROPOUT)?;
        let logits = graph.linear(HEAD, x, classes)?;
        graph.set_outputs(&[logits, features])?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        (shapes.has(Self::MARKER) && shapes.has("conv1.bias") && shapes.has("fc7.weight")).then(|| {
            let [hidden, _] = shapes.shape("fc7.weight", "[hidden, hidden]")?;
            let widen_factor = hidden as f64 / f64::from(HIDDEN);
            Ok((Self { widen_factor, ..Self::standard() }, shapes.classes("fc8.weight")?))
        })
    }

    fn layer_groups(&self) -> Vec<LayerGroup> {
        let group = |name, prefixes: &[&'static str]| LayerGroup { name, prefixes: prefixes.to_vec() };
        let names = ["conv1", "conv2", "conv3", "conv4", "conv5"];
        let stages = names.into_iter().zip(STAGES).map(|(name, convs)| {
            let prefixes: Vec<&str> = convs.iter().map(|(conv, _)| *conv).collect();
            group(name, &prefixes)
        });
        stages.chain(["fc6", "fc7", HEAD].map(|name| group(name, &[name]))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{mega_products, parameter_count, parameter_shape, shapes_of};
    use super::*;

    #[test]
    fn c3d_has_the_published_tensors_and_products() {
        let graph = Config::standard().graph(ClipSpec::default(), 487).unwrap();
        // Of the Sports-1M network, counted in its PyTorch port.
        assert_eq!(parameter_count(&graph), 79_991_015);
        assert_eq!(mega_products(&graph), 38_549);
        for (name, shape) in [
            ("conv1.weight", &[64, 3, 3, 3, 3][..]),
            ("conv1.bias", &[64]),
            ("conv5b.weight", &[512, 512, 3, 3, 3]),
            ("fc6.weight", &[4096, 8192]),
            ("fc7.weight", &[4096, 4096]),
            ("fc8.weight", &[487, 4096]),
        ] {
            assert_eq!(parameter_shape(&graph, name), Some(shape.to_vec()), "{name}");
        }
    }

    #[test]
    fn both_ways_of_the_last_pool_have_the_same_tensors() {
        let tensors = |pool5| {
            let graph = Config { pool5, ..Config::standard() }.graph(ClipSpec::default(), 7).unwrap();
            graph.parameters().map(|parameter| (parameter.name.clone(), parameter.shape.clone())).collect::<Vec<_>>()
        };
        assert_eq!(tensors(Pool5::Ceil), tensors(Pool5::Padded));
    }

    #[test]
    fn channels_are_read_from_tensors() {
        let config = Config { widen_factor: 0.125, ..Config::standard() };
        let graph = config.graph(ClipSpec::default(), 7).unwrap();
        assert_eq!(Config::detect(&shapes_of(&graph)), Some(Ok((config, 7))));
    }
}
