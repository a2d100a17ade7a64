//! Random graphs: plans, the operations on tensors and the tape against the reference, and gradients against differences.

#[allow(dead_code, reason = "other tests compare single layers")]
mod plan_reference;

use std::collections::HashMap;

use candle_conv3d::Precision;
use candle_conv3d::graph::{ConvConfig, Graph, NodeId, Nonlinearity, PoolConfig, reference};
use candle_conv3d::network::{Mode, Network};
use candle_conv3d::plan::{InstructionSet, PlanOptions};
use candle_core::{DType, Device, Tensor, Var};
use plan_reference::{bind, error, errors, noise_vec};
use proptest::prelude::*;

/// What is added to a graph, on some of the nodes that are there.
#[derive(Clone, Debug)]
enum Addition {
    Conv { channels: usize, kernel: [usize; 3], stride: [usize; 3], after: [usize; 3], groups: usize, bias: bool },
    BatchNorm,
    Nonlinearity(Nonlinearity),
    Add,
    Multiply,
    Gate,
    Concat,
    Pool { kernel: [usize; 3], stride: [usize; 3], average: bool, ceil: bool, count_padding: bool },
    StridedPick { stride: usize, more: usize },
    Dropout,
}

/// The operations, each with numbers that choose its inputs.
type Recipe = Vec<(Addition, [usize; 2])>;

fn any_addition() -> impl Strategy<Value = Addition> {
    let triple = |range: std::ops::Range<usize>| [range.clone(), range.clone(), range];
    let function = prop_oneof![
        4 => Just(Nonlinearity::Relu), 1 => Just(Nonlinearity::Sigmoid), 1 => Just(Nonlinearity::Silu)
    ];
    prop_oneof![
        4 => (1..6usize, triple(1..4), triple(1..3), triple(0..2), prop_oneof![4 => Just(1), 1 => 2..5usize], any::<bool>())
            .prop_map(|(channels, kernel, stride, after, groups, bias)| {
                Addition::Conv { channels: 4 * channels, kernel, stride, after, groups, bias }
            }),
        3 => Just(Addition::BatchNorm),
        3 => function.prop_map(Addition::Nonlinearity),
        2 => Just(Addition::Add),
        1 => Just(Addition::Multiply),
        1 => Just(Addition::Gate),
        1 => Just(Addition::Concat),
        1 => (triple(1..4), triple(1..3), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(kernel, stride, average, ceil, count_padding)| Addition::Pool { kernel, stride, average, ceil, count_padding }
        ),
        1 => (1..3usize, 0..5usize).prop_map(|(stride, more)| Addition::StridedPick { stride, more }),
        1 => Just(Addition::Dropout),
    ]
}

fn any_recipe() -> impl Strategy<Value = Recipe> {
    prop::collection::vec((any_addition(), [0..100usize, 0..100]), 1..12)
}

/// A graph of all additions that fit; its outputs are logits, features and the last volume.
fn build(recipe: &Recipe) -> Graph {
    let mut graph = Graph::new([3, 4, 7, 6]).unwrap();
    let mut nodes = vec![graph.input()];
    for (number, (addition, choices)) in recipe.iter().enumerate() {
        // The newest nodes more often than their share.
        let chosen = |choice: usize| nodes[nodes.len() - 1 - choice % 100 * choice % nodes.len()];
        let [x, other] = choices.map(chosen);
        if let Some(node) = add(&mut graph, number, addition, x, other) {
            nodes.push(node);
        }
    }
    let last = nodes[nodes.len() - 1];
    let flat = graph.flatten(last).unwrap();
    let features = graph.global_avg_pool(last).unwrap();
    let hidden = graph.linear("hidden", flat, 9).unwrap();
    let hidden = graph.relu(hidden).unwrap();
    let logits = graph.linear("fc", hidden, 5).unwrap();
    graph.set_outputs(&[logits, features, last]).unwrap();
    bind(&mut graph);
    graph
}

/// `None` where shapes don't fit.
fn add(graph: &mut Graph, number: usize, addition: &Addition, x: NodeId, other: NodeId) -> Option<NodeId> {
    let [channels, ..] = graph.shape(x).unwrap();
    match addition {
        &Addition::Conv { channels, kernel, stride, after, groups, bias } => {
            let (padding, padding_after) = (kernel.map(|k| k / 2), std::array::from_fn(|i| kernel[i] / 2 + after[i]));
            let config =
                ConvConfig { channels, kernel, stride, padding, padding_after: Some(padding_after), groups, bias };
            graph.conv(&format!("conv{number}"), x, &config).ok()
        }
        Addition::BatchNorm => graph.batch_norm(&format!("bn{number}"), x, 1e-3).ok(),
        Addition::Nonlinearity(function) => graph.nonlinearity(x, *function).ok(),
        Addition::Add => graph.add(x, other).ok(),
        Addition::Multiply => graph.multiply(x, other).ok(),
        Addition::Gate => {
            let pooled = graph.global_avg_pool(x).ok()?;
            let gate = graph.conv(&format!("gate{number}"), pooled, &ConvConfig::new(channels, [1; 3])).ok()?;
            let gate = graph.nonlinearity(gate, Nonlinearity::Sigmoid).ok()?;
            graph.multiply(x, gate).ok()
        }
        Addition::Concat => graph.concat(&[x, other]).ok(),
        &Addition::Pool { kernel, stride, average, ceil, count_padding } => {
            let padding = kernel.map(|k| k / 2);
            let config = PoolConfig { kernel, stride, padding, padding_after: None, ceil, count_padding };
            if average { graph.avg_pool(x, &config).ok() } else { graph.max_pool(x, &config).ok() }
        }
        &Addition::StridedPick { stride, more } => graph.strided_pick(x, [stride; 3], channels + more).ok(),
        Addition::Dropout => graph.dropout(x, 0.5).ok(),
    }
}

/// The parameters of a bound graph as tensors.
fn tensors(graph: &Graph, dtype: DType, variables: bool) -> HashMap<String, Tensor> {
    let tensors = graph.parameters().map(|parameter| {
        let values = parameter.values().unwrap().to_vec();
        let tensor =
            Tensor::from_vec(values, parameter.shape.as_slice(), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let tensor = if variables { Var::from_tensor(&tensor).unwrap().into_inner() } else { tensor };
        (parameter.name.clone(), tensor)
    });
    tensors.collect()
}

fn clips(graph: &Graph, n: usize, dtype: DType) -> Tensor {
    let [c, t, h, w] = graph.shape(graph.input()).unwrap();
    Tensor::from_vec(noise_vec(7, n * c * t * h * w), (n, c, t, h, w), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn assert_tensors_match(graph: &Graph) {
    let network = Network::new(graph.clone(), tensors(graph, DType::F64, false)).unwrap();
    let clip = clips(graph, 1, DType::F64);
    let values: Vec<f64> = clip.flatten_all().unwrap().to_vec1().unwrap();
    let expected = reference::run(graph, &values).unwrap();
    for (actual, expected) in network.forward(&clip).unwrap().iter().zip(expected) {
        let actual: Vec<f32> = actual.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap();
        let error = error(&actual, &expected);
        assert!(error < 1e-6, "{error:e}\n{}", graph.table());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_compute_what_the_reference_does(recipe in any_recipe(), batch in 1..4usize) {
        let graph = build(&recipe);
        for instruction_set in InstructionSet::available() {
            for (winograd, tolerance) in [(false, 1e-5), (true, 1e-4)] {
                let options = PlanOptions { threads: 2, max_batch: batch, instruction_set: Some(instruction_set), winograd };
                for error in errors(&graph, 1.0, batch, options).0 {
                    prop_assert!(error < tolerance, "{instruction_set}: {error:e}\n{}", graph.table());
                }
            }
        }
    }

    #[test]
    fn operations_on_tensors_compute_what_the_reference_does(recipe in any_recipe()) {
        assert_tensors_match(&build(&recipe));
    }

    #[test]
    fn gradients_are_the_differences_of_the_loss(recipe in any_recipe()) {
        let graph = build(&recipe);
        let variables = tensors(&graph, DType::F64, true);
        let network = Network::new(graph.clone(), variables.clone()).unwrap();
        let clips = clips(&graph, 1, DType::F64);
        // Weights of the outputs' values, so that none cancel.
        let loss = || {
            let outputs = network.forward(&clips).unwrap();
            let sums = outputs.iter().map(|output| output.sqr().unwrap().mean_all().unwrap());
            sums.reduce(|a, b| (a + b).unwrap()).unwrap()
        };
        let gradients = loss().backward().unwrap();
        for (index, parameter) in graph.parameters().enumerate() {
            // Running statistics are constants of the pass.
            let Some(gradient) = gradients.get(&variables[&parameter.name]) else { continue };
            let variable = Var::from_tensor(&variables[&parameter.name]).unwrap();
            let (before, at) = (variable.as_tensor().copy().unwrap(), index * 31 % parameter.len());
            let moved = |step: f64| {
                let mut values: Vec<f64> = before.flatten_all().unwrap().to_vec1().unwrap();
                values[at] += step;
                variable.set(&Tensor::from_vec(values, before.shape(), &Device::Cpu).unwrap()).unwrap();
                loss().to_scalar::<f64>().unwrap()
            };
            let step = 1e-6;
            let difference = (moved(step) - moved(-step)) / (2.0 * step);
            let middle = (moved(0.5 * step) - moved(-0.5 * step)) / step;
            variable.set(&before).unwrap();
            let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_vec1().unwrap();
            let scale = difference.abs().max(1e-3);
            // A kink of a ReLU or a maximum within the step makes the two differences disagree.
            if (difference - middle).abs() < 1e-5 * scale {
                prop_assert!(
                    (gradient[at] - difference).abs() < 1e-4 * scale,
                    "{} [{at}]: {} instead of {difference}\n{}", parameter.name, gradient[at], graph.table()
                );
            }
        }
    }
}

/// A residual network as a tape has it: stem with pool, blocks with both shortcuts, mean, dropout, linear.
fn residual_network() -> Graph {
    let mut graph = Graph::new([3, 6, 17, 18]).unwrap();
    let conv_norm = |graph: &mut Graph, name: &str, x, config: &ConvConfig| {
        let x = graph.conv(name, x, config).unwrap();
        graph.batch_norm(&format!("{name}.norm"), x, 1e-5).unwrap()
    };
    let stem = ConvConfig { stride: [1, 2, 2], padding: [1, 3, 3], ..ConvConfig::new(8, [3, 7, 7]) };
    let input = graph.input();
    let x = conv_norm(&mut graph, "stem", input, &stem);
    let x = graph.relu(x).unwrap();
    let mut x = graph.max_pool(x, &PoolConfig { padding: [1; 3], ..PoolConfig::new([3; 3], [2; 3]) }).unwrap();
    for (block, channels, stride, projection) in [(0, 8, 1, false), (1, 12, 2, true), (2, 16, 2, false)] {
        let config = ConvConfig { padding: [1; 3], ..ConvConfig::new(channels, [3; 3]) };
        let shortcut = match (stride, projection) {
            (1, _) => x,
            (_, true) => {
                let config = ConvConfig { stride: [2; 3], ..ConvConfig::new(channels, [1; 3]) };
                conv_norm(&mut graph, &format!("projection{block}"), x, &config)
            }
            _ => graph.strided_pick(x, [stride; 3], channels).unwrap(),
        };
        let first = ConvConfig { stride: [stride; 3], ..config.clone() };
        let y = conv_norm(&mut graph, &format!("first{block}"), x, &first);
        let y = graph.relu(y).unwrap();
        let y = conv_norm(&mut graph, &format!("second{block}"), y, &config);
        let sum = graph.add(y, shortcut).unwrap();
        x = graph.relu(sum).unwrap();
    }
    let features = graph.global_avg_pool(x).unwrap();
    let dropped = graph.dropout(features, 0.25).unwrap();
    let logits = graph.linear("fc", dropped, 5).unwrap();
    graph.set_outputs(&[logits, features]).unwrap();
    bind(&mut graph);
    graph
}

#[test]
fn a_tape_and_operations_on_tensors_give_the_same_gradients_and_statistics() {
    let graph = residual_network();
    let clips = clips(&graph, 3, DType::F32);
    let mode = Mode { dropout: Some(5), ..Mode::training(&graph) };
    let loss = |logits: &Tensor| logits.sqr().unwrap().mean_all().unwrap();
    let (on_tape, on_tensors) = (tensors(&graph, DType::F32, true), tensors(&graph, DType::F32, true));
    let network = Network::new(graph.clone(), on_tape.clone()).unwrap();
    assert!(network.uses_tape(), "{}", graph.table());
    let pass = network.forward_pass(&clips, &mode, Precision::F32).unwrap();
    let loss_on_tape = loss(&pass.outputs[0]);
    let gradients = pass.backward(&loss_on_tape).unwrap();
    let outputs = Network::new(graph.clone(), on_tensors.clone()).unwrap().forward_in(&clips, &mode).unwrap();
    let expected = loss(&outputs[0]).backward().unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let wide = |tensor: &Tensor| values(tensor).into_iter().map(f64::from).collect::<Vec<f64>>();
    for parameter in graph.parameters() {
        let (tape, tensors) = (&on_tape[&parameter.name], &on_tensors[&parameter.name]);
        assert!(error(&values(tape), &wide(tensors)) < 1e-6, "{} has moved otherwise", parameter.name);
        if let Some(expected) = expected.get(tensors) {
            let actual = gradients.get(tape).unwrap_or_else(|| panic!("{} has no gradient", parameter.name));
            let (expected, actual) = (wide(expected), values(actual));
            let scale = expected.iter().fold(1e-6f64, |max, x| max.max(x.abs()));
            let worst = actual.iter().zip(&expected).fold(0.0f64, |w, (a, e)| w.max((f64::from(*a) - e).abs()));
            assert!(worst < 1e-4 * scale, "{}: {worst:e} of {scale:e}", parameter.name);
        }
    }
}

#[test]
fn networks_that_a_tape_can_not_take_are_trained_on_tensors() {
    let mut graph = Graph::new([3, 4, 8, 8]).unwrap();
    let x = graph.conv("conv", graph.input(), &ConvConfig { bias: true, ..ConvConfig::new(8, [1; 3]) }).unwrap();
    let features = graph.global_avg_pool(x).unwrap();
    let logits = graph.linear("fc", features, 3).unwrap();
    graph.set_outputs(&[logits, features]).unwrap();
    bind(&mut graph);
    assert_tensors_match(&graph);
    let variables = tensors(&graph, DType::F32, true);
    let network = Network::new(graph.clone(), variables.clone()).unwrap();
    assert!(!network.uses_tape());
    let pass = network.forward_pass(&clips(&graph, 2, DType::F32), &Mode::default(), Precision::F32).unwrap();
    let loss = pass.outputs[0].sqr().unwrap().mean_all().unwrap();
    let gradients = pass.backward(&loss).unwrap();
    assert!(variables.values().all(|variable| gradients.get(variable).is_some()));
}
