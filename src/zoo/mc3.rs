//! torchvision's `mc3_18` (Tran et al. 2018, "mixed convolutions"): a 3D ResNet-18 whose last three stages convolve frame by
//! frame. Time is never shortened.

use std::fmt;

use candle_conv3d::graph::{ConvConfig, Graph, NodeId};
use serde::{Deserialize, Serialize};

use super::residual::{self, EPSILON, HEAD, STAGES, block_stride, channels, conv_norm, conv_norm_relu, cube};
use super::resnet3d::Stem;
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Blocks of each stage.
const BLOCKS: usize = 2;

/// Settings of an MC3: it has none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("torchvision MC3-18")
    }
}

/// As a 3D convolution in the first stage, frame by frame in the others.
fn mixed(stage: usize, config: ConvConfig) -> ConvConfig {
    let one_frame = |[t, h, w]: [usize; 3], value: usize| if stage == 0 { [t, h, w] } else { [value, h, w] };
    ConvConfig {
        kernel: one_frame(config.kernel, 1),
        stride: one_frame(config.stride, 1),
        padding: one_frame(config.padding, 0),
        ..config
    }
}

fn block(graph: &mut Graph, stage: usize, index: usize, input: NodeId) -> Result<NodeId, ArchitectureError> {
    let (width, stride) = (64 << stage, block_stride(stage, index));
    let name = |layer: &str| format!("{}.{index}.{layer}", STAGES[stage]);
    let shortcut = if channels(graph, input)? == width {
        input
    } else {
        let names = [name("downsample.0"), name("downsample.1")];
        conv_norm(graph, names.each_ref().map(String::as_str), input, &mixed(stage, cube(width, 1, stride)), EPSILON)?
    };
    let first = mixed(stage, cube(width, 3, stride));
    let x = conv_norm_relu(graph, [&name("conv1.0"), &name("conv1.1")], input, &first, EPSILON)?;
    let second = mixed(stage, cube(width, 3, 1));
    let x = conv_norm(graph, [&name("conv2.0"), &name("conv2.1")], x, &second, EPSILON)?;
    residual::join(graph, x, shortcut)
}

impl Family for Config {
    const MARKER: &'static str = "stem.0.weight";

    fn standard() -> Self {
        Self {}
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        let mut graph = graph_of(clip)?;
        let input = graph.input();
        let mut x = conv_norm_relu(&mut graph, ["stem.0", "stem.1"], input, &Stem::TORCHVISION.conv(64)?, EPSILON)?;
        for stage in 0..STAGES.len() {
            for index in 0..BLOCKS {
                x = block(&mut graph, stage, index, x)?;
            }
        }
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        let second_stage = shapes.shape::<5>("layer2.0.conv1.0.weight", "[channels, channels, 1, 3, 3]");
        let is_mixed = matches!(second_stage, Ok([_, _, 1, _, _]));
        (shapes.has(Self::MARKER) && is_mixed).then(|| Ok((Self {}, shapes.classes("fc.weight")?)))
    }

    fn layer_groups(&self) -> Vec<LayerGroup> {
        residual::layer_groups("stem", &["stem"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mc3_18_has_torchvisions_parameters_and_products() {
        let graph = Config::standard().graph(ClipSpec::default(), 400).unwrap();
        let trained = graph.parameters().filter(|parameter| !parameter.name.contains("running"));
        assert_eq!(trained.map(candle_conv3d::graph::Parameter::len).sum::<usize>(), 11_695_440);
        assert_eq!((graph.multiply_adds() + 500_000) / 1_000_000, 43_343, "torchvision's metadata, in millions");
    }
}
