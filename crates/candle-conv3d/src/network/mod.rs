//! A graph with tensors: forward and backward, for training and as candle's own way to compute a network.
//!
//! Where every operation up to the global average pooling is one that a [`Tape`] has, a pass goes over one; the rest, and
//! networks that a tape can't take, are operations on candle's tensors.

mod on_tape;
mod on_tensors;

use std::collections::{HashMap, HashSet};

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var, bail};

use crate::graph::{Graph, NodeId, Norm, Operation, Parameter};
use crate::{BatchNormOutput, Precision, Tape, Volume};
use on_tape::TapeStep;

/// Share of a batch's statistics in the running ones after it, as in PyTorch.
const MOMENTUM: f64 = 0.1;

/// A graph and a tensor for each of its parameters.
///
/// Where tensors are variables, gradients reach them and running statistics are kept in them; where they are plain tensors, no
/// gradient is tracked.
#[derive(Debug, Clone)]
pub struct Network {
    graph: Graph,
    tensors: HashMap<String, Tensor>,
    /// The way over a tape up to its end, if there is one.
    tape_steps: Option<Vec<TapeStep>>,
}

/// What a pass does differently in training.
#[derive(Debug, Clone, Default)]
pub struct Mode {
    /// Names of the batch norms that take their statistics from the batch, and move their running ones.
    pub batch_norms: HashSet<String>,
    /// Seed of what dropout drops; nothing is dropped without one.
    pub dropout: Option<u64>,
}

/// Outputs, and the way back from a loss over them to the gradients of all variables.
#[derive(Debug)]
pub struct ForwardPass {
    /// In the graph's order, each (n, c) or (n, c, t, h, w).
    pub outputs: Vec<Tensor>,
    tape: Tape,
}

impl ForwardPass {
    /// Gradients of a `loss` of the outputs.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        let mut gradients = loss.backward()?;
        self.tape.backward(&mut gradients)?;
        Ok(gradients)
    }
}

impl Mode {
    /// All batch norms of a graph by their batches.
    pub fn training(graph: &Graph) -> Self {
        let norms = graph.nodes().filter(|(_, node)| matches!(node.operation(), Operation::BatchNorm(_)));
        Self { batch_norms: norms.map(|(_, node)| node.name().to_owned()).collect(), dropout: None }
    }
}

impl Network {
    /// A network of `tensors`, one for each parameter of the graph.
    pub fn new(graph: Graph, tensors: HashMap<String, Tensor>) -> Result<Self> {
        for Parameter { name, shape, .. } in graph.parameters() {
            match tensors.get(name) {
                Some(tensor) if tensor.dims() == shape => {}
                Some(tensor) => bail!("tensor {name} has shape {:?}; expected {shape:?}", tensor.dims()),
                None => bail!("tensor {name} is missing; expected shape {shape:?}"),
            }
        }
        let tape_steps = on_tape::steps(&graph);
        Ok(Self { graph, tensors, tape_steps })
    }

    /// The operations.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Whether [`forward_pass`](Self::forward_pass) can go over a [`Tape`].
    pub fn uses_tape(&self) -> bool {
        self.tape_steps.is_some()
    }

    /// Outputs for `clips` (n, c, t, h, w) as when the network is served, by operations on tensors.
    pub fn forward(&self, clips: &Tensor) -> Result<Vec<Tensor>> {
        self.on_tensors(clips, &Mode::default(), HashMap::new())
    }

    /// As [`forward`](Self::forward) in a mode of training.
    pub fn forward_in(&self, clips: &Tensor, mode: &Mode) -> Result<Vec<Tensor>> {
        self.on_tensors(clips, mode, HashMap::new())
    }

    /// The way of training: over a [`Tape`] as far as it can take the clips and the network, which computes in `precision` then.
    pub fn forward_pass(&self, clips: &Tensor, mode: &Mode, precision: Precision) -> Result<ForwardPass> {
        let mut tape = Tape::default();
        let mut known = HashMap::new();
        if let Some(steps) = self.tape_steps.as_ref().filter(|_| Tape::takes(clips)) {
            let (node, features) = self.record(steps, &mut tape, Volume::with_precision(clips, precision)?, mode)?;
            known.insert(node, features);
        }
        Ok(ForwardPass { outputs: self.on_tensors(clips, mode, known)?, tape })
    }

    fn tensor(&self, parameter: &Parameter) -> &Tensor {
        &self.tensors[&parameter.name]
    }

    /// Moves running statistics that are variables towards those of a batch with `count` values a channel. As in PyTorch, the
    /// variance that is kept is the unbiased one, while that which normalises is biased.
    fn move_statistics(&self, norm: &Norm, mean: &Tensor, variance: &Tensor, count: usize) -> Result<()> {
        if count < 2 {
            bail!(
                "batch norm has {count} value a channel in training; it needs 2: take more clips a batch, or longer ones"
            );
        }
        let unbiased = (variance * (count as f64 / (count - 1) as f64))?;
        for (running, batch) in [(self.tensor(&norm.mean), mean), (self.tensor(&norm.variance), &unbiased)] {
            if running.is_variable() {
                let kept = (running.detach() * (1.0 - MOMENTUM))?;
                let moved = (kept + (batch.to_dtype(running.dtype())? * MOMENTUM)?)?;
                // A variable's tensor becomes that same variable.
                Var::from_tensor(running)?.set(&moved)?;
            }
        }
        Ok(())
    }
}

/// For each node the only node that reads it; `None` for those that several or none read, and for outputs.
fn only_readers(graph: &Graph) -> Vec<Option<NodeId>> {
    let counts = graph.reader_counts();
    let mut readers = vec![None; counts.len()];
    for (id, node) in graph.needed() {
        for input in node.inputs() {
            if counts[input.0] == 1 {
                readers[input.0] = Some(id);
            }
        }
    }
    readers
}
