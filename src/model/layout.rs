//! The layers of a 3D ResNet, named as in the checkpoint: the one description from which the candle network, the
//! inference plan and the check of a model file are made.

use super::spec::{Architecture, Family, Shortcut};

/// Every layer of a network in execution order.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// First convolution.
    pub stem: ConvLayer,
    /// Whether a 3x3x3 max pool with stride 2 and padding 1 follows the stem.
    pub max_pool: bool,
    /// Residual blocks of all four stages.
    pub blocks: Vec<Block>,
    /// Channels after the last block: the length of an embedding.
    pub features: usize,
    /// Outputs of the last, linear layer.
    pub classes: usize,
}

/// A convolution without bias and its batch norm.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvLayer {
    /// Checkpoint prefix of the convolution, such as `layer1.0.conv1`.
    pub conv: String,
    /// Checkpoint prefix of the batch norm, such as `layer1.0.bn1`.
    pub norm: String,
    /// Channels in.
    pub in_channels: usize,
    /// Channels out.
    pub out_channels: usize,
    /// `(t, h, w)`.
    pub kernel: [usize; 3],
    /// `(t, h, w)`.
    pub stride: [usize; 3],
    /// `(t, h, w)`.
    pub padding: [usize; 3],
}

/// A residual block: `relu(convs(x) + shortcut(x))`, with a ReLU between the convolutions.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// Two convolutions (basic block) or three (bottleneck).
    pub convs: Vec<ConvLayer>,
    /// The other way through the block.
    pub shortcut: BlockShortcut,
}

/// How a block's input reaches its sum.
#[derive(Debug, Clone, PartialEq)]
pub enum BlockShortcut {
    /// Unchanged.
    Identity,
    /// Type A: every `stride`-th position, new channels zero.
    Strided {
        /// Along time, height and width alike.
        stride: usize,
        /// Channels after padding.
        out_channels: usize,
    },
    /// Type B: 1x1x1 convolution and batch norm.
    Projection(ConvLayer),
}

/// An architecture that no network has.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum LayoutError {
    /// Not one of the published depths.
    #[error("depth is {actual}; allowed are {DEPTHS:?}")]
    Depth {
        /// What the specification says.
        actual: u32,
    },
    /// Channels would vanish or not fit.
    #[error("widen factor is {actual}; allowed is more than 0 (every layer keeps a channel) and up to 16")]
    WidenFactor {
        /// What the specification says.
        actual: f64,
    },
    /// An even kernel has no middle.
    #[error("temporal kernel of the stem is {actual}; allowed are odd sizes from 1 to 31")]
    StemKernel {
        /// What the specification says.
        actual: usize,
    },
    /// A stride that skips everything or nothing.
    #[error("temporal stride of the stem is {actual}; allowed is 1 to 16")]
    StemStride {
        /// What the specification says.
        actual: usize,
    },
    /// A network without outputs.
    #[error("the network has no classes")]
    NoClasses,
}

/// Depths of the authors' code.
pub const DEPTHS: [u32; 7] = [10, 18, 34, 50, 101, 152, 200];

/// Blocks in each stage and whether they are bottlenecks (3D-ResNets-PyTorch, `generate_model`).
pub fn stages(depth: u32) -> Option<([usize; 4], bool)> {
    Some(match depth {
        10 => ([1, 1, 1, 1], false),
        18 => ([2, 2, 2, 2], false),
        34 => ([3, 4, 6, 3], false),
        50 => ([3, 4, 6, 3], true),
        101 => ([3, 4, 23, 3], true),
        152 => ([3, 8, 36, 3], true),
        200 => ([3, 24, 36, 3], true),
        _ => return None,
    })
}

/// Channels out of a bottleneck relative to its middle.
pub const BOTTLENECK_EXPANSION: usize = 4;

impl Architecture {
    /// The network's layers for a class count.
    pub fn layout(&self, classes: usize) -> Result<Layout, LayoutError> {
        let (block_counts, bottleneck) = stages(self.depth).ok_or(LayoutError::Depth { actual: self.depth })?;
        let widths = [64, 128, 256, 512].map(|width| (f64::from(width) * self.widen_factor) as usize);
        if !(self.widen_factor > 0.0 && self.widen_factor <= 16.0 && widths[0] > 0) {
            return Err(LayoutError::WidenFactor { actual: self.widen_factor });
        }
        let stem = &self.stem;
        if stem.kernel_t.is_multiple_of(2) || stem.kernel_t > 31 {
            return Err(LayoutError::StemKernel { actual: stem.kernel_t });
        }
        if !(1..=16).contains(&stem.stride_t) {
            return Err(LayoutError::StemStride { actual: stem.stride_t });
        }
        if classes == 0 {
            return Err(LayoutError::NoClasses);
        }

        let (stem_conv, stem_norm) = match self.family {
            Family::ResNet3d => ("conv1", "bn1"),
            Family::TorchvisionR3d => ("stem.0", "stem.1"),
        };
        let stem_layer = ConvLayer {
            conv: stem_conv.to_owned(),
            norm: stem_norm.to_owned(),
            in_channels: 3,
            out_channels: widths[0],
            kernel: [stem.kernel_t, 7, 7],
            stride: [stem.stride_t, 2, 2],
            padding: [stem.kernel_t / 2, 3, 3],
        };

        let mut blocks = Vec::with_capacity(block_counts.iter().sum());
        let mut channels = widths[0];
        for (stage, (&count, &width)) in block_counts.iter().zip(&widths).enumerate() {
            for index in 0..count {
                let name = format!("layer{}.{index}", stage + 1);
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let block = self.block(&name, channels, width, stride, bottleneck);
                channels = block.convs.last().map_or(channels, |conv| conv.out_channels);
                blocks.push(block);
            }
        }
        Ok(Layout { stem: stem_layer, max_pool: stem.max_pool, blocks, features: channels, classes })
    }

    fn block(&self, name: &str, in_channels: usize, width: usize, stride: usize, bottleneck: bool) -> Block {
        // (channels out, kernel, stride) of each convolution; the 3x3x3 one carries the stride.
        let out_channels = if bottleneck { width * BOTTLENECK_EXPANSION } else { width };
        let shapes: &[(usize, usize, usize)] = if bottleneck {
            &[(width, 1, 1), (width, 3, stride), (out_channels, 1, 1)]
        } else {
            &[(width, 3, stride), (width, 3, 1)]
        };
        let mut channels = in_channels;
        let convs = shapes
            .iter()
            .enumerate()
            .map(|(index, &(out, kernel, stride))| {
                let (conv, norm) = match self.family {
                    Family::ResNet3d => (format!("{name}.conv{}", index + 1), format!("{name}.bn{}", index + 1)),
                    Family::TorchvisionR3d => {
                        (format!("{name}.conv{}.0", index + 1), format!("{name}.conv{}.1", index + 1))
                    }
                };
                ConvLayer::cube(conv, norm, std::mem::replace(&mut channels, out), out, kernel, stride)
            })
            .collect();
        let shortcut = if stride == 1 && in_channels == out_channels {
            BlockShortcut::Identity
        } else {
            match self.shortcut {
                Shortcut::A => BlockShortcut::Strided { stride, out_channels },
                Shortcut::B => BlockShortcut::Projection(ConvLayer::cube(
                    format!("{name}.downsample.0"),
                    format!("{name}.downsample.1"),
                    in_channels,
                    out_channels,
                    1,
                    stride,
                )),
            }
        };
        Block { convs, shortcut }
    }
}

impl ConvLayer {
    fn cube(conv: String, norm: String, in_channels: usize, out_channels: usize, kernel: usize, stride: usize) -> Self {
        Self {
            conv,
            norm,
            in_channels,
            out_channels,
            kernel: [kernel; 3],
            stride: [stride; 3],
            padding: [kernel / 2; 3],
        }
    }

    fn parameters(&self) -> impl Iterator<Item = Parameter> + '_ {
        let [t, h, w] = self.kernel;
        let weight = Parameter {
            name: format!("{}.weight", self.conv),
            shape: vec![self.out_channels, self.in_channels, t, h, w],
        };
        let norm = NORM_PARAMETERS
            .iter()
            .map(|name| Parameter { name: format!("{}.{name}", self.norm), shape: vec![self.out_channels] });
        std::iter::once(weight).chain(norm)
    }
}

const NORM_PARAMETERS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

/// A tensor that a model file of some [`Layout`] holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Name in the checkpoint.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
}

impl Layout {
    /// All convolutions in execution order, a block's projection after its other convolutions.
    pub fn convs(&self) -> impl Iterator<Item = &ConvLayer> {
        std::iter::once(&self.stem).chain(self.blocks.iter().flat_map(|block| {
            let projection = match &block.shortcut {
                BlockShortcut::Projection(conv) => Some(conv),
                BlockShortcut::Identity | BlockShortcut::Strided { .. } => None,
            };
            block.convs.iter().chain(projection)
        }))
    }

    /// Every tensor of the network with its shape.
    pub fn parameters(&self) -> Vec<Parameter> {
        let fc = [("fc.weight", vec![self.classes, self.features]), ("fc.bias", vec![self.classes])];
        self.convs()
            .flat_map(ConvLayer::parameters)
            .chain(fc.map(|(name, shape)| Parameter { name: name.to_owned(), shape }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::Stem;

    fn authors(depth: u32, shortcut: Shortcut) -> Architecture {
        Architecture { family: Family::ResNet3d, depth, shortcut, widen_factor: 1.0, stem: Stem::AUTHORS }
    }

    fn parameter_count(layout: &Layout) -> usize {
        let trained = layout.parameters().into_iter().filter(|parameter| !parameter.name.contains("running"));
        trained.map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn parameter_counts_match_the_published_networks() {
        // `sum(p.numel() for p in model.parameters())` of the reference networks in PyTorch, 400 classes.
        assert_eq!(parameter_count(&authors(18, Shortcut::A).layout(400).unwrap()), 33_235_280);
        assert_eq!(parameter_count(&authors(34, Shortcut::A).layout(400).unwrap()), 63_544_912);
        let r3d_18 =
            Architecture { family: Family::TorchvisionR3d, stem: Stem::TORCHVISION, ..authors(18, Shortcut::B) };
        assert_eq!(parameter_count(&r3d_18.layout(400).unwrap()), 33_371_472);
    }

    #[test]
    fn names_follow_the_family() {
        let names: Vec<_> =
            authors(50, Shortcut::B).layout(7).unwrap().parameters().into_iter().map(|p| p.name).collect();
        for name in
            ["conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight", "fc.bias"]
        {
            assert!(names.iter().any(|n| n == name), "{name} is missing");
        }
        let tv = Architecture { family: Family::TorchvisionR3d, stem: Stem::TORCHVISION, ..authors(18, Shortcut::B) };
        let names: Vec<_> = tv.layout(7).unwrap().parameters().into_iter().map(|p| p.name).collect();
        for name in ["stem.0.weight", "stem.1.bias", "layer2.0.conv1.1.running_mean", "layer2.0.downsample.1.weight"] {
            assert!(names.iter().any(|n| n == name), "{name} is missing");
        }
    }

    #[test]
    fn impossible_architectures_are_refused() {
        assert_eq!(authors(19, Shortcut::A).layout(4), Err(LayoutError::Depth { actual: 19 }));
        for widen_factor in [0.0, -1.0, f64::NAN, 0.001, 1e9] {
            let architecture = Architecture { widen_factor, ..authors(18, Shortcut::A) };
            assert!(matches!(architecture.layout(4), Err(LayoutError::WidenFactor { .. })), "{widen_factor}");
        }
        assert_eq!(authors(18, Shortcut::A).layout(0), Err(LayoutError::NoClasses));
    }
}
