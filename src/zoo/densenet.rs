//! DenseNet (Huang et al. 2017) in 3D, as in 3D-ResNets-PyTorch (`models/densenet.py`): every layer of a block reads what all
//! layers before it gave. Names are `features.conv0`, `features.denseblock1.denselayer1`, ...; the
//! authors' `classifier` is `fc` here.

use std::fmt;

use candle_conv3d::graph::{Graph, NodeId, PoolConfig};
use serde::{Deserialize, Serialize};

use super::residual::{self, EPSILON, HEAD, channels, conv_norm_relu, cube};
use super::resnet3d::Stem;
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Channels between a layer's two convolutions, relative to those that it adds.
const BOTTLENECK: usize = 4;

/// Depths, and the layers of their four blocks.
const DEPTHS: [(u32, [usize; 4]); 4] =
    [(121, [6, 12, 24, 16]), (169, [6, 12, 32, 32]), (201, [6, 12, 48, 32]), (264, [6, 12, 64, 48])];

/// Settings of a DenseNet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 121, 169, 201 or 264.
    pub depth: u32,
    /// Channels that each layer adds; 32 in the published networks. The stem has twice as many.
    pub growth: usize,
    /// What the layers are called.
    pub names: Names,
}

/// Names of a DenseNet's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Names {
    /// `features.conv0`, `denselayer1.norm.1`: the weights of 2018.
    Dotted,
    /// `features.conv1`, `denselayer1.norm1`: the code of 2020.
    Plain,
}

impl Names {
    /// Convolution and norm of the stem.
    fn stem(self) -> [&'static str; 2] {
        match self {
            Self::Dotted => ["features.conv0", "features.norm0"],
            Self::Plain => ["features.conv1", "features.norm1"],
        }
    }

    /// What stands between a layer's kind and its number.
    fn separator(self) -> &'static str {
        match self {
            Self::Dotted => ".",
            Self::Plain => "",
        }
    }
}

impl Config {
    fn layer_counts(&self) -> Result<[usize; 4], ArchitectureError> {
        let found = DEPTHS.iter().find(|(depth, _)| *depth == self.depth);
        found.map(|(_, counts)| *counts).ok_or_else(|| {
            setting_error("depth", format!("it is {}; allowed are {:?}", self.depth, DEPTHS.map(|(depth, _)| depth)))
        })
    }

    /// Adds a layer: its input, and behind it `growth` channels more.
    fn layer(&self, graph: &mut Graph, name: &str, input: NodeId) -> Result<NodeId, ArchitectureError> {
        let separator = self.names.separator();
        let mut x = input;
        for (number, config) in [(1, cube(BOTTLENECK * self.growth, 1, 1)), (2, cube(self.growth, 3, 1))] {
            x = graph.batch_norm(&format!("{name}.norm{separator}{number}"), x, EPSILON)?;
            x = graph.relu(x)?;
            x = graph.conv(&format!("{name}.conv{separator}{number}"), x, &config)?;
        }
        Ok(graph.concat(&[input, x])?)
    }
}

/// Adds what halves channels, time and space between two blocks.
fn transition(graph: &mut Graph, name: &str, x: NodeId) -> Result<NodeId, ArchitectureError> {
    let width = channels(graph, x)?;
    let x = graph.batch_norm(&format!("{name}.norm"), x, EPSILON)?;
    let x = graph.relu(x)?;
    let x = graph.conv(&format!("{name}.conv"), x, &cube(width / 2, 1, 1))?;
    Ok(graph.avg_pool(x, &PoolConfig::new([2; 3], [2; 3]))?)
}

fn setting_error(key: &str, reason: String) -> ArchitectureError {
    ArchitectureError::Setting { family: "densenet", key: key.to_owned(), reason }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DenseNet-{}", self.depth)?;
        if self.growth != Self::standard().growth {
            write!(f, ", growth {}", self.growth)?;
        }
        Ok(())
    }
}

impl Family for Config {
    const MARKER: &'static str = "features.norm5.weight";

    const FIRST_BLOCK: &'static str = "features.denseblock1.";

    fn standard() -> Self {
        Self { depth: 121, growth: 32, names: Names::Dotted }
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        let counts = self.layer_counts()?;
        if !(1..=1024).contains(&self.growth) {
            return Err(setting_error("growth", format!("it is {}; allowed is 1 to 1024", self.growth)));
        }
        let mut graph = graph_of(clip)?;
        let input = graph.input();
        let stem = Stem::AUTHORS.conv(2 * self.growth)?;
        let x = conv_norm_relu(&mut graph, self.names.stem(), input, &stem, EPSILON)?;
        let mut x = residual::stem_pool(&mut graph, x)?;
        for (block, count) in (1..).zip(counts) {
            for index in 1..=count {
                x = self.layer(&mut graph, &format!("features.denseblock{block}.denselayer{index}"), x)?;
            }
            if block < counts.len() {
                x = transition(&mut graph, &format!("features.transition{block}"), x)?;
            }
        }
        let x = graph.batch_norm("features.norm5", x, EPSILON)?;
        let x = graph.relu(x)?;
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        let names = [Names::Dotted, Names::Plain]
            .into_iter()
            .find(|names| shapes.has(&format!("features.denseblock1.denselayer1.conv{}2.weight", names.separator())))?;
        let conv = |block: usize, index: usize| {
            format!("features.denseblock{block}.denselayer{index}.conv{}2.weight", names.separator())
        };
        let found = || {
            let [growth, ..] = shapes.shape::<5>(&conv(1, 1), "[growth, channels, 3, 3, 3]")?;
            let counts = [1, 2, 3, 4].map(|block| (1..).take_while(|index| shapes.has(&conv(block, *index))).count());
            // The nearest: what is missing or too much is said when the tensors are compared with the network's.
            let nearest = DEPTHS.iter().min_by_key(|(_, known)| {
                counts.iter().zip(known).map(|(found, known)| found.abs_diff(*known)).sum::<usize>()
            });
            let &(depth, _) = nearest.expect("there are depths");
            Ok((Self { depth, growth, names }, shapes.classes("fc.weight")?))
        };
        Some(found())
    }

    fn layer_groups(&self) -> Vec<LayerGroup> {
        let group = |name, prefixes: &[&'static str]| LayerGroup { name, prefixes: prefixes.to_vec() };
        vec![
            group("conv1", &self.names.stem()),
            group("denseblock1", &["features.denseblock1", "features.transition1"]),
            group("denseblock2", &["features.denseblock2", "features.transition2"]),
            group("denseblock3", &["features.denseblock3", "features.transition3"]),
            group("denseblock4", &["features.denseblock4", "features.norm5"]),
            group(HEAD, &[HEAD]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{mega_products, parameter_count, parameter_shape, shapes_of};
    use super::*;

    #[test]
    fn parameter_counts_and_products_are_those_of_the_authors_code() {
        for (depth, parameters, products) in
            [(121, 11_696_528, 10_404), (169, 19_252_624, 10_678), (201, 26_143_120, 11_243), (264, 41_365_392, 11_997)]
        {
            let graph = Config { depth, ..Config::standard() }.graph(ClipSpec::default(), 400).unwrap();
            assert_eq!(parameter_count(&graph), parameters, "{depth}");
            assert_eq!(mega_products(&graph), products, "{depth}");
        }
    }

    #[test]
    fn names_and_shapes_are_the_authors() {
        let graph = Config::standard().graph(ClipSpec::default(), 400).unwrap();
        for (name, shape) in [
            ("features.conv0.weight", &[64, 3, 7, 7, 7][..]),
            ("features.denseblock1.denselayer1.norm.1.weight", &[64]),
            ("features.denseblock1.denselayer1.conv.1.weight", &[128, 64, 1, 1, 1]),
            ("features.denseblock1.denselayer1.norm.2.weight", &[128]),
            ("features.denseblock1.denselayer1.conv.2.weight", &[32, 128, 3, 3, 3]),
            ("features.transition1.norm.weight", &[256]),
            ("features.transition1.conv.weight", &[128, 256, 1, 1, 1]),
            ("features.denseblock4.denselayer16.conv.1.weight", &[128, 992, 1, 1, 1]),
            ("features.norm5.weight", &[1024]),
            ("fc.weight", &[400, 1024]),
        ] {
            assert_eq!(parameter_shape(&graph, name), Some(shape.to_vec()), "{name}");
        }
    }

    #[test]
    fn depth_growth_and_names_are_read_from_tensors() {
        for (depth, growth, names) in [(169, 8, Names::Plain), (201, 32, Names::Dotted), (264, 4, Names::Plain)] {
            let config = Config { depth, growth, names };
            let graph = config.graph(ClipSpec::default(), 7).unwrap();
            assert_eq!(Config::detect(&shapes_of(&graph)), Some(Ok((config, 7))));
        }
    }

    #[test]
    fn settings_of_no_network_are_refused() {
        let refused = |config: Config| config.graph(ClipSpec::default(), 7).unwrap_err().to_string();
        let error = refused(Config { depth: 50, ..Config::standard() });
        assert_eq!(error, "depth of densenet: it is 50; allowed are [121, 169, 201, 264]");
        let error = refused(Config { growth: 0, ..Config::standard() });
        assert_eq!(error, "growth of densenet: it is 0; allowed is 1 to 1024");
    }
}
