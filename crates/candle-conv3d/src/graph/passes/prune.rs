//! Removes what has no part in the outputs.

use crate::graph::{Graph, NodeId, Operation};

/// Leaves out dropout, which does nothing at inference.
pub fn remove_dropout(mut graph: Graph) -> Graph {
    for index in 0..graph.nodes.len() {
        if matches!(graph.nodes[index].operation, Operation::Dropout(_)) {
            let input = graph.nodes[index].inputs[0];
            graph.redirect(NodeId(index), input);
        }
    }
    graph
}

/// Leaves out nodes that no output needs. The clip stays.
pub fn remove_unread(graph: Graph) -> Graph {
    let last_reads = graph.last_reads();
    let mut ids = vec![None; graph.nodes.len()];
    let mut nodes = Vec::with_capacity(graph.nodes.len());
    for (index, mut node) in graph.nodes.into_iter().enumerate() {
        if last_reads[index].is_some() {
            ids[index] = Some(NodeId(nodes.len()));
            for input in &mut node.inputs {
                *input = ids[input.0].expect("what a needed node reads is needed");
            }
            nodes.push(node);
        }
    }
    let outputs = graph.outputs.into_iter().map(|output| ids[output.0].expect("outputs are needed")).collect();
    Graph { nodes, outputs }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_same, bind, kinds};
    use super::*;
    use crate::graph::ConvConfig;

    #[test]
    fn dropout_and_what_nobody_reads_are_left_out() {
        let mut graph = Graph::new([3, 2, 4, 4]).unwrap();
        let x = graph.conv("conv", graph.input(), &ConvConfig::new(4, [1; 3])).unwrap();
        graph.conv("unread", x, &ConvConfig::new(5, [1; 3])).unwrap();
        let dropped = graph.dropout(x, 0.5).unwrap();
        let y = graph.relu(dropped).unwrap();
        graph.set_outputs(&[y, dropped]).unwrap();
        bind(&mut graph);
        let pruned = remove_unread(remove_dropout(graph.clone()));
        assert_eq!(kinds(&pruned), ["input", "conv", "relu"]);
        assert_same(&graph, &pruned);
    }
}
