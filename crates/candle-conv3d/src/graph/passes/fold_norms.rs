//! Batch norms become part of the convolutions before them.

use crate::graph::{Conv, Graph, NodeId, Norm, Operation, Parameter, Scale};
use rayon::prelude::*;
use std::sync::Arc;

/// Folds every batch norm of running statistics into the convolution that it alone reads: the same sums, scaled. Others become
/// a [`Scale`]. In f64, so that folding adds nothing to the rounding of the convolution itself.
pub fn fold_norms(mut graph: Graph) -> Graph {
    let readers = graph.reader_counts();
    let mut norms: Vec<Option<Norm>> = vec![None; graph.nodes.len()];
    for NodeId(index) in graph.needed_ids() {
        let Operation::BatchNorm(norm) = &graph.nodes[index].operation else { continue };
        let before = graph.nodes[index].inputs[0];
        let foldable = matches!(&graph.nodes[before.0].operation, Operation::Conv(conv) if conv.is_plain());
        // A norm behind a norm that was folded reads the same convolution by now.
        if foldable && readers[before.0] == 1 && norms[before.0].is_none() {
            norms[before.0] = Some(norm.clone());
            graph.redirect(NodeId(index), before);
        } else {
            graph.nodes[index].operation = Operation::Scale(scale(norm));
        }
    }
    graph.nodes.par_iter_mut().zip(norms).for_each(|(node, norm)| {
        if let (Operation::Conv(conv), Some(norm)) = (&mut node.operation, norm) {
            fold(conv, &norm);
        }
    });
    graph
}

fn fold(conv: &mut Conv, norm: &Norm) {
    let channels = conv.weight.shape[0];
    let values = norm.affine().zip(conv.weight.values.take()).map(|(affine, weight)| {
        let old_bias = conv.bias.as_ref().and_then(|bias| bias.values.clone());
        let mut weight = Arc::unwrap_or_clone(weight);
        let taps = weight.len() / channels;
        let mut bias = Vec::with_capacity(channels);
        for (channel, (taps, [factor, offset])) in weight.chunks_exact_mut(taps).zip(affine).enumerate() {
            taps.iter_mut().for_each(|tap| *tap = (f64::from(*tap) * factor) as f32);
            let old_bias = old_bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
            bias.push((offset + old_bias * factor) as f32);
        }
        (Arc::new(weight), Arc::new(bias))
    });
    let (weight, bias) = values.unzip();
    conv.weight.values = weight;
    conv.bias = Some(Parameter { name: norm.bias.name.clone(), shape: vec![channels], values: bias });
}

fn scale(norm: &Norm) -> Scale {
    let affine = norm.affine();
    let part = |parameter: &Parameter, index: usize| {
        let values = affine.as_ref().map(|affine| affine.iter().map(|pair| pair[index] as f32).collect());
        Parameter { values: values.map(Arc::new), ..parameter.clone() }
    };
    Scale { factor: part(&norm.weight, 0), offset: part(&norm.bias, 1), nonlinearity: None }
}

#[cfg(test)]
mod tests {
    use super::super::remove_unread;
    use super::super::testing::{assert_same, bind, count, kinds};
    use super::*;
    use crate::graph::ConvConfig;

    #[test]
    fn a_norm_behind_a_convolution_with_or_without_bias_disappears() {
        for bias in [false, true] {
            let mut graph = Graph::new([3, 3, 5, 4]).unwrap();
            let config = ConvConfig { padding: [1; 3], bias, ..ConvConfig::new(6, [3; 3]) };
            let x = graph.conv("conv", graph.input(), &config).unwrap();
            let x = graph.batch_norm("bn", x, 1e-3).unwrap();
            graph.set_outputs(&[x]).unwrap();
            bind(&mut graph);
            let folded = remove_unread(fold_norms(graph.clone()));
            assert_eq!(kinds(&folded), ["input", "conv"]);
            assert_same(&graph, &folded);
        }
    }

    #[test]
    fn a_norm_that_no_convolution_can_take_becomes_a_scale() {
        let mut graph = Graph::new([3, 3, 5, 4]).unwrap();
        let x = graph.batch_norm("first", graph.input(), 1e-5).unwrap();
        let x = graph.conv("conv", x, &ConvConfig::new(6, [1; 3])).unwrap();
        let y = graph.batch_norm("bn", x, 1e-5).unwrap();
        graph.set_outputs(&[x, y]).unwrap();
        bind(&mut graph);
        let folded = fold_norms(graph.clone());
        assert_eq!(count(&folded, |operation| matches!(operation, Operation::Scale(_))), 2);
        assert_same(&graph, &folded);
    }

    #[test]
    fn of_two_norms_one_behind_the_other_the_first_is_folded() {
        let mut graph = Graph::new([3, 3, 5, 4]).unwrap();
        let x = graph.conv("conv", graph.input(), &ConvConfig::new(6, [1; 3])).unwrap();
        let x = graph.batch_norm("first", x, 1e-5).unwrap();
        let x = graph.batch_norm("second", x, 1e-5).unwrap();
        graph.set_outputs(&[x]).unwrap();
        bind(&mut graph);
        let folded = remove_unread(fold_norms(graph.clone()));
        assert_eq!(kinds(&folded), ["input", "conv", "scale"]);
        assert_same(&graph, &folded);
    }

    #[test]
    fn a_graph_without_values_folds_to_the_same_shape() {
        let mut graph = Graph::new([3, 3, 5, 4]).unwrap();
        let x = graph.conv("conv", graph.input(), &ConvConfig::new(6, [1; 3])).unwrap();
        let x = graph.batch_norm("bn", x, 1e-5).unwrap();
        graph.set_outputs(&[x]).unwrap();
        let folded = remove_unread(fold_norms(graph));
        assert_eq!(kinds(&folded), ["input", "conv"]);
        assert_eq!(folded.parameters().map(Parameter::len).collect::<Vec<_>>(), [18, 6]);
    }
}
