//! Networks for the tests of this module.

use crate::plan::graph::{ConvSpec, GraphBuilder, Node, Residual};

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

/// Makes one convolution after the other, with random weights and biases of their own, for (in channels, out channels, kernel,
/// gain).
fn convolutions(mut seed: u64) -> impl FnMut(usize, usize, [usize; 3], f32) -> ConvSpec<'static> {
    move |from, to, kernel, gain| {
        seed += 1;
        let fan_in = from * kernel.iter().product::<usize>();
        let scale = gain * (6.0 / fan_in as f32).sqrt();
        let weight: Vec<f32> = noise(seed, to * fan_in).iter().map(|w| scale * w).collect();
        ConvSpec::new(format!("conv{seed}"), to, kernel, weight, noise(100 + seed, to))
    }
}

/// A 3D ResNet of one block a stage, with shortcut A, on clips of shape `dims`. Outputs logits and features.
pub(crate) fn residual_network(dims: [usize; 4], widths: [usize; 4]) -> (GraphBuilder<'static>, Vec<Node>) {
    let mut graph = GraphBuilder::new(dims).unwrap();
    let mut conv = convolutions(0);
    let (padding, relu) = ([1; 3], true);
    let stem = ConvSpec { stride: [1, 2, 2], padding: [3; 3], relu, ..conv(dims[0], widths[0], [7; 3], 0.02) };
    let mut x = graph.conv(graph.input(), stem).unwrap();
    x = graph.max_pool(x, [3; 3], [2; 3], [1; 3]).unwrap();
    let mut channels = widths[0];
    for (stage, to) in widths.into_iter().enumerate() {
        let stride = [if stage == 0 { 1 } else { 2 }; 3];
        let y = graph.conv(x, ConvSpec { stride, padding, relu, ..conv(channels, to, [3; 3], 1.0) }).unwrap();
        let residual = match stage {
            0 => Residual::Identity(x),
            _ => Residual::Strided { node: x, stride },
        };
        let spec = ConvSpec { padding, residual: Some(residual), relu, ..conv(to, to, [3; 3], 0.5) };
        x = graph.conv(y, spec).unwrap();
        channels = to;
    }
    let features = graph.global_avg_pool(x).unwrap();
    let logits = graph.linear(features, noise(90, 21 * channels), noise(91, 21)).unwrap();
    (graph, vec![logits, features])
}

/// As above with bottlenecks and shortcut B.
pub(crate) fn bottleneck_network(dims: [usize; 4], width: usize) -> (GraphBuilder<'static>, Vec<Node>) {
    let mut graph = GraphBuilder::new(dims).unwrap();
    let mut conv = convolutions(200);
    let relu = true;
    let stem = ConvSpec { stride: [1, 2, 2], padding: [1, 3, 3], relu, ..conv(dims[0], width, [3, 7, 7], 0.02) };
    let mut x = graph.conv(graph.input(), stem).unwrap();
    let mut channels = width;
    for (stage, middle) in [width, 2 * width, 4 * width, 4 * width].into_iter().enumerate() {
        let stride = [if stage == 0 { 1 } else { 2 }; 3];
        let to = 4 * middle;
        let mut y = graph.conv(x, ConvSpec { relu, ..conv(channels, middle, [1; 3], 1.0) }).unwrap();
        y = graph.conv(y, ConvSpec { stride, padding: [1; 3], relu, ..conv(middle, middle, [3; 3], 1.0) }).unwrap();
        let projected = graph.conv(x, ConvSpec { stride, ..conv(channels, to, [1; 3], 0.7) }).unwrap();
        let residual = Some(Residual::Identity(projected));
        x = graph.conv(y, ConvSpec { residual, relu, ..conv(middle, to, [1; 3], 0.7) }).unwrap();
        channels = to;
    }
    let features = graph.global_avg_pool(x).unwrap();
    let logits = graph.linear(features, noise(90, 21 * channels), noise(91, 21)).unwrap();
    (graph, vec![logits, features, x])
}
