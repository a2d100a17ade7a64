//! A graph on a [`Tape`].

use candle_core::{Result, Tensor};

use super::{Mode, Network, only_readers};
use crate::graph::{Conv, Graph, NodeId, Nonlinearity, Norm, Operation};
use crate::{
    Activation, BatchStatistics, Conv3dConfig, ConvNormLayer, Following, MaxPool3dConfig, Statistics, Tape, Volume,
};

/// Nodes that a tape computes as one.
#[derive(Debug, Clone)]
pub(super) struct TapeStep {
    input: NodeId,
    /// The node whose result it is.
    output: NodeId,
    layer: Layer,
}

#[derive(Debug, Clone)]
enum Layer {
    /// A convolution, its norm, the residual that is added, ReLU, a max pool.
    ConvNorm {
        conv: NodeId,
        norm: NodeId,
        add: Option<NodeId>,
        relu: bool,
        max_pool: Option<MaxPool3dConfig>,
    },
    StridedPick {
        stride: usize,
        channels: usize,
    },
    Mean,
}

/// The steps from the clip to the global average pooling, in the order they run; `None` if a tape can't take them.
pub(super) fn steps(graph: &Graph) -> Option<Vec<TapeStep>> {
    let needed = graph.last_reads();
    let is_needed = |id: NodeId| needed[id.0].is_some();
    let mut pools =
        graph.nodes().filter(|(id, node)| is_needed(*id) && matches!(node.operation(), Operation::GlobalAvgPool));
    let (Some((end, _)), None) = (pools.next(), pools.next()) else { return None };
    let before = |id: NodeId| id <= end && is_needed(id);
    // Nothing behind the end reads what is before it, and no output is there.
    let crossed = graph.nodes().filter(|(id, _)| *id > end).flat_map(|(_, node)| node.inputs()).chain(graph.outputs());
    if crossed.into_iter().any(|input| *input < end) {
        return None;
    }
    let readers = only_readers(graph);
    let mut covered = vec![false; end.0 + 1];
    covered[0] = true;
    let mut steps = Vec::new();
    for (id, node) in graph.nodes().filter(|(id, _)| before(*id)) {
        let step = match node.operation() {
            Operation::BatchNorm(_) => conv_norm(graph, &readers, id)?,
            &Operation::StridedPick([stride, h, w]) if [h, w] == [stride; 2] => {
                let layer = Layer::StridedPick { stride, channels: node.shape()[0] };
                TapeStep { input: node.inputs()[0], output: id, layer }
            }
            Operation::GlobalAvgPool => TapeStep { input: node.inputs()[0], output: id, layer: Layer::Mean },
            _ => continue,
        };
        for covered_id in step.nodes(graph, &readers) {
            covered[covered_id.0] = true;
        }
        steps.push(step);
    }
    let all = graph.nodes().filter(|(id, _)| before(*id)).all(|(id, _)| covered[id.0]);
    steps.sort_by_key(|step| step.output);
    all.then_some(steps)
}

/// The convolution whose norm is `norm`, with all that follows it; `None` if there is none that a tape can take.
fn conv_norm(graph: &Graph, readers: &[Option<NodeId>], norm: NodeId) -> Option<TapeStep> {
    let conv_id = graph.nodes[norm.0].inputs[0];
    let conv = plain_conv(graph, conv_id).filter(|_| readers[conv_id.0] == Some(norm))?;
    let mut output = norm;
    let mut add = None;
    if let Some(sum) = readers[output.0].filter(|sum| matches!(graph.nodes[sum.0].operation, Operation::Add)) {
        let &[first, second] = graph.nodes[sum.0].inputs.as_slice() else { return None };
        // Where both sides are norms, the first takes the second.
        let other = if first == norm { second } else { first };
        let other_takes = first != norm && readers[other.0] == Some(sum) && is_norm(graph, other);
        if first != second && !other_takes {
            (add, output) = (Some(other), sum);
        }
    }
    let mut relu = false;
    if let Some(id) = readers[output.0]
        && matches!(graph.nodes[id.0].operation, Operation::Nonlinearity(Nonlinearity::Relu))
    {
        (relu, output) = (true, id);
    }
    let mut max_pool = None;
    if let (Some(id), None) = (readers[output.0], add)
        && let Operation::MaxPool(window) = &graph.nodes[id.0].operation
        && window.padding == window.padding_after
    {
        let (kernel, stride, padding) = (window.kernel, window.stride, window.padding);
        max_pool = Some(MaxPool3dConfig { kernel, stride, padding });
        output = id;
    }
    let input = graph.nodes[conv_id.0].inputs[0];
    debug_assert_eq!(conv.groups, 1);
    Some(TapeStep { input, output, layer: Layer::ConvNorm { conv: conv_id, norm, add, relu, max_pool } })
}

/// A convolution that a tape has: without groups, bias and padding that differs before and after, and with less padding than
/// kernel.
fn plain_conv(graph: &Graph, id: NodeId) -> Option<&Conv> {
    match &graph.nodes[id.0].operation {
        Operation::Conv(conv)
            if conv.groups == 1
                && conv.bias.is_none()
                && conv.window.padding == conv.window.padding_after
                && (0..3).all(|axis| conv.window.padding[axis] < conv.window.kernel[axis]) =>
        {
            Some(conv)
        }
        _ => None,
    }
}

fn is_norm(graph: &Graph, id: NodeId) -> bool {
    matches!(graph.nodes[id.0].operation, Operation::BatchNorm(_))
}

impl TapeStep {
    /// The nodes that it computes.
    fn nodes(&self, graph: &Graph, readers: &[Option<NodeId>]) -> Vec<NodeId> {
        match self.layer {
            Layer::ConvNorm { conv, norm, .. } => {
                let mut nodes = vec![conv, norm];
                let mut last = norm;
                while last != self.output {
                    last = readers[last.0].expect("a step ends behind its norm");
                    nodes.push(last);
                }
                debug_assert!(nodes.iter().all(|id| id.0 < graph.nodes.len()));
                nodes
            }
            Layer::StridedPick { .. } | Layer::Mean => vec![self.output],
        }
    }
}

impl Network {
    /// Goes over `tape` up to the mean, and gives its node and result.
    pub(super) fn record(
        &self,
        steps: &[TapeStep],
        tape: &mut Tape,
        clips: Volume,
        mode: &Mode,
    ) -> Result<(NodeId, Tensor)> {
        let mut volumes: Vec<Option<Volume>> = vec![None; self.graph.nodes.len()];
        volumes[0] = Some(clips);
        for step in steps {
            let volume_of = |id: NodeId| volumes[id.0].as_ref().expect("steps run in order");
            let input = volume_of(step.input);
            let output = match &step.layer {
                Layer::ConvNorm { conv, norm, add, relu, max_pool } => {
                    let following = match (add, max_pool) {
                        (Some(other), _) => Following::Add(volume_of(*other)),
                        (None, Some(config)) => Following::MaxPool(*config),
                        (None, None) => Following::Nothing,
                    };
                    self.record_conv_norm(tape, input, [*conv, *norm], *relu, following, mode)?
                }
                &Layer::StridedPick { stride, channels } => tape.strided_shortcut(input, stride, channels)?,
                Layer::Mean => return Ok((step.output, tape.mean(input)?)),
            };
            volumes[step.output.0] = Some(output);
        }
        unreachable!("the last step is the mean")
    }

    fn record_conv_norm(
        &self,
        tape: &mut Tape,
        input: &Volume,
        [conv, norm_id]: [NodeId; 2],
        relu: bool,
        following: Following<'_>,
        mode: &Mode,
    ) -> Result<Volume> {
        let (Operation::Conv(conv), norm) = (&self.graph.nodes[conv.0].operation, &self.graph.nodes[norm_id.0]) else {
            unreachable!("a step's first node is a convolution")
        };
        let Operation::BatchNorm(Norm { weight, bias, mean, variance, epsilon }) = &norm.operation else {
            unreachable!("a step's second node is a norm")
        };
        let statistics = if mode.batch_norms.contains(&norm.name) {
            Statistics::Batch
        } else {
            Statistics::Fixed { mean: self.tensor(mean), variance: self.tensor(variance) }
        };
        let layer = ConvNormLayer {
            weight: self.tensor(&conv.weight),
            config: Conv3dConfig { stride: conv.window.stride, padding: conv.window.padding },
            norm_weight: self.tensor(weight),
            norm_bias: self.tensor(bias),
            statistics,
            epsilon: *epsilon,
            activation: if relu { Activation::Relu } else { Activation::Identity },
            following,
        };
        let (output, statistics) = tape.conv_norm(input, &layer)?;
        if let (Some(BatchStatistics { mean, variance, count }), Operation::BatchNorm(norm)) =
            (statistics, &norm.operation)
        {
            self.move_statistics(norm, &mean, &variance, count)?;
        }
        Ok(output)
    }
}
