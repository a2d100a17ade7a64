//! Every kind of layer against the reference in f64, on every instruction set of the machine.

mod plan_reference;

use candle_conv3d::graph::{ConvConfig, Graph, Nonlinearity, PoolConfig};
use candle_conv3d::plan::{Algorithm, InstructionSet, PlanOptions};
use plan_reference::{bind, errors, noise_vec, run};
use proptest::prelude::*;

/// f32 sums of up to 10^4 products, relative to the largest value; the largest error seen is a quarter of this.
const DIRECT_TOLERANCE: f64 = 4e-6;
/// Winograd F(4, 3) in three dimensions loses more than a decimal digit.
const WINOGRAD_TOLERANCE: f64 = 1e-4;

#[derive(Clone, Copy, Debug)]
enum Shortcut {
    None,
    Identity,
    Strided,
}

#[derive(Clone, Debug)]
struct Case {
    /// (c, t, h, w) of the convolution under test, which follows a 1x1x1 one.
    input: [usize; 4],
    conv: ConvConfig,
    shortcut: Shortcut,
    relu: bool,
    batch: usize,
    threads: usize,
}

impl Case {
    /// 3x3x3 with padding 1, as in the residual blocks.
    fn block(input: [usize; 4], channels: usize, stride: usize) -> Self {
        let conv = ConvConfig { stride: [stride; 3], padding: [1; 3], bias: true, ..ConvConfig::new(channels, [3; 3]) };
        Self { input, conv, shortcut: Shortcut::None, relu: true, batch: 1, threads: 2 }
    }

    fn graph(&self) -> Graph {
        let [channels, t, h, w] = self.input;
        let mut graph = Graph::new([2, t, h, w]).unwrap();
        let first = ConvConfig { bias: true, ..ConvConfig::new(channels, [1; 3]) };
        let x = graph.conv("first", graph.input(), &first).unwrap();
        let shortcut = match self.shortcut {
            Shortcut::Identity => Some(graph.conv("other", x, &self.conv).unwrap()),
            Shortcut::Strided if channels <= self.conv.channels => {
                Some(graph.strided_pick(x, self.conv.stride, self.conv.channels).unwrap())
            }
            _ => None,
        };
        let mut y = graph.conv("conv", x, &self.conv).unwrap();
        if let Some(shortcut) = shortcut.filter(|&shortcut| graph.shape(shortcut) == graph.shape(y)) {
            y = graph.add(y, shortcut).unwrap();
        }
        if self.relu {
            y = graph.relu(y).unwrap();
        }
        graph.set_outputs(&[y]).unwrap();
        bind(&mut graph);
        graph
    }

    fn largest_error(&self, winograd: bool, instruction_set: InstructionSet) -> f64 {
        let Self { batch, threads, .. } = *self;
        let options = PlanOptions { threads, max_batch: batch, instruction_set: Some(instruction_set), winograd };
        errors(&self.graph(), 1.0, batch, options).0[0]
    }
}

fn assert_matches(case: &Case) {
    for instruction_set in InstructionSet::available() {
        for (winograd, tolerance) in [(false, DIRECT_TOLERANCE), (true, WINOGRAD_TOLERANCE)] {
            let error = case.largest_error(winograd, instruction_set);
            assert!(error < tolerance, "{instruction_set:?}, winograd {winograd}: error {error:e} of {case:?}");
        }
    }
}

#[test]
fn the_shapes_of_the_four_stages_match_the_naive_loops() {
    // Maps and lengths of layer1 to layer4 with a quarter of the channels.
    for (input, batch) in [([16, 8, 28, 28], 1), ([32, 4, 14, 14], 2), ([64, 2, 7, 7], 5), ([128, 1, 4, 4], 3)] {
        let case = Case { shortcut: Shortcut::Identity, batch, ..Case::block(input, input[0], 1) };
        assert_matches(&case);
        assert_matches(&Case { shortcut: Shortcut::Strided, ..Case::block(input, 2 * input[0], 2) });
    }
}

#[test]
fn channel_counts_that_fill_no_vector_match_the_naive_loops() {
    for channels in [1, 7, 17, 40] {
        assert_matches(&Case::block([channels, 3, 5, 6], channels + 3, 1));
    }
}

#[test]
fn single_rows_columns_and_frames_match_the_naive_loops() {
    for [t, h, w] in [[1, 1, 1], [1, 1, 9], [2, 7, 1], [9, 1, 2], [5, 2, 3]] {
        assert_matches(&Case::block([16, t, h, w], 16, 1));
        assert_matches(&Case::block([16, t, h, w], 16, 2));
    }
}

#[test]
fn padding_wider_than_the_kernel_gives_the_bias() {
    let block = Case::block([5, 2, 3, 2], 4, 2);
    let conv = ConvConfig { kernel: [1, 2, 1], padding: [3, 2, 4], ..block.conv.clone() };
    assert_matches(&Case { conv, relu: false, ..block });
}

#[test]
fn padding_that_differs_before_and_after_matches_the_naive_loops() {
    // TensorFlow's SAME with even kernels and with strides.
    for (kernel, stride, before, after) in
        [([3; 3], [1; 3], [0, 1, 0], [1, 0, 2]), ([2, 2, 2], [1; 3], [0; 3], [1; 3]), ([3; 3], [2; 3], [0; 3], [1; 3])]
    {
        let block = Case::block([17, 4, 6, 7], 20, 1);
        let conv = ConvConfig { kernel, stride, padding: before, padding_after: Some(after), ..block.conv.clone() };
        assert_matches(&Case { conv, shortcut: Shortcut::Identity, ..block });
    }
}

#[test]
fn groups_of_any_size_match_the_naive_loops() {
    // Depthwise, groups narrower than a vector, groups that fill no panel together, wide ones, few outputs of many inputs.
    for (channels, out_channels, groups) in [
        (40, 40, 40),
        (5, 5, 5),
        (64, 64, 16),
        (128, 128, 32),
        (24, 36, 12),
        (96, 96, 2),
        (64, 32, 4),
        (33, 11, 11),
        (6, 12, 6),
    ] {
        for stride in [1, 2] {
            let block = Case::block([channels, 3, 6, 5], out_channels, stride);
            let conv = ConvConfig { groups, ..block.conv.clone() };
            assert_matches(&Case { conv, shortcut: Shortcut::Identity, batch: 2, ..block });
        }
    }
}

#[test]
fn stems_read_the_clip_itself() {
    for (channels, kernel, padding, after) in [
        (3, [7, 7, 7], [3; 3], [3; 3]),
        (3, [3, 7, 7], [1, 3, 3], [1, 3, 3]),
        (1, [1, 5, 3], [0, 2, 0], [0, 2, 0]),
        (3, [7, 7, 7], [2; 3], [3; 3]),
    ] {
        let mut graph = Graph::new([channels, 5, 20, 18]).unwrap();
        let config = ConvConfig {
            stride: [1, 2, 2],
            padding,
            padding_after: Some(after),
            bias: true,
            ..ConvConfig::new(24, kernel)
        };
        let x = graph.conv("conv1", graph.input(), &config).unwrap();
        let x = graph.relu(x).unwrap();
        let pool = PoolConfig { padding: [1; 3], ..PoolConfig::new([3; 3], [2; 3]) };
        let y = graph.max_pool(x, &pool).unwrap();
        graph.set_outputs(&[x, y]).unwrap();
        bind(&mut graph);
        for instruction_set in InstructionSet::available() {
            let options =
                PlanOptions { threads: 2, max_batch: 2, instruction_set: Some(instruction_set), ..Default::default() };
            for error in errors(&graph, 1.0, 2, options).0 {
                assert!(error < WINOGRAD_TOLERANCE, "{instruction_set:?}, {kernel:?}: {error:e}");
            }
        }
    }
}

#[test]
fn pooled_features_and_logits_come_from_one_run() {
    let mut graph = Graph::new([20, 2, 3, 3]).unwrap();
    let features = graph.global_avg_pool(graph.input()).unwrap();
    let logits = graph.linear("fc", features, 37).unwrap();
    graph.set_outputs(&[logits, features]).unwrap();
    bind(&mut graph);
    assert_close(&graph, 3);
}

#[test]
fn pools_match_the_naive_loops_in_every_mode() {
    for [t, h, w] in [[2, 5, 6], [3, 7, 4], [1, 3, 3]] {
        let mut graph = Graph::new([19, t, h, w]).unwrap();
        let x = graph.input();
        let mut outputs = Vec::new();
        for ceil in [false, true] {
            for count_padding in [false, true] {
                for (padding, padding_after) in [([0, 1, 1], None), ([0; 3], Some([0, 1, 1])), ([0; 3], None)] {
                    let config = PoolConfig {
                        padding,
                        padding_after,
                        ceil,
                        count_padding,
                        ..PoolConfig::new([1, 3, 2], [1, 2, 2])
                    };
                    outputs.push(graph.avg_pool(x, &config).unwrap());
                    outputs.push(graph.max_pool(x, &config).unwrap());
                }
            }
        }
        graph.set_outputs(&outputs).unwrap();
        assert_close(&graph, 2);
    }
}

#[test]
fn elementwise_operations_and_copies_match_the_naive_loops() {
    let mut graph = Graph::new([19, 3, 4, 5]).unwrap();
    let x = graph.input();
    let scaled = graph.batch_norm("bn", x, 1e-3).unwrap();
    let scaled = graph.nonlinearity(scaled, Nonlinearity::Silu).unwrap();
    let sum = graph.add(x, scaled).unwrap();
    let product = graph.multiply(sum, x).unwrap();
    let pooled = graph.global_avg_pool(product).unwrap();
    let gate = graph.conv("gate", pooled, &ConvConfig { bias: true, ..ConvConfig::new(19, [1; 3]) }).unwrap();
    let gate = graph.nonlinearity(gate, Nonlinearity::Sigmoid).unwrap();
    let gated = graph.multiply(product, gate).unwrap();
    let narrow = graph.conv("narrow", gated, &ConvConfig::new(7, [1; 3])).unwrap();
    let joined = graph.concat(&[gated, narrow, x]).unwrap();
    let picked = graph.strided_pick(joined, [2, 1, 2], 50).unwrap();
    let flat = graph.flatten(picked).unwrap();
    let dropped = graph.dropout(flat, 0.5).unwrap();
    let logits = graph.linear("fc", dropped, 11).unwrap();
    let hidden = graph.relu(logits).unwrap();
    let probabilities = graph.linear("last", hidden, 5).unwrap();
    let probabilities = graph.nonlinearity(probabilities, Nonlinearity::Sigmoid).unwrap();
    graph.set_outputs(&[sum, gate, gated, joined, picked, flat, hidden, probabilities]).unwrap();
    bind(&mut graph);
    assert_close(&graph, 3);
}

fn assert_close(graph: &Graph, batch: usize) {
    for instruction_set in InstructionSet::available() {
        let options =
            PlanOptions { threads: 2, max_batch: batch, instruction_set: Some(instruction_set), winograd: false };
        for (output, error) in errors(graph, 1.0, batch, options).0.into_iter().enumerate() {
            assert!(error < DIRECT_TOLERANCE, "{instruction_set:?}, output {output}: {error:e}");
        }
    }
}

/// A first convolution of (kt, 7, 7), stride (1, 2, 2), padding (kt / 2, 3, 3), and the max pooling of video networks.
#[derive(Clone, Debug)]
struct StemCase {
    /// (c, t, h, w)
    input: [usize; 4],
    out_channels: usize,
    kt: usize,
    pooled: bool,
    batch: usize,
    threads: usize,
    instruction_set: InstructionSet,
}

impl StemCase {
    fn graph(&self) -> Graph {
        let mut graph = Graph::new(self.input).unwrap();
        let config = ConvConfig {
            stride: [1, 2, 2],
            padding: [self.kt / 2, 3, 3],
            bias: true,
            ..ConvConfig::new(self.out_channels, [self.kt, 7, 7])
        };
        let mut x = graph.conv("conv1", graph.input(), &config).unwrap();
        if self.pooled {
            let pool = PoolConfig { padding: [1; 3], ..PoolConfig::new([3; 3], [2; 3]) };
            x = graph.max_pool(x, &pool).unwrap();
        }
        graph.set_outputs(&[x]).unwrap();
        bind(&mut graph);
        graph
    }

    fn options(&self, winograd: bool, threads: usize, max_batch: usize) -> PlanOptions {
        PlanOptions { threads, max_batch, instruction_set: Some(self.instruction_set), winograd }
    }

    fn run(&self, winograd: bool, threads: usize, max_batch: usize, values: &[f32]) -> (Algorithm, Vec<f32>) {
        let (mut outputs, plan) = run(&self.graph(), values, self.options(winograd, threads, max_batch));
        (plan.layers()[1].algorithm, outputs.remove(0))
    }

    /// Values on the scale of pixels.
    fn values(&self) -> Vec<f32> {
        noise_vec(3, self.batch * self.input.iter().product::<usize>()).iter().map(|x| 127.5 * (x + 1.0)).collect()
    }

    /// The error of the fast algorithm, relative to the largest value, and whether it was chosen.
    fn largest_error(&self) -> (f64, bool) {
        let (errors, plan) = errors(&self.graph(), 127.5, self.batch, self.options(true, self.threads, self.batch));
        (errors[0], plan.layers()[1].algorithm == Algorithm::Winograd { tile: 4 })
    }
}

/// Largest error of a first convolution by Winograd's algorithm, relative to the largest value.
const STEM_TOLERANCE: f64 = 2e-5;

/// Of random first convolutions, of which one with two channels out was seen to come to 2.3e-5.
const RANDOM_STEM_TOLERANCE: f64 = 2.0 * STEM_TOLERANCE;

#[test]
fn stems_of_video_networks_take_winograd_unless_told_not_to() {
    for instruction_set in InstructionSet::available() {
        for (kt, pooled) in [(3, false), (5, false), (5, true), (7, false), (7, true)] {
            let input = [3, 9, 38, 35];
            let case = StemCase { input, out_channels: 20, kt, pooled, batch: 2, threads: 2, instruction_set };
            let (error, fast) = case.largest_error();
            assert!(fast && error < STEM_TOLERANCE, "{error:e} of {case:?}");
            assert_eq!(case.run(false, 1, 2, &case.values()).0, Algorithm::Direct);
        }
    }
}

#[test]
fn stems_give_the_same_bits_whatever_the_batch_and_the_threads() {
    for instruction_set in InstructionSet::available() {
        for (kt, pooled) in [(3, false), (7, false), (7, true)] {
            let input = [3, 6, 30, 33];
            let case = StemCase { input, out_channels: 24, kt, pooled, batch: 5, threads: 1, instruction_set };
            let values = case.values();
            let (algorithm, expected) = case.run(true, 1, 5, &values);
            assert_eq!(algorithm, Algorithm::Winograd { tile: 4 });
            for (threads, max_batch) in [(2, 5), (3, 9)] {
                assert!(case.run(true, threads, max_batch, &values).1 == expected, "{threads} threads, {case:?}");
            }
            let clip = &values[2 * values.len() / 5..3 * values.len() / 5];
            let alone = case.run(true, 2, 1, clip).1;
            assert!(alone == expected[2 * alone.len()..3 * alone.len()], "one clip alone, {case:?}");
        }
    }
}

fn any_stem() -> impl Strategy<Value = StemCase> {
    let kt = prop_oneof![Just(7), Just(3), Just(1), Just(5)];
    let sets = prop::sample::select(InstructionSet::available());
    ((1..5usize, 1..10usize, 1..42usize, 1..42usize), 1..40usize, kt, any::<bool>(), 1..10usize, 1..4usize, sets)
        .prop_map(|((c, t, h, w), out_channels, kt, pooled, batch, threads, instruction_set)| StemCase {
            input: [c, t, h, w],
            out_channels,
            kt,
            pooled,
            batch,
            threads,
            instruction_set,
        })
}

fn any_case() -> impl Strategy<Value = Case> {
    let shortcut = prop_oneof![Just(Shortcut::None), Just(Shortcut::Identity), Just(Shortcut::Strided)];
    let geometry = prop_oneof![
        // What has fast kernels, more often than its share.
        3 => Just(([3, 3, 3], [1, 1, 1], [1, 1, 1])),
        2 => Just(([3, 3, 3], [2, 2, 2], [1, 1, 1])),
        1 => Just(([1, 3, 3], [1, 1, 1], [0, 1, 1])),
        1 => Just(([1, 1, 1], [2, 2, 2], [0, 0, 0])),
        2 => ((1..4usize, 1..4usize, 1..4usize), (1..3usize, 1..3usize, 1..3usize)).prop_map(|(k, s)| {
            // Half the kernel keeps strided shortcuts possible for odd kernels.
            ([k.0 | 1, k.1 | 1, k.2 | 1], [s.0, s.1, s.2], [k.0 / 2, k.1 / 2, k.2 / 2])
        }),
    ];
    (
        ((1..40usize), (1..10usize), (1..13usize), (1..13usize)),
        1..40usize,
        geometry,
        shortcut,
        any::<bool>(),
        1..10usize,
        1..4usize,
    )
        .prop_map(|((c, t, h, w), channels, (kernel, stride, padding), shortcut, relu, batch, threads)| {
            let padding = std::array::from_fn(|i| if kernel[i] == 3 { 1 } else { padding[i].min(kernel[i] / 2) });
            let conv = ConvConfig { stride, padding, bias: true, ..ConvConfig::new(channels, kernel) };
            Case { input: [c, t, h, w], conv, shortcut, relu, batch, threads }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_stems_match_the_naive_loops(case in any_stem()) {
        let (error, _) = case.largest_error();
        prop_assert!(error < RANDOM_STEM_TOLERANCE, "error {:e}", error);
    }

    #[test]
    fn random_convolutions_match_the_naive_loops(case in any_case()) {
        for instruction_set in InstructionSet::available() {
            for (winograd, tolerance) in [(false, DIRECT_TOLERANCE), (true, WINOGRAD_TOLERANCE)] {
                let error = case.largest_error(winograd, instruction_set);
                prop_assert!(error < tolerance, "{:?}, winograd {}: error {:e}", instruction_set, winograd, error);
            }
        }
    }
}
