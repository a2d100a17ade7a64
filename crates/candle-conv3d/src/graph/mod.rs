//! A network as a graph of operations.
//!
//! A [`Graph`] says which operations a network has, in the order they run, on which results, with which parameters. Shapes are
//! inferred as nodes are added, and an operation that does not fit is refused by the name of its layer. Parameters are known by
//! their names in a checkpoint until [`bind`](Graph::bind) gives them values.
//!
//! One graph serves everything: [`compile`](Graph::compile) makes an inference plan for CPUs of it, `cuda` one for GPUs, a
//! [`Network`](crate::network::Network) trains it, [`mod@reference`] computes it with plain loops, [`Graph::table`] and
//! [`Graph::graphviz`] print it. [`passes`] are rewritings that keep its results.
//!
//! Shapes are those of one clip, (c, t, h, w); `[usize; 3]` is in (t, h, w) order.
//!
//! ```
//! use candle_conv3d::graph::{ConvConfig, Graph};
//! use candle_conv3d::plan::{Input, PlanOptions};
//!
//! let mut graph = Graph::new([3, 4, 8, 8])?;
//! let x = graph.conv("conv1", graph.input(), &ConvConfig { padding: [1; 3], ..ConvConfig::new(16, [3; 3]) })?;
//! let x = graph.batch_norm("bn1", x, 1e-5)?;
//! let x = graph.relu(x)?;
//! let features = graph.global_avg_pool(x)?;
//! graph.set_outputs(&[features])?;
//! graph.bind(|parameter| Ok::<_, std::convert::Infallible>(vec![0.1; parameter.len()]))?;
//!
//! let mut plan = graph.compile(PlanOptions { threads: 2, max_batch: 4, ..Default::default() })?;
//! let (clip, mut features) = (vec![1.0; 3 * 4 * 8 * 8], vec![0.0; 16]);
//! plan.run(Input::F32 { values: &clip, batch: 1 }, &mut [&mut features])?;
//! assert!(features[0] > 0.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
mod error;
mod operation;
pub mod passes;
mod print;
pub mod reference;

pub use crate::geometry::Window;
pub use build::{ConvConfig, PoolConfig};
pub use error::{BindError, GraphError};
pub use operation::{AvgPool, Conv, Linear, Nonlinearity, Norm, Operation, Parameter, Scale};

use crate::geometry::Shape;
use rayon::prelude::*;
use std::sync::Arc;

/// The result of an operation in a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) usize);

/// An operation with its inputs and the shape of its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) operation: Operation,
    pub(crate) inputs: Vec<NodeId>,
    pub(crate) shape: Shape,
}

impl Node {
    /// The layer's name: what its parameters' names begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it computes.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// What it reads.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// Shape of its result for one clip, (c, t, h, w).
    pub fn shape(&self) -> [usize; 4] {
        self.shape.dims()
    }
}

/// A network. See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// In the order they run: inputs of a node stand before it. The first is the clip.
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<NodeId>,
}

impl Graph {
    /// The clip.
    pub fn input(&self) -> NodeId {
        NodeId(0)
    }

    /// All nodes with their ids, in the order they run.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(index, node)| (NodeId(index), node))
    }

    /// A node of this graph.
    pub fn node(&self, id: NodeId) -> Result<&Node, GraphError> {
        self.nodes.get(id.0).ok_or_else(|| GraphError::UnknownNode { layer: "graph".to_owned(), index: id.0 })
    }

    /// Shape of a node for one clip, (c, t, h, w).
    pub fn shape(&self, id: NodeId) -> Result<[usize; 4], GraphError> {
        self.node(id).map(Node::shape)
    }

    /// What the network answers with, in this order.
    pub fn outputs(&self) -> &[NodeId] {
        &self.outputs
    }

    /// Sets what the network answers with.
    pub fn set_outputs(&mut self, outputs: &[NodeId]) -> Result<(), GraphError> {
        for &output in outputs {
            self.input_shape("output", output)?;
        }
        self.outputs = outputs.to_vec();
        Ok(())
    }

    /// Every parameter, in the order of the layers.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.nodes.iter().flat_map(|node| node.operation.parameters())
    }

    /// Gives every parameter its values, in row-major order of its shape. Several threads call `values`.
    pub fn bind<E: Send>(
        &mut self,
        values: impl Fn(&Parameter) -> Result<Vec<f32>, E> + Sync,
    ) -> Result<(), BindError<E>> {
        self.nodes.par_iter_mut().try_for_each(|node| {
            node.operation.parameters_mut().into_iter().try_for_each(|parameter| {
                let found = values(parameter).map_err(BindError::Values)?;
                let (actual, expected) = (found.len(), parameter.len());
                if actual != expected {
                    let name = parameter.name.clone();
                    return Err(GraphError::ParameterLength { name, actual, expected }.into());
                }
                parameter.values = Some(Arc::new(found));
                Ok(())
            })
        })
    }

    /// The graph as it was before it was bound.
    pub(crate) fn without_values(&self) -> Self {
        let mut graph = self.clone();
        graph.nodes.iter_mut().for_each(|node| {
            node.operation.parameters_mut().into_iter().for_each(|parameter| parameter.values = None);
        });
        graph
    }

    /// Multiply-adds of one clip, those with padding included.
    pub fn multiply_adds(&self) -> u64 {
        self.nodes.iter().map(Node::multiply_adds).sum()
    }

    /// How many of the nodes that outputs need read each node; an output is read once more.
    pub(crate) fn reader_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.nodes.len()];
        for &NodeId(index) in self.needed().flat_map(|(_, node)| &node.inputs).chain(&self.outputs) {
            counts[index] += 1;
        }
        counts
    }

    /// The nodes that outputs need, and the clip.
    pub(crate) fn needed(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes().zip(self.last_reads()).filter(|(_, last_read)| last_read.is_some()).map(|(node, _)| node)
    }

    /// Ids of [`needed`](Self::needed) nodes.
    pub(crate) fn needed_ids(&self) -> Vec<NodeId> {
        self.needed().map(|(id, _)| id).collect()
    }

    /// For each node the last that reads it (the number of nodes for an output), or `None` if no output needs it. The clip
    /// always counts as read.
    pub(crate) fn last_reads(&self) -> Vec<Option<usize>> {
        let mut last_reads = vec![None; self.nodes.len()];
        for output in &self.outputs {
            last_reads[output.0] = Some(self.nodes.len());
        }
        for (index, node) in self.nodes.iter().enumerate().rev() {
            if last_reads[index].is_some() {
                for input in &node.inputs {
                    last_reads[input.0].get_or_insert(index);
                }
            }
        }
        last_reads[0].get_or_insert(self.nodes.len());
        last_reads
    }
}

impl Node {
    /// Multiply-adds of one clip, those with padding included.
    pub fn multiply_adds(&self) -> u64 {
        match &self.operation {
            Operation::Conv(conv) => (self.shape.len() * conv.weight.shape[1..].iter().product::<usize>()) as u64,
            Operation::Linear(linear) => linear.weight.len() as u64,
            _ => 0,
        }
    }
}
