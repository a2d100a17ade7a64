//! 3D ResNets (arXiv 1708.07632, table 1) with the names of 3D-ResNets-PyTorch: `conv1`, `bn1`, `layer1.0.conv1`, ...

use std::fmt;

use candle_conv3d::graph::{ConvConfig, Graph, NodeId};
use serde::{Deserialize, Serialize};

use super::residual::{self, Block, EPSILON, HEAD, WIDTHS, conv_norm, conv_norm_relu, stages};
use super::{ArchitectureError, DetectError, Family, LayerGroup, TensorShapes, add_head, graph_of};
use crate::model::spec::ClipSpec;

/// Settings of a 3D ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// 10, 18, 34, 50, 101, 152 or 200.
    pub depth: u32,
    /// How a block's input joins its output where the shape changes.
    pub shortcut: Shortcut,
    /// Multiplies the channels of every layer (`widen_factor` of the authors' code); 1 for the paper's networks.
    pub widen_factor: f64,
    /// The layers before the first block.
    pub stem: Stem,
}

/// Shortcut of a residual block whose output has another shape than its input (He et al. 2016, section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shortcut {
    /// Strided picking and zero-padded channels; no parameters.
    A,
    /// 1x1x1 convolution and batch norm.
    B,
}

impl Shortcut {
    /// That of a checkpoint: B has a convolution where the second stage begins.
    pub(super) fn detect(shapes: &TensorShapes) -> Self {
        if shapes.has("layer2.0.downsample.0.weight") { Self::B } else { Self::A }
    }
}

/// Geometry of the first convolution. It always has a 7x7 spatial kernel with stride 2 and padding 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stem {
    /// Temporal kernel size in frames, odd; padding is half of it.
    pub kernel_t: usize,
    /// Temporal stride in frames.
    pub stride_t: usize,
    /// Whether a 3x3x3 max pool with stride 2 and padding 1 follows.
    pub max_pool: bool,
}

impl Stem {
    /// 7x7x7 with temporal stride 1, then the max pool.
    pub const AUTHORS: Self = Self { kernel_t: 7, stride_t: 1, max_pool: true };
    /// 3x7x7 with temporal stride 1 and no pool.
    pub const TORCHVISION: Self = Self { kernel_t: 3, stride_t: 1, max_pool: false };

    /// The convolution.
    pub(super) fn conv(&self, channels: usize) -> Result<ConvConfig, ArchitectureError> {
        let Self { kernel_t, stride_t, .. } = *self;
        if kernel_t.is_multiple_of(2) || kernel_t > 31 {
            return Err(ArchitectureError::StemKernel { actual: kernel_t });
        }
        if !(1..=16).contains(&stride_t) {
            return Err(ArchitectureError::StemStride { actual: stride_t });
        }
        let (stride, padding) = ([stride_t, 2, 2], [kernel_t / 2, 3, 3]);
        Ok(ConvConfig { stride, padding, ..ConvConfig::new(channels, [kernel_t, 7, 7]) })
    }
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = if self.max_pool { "max pool" } else { "no max pool" };
        write!(f, "stem {}x7x7 with temporal stride {} and {pool}", self.kernel_t, self.stride_t)
    }
}

/// Names of a publisher's layers.
pub(super) struct Names {
    pub(super) stem: [&'static str; 2],
    /// Convolution and norm of a block's numbered convolution, behind the block's name.
    pub(super) block: fn(usize) -> [String; 2],
}

const NAMES: Names = Names { stem: ["conv1", "bn1"], block: |number| [format!("conv{number}"), format!("bn{number}")] };

impl Config {
    /// The paper's network of a depth.
    pub fn paper(depth: u32, shortcut: Shortcut) -> Self {
        Self { depth, shortcut, widen_factor: 1.0, stem: Stem::AUTHORS }
    }

    /// The network with a publisher's names.
    pub(super) fn graph_named(
        &self,
        names: &Names,
        clip: ClipSpec,
        classes: usize,
    ) -> Result<Graph, ArchitectureError> {
        let (block_counts, bottleneck) = stages(self.depth)?;
        let widths = residual::scaled_widths(WIDTHS, self.widen_factor)?;
        let mut graph = graph_of(clip)?;
        let input = graph.input();
        let mut x = conv_norm_relu(&mut graph, names.stem, input, &self.stem.conv(widths[0])?, EPSILON)?;
        if self.stem.max_pool {
            x = residual::stem_pool(&mut graph, x)?;
        }
        let x = residual::add_stages(&mut graph, x, block_counts, widths, |graph, block| {
            self.block(graph, names, block, bottleneck)
        })?;
        add_head(&mut graph, x, HEAD, classes)?;
        Ok(graph)
    }

    fn block(
        &self,
        graph: &mut Graph,
        names: &Names,
        block: &Block<'_>,
        bottleneck: bool,
    ) -> Result<NodeId, ArchitectureError> {
        let &Block { name, input, width, stride } = block;
        let convs = residual::block_convs(width, stride, bottleneck);
        let shortcut = residual::add_shortcut(graph, block, residual::channels_of(&convs), self.shortcut, EPSILON)?;
        let x = residual::add_convs(graph, input, &convs, |graph, number, x, config| {
            let [conv, norm] = (names.block)(number).map(|layer| format!("{name}.{layer}"));
            conv_norm(graph, [&conv, &norm], x, config, EPSILON)
        })?;
        residual::join(graph, x, shortcut)
    }

    /// The settings that a checkpoint shows; `suffix` is what a block's convolutions end with, `stem` the settings that tensors
    /// don't show.
    pub(super) fn detect_named(
        shapes: &TensorShapes,
        stem_name: &str,
        suffix: &str,
        stem: Stem,
    ) -> Result<(Self, usize), DetectError> {
        const STEM: &str = "[channels, 3, frames, 7, 7]";
        let [_, 3, kernel_t, 7, 7] = shapes.shape(stem_name, STEM)? else {
            return Err(shapes.misfit(stem_name, STEM));
        };
        let depth = residual::detect_depth(shapes, &[&format!("conv1{suffix}")], &format!("conv3{suffix}"))?;
        let expected = "[channels, channels, t, h, w]";
        let widen_factor = residual::detect_factor(shapes, &format!("layer4.0.conv1{suffix}"), expected, WIDTHS)?;
        let config = Self { depth, shortcut: Shortcut::detect(shapes), widen_factor, stem: Stem { kernel_t, ..stem } };
        Ok((config, shapes.classes("fc.weight")?))
    }

    /// Channels other than the paper's, and another stem than the publisher's.
    pub(super) fn fmt_variations(&self, f: &mut fmt::Formatter<'_>, standard: Stem) -> fmt::Result {
        residual::fmt_factor(f, self.widen_factor)?;
        if self.stem != standard {
            write!(f, ", {}", self.stem)?;
        }
        Ok(())
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "3D ResNet-{}, shortcut {:?}", self.depth, self.shortcut)?;
        self.fmt_variations(f, Stem::AUTHORS)
    }
}

impl Family for Config {
    const MARKER: &'static str = "conv1.weight";

    fn standard() -> Self {
        Self::paper(34, Shortcut::A)
    }

    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
        self.graph_named(&NAMES, clip, classes)
    }

    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>> {
        shapes.has(Self::MARKER).then(|| Self::detect_named(shapes, Self::MARKER, ".weight", Stem::AUTHORS))
    }

    fn layer_groups(&self) -> Vec<LayerGroup> {
        residual::layer_groups("conv1", &["conv1", "bn1"])
    }
}

#[cfg(test)]
mod tests {
    use super::super::Architecture;
    use super::*;

    fn names(architecture: &Architecture) -> Vec<String> {
        let graph = architecture.graph(ClipSpec::default(), 7).unwrap();
        graph.parameters().map(|parameter| parameter.name.clone()).collect()
    }

    #[test]
    fn parameter_counts_match_the_published_networks() {
        // `sum(p.numel() for p in model.parameters())` of the reference networks in PyTorch, 400 classes.
        let count = |config: Config| {
            let graph = config.graph(ClipSpec::default(), 400).unwrap();
            let trained = graph.parameters().filter(|parameter| !parameter.name.contains("running"));
            trained.map(candle_conv3d::graph::Parameter::len).sum::<usize>()
        };
        assert_eq!(count(Config::paper(18, Shortcut::A)), 33_235_280);
        assert_eq!(count(Config::paper(34, Shortcut::A)), 63_544_912);
        assert_eq!(count(Config::paper(50, Shortcut::B)), 47_018_576);
    }

    #[test]
    fn names_are_the_authors() {
        let names = names(&Architecture::ResNet3d(Config::paper(50, Shortcut::B)));
        for name in
            ["conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight", "fc.bias"]
        {
            assert!(names.iter().any(|n| n == name), "{name} is missing");
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        let clip = ClipSpec::default();
        let refused = |config: Config| config.graph(clip, 4).err();
        assert_eq!(refused(Config::paper(19, Shortcut::A)), Some(ArchitectureError::Depth { actual: 19 }));
        for widen_factor in [0.0, -1.0, f64::NAN, 0.001, 1e9] {
            let config = Config { widen_factor, ..Config::paper(18, Shortcut::A) };
            assert!(matches!(refused(config), Some(ArchitectureError::WidenFactor { .. })), "{widen_factor}");
        }
        let architecture = Architecture::ResNet3d(Config::paper(18, Shortcut::A));
        assert_eq!(architecture.graph(clip, 0).err(), Some(ArchitectureError::NoClasses));
    }

    #[test]
    fn widths_of_every_stage_follow_from_the_last() {
        for thousandths in 16..4000 {
            let factor = f64::from(thousandths) / 1000.0;
            let widths = |factor: f64| [64.0, 128.0, 256.0, 512.0].map(|width| (width * factor) as usize);
            assert_eq!(widths(widths(factor)[3] as f64 / 512.0), widths(factor), "{factor}");
        }
    }

    #[test]
    fn settings_are_changed_by_name() {
        let architecture = Architecture::standard("resnet3d").unwrap();
        let changed = architecture.with_setting("depth", "50").unwrap().with_setting("stem.max_pool", "false").unwrap();
        let changed = changed.with_setting("shortcut", "b").unwrap();
        let stem = Stem { max_pool: false, ..Stem::AUTHORS };
        assert_eq!(changed, Architecture::ResNet3d(Config { stem, ..Config::paper(50, Shortcut::B) }));
        assert_eq!(changed.setting("stem.max_pool"), Some(false.into()));
        let refused = architecture.with_setting("width", "2").unwrap_err().to_string();
        assert!(refused.ends_with("there are depth, shortcut, stem, widen_factor"), "{refused}");
        assert!(architecture.with_setting("depth", "deep").is_err());
        assert!(architecture.with_setting("family", "mc3").is_err());
    }

    #[test]
    fn parameters_belong_to_groups_of_layers() {
        let architecture = Architecture::standard("resnet3d").unwrap();
        for (name, group) in [
            ("conv1.weight", "conv1"),
            ("bn1.running_var", "stem"),
            ("layer1.0.conv1.weight", "layer1"),
            ("layer4.2.bn2.bias", "layer4"),
            ("fc.bias", "fc"),
            ("fc.weight", "head"),
        ] {
            assert_eq!(Ok(architecture.group_of(name)), architecture.group_named(group), "{name}");
        }
        let error = architecture.group_named("layer5").unwrap_err().to_string();
        let layers = "its layers are conv1, layer1, layer2, layer3, layer4, fc";
        assert_eq!(error, format!("\"layer5\" is no layer of the network; {layers}"));
    }
}
