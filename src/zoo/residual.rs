//! What families of residual networks share: depths, blocks, groups of layers.

use std::fmt;

use candle_conv3d::graph::{ConvConfig, Graph, NodeId, PoolConfig};

use super::resnet3d::{Shortcut, Stem};
use super::{ArchitectureError, DetectError, LayerGroup, TensorShapes};

/// Depths of the authors' code.
pub const DEPTHS: [u32; 7] = [10, 18, 34, 50, 101, 152, 200];

/// Channels of the four stages of a 3D ResNet.
pub(super) const WIDTHS: [u16; 4] = [64, 128, 256, 512];

/// Channels out of a bottleneck relative to its middle.
pub(super) const BOTTLENECK_EXPANSION: usize = 4;

/// The same for ResNeXt and wide ResNets.
pub(super) const NARROW_EXPANSION: usize = 2;

/// `eps` of PyTorch's batch norm.
pub(super) const EPSILON: f64 = 1e-5;

/// Name of the last, linear layer.
pub(crate) const HEAD: &str = "fc";

/// Its weight.
pub(crate) const HEAD_WEIGHT: &str = "fc.weight";

/// What the last layer is called where it is not `fc`: by mmaction2, by training frameworks, and as a sequence with dropout.
pub(crate) const HEAD_ALIASES: [&str; 14] = [
    "cls_head.fc_cls",
    "head.fc_cls",
    "fc_cls",
    "cls_head.fc",
    "head.fc",
    "head.projection",
    "head",
    "classifier",
    "linear",
    "last_linear",
    "logits",
    "fc.0",
    "fc.1",
    "fc.2",
];

/// Names of the four stages.
pub(super) const STAGES: [&str; 4] = ["layer1", "layer2", "layer3", "layer4"];

/// Blocks in each stage and whether they are bottlenecks (3D-ResNets-PyTorch, `generate_model`).
pub(super) fn stages(depth: u32) -> Result<([usize; 4], bool), ArchitectureError> {
    Ok(match depth {
        10 => ([1, 1, 1, 1], false),
        18 => ([2, 2, 2, 2], false),
        34 => ([3, 4, 6, 3], false),
        50 => ([3, 4, 6, 3], true),
        101 => ([3, 4, 23, 3], true),
        152 => ([3, 8, 36, 3], true),
        200 => ([3, 24, 36, 3], true),
        actual => return Err(ArchitectureError::Depth { actual }),
    })
}

/// The depth of a network whose blocks have a tensor `first` each, and one `third` where they are bottlenecks.
pub(super) fn detect_depth(shapes: &TensorShapes, firsts: &[&str], third: &str) -> Result<u32, DetectError> {
    let bottleneck = shapes.has(&format!("layer1.0.{third}"));
    let blocks = STAGES.map(|stage| {
        let has = |index: &usize| firsts.iter().any(|first| shapes.has(&format!("{stage}.{index}.{first}")));
        (0..).take_while(has).count()
    });
    let depth = DEPTHS.into_iter().find(|&depth| stages(depth) == Ok((blocks, bottleneck)));
    depth.ok_or(DetectError::UnknownDepth { blocks, bottleneck })
}

/// Names of the parameters of a residual network by their groups.
pub(super) fn layer_groups(stem: &'static str, stem_prefixes: &[&'static str]) -> Vec<LayerGroup> {
    let stages = STAGES.map(|name| LayerGroup { name, prefixes: vec![name] });
    let stem = LayerGroup { name: stem, prefixes: stem_prefixes.to_vec() };
    let head = LayerGroup { name: HEAD, prefixes: vec![HEAD] };
    std::iter::once(stem).chain(stages).chain([head]).collect()
}

/// Adds a convolution and its batch norm.
pub(super) fn conv_norm(
    graph: &mut Graph,
    [conv, norm]: [&str; 2],
    x: NodeId,
    config: &ConvConfig,
    epsilon: f64,
) -> Result<NodeId, ArchitectureError> {
    let x = graph.conv(conv, x, config)?;
    Ok(graph.batch_norm(norm, x, epsilon)?)
}

/// Adds a convolution, its batch norm and ReLU.
pub(super) fn conv_norm_relu(
    graph: &mut Graph,
    names: [&str; 2],
    x: NodeId,
    config: &ConvConfig,
    epsilon: f64,
) -> Result<NodeId, ArchitectureError> {
    let x = conv_norm(graph, names, x, config, epsilon)?;
    Ok(graph.relu(x)?)
}

/// Adds the sum of both ways through a block, and ReLU.
pub(super) fn join(graph: &mut Graph, main: NodeId, shortcut: NodeId) -> Result<NodeId, ArchitectureError> {
    let sum = graph.add(main, shortcut)?;
    Ok(graph.relu(sum)?)
}

/// A convolution with a cubic kernel, padded to keep the size.
pub(super) fn cube(channels: usize, kernel: usize, stride: usize) -> ConvConfig {
    ConvConfig { stride: [stride; 3], padding: [kernel / 2; 3], ..ConvConfig::new(channels, [kernel; 3]) }
}

/// Channels of the four stages: those of a whole network times a factor.
pub(super) fn scaled_widths(whole: [u16; 4], widen_factor: f64) -> Result<[usize; 4], ArchitectureError> {
    let widths = whole.map(|width| (f64::from(width) * widen_factor) as usize);
    if !(widen_factor > 0.0 && widen_factor <= 16.0 && widths[0] > 0) {
        return Err(ArchitectureError::WidenFactor { actual: widen_factor });
    }
    Ok(widths)
}

/// The factor that gives the last stage's first convolution `name` as many channels as it has. Only the last stage tells: with
/// a factor `w` it has `floor(512 w)` channels, and the others are floors of parts of that.
pub(super) fn detect_factor(
    shapes: &TensorShapes,
    name: &str,
    expected: &str,
    whole: [u16; 4],
) -> Result<f64, DetectError> {
    let [last_width, ..] = shapes.shape::<5>(name, expected)?;
    Ok(last_width as f64 / f64::from(whole[3]))
}

/// Says a factor of channels that is not 1.
pub(super) fn fmt_factor(f: &mut fmt::Formatter<'_>, widen_factor: f64) -> fmt::Result {
    if widen_factor == 1.0 { Ok(()) } else { write!(f, ", channels x {widen_factor}") }
}

/// Adds the stem of the authors' networks: a 7x7x7 convolution with spatial stride 2, norm, ReLU, max pool.
pub(super) fn authors_stem(graph: &mut Graph, channels: usize) -> Result<NodeId, ArchitectureError> {
    let input = graph.input();
    let x = conv_norm_relu(graph, ["conv1", "bn1"], input, &Stem::AUTHORS.conv(channels)?, EPSILON)?;
    stem_pool(graph, x)
}

/// A block to add.
pub(super) struct Block<'a> {
    pub(super) name: &'a str,
    pub(super) input: NodeId,
    /// Channels of its middle.
    pub(super) width: usize,
    pub(super) stride: usize,
}

/// Adds four stages of blocks, the first block of each later stage with stride 2.
pub(super) fn add_stages(
    graph: &mut Graph,
    mut x: NodeId,
    counts: [usize; 4],
    widths: [usize; 4],
    add: impl Fn(&mut Graph, &Block<'_>) -> Result<NodeId, ArchitectureError>,
) -> Result<NodeId, ArchitectureError> {
    for (stage, (count, width)) in counts.into_iter().zip(widths).enumerate() {
        for index in 0..count {
            let name = format!("{}.{index}", STAGES[stage]);
            x = add(graph, &Block { name: &name, input: x, width, stride: block_stride(stage, index) })?;
        }
    }
    Ok(x)
}

/// The convolutions of a residual block: two of 3x3x3, or the three of a bottleneck. The first of 3x3x3 has the stride.
pub(super) fn block_convs(width: usize, stride: usize, bottleneck: bool) -> Vec<ConvConfig> {
    if bottleneck {
        vec![cube(width, 1, 1), cube(width, 3, stride), cube(width * BOTTLENECK_EXPANSION, 1, 1)]
    } else {
        vec![cube(width, 3, stride), cube(width, 3, 1)]
    }
}

/// Channels out of a block of these convolutions.
pub(super) fn channels_of(convs: &[ConvConfig]) -> usize {
    convs.last().map_or(0, |conv| conv.channels)
}

/// Adds a block's convolutions one after the other, each with its norm by `add`, which is told its number from 1 on; ReLU
/// between them.
pub(super) fn add_convs(
    graph: &mut Graph,
    mut x: NodeId,
    convs: &[ConvConfig],
    add: impl Fn(&mut Graph, usize, NodeId, &ConvConfig) -> Result<NodeId, ArchitectureError>,
) -> Result<NodeId, ArchitectureError> {
    for (index, config) in convs.iter().enumerate() {
        x = add(graph, index + 1, x, config)?;
        if index + 1 < convs.len() {
            x = graph.relu(x)?;
        }
    }
    Ok(x)
}

/// Adds the bottleneck of ResNeXt and of wide ResNets: its output has twice its middle's channels, and the middle's
/// convolution may have groups.
pub(super) fn narrow_bottleneck(
    graph: &mut Graph,
    block: &Block<'_>,
    groups: usize,
) -> Result<NodeId, ArchitectureError> {
    let &Block { name, input, width, stride } = block;
    let channels = width * NARROW_EXPANSION;
    let convs = [cube(width, 1, 1), ConvConfig { groups, ..cube(width, 3, stride) }, cube(channels, 1, 1)];
    let x = add_convs(graph, input, &convs, |graph, number, x, config| {
        let [conv, norm] = ["conv", "bn"].map(|layer| format!("{name}.{layer}{number}"));
        conv_norm(graph, [&conv, &norm], x, config, EPSILON)
    })?;
    let shortcut = add_shortcut(graph, block, channels, Shortcut::B, EPSILON)?;
    join(graph, x, shortcut)
}

/// Adds the other way through a block: its input, or a shortcut of a kind where the shape changes.
pub(super) fn add_shortcut(
    graph: &mut Graph,
    block: &Block<'_>,
    out_channels: usize,
    kind: Shortcut,
    epsilon: f64,
) -> Result<NodeId, ArchitectureError> {
    let &Block { name, input, stride, .. } = block;
    if stride == 1 && channels(graph, input)? == out_channels {
        return Ok(input);
    }
    match kind {
        Shortcut::A => Ok(graph.strided_pick(input, [stride; 3], out_channels)?),
        Shortcut::B => {
            let [conv, norm] = [0, 1].map(|index| format!("{name}.downsample.{index}"));
            conv_norm(graph, [&conv, &norm], input, &cube(out_channels, 1, stride), epsilon)
        }
    }
}

/// Blocks in each stage of a network that has bottlenecks at every depth.
pub(super) fn bottleneck_stages(family: &'static str, depth: u32) -> Result<[usize; 4], ArchitectureError> {
    match stages(depth)? {
        (counts, true) => Ok(counts),
        (_, false) => Err(ArchitectureError::Setting {
            family,
            key: "depth".to_owned(),
            reason: format!("{depth} has no bottlenecks; allowed are 50, 101, 152 and 200"),
        }),
    }
}

/// Adds the max pool behind a stem: 3x3x3, stride 2, padding 1.
pub(super) fn stem_pool(graph: &mut Graph, x: NodeId) -> Result<NodeId, ArchitectureError> {
    Ok(graph.max_pool(x, &PoolConfig { padding: [1; 3], ..PoolConfig::new([3; 3], [2; 3]) })?)
}

/// Channels of a node.
pub(super) fn channels(graph: &Graph, x: NodeId) -> Result<usize, ArchitectureError> {
    Ok(graph.shape(x)?[0])
}

/// Stride of a stage's block: 2 where a later stage begins.
pub(super) fn block_stride(stage: usize, block: usize) -> usize {
    if stage > 0 && block == 0 { 2 } else { 1 }
}

/// Channels between the spatial and the temporal part of a (2+1)D convolution, such that both have as many weights as the
/// 3D convolution of this kernel (Tran et al. 2018, section 3.5).
pub(super) fn factored_channels(from: usize, to: usize, [kt, kh, kw]: [usize; 3]) -> usize {
    (kt * kh * kw * from * to) / (kh * kw * from + kt * to)
}

/// The spatial and the temporal part of a (2+1)D convolution, with `middle` channels between them.
pub(super) fn factors(config: &ConvConfig, middle: usize) -> [ConvConfig; 2] {
    let ([kt, kh, kw], [st, sh, sw], [pt, ph, pw]) = (config.kernel, config.stride, config.padding);
    [
        ConvConfig { stride: [1, sh, sw], padding: [0, ph, pw], ..ConvConfig::new(middle, [1, kh, kw]) },
        ConvConfig { stride: [st, 1, 1], padding: [pt, 0, 0], ..ConvConfig::new(config.channels, [kt, 1, 1]) },
    ]
}
