//! Every kind of layer against the naive f64 loops, on every instruction set of the machine.

mod plan_reference;

use candle_conv3d::plan::{Algorithm, ConvSpec, GraphBuilder, Input, InstructionSet, PlanOptions, Residual};
use plan_reference::{Volume, error, he_weights, noise_vec};
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
    out_channels: usize,
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    shortcut: Shortcut,
    relu: bool,
    batch: usize,
    threads: usize,
}

impl Case {
    /// 3x3x3 with padding 1, as in the residual blocks.
    fn block(input: [usize; 4], out_channels: usize, stride: usize) -> Self {
        Self {
            input,
            out_channels,
            kernel: [3; 3],
            stride: [stride; 3],
            padding: [1; 3],
            shortcut: Shortcut::None,
            relu: true,
            batch: 1,
            threads: 2,
        }
    }
}

/// The largest error over the batch, relative to the largest value.
fn largest_error(case: &Case, winograd: bool, instruction_set: InstructionSet) -> f64 {
    let Case { input, out_channels, kernel, stride, padding, shortcut, relu, batch, threads } = *case;
    let [channels, t, h, w] = input;
    let fan_in = channels * kernel.iter().product::<usize>();
    let (first_weight, first_bias) = (he_weights(1, channels, 2), noise_vec(2, channels));
    let (weight, bias) = (he_weights(3, out_channels, fan_in), noise_vec(4, out_channels));
    let (other_weight, other_bias) = (he_weights(5, out_channels, fan_in), noise_vec(6, out_channels));
    let clip_len = 2 * t * h * w;
    let values = noise_vec(7, batch * clip_len);
    let geometry = [kernel, stride, padding];

    let mut graph = GraphBuilder::new([2, t, h, w]).unwrap();
    let first = ConvSpec::new("first", channels, [1; 3], &first_weight, &first_bias);
    let x = graph.conv(graph.input(), first).unwrap();
    let spec = ConvSpec { stride, padding, relu, ..ConvSpec::new("conv", out_channels, kernel, &weight, &bias) };
    let other =
        ConvSpec { stride, padding, ..ConvSpec::new("other", out_channels, kernel, &other_weight, &other_bias) };
    let shortcut = match shortcut {
        Shortcut::Strided if channels > out_channels => Shortcut::None,
        shortcut => shortcut,
    };
    let residual = match shortcut {
        Shortcut::None => None,
        Shortcut::Identity => Some(Residual::Identity(graph.conv(x, other).unwrap())),
        Shortcut::Strided => Some(Residual::Strided { node: x, stride }),
    };
    let y = graph.conv(x, ConvSpec { residual, ..spec }).unwrap();
    let output_len: usize = graph.shape(y).unwrap().iter().product();
    let options = PlanOptions { threads, max_batch: batch, instruction_set: Some(instruction_set), winograd };
    let mut plan = graph.compile(&[y], options).unwrap();
    let mut output = vec![f32::NAN; batch * output_len];
    // Twice: buffers that hold the last run's values must not leak into the next.
    for _ in 0..2 {
        plan.run(Input::F32 { values: &values, batch }, &mut [&mut output]).unwrap();
    }

    let mut largest = 0.0f64;
    for (clip, actual) in values.chunks(clip_len).zip(output.chunks(output_len)) {
        let x = Volume::new([2, t, h, w], clip).conv(&first_weight, &first_bias, [[1; 3], [1; 3], [0; 3]]);
        let y = x.conv(&weight, &bias, geometry);
        let y = match shortcut {
            Shortcut::None => y,
            Shortcut::Identity => y.add_strided(&x.conv(&other_weight, &other_bias, geometry), [1; 3]),
            Shortcut::Strided => y.add_strided(&x, stride),
        };
        let expected = if relu { y.relu() } else { y };
        largest = largest.max(error(actual, &expected.data));
    }
    largest
}

fn assert_matches(case: &Case) {
    for instruction_set in InstructionSet::available() {
        for (winograd, tolerance) in [(false, DIRECT_TOLERANCE), (true, WINOGRAD_TOLERANCE)] {
            let error = largest_error(case, winograd, instruction_set);
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
    let case = Case { kernel: [1, 2, 1], padding: [3, 2, 4], relu: false, ..Case::block([5, 2, 3, 2], 4, 2) };
    assert_matches(&case);
}

#[test]
fn stems_read_the_clip_itself() {
    for (channels, kernel, padding) in [(3, [7, 7, 7], [3; 3]), (3, [3, 7, 7], [1, 3, 3]), (1, [1, 5, 3], [0, 2, 0])] {
        let dims = [channels, 5, 20, 18];
        let fan_in = channels * kernel.iter().product::<usize>();
        let (weight, bias) = (he_weights(1, 24, fan_in), noise_vec(2, 24));
        let values = noise_vec(3, 2 * dims.iter().product::<usize>());
        let geometry = [kernel, [1, 2, 2], padding];
        for instruction_set in InstructionSet::available() {
            let mut graph = GraphBuilder::new(dims).unwrap();
            let spec = ConvSpec {
                stride: [1, 2, 2],
                padding,
                relu: true,
                ..ConvSpec::new("conv1", 24, kernel, &weight, &bias)
            };
            let x = graph.conv(graph.input(), spec).unwrap();
            let y = graph.max_pool(x, [3; 3], [2; 3], [1; 3]).unwrap();
            let lens = [x, y].map(|node| graph.shape(node).unwrap().iter().product::<usize>());
            let options =
                PlanOptions { threads: 2, max_batch: 2, instruction_set: Some(instruction_set), ..Default::default() };
            let mut plan = graph.compile(&[x, y], options).unwrap();
            let mut outputs = lens.map(|len| vec![f32::NAN; 2 * len]);
            let [conv, pool] = &mut outputs;
            plan.run(Input::F32 { values: &values, batch: 2 }, &mut [conv, pool]).unwrap();
            for (i, clip) in values.chunks(values.len() / 2).enumerate() {
                let x = Volume::new(dims, clip).conv(&weight, &bias, geometry).relu();
                let y = x.max_pool([[3; 3], [2; 3], [1; 3]]);
                for (volume, (output, len)) in [x, y].iter().zip(outputs.iter().zip(lens)) {
                    let error = error(&output[i * len..][..len], &volume.data);
                    assert!(error < WINOGRAD_TOLERANCE, "{instruction_set:?}, {kernel:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn pooled_features_and_logits_come_from_one_run() {
    let dims = [20, 2, 3, 3];
    let (weight, bias) = (he_weights(1, 37, 20), noise_vec(2, 37));
    let values = noise_vec(3, 3 * 20 * 18);
    for instruction_set in InstructionSet::available() {
        let mut graph = GraphBuilder::new(dims).unwrap();
        let features = graph.global_avg_pool(graph.input()).unwrap();
        let logits = graph.linear(features, &weight, &bias).unwrap();
        let options = PlanOptions { instruction_set: Some(instruction_set), ..Default::default() };
        let mut plan = graph.compile(&[logits, features], options).unwrap();
        let (mut logits, mut features) = (vec![0.0; 3 * 37], vec![0.0; 3 * 20]);
        plan.run(Input::F32 { values: &values, batch: 3 }, &mut [&mut logits, &mut features]).unwrap();
        for (i, clip) in values.chunks(20 * 18).enumerate() {
            let pooled = Volume::new(dims, clip).global_avg_pool();
            assert!(error(&features[i * 20..][..20], &pooled.data) < DIRECT_TOLERANCE);
            assert!(error(&logits[i * 37..][..37], &pooled.linear(&weight, &bias).data) < DIRECT_TOLERANCE);
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
    fn run(&self, winograd: bool, threads: usize, max_batch: usize, values: &[f32]) -> (Algorithm, Vec<f32>) {
        let Self { input, out_channels, kt, pooled, instruction_set, .. } = *self;
        let (weight, bias) = self.parameters();
        let mut graph = GraphBuilder::new(input).unwrap();
        let spec = ConvSpec::new("conv1", out_channels, [kt, 7, 7], &weight, &bias);
        let mut x = graph.conv(graph.input(), ConvSpec { stride: [1, 2, 2], padding: [kt / 2, 3, 3], ..spec }).unwrap();
        if pooled {
            x = graph.max_pool(x, [3; 3], [2; 3], [1; 3]).unwrap();
        }
        let batch = values.len() / input.iter().product::<usize>();
        let mut output = vec![f32::NAN; batch * graph.shape(x).unwrap().iter().product::<usize>()];
        let options = PlanOptions { threads, max_batch, instruction_set: Some(instruction_set), winograd };
        let mut plan = graph.compile(&[x], options).unwrap();
        // Twice: buffers that hold the last run's values must not leak into the next.
        for _ in 0..2 {
            plan.run(Input::F32 { values, batch }, &mut [&mut output]).unwrap();
        }
        (plan.layers()[1].algorithm, output)
    }

    fn parameters(&self) -> (Vec<f32>, Vec<f32>) {
        let fan_in = self.input[0] * self.kt * 49;
        (he_weights(1, self.out_channels, fan_in), noise_vec(2, self.out_channels))
    }

    /// Values on the scale of pixels.
    fn values(&self) -> Vec<f32> {
        noise_vec(3, self.batch * self.input.iter().product::<usize>()).iter().map(|x| 127.5 * (x + 1.0)).collect()
    }

    /// The error of the fast algorithm, relative to the largest value, and whether it was chosen.
    fn largest_error(&self) -> (f64, bool) {
        let values = self.values();
        let (algorithm, output) = self.run(true, self.threads, self.batch, &values);
        let (weight, bias) = self.parameters();
        let geometry = [[self.kt, 7, 7], [1, 2, 2], [self.kt / 2, 3, 3]];
        let mut largest = 0.0f64;
        for (clip, actual) in values.chunks(values.len() / self.batch).zip(output.chunks(output.len() / self.batch)) {
            let mut expected = Volume::new(self.input, clip).conv(&weight, &bias, geometry);
            if self.pooled {
                expected = expected.max_pool([[3; 3], [2; 3], [1; 3]]);
            }
            largest = largest.max(error(actual, &expected.data));
        }
        (largest, algorithm == Algorithm::Winograd { tile: 4 })
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
        .prop_map(|((c, t, h, w), out_channels, (kernel, stride, padding), shortcut, relu, batch, threads)| {
            let padding = std::array::from_fn(|i| if kernel[i] == 3 { 1 } else { padding[i].min(kernel[i] / 2) });
            Case { input: [c, t, h, w], out_channels, kernel, stride, padding, shortcut, relu, batch, threads }
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
                let error = largest_error(&case, winograd, instruction_set);
                prop_assert!(error < tolerance, "{:?}, winograd {}: error {:e}", instruction_set, winograd, error);
            }
        }
    }
}
