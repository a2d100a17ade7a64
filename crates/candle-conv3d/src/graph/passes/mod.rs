//! Rewritings of a graph that keep its results, each small and alone.
//!
//! [`prepare`] applies all of them, in the order that inference wants.

mod fold_norms;
mod fuse;
mod prune;

pub use fold_norms::fold_norms;
pub use fuse::{fuse_nonlinearities, fuse_residuals};
pub use prune::{remove_dropout, remove_unread};

use super::{Graph, NodeId};

/// The graph as an inference plan computes it: batch norms folded, residuals and nonlinearities at the ends of the operations
/// before them, nothing that no output needs.
pub fn prepare(graph: Graph) -> Graph {
    let graph = remove_dropout(graph);
    let graph = fold_norms(graph);
    let graph = fuse_residuals(graph);
    let graph = fuse_nonlinearities(graph);
    remove_unread(graph)
}

impl Graph {
    /// Makes every reader of `old` read `new` instead.
    fn redirect(&mut self, old: NodeId, new: NodeId) {
        let reads = self.nodes.iter_mut().flat_map(|node| &mut node.inputs).chain(&mut self.outputs);
        reads.filter(|read| **read == old).for_each(|read| *read = new);
    }
}

#[cfg(test)]
mod testing {
    //! Graphs with values, and their results by plain loops.

    use crate::graph::{Graph, Operation, reference};

    /// A repeatable value in -1..1.
    pub(super) fn noise(seed: &str, index: usize) -> f32 {
        let seed = seed.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut z = (seed ^ (index as u64) << 20).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Gives every parameter values; variances are positive.
    pub(super) fn bind(graph: &mut Graph) {
        let values = |parameter: &crate::graph::Parameter| {
            let least = if parameter.name.ends_with("running_var") { 1.5 } else { 0.0 };
            Ok::<_, std::convert::Infallible>((0..parameter.len()).map(|i| least + noise(&parameter.name, i)).collect())
        };
        graph.bind(values).unwrap();
    }

    /// Outputs of a bound graph on one clip of noise, in f64.
    pub(super) fn outputs(graph: &Graph) -> Vec<Vec<f64>> {
        let len = graph.shape(graph.input()).unwrap().iter().product();
        let clip: Vec<f64> = (0..len).map(|i| f64::from(noise("clip", i))).collect();
        reference::run(graph, &clip).unwrap()
    }

    /// Fails unless both give the same within rounding of f32 parameters.
    pub(super) fn assert_same(before: &Graph, after: &Graph) {
        for (before, after) in outputs(before).iter().zip(outputs(after)) {
            let largest = before.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
            for (before, after) in before.iter().zip(after) {
                assert!((before - after).abs() <= 1e-5 * largest.max(1.0), "{before} {after}");
            }
        }
    }

    pub(super) fn kinds(graph: &Graph) -> Vec<&'static str> {
        graph.nodes().map(|(_, node)| node.operation().kind()).collect()
    }

    pub(super) fn count(graph: &Graph, wanted: impl Fn(&Operation) -> bool) -> usize {
        graph.nodes().filter(|(_, node)| wanted(node.operation())).count()
    }
}
