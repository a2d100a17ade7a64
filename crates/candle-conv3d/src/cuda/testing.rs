//! Networks for the tests of this module.

use crate::graph::{ConvConfig, Graph, NodeId, Parameter, PoolConfig};

/// A repeatable value in -1..1 for each (seed, index).
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64)
        .map(|index| {
            let mut z = (seed << 32).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A 3D ResNet of one block a stage, with shortcut A, on clips of shape `dims`. Outputs logits and features.
pub(crate) fn residual_network(dims: [usize; 4], widths: [usize; 4]) -> Graph {
    let mut graph = Graph::new(dims).unwrap();
    let stem = ConvConfig { stride: [1, 2, 2], padding: [3; 3], ..with_bias(widths[0], [7; 3]) };
    let x = graph.conv("stem", graph.input(), &stem).unwrap();
    let x = graph.relu(x).unwrap();
    let mut x = graph.max_pool(x, &PoolConfig { padding: [1; 3], ..PoolConfig::new([3; 3], [2; 3]) }).unwrap();
    for (stage, channels) in widths.into_iter().enumerate() {
        let stride = [if stage == 0 { 1 } else { 2 }; 3];
        let first = ConvConfig { stride, padding: [1; 3], ..with_bias(channels, [3; 3]) };
        let y = graph.conv(&format!("{stage}.conv1"), x, &first).unwrap();
        let y = graph.relu(y).unwrap();
        let second = ConvConfig { padding: [1; 3], ..with_bias(channels, [3; 3]) };
        let y = graph.conv(&format!("{stage}.last"), y, &second).unwrap();
        let shortcut = if stage == 0 { x } else { graph.strided_pick(x, stride, channels).unwrap() };
        x = joined(&mut graph, y, shortcut);
    }
    with_head(graph, x, false)
}

/// As above with bottlenecks and shortcut B.
pub(crate) fn bottleneck_network(dims: [usize; 4], width: usize) -> Graph {
    let mut graph = Graph::new(dims).unwrap();
    let stem = ConvConfig { stride: [1, 2, 2], padding: [1, 3, 3], ..with_bias(width, [3, 7, 7]) };
    let x = graph.conv("stem", graph.input(), &stem).unwrap();
    let mut x = graph.relu(x).unwrap();
    for (stage, middle) in [width, 2 * width, 4 * width, 4 * width].into_iter().enumerate() {
        let stride = [if stage == 0 { 1 } else { 2 }; 3];
        let name = |layer: &str| format!("{stage}.{layer}");
        let projection = ConvConfig { stride, ..with_bias(4 * middle, [1; 3]) };
        let shortcut = graph.conv(&name("downsample"), x, &projection).unwrap();
        let y = graph.conv(&name("conv1"), x, &with_bias(middle, [1; 3])).unwrap();
        let y = graph.relu(y).unwrap();
        let second = ConvConfig { stride, padding: [1; 3], ..with_bias(middle, [3; 3]) };
        let y = graph.conv(&name("conv2"), y, &second).unwrap();
        let y = graph.relu(y).unwrap();
        let y = graph.conv(&name("last"), y, &with_bias(4 * middle, [1; 3])).unwrap();
        x = joined(&mut graph, y, shortcut);
    }
    with_head(graph, x, true)
}

fn with_bias(channels: usize, kernel: [usize; 3]) -> ConvConfig {
    ConvConfig { bias: true, ..ConvConfig::new(channels, kernel) }
}

fn joined(graph: &mut Graph, y: NodeId, shortcut: NodeId) -> NodeId {
    let sum = graph.add(y, shortcut).unwrap();
    graph.relu(sum).unwrap()
}

/// Logits, features and, if `all`, the last activation; and values: He-initialised, the stem's small, those at the ends of
/// blocks smaller, so that activations keep their size.
fn with_head(mut graph: Graph, x: NodeId, all: bool) -> Graph {
    let features = graph.global_avg_pool(x).unwrap();
    let logits = graph.linear("fc", features, 21).unwrap();
    let outputs = [logits, features, x];
    graph.set_outputs(&outputs[..if all { 3 } else { 2 }]).unwrap();
    let values = |parameter: &Parameter| {
        let seed =
            parameter.name.bytes().fold(9u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())) >> 32;
        let gain = match parameter.name.as_str() {
            name if name.starts_with("stem") => 0.02,
            name if name.contains("last") || name.contains("downsample") => 0.6,
            _ => 1.0,
        };
        let noise = noise(seed, parameter.len());
        Ok::<_, std::convert::Infallible>(match parameter.shape.as_slice() {
            [_, fan_in @ ..] if fan_in.len() == 4 => {
                let scale = gain * (6.0 / fan_in.iter().product::<usize>() as f32).sqrt();
                noise.iter().map(|w| scale * w).collect()
            }
            _ => noise,
        })
    };
    graph.bind(values).unwrap();
    graph
}
