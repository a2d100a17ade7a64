//! R(2+1)D (Tran et al. 2018) as in 3D-ResNets-PyTorch (`models/resnet2p1d.py`): every 3x3x3 convolution of a 3D ResNet is a
//! 1x3x3 one, batch norm, ReLU and a 3x1x1 one. Names are `conv1_s`, `bn1_s`, `conv1_t`, `bn1_t`, ...

use std::fmt;

use candle_conv3d::graph::{ConvConfig, Graph, NodeId};
use serde::{Deserialize, Serialize};

use super::residual::{
    self, BOTTLENECK_EXPANSION, EPSILON, HEAD, STAGES, block_stride, channels, conv_norm, conv_norm_relu, cube,
    factored_channels, stages,
};
use super::resnet3d::{Shortcut, Stem};
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Settings of an R(2+1)D.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 10, 18, 34, 50, 101, 152 or 200.
    pub depth: u32,
    /// How a block's input joins its output where the shape changes.
    pub shortcut: Shortcut,
    /// Multiplies the channels of every layer.
    pub widen_factor: f64,
    /// The layers before the first block; `kernel_t` is that of the temporal part.
    pub stem: Stem,
}

impl Config {
    /// Adds the spatial and the temporal part of a convolution, each with its norm, ReLU between them.
    fn factored(
        graph: &mut Graph,
        [conv, norm]: [&str; 2],
        x: NodeId,
        config: &ConvConfig,
    ) -> Result<NodeId, ArchitectureError> {
        let ([kt, kh, kw], [st, sh, sw], [pt, ph, pw]) = (config.kernel, config.stride, config.padding);
        let middle = factored_channels(channels(graph, x)?, config.channels, config.kernel);
        let spatial = ConvConfig { stride: [1, sh, sw], padding: [0, ph, pw], ..ConvConfig::new(middle, [1, kh, kw]) };
        let temporal =
            ConvConfig { stride: [st, 1, 1], padding: [pt, 0, 0], ..ConvConfig::new(config.channels, [kt, 1, 1]) };
        let x = conv_norm_relu(graph, [&format!("{conv}_s"), &format!("{norm}_s")], x, &spatial, EPSILON)?;
        conv_norm(graph, [&format!("{conv}_t"), &format!("{norm}_t")], x, &temporal, EPSILON)
    }

    fn block(
        &self,
        graph: &mut Graph,
        name: &str,
        input: NodeId,
        width: usize,
        stride: usize,
        bottleneck: bool,
    ) -> Result<NodeId, ArchitectureError> {
        let out_channels = if bottleneck { width * BOTTLENECK_EXPANSION } else { width };
        let convs = if bottleneck {
            vec![cube(width, 1, 1), cube(width, 3, stride), cube(out_channels, 1, 1)]
        } else {
            vec![cube(width, 3, stride), cube(width, 3, 1)]
        };
        let shortcut = if stride == 1 && channels(graph, input)? == out_channels {
            input
        } else if self.shortcut == Shortcut::A {
            graph.strided_pick(input, [stride; 3], out_channels)?
        } else {
            let [conv, norm] = [0, 1].map(|index| format!("{name}.downsample.{index}"));
            conv_norm(graph, [&conv, &norm], input, &cube(out_channels, 1, stride), EPSILON)?
        };
        let mut x = input;
        for (index, config) in convs.iter().enumerate() {
            let [conv, norm] = ["conv", "bn"].map(|layer| format!("{name}.{layer}{}", index + 1));
            x = if config.kernel == [1; 3] {
                conv_norm(graph, [&conv, &norm], x, config, EPSILON)?
            } else {
                Self::factored(graph, [&conv, &norm], x, config)?
            };
            if index + 1 < convs.len() {
                x = graph.relu(x)?;
            }
        }
        residual::join(graph, x, shortcut)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "R(2+1)D-{}", self.depth)?;
        if self.shortcut == Shortcut::A {
            f.write_str(", shortcut A")?;
        }
        if self.widen_factor != 1.0 {
            write!(f, ", channels x {}", self.widen_factor)?;
        }
        if self.stem != Stem::AUTHORS {
            write!(f, ", {}", self.stem)?;
        }
        Ok(())
    }
}

impl Family for Config {
    const MARKER: &'static str = "conv1_s.weight";

    fn standard() -> Self {
        Self { depth: 18, shortcut: Shortcut::B, widen_factor: 1.0, stem: Stem::AUTHORS }
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        let (block_counts, bottleneck) = stages(self.depth)?;
        let widths = [64, 128, 256, 512].map(|width| (f64::from(width) * self.widen_factor) as usize);
        if !(self.widen_factor > 0.0 && self.widen_factor <= 16.0 && widths[0] > 0) {
            return Err(ArchitectureError::WidenFactor { actual: self.widen_factor });
        }
        let mut graph = graph_of(clip)?;
        let input = graph.input();
        let x = Self::factored(&mut graph, ["conv1", "bn1"], input, &self.stem.conv(widths[0])?)?;
        let mut x = graph.relu(x)?;
        if self.stem.max_pool {
            x = residual::stem_pool(&mut graph, x)?;
        }
        for (stage, (&count, width)) in block_counts.iter().zip(widths).enumerate() {
            for index in 0..count {
                let name = format!("{}.{index}", STAGES[stage]);
                x = self.block(&mut graph, &name, x, width, block_stride(stage, index), bottleneck)?;
            }
        }
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        shapes.has(Self::MARKER).then(|| {
            let [_, _, kernel_t, ..] = shapes.shape::<5>("conv1_t.weight", "[channels, channels, frames, 1, 1]")?;
            let depth = residual::detect_depth(shapes, &["conv1_s.weight", "conv1.weight"], "conv3.weight")?;
            let last =
                if shapes.has("layer4.0.conv3.weight") { "layer4.0.conv1.weight" } else { "layer4.0.conv1_t.weight" };
            let [last_width, ..] = shapes.shape::<5>(last, "[channels, channels, t, h, w]")?;
            let shortcut = if shapes.has("layer2.0.downsample.0.weight") { Shortcut::B } else { Shortcut::A };
            let stem = Stem { kernel_t, ..Stem::AUTHORS };
            let config = Self { depth, shortcut, widen_factor: last_width as f64 / 512.0, stem };
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
            let graph = Config { depth, ..Config::standard() }.graph(ClipSpec::default(), 700).unwrap();
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
