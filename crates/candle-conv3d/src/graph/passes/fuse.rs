//! What follows an operation becomes its end, so that a result is written once.

use crate::graph::{Graph, NodeId, Nonlinearity, Operation};

/// A sum with a convolution that it alone reads becomes that convolution's residual; a [strided
/// pick](Operation::StridedPick) on the other side becomes the stride with which the residual is read. Where both sides are
/// such convolutions, the first input takes the second.
pub fn fuse_residuals(mut graph: Graph) -> Graph {
    let readers = graph.reader_counts();
    for NodeId(index) in graph.needed_ids() {
        if !matches!(graph.nodes[index].operation, Operation::Add) {
            continue;
        }
        let &[first, second] = graph.nodes[index].inputs.as_slice() else { continue };
        let takes = |id: NodeId| {
            readers[id.0] == 1 && matches!(&graph.nodes[id.0].operation, Operation::Conv(conv) if conv.is_plain())
        };
        let (conv, other) = match (takes(first), takes(second)) {
            (true, _) => (first, second),
            (false, true) => (second, first),
            (false, false) => continue,
        };
        let (residual, stride) = match &graph.nodes[other.0].operation {
            Operation::StridedPick(stride) => (graph.nodes[other.0].inputs[0], *stride),
            _ => (other, [1; 3]),
        };
        let mut operation = std::mem::replace(&mut graph.nodes[conv.0].operation, Operation::Input);
        if let Operation::Conv(conv) = &mut operation {
            conv.residual = Some(stride);
        }
        // It runs where the sum stood: its residual is there by then.
        let name = std::mem::take(&mut graph.nodes[conv.0].name);
        let inputs = vec![graph.nodes[conv.0].inputs[0], residual];
        let node = &mut graph.nodes[index];
        (node.name, node.operation, node.inputs) = (name, operation, inputs);
    }
    graph
}

/// A nonlinearity becomes the end of the operation that it alone reads. Convolutions take ReLU only.
pub fn fuse_nonlinearities(mut graph: Graph) -> Graph {
    let readers = graph.reader_counts();
    for NodeId(index) in graph.needed_ids() {
        let Operation::Nonlinearity(function) = graph.nodes[index].operation else { continue };
        let before = graph.nodes[index].inputs[0];
        if readers[before.0] != 1 {
            continue;
        }
        let end = match &mut graph.nodes[before.0].operation {
            Operation::Conv(conv) if function == Nonlinearity::Relu => &mut conv.nonlinearity,
            Operation::Linear(linear) => &mut linear.nonlinearity,
            Operation::Scale(scale) => &mut scale.nonlinearity,
            _ => continue,
        };
        if end.is_none() {
            *end = Some(function);
            graph.redirect(NodeId(index), before);
        }
    }
    graph
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_same, bind, kinds};
    use super::super::{prepare, remove_unread};
    use super::*;
    use crate::graph::ConvConfig;

    #[test]
    fn a_block_with_a_shortcut_without_parameters_is_two_convolutions() {
        let mut graph = Graph::new([3, 4, 6, 6]).unwrap();
        let x = graph.input();
        let strided = ConvConfig { stride: [2; 3], padding: [1; 3], ..ConvConfig::new(5, [3; 3]) };
        let y = graph.conv("conv1", x, &strided).unwrap();
        let y = graph.relu(y).unwrap();
        let y = graph.conv("conv2", y, &ConvConfig { padding: [1; 3], ..ConvConfig::new(5, [3; 3]) }).unwrap();
        let shortcut = graph.strided_pick(x, [2; 3], 5).unwrap();
        let y = graph.add(y, shortcut).unwrap();
        let y = graph.relu(y).unwrap();
        graph.set_outputs(&[y]).unwrap();
        bind(&mut graph);
        let fused = prepare(graph.clone());
        assert_eq!(kinds(&fused), ["input", "conv", "conv"]);
        assert_same(&graph, &fused);
    }

    #[test]
    fn a_projection_is_the_residual_of_the_main_path() {
        let mut graph = Graph::new([3, 2, 4, 4]).unwrap();
        let x = graph.input();
        let projection = graph.conv("downsample", x, &ConvConfig::new(6, [1; 3])).unwrap();
        let main = graph.conv("conv", x, &ConvConfig { padding: [1; 3], ..ConvConfig::new(6, [3; 3]) }).unwrap();
        let sum = graph.add(main, projection).unwrap();
        graph.set_outputs(&[sum]).unwrap();
        bind(&mut graph);
        let fused = remove_unread(fuse_residuals(graph.clone()));
        assert_eq!(fused.nodes().map(|(_, node)| node.name()).collect::<Vec<_>>(), ["input", "downsample", "conv"]);
        assert_same(&graph, &fused);
    }

    #[test]
    fn what_others_read_too_stays_as_it_is() {
        let mut graph = Graph::new([3, 2, 4, 4]).unwrap();
        let conv = graph.conv("conv", graph.input(), &ConvConfig::new(3, [1; 3])).unwrap();
        let sum = graph.add(conv, graph.input()).unwrap();
        let relu = graph.relu(conv).unwrap();
        graph.set_outputs(&[sum, relu, conv]).unwrap();
        bind(&mut graph);
        let fused = prepare(graph.clone());
        assert_eq!(kinds(&fused), ["input", "conv", "add", "relu"]);
        assert_same(&graph, &fused);
    }

    #[test]
    fn what_no_output_needs_is_not_fused_with() {
        let mut graph = Graph::new([3, 2, 4, 4]).unwrap();
        let scaled = graph.batch_norm("bn", graph.input(), 1e-5).unwrap();
        graph.relu(scaled).unwrap();
        let conv = graph.conv("conv", scaled, &ConvConfig::new(3, [1; 3])).unwrap();
        graph.add(conv, scaled).unwrap();
        graph.batch_norm("unread", conv, 1e-5).unwrap();
        graph.set_outputs(&[conv]).unwrap();
        bind(&mut graph);
        let fused = prepare(graph.clone());
        assert_eq!(kinds(&fused), ["input", "scale", "conv"]);
        assert_same(&graph, &fused);
    }

    #[test]
    fn a_sum_of_one_node_with_itself_is_no_residual_of_itself() {
        let mut graph = Graph::new([3, 2, 4, 4]).unwrap();
        let conv = graph.conv("conv", graph.input(), &ConvConfig::new(3, [1; 3])).unwrap();
        let sum = graph.add(conv, conv).unwrap();
        graph.set_outputs(&[sum]).unwrap();
        bind(&mut graph);
        let fused = prepare(graph.clone());
        assert_eq!(kinds(&fused), ["input", "conv", "add"]);
        assert_same(&graph, &fused);
    }
}
