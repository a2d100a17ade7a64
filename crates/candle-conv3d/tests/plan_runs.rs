//! Whole plans: what a result may depend on, and what is refused.

#[allow(dead_code, reason = "other tests compare whole batches")]
mod plan_reference;

use candle_conv3d::graph::{ConvConfig, Graph, GraphError, PoolConfig};
use candle_conv3d::plan::{Algorithm, Input, InstructionSet, Plan, PlanError, PlanOptions};
use plan_reference::{bind, error, noise_vec};

const DIMS: [usize; 4] = [3, 9, 26, 30];
const CLIP: usize = 3 * 9 * 26 * 30;
const CLASSES: usize = 21;

fn network(options: PlanOptions) -> Plan {
    let mut graph = layers();
    bind(&mut graph);
    graph.compile(options).unwrap()
}

/// A small residual network whose layers meet every kind of kernel: a strided stem, a pool, tiles of all sizes in space
/// and time, both residuals, two frames, a single frame. Outputs logits and features.
fn layers() -> Graph {
    let mut graph = Graph::new(DIMS).unwrap();
    let stem = ConvConfig { stride: [1, 2, 2], padding: [3; 3], ..ConvConfig::new(24, [7; 3]) };
    let x = graph.conv("conv1", graph.input(), &stem).unwrap();
    let x = graph.batch_norm("bn1", x, 4e4).unwrap();
    let x = graph.relu(x).unwrap();
    let mut x = graph.max_pool(x, &PoolConfig { padding: [1; 3], ..PoolConfig::new([3; 3], [2, 1, 1]) }).unwrap();
    for (stage, (channels, stride)) in [(24, 1), (40, 2), (56, 2), (64, 2)].into_iter().enumerate() {
        let name = |layer: &str| format!("layer{stage}.{layer}");
        let config = ConvConfig { padding: [1; 3], ..ConvConfig::new(channels, [3; 3]) };
        let y =
            graph.conv(&name("conv1"), x, &ConvConfig { stride: [stride; 3], bias: true, ..config.clone() }).unwrap();
        let y = graph.relu(y).unwrap();
        let y = graph.conv(&name("conv2"), y, &config).unwrap();
        let y = graph.batch_norm(&name("bn2"), y, 1.0).unwrap();
        let shortcut = if stride == 1 { x } else { graph.strided_pick(x, [stride; 3], channels).unwrap() };
        let sum = graph.add(y, shortcut).unwrap();
        x = graph.relu(sum).unwrap();
    }
    let features = graph.global_avg_pool(x).unwrap();
    let logits = graph.linear("fc", features, CLASSES).unwrap();
    graph.set_outputs(&[logits, features]).unwrap();
    graph
}

#[test]
fn a_graph_without_values_tells_what_a_plan_holds() {
    for (threads, max_batch, winograd) in [(1, 1, true), (3, 1, true), (2, 9, true), (1, 4, false)] {
        for instruction_set in InstructionSet::available() {
            let options = PlanOptions { threads, max_batch, instruction_set: Some(instruction_set), winograd };
            let told = layers().memory_bytes(options.clone()).unwrap();
            assert_eq!(told, network(options.clone()).memory_bytes(), "{options:?}");
        }
    }
    let refused = layers().compile(PlanOptions::default()).err().unwrap();
    assert!(matches!(&refused, PlanError::Graph(GraphError::Unbound { name }) if name == "conv1.weight"), "{refused}");
}

fn bytes(clips: usize) -> Vec<u8> {
    noise_vec(7, clips * CLIP).iter().map(|x| ((x + 1.0) * 127.9) as u8).collect()
}

fn table() -> [[f32; 256]; 3] {
    std::array::from_fn(|channel| std::array::from_fn(|byte| byte as f32 - [114.7748, 107.7354, 99.475][channel]))
}

fn logits(plan: &mut Plan, clips: &[&[u8]]) -> Vec<f32> {
    let (mut logits, mut features) = (vec![f32::NAN; clips.len() * CLASSES], vec![f32::NAN; clips.len() * 64]);
    plan.run(Input::Rgb { clips, table: &table() }, &mut [&mut logits, &mut features]).unwrap();
    logits
}

/// Bits, so that a comparison tells -0 from 0 and never passes over NaN.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_clip_gives_the_same_bits_alone_and_in_every_place_of_a_batch_on_any_number_of_threads() {
    let bytes = bytes(9);
    let clips: Vec<&[u8]> = bytes.chunks(CLIP).collect();
    for instruction_set in InstructionSet::available() {
        let options =
            |threads| PlanOptions { threads, max_batch: 9, instruction_set: Some(instruction_set), winograd: true };
        let mut plan = network(options(1));
        assert!(plan.layers().iter().any(|layer| matches!(layer.algorithm, Algorithm::Winograd { .. })));
        let alone: Vec<Vec<u32>> = clips.iter().map(|&clip| bits(&logits(&mut plan, &[clip]))).collect();
        assert!(alone.windows(2).all(|pair| pair[0] != pair[1]), "the clips differ, so must the logits");
        for threads in [1, 2, 3, 5] {
            let mut plan = network(options(threads));
            for count in [9, 1, 4] {
                // From another clip on each time: places in the batch change too.
                let some = &clips[9 - count..];
                let batch = bits(&logits(&mut plan, some));
                for (place, expected) in alone[9 - count..].iter().enumerate() {
                    let found = &batch[place * CLASSES..][..CLASSES];
                    assert_eq!(found, &expected[..], "{instruction_set:?}, {threads} threads, {place} of {count}");
                }
            }
        }
    }
}

#[test]
fn instruction_sets_and_algorithms_agree_to_rounding() {
    let bytes = bytes(2);
    let clips: Vec<&[u8]> = bytes.chunks(CLIP).collect();
    let options = |instruction_set, winograd| PlanOptions {
        threads: 2,
        max_batch: 2,
        instruction_set: Some(instruction_set),
        winograd,
    };
    let direct = logits(&mut network(options(InstructionSet::Portable, false)), &clips);
    let reference: Vec<f64> = direct.iter().map(|&x| f64::from(x)).collect();
    for instruction_set in InstructionSet::available() {
        for winograd in [false, true] {
            let error = error(&logits(&mut network(options(instruction_set, winograd)), &clips), &reference);
            // The whole network's bar against PyTorch is 1e-4.
            assert!(error < 2e-5, "{instruction_set:?}, winograd {winograd}: {error:e}");
        }
    }
}

#[test]
fn hard_clips_stay_close_to_direct_convolution() {
    let flat = |byte: u8| vec![byte; CLIP];
    let checkerboard: Vec<u8> = (0..CLIP).map(|i| if (i / 3 % 30 + i / 90 % 26) % 2 == 0 { 0 } else { 255 }).collect();
    let binary: Vec<u8> = noise_vec(9, CLIP).iter().map(|&x| if x < 0.0 { 0 } else { 255 }).collect();
    let all = [flat(0), flat(255), checkerboard, binary];
    let clips: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    let options = |winograd| PlanOptions { threads: 2, max_batch: 4, winograd, ..Default::default() };
    let reference: Vec<f64> = logits(&mut network(options(false)), &clips).iter().map(|&x| f64::from(x)).collect();
    let error = error(&logits(&mut network(options(true)), &clips), &reference);
    assert!(error < 2e-5, "{error:e}");
}

#[test]
fn bytes_through_the_table_equal_normalised_values() {
    let bytes = bytes(2);
    let clips: Vec<&[u8]> = bytes.chunks(CLIP).collect();
    let table = table();
    let [_, t, h, w] = DIMS;
    let mut values = vec![0.0; 2 * CLIP];
    for (clip, value) in clips.iter().zip(values.chunks_mut(CLIP)) {
        for position in 0..t * h * w {
            for channel in 0..3 {
                value[channel * t * h * w + position] = table[channel][usize::from(clip[position * 3 + channel])];
            }
        }
    }
    let mut plan = network(PlanOptions { threads: 2, max_batch: 2, ..Default::default() });
    let from_bytes = logits(&mut plan, &clips);
    let (mut from_values, mut features) = (vec![0.0; 2 * CLASSES], vec![0.0; 2 * 64]);
    plan.run(Input::F32 { values: &values, batch: 2 }, &mut [&mut from_values, &mut features]).unwrap();
    assert_eq!(bits(&from_bytes), bits(&from_values));
}

#[test]
fn bytes_of_odd_sides_equal_normalised_values() {
    let (table, [h, w]) = (table(), [15, 17]);
    let bytes: Vec<u8> = (0..h * w * 3).map(|i| (i * 37 % 256) as u8).collect();
    let values: Vec<f32> = (0..3)
        .flat_map(|c| bytes.chunks(3).map(move |pixel| (c, pixel[c])))
        .map(|(c, b)| table[c][b as usize])
        .collect();
    let mut graph = Graph::new([3, 1, h, w]).unwrap();
    let config = ConvConfig { stride: [1, 2, 2], padding: [0, 3, 3], bias: true, ..ConvConfig::new(20, [1, 7, 7]) };
    let x = graph.conv("conv1", graph.input(), &config).unwrap();
    graph.set_outputs(&[x]).unwrap();
    bind(&mut graph);
    let len = graph.shape(x).unwrap().iter().product();
    let mut plan = graph.compile(PlanOptions::default()).unwrap();
    let [mut from_bytes, mut from_values] = [vec![f32::NAN; len], vec![f32::NAN; len]];
    plan.run(Input::Rgb { clips: &[&bytes], table: &table }, &mut [&mut from_bytes]).unwrap();
    plan.run(Input::F32 { values: &values, batch: 1 }, &mut [&mut from_values]).unwrap();
    assert_eq!(bits(&from_bytes), bits(&from_values));
}

#[test]
fn slices_and_batches_that_do_not_fit_are_refused_and_the_plan_goes_on() {
    let mut plan = network(PlanOptions { threads: 1, max_batch: 2, ..Default::default() });
    let (values, mut out, mut features) = (vec![0.0; 3 * CLIP], vec![0.0; 3 * CLASSES], vec![0.0; 3 * 64]);
    let table = table();
    let mut refused = |input: Input, outputs: &mut [&mut [f32]]| plan.run(input, outputs).unwrap_err().to_string();

    let clips = |batch| Input::F32 { values: &values[..batch * CLIP], batch };
    let both = &mut [&mut out[..], &mut features[..]];
    assert_eq!(refused(clips(0), both), "a batch of 0 clips; the plan takes 1 to 2");
    assert_eq!(refused(clips(3), both), "a batch of 3 clips; the plan takes 1 to 2");
    let short = Input::F32 { values: &values[1..CLIP], batch: 1 };
    assert_eq!(refused(short, both), format!("the input has {} values; expected are {CLIP}", CLIP - 1));
    let short = Input::Rgb { clips: &[&[0; 5]], table: &table };
    assert_eq!(refused(short, both), format!("the input has 5 values; expected are {CLIP}"));
    assert_eq!(refused(clips(1), &mut [&mut out[..CLASSES]]), "1 output slices; the plan has 2 outputs");
    let outputs = &mut [&mut out[..CLASSES], &mut features[..3]];
    assert_eq!(refused(clips(1), outputs), "output 1 has room for 3 values; needed are 64");
    assert!(plan.run(clips(1), &mut [&mut out[..CLASSES], &mut features[..64]]).is_ok());
}

#[test]
fn layers_that_do_not_fit_are_refused_by_name() {
    let mut graph = Graph::new([4, 2, 6, 6]).unwrap();
    let x = graph.input();
    let config = ConvConfig::new(8, [3; 3]);
    let padded = ConvConfig { padding: [1; 3], ..config.clone() };

    let refused = graph.conv("long kernel", x, &config).unwrap_err();
    assert!(matches!(&refused, GraphError::Window { layer, input: [2, 6, 6], .. } if layer == "long kernel"));
    let refused = graph.conv("no stride", x, &ConvConfig { stride: [0, 1, 1], ..padded.clone() }).unwrap_err();
    assert!(matches!(refused, GraphError::Window { stride: [0, 1, 1], .. }));
    let refused =
        graph.conv("huge padding", x, &ConvConfig { padding: [usize::MAX; 3], ..padded.clone() }).unwrap_err();
    assert!(matches!(refused, GraphError::Window { .. }));
    let refused = graph.conv("groups", x, &ConvConfig { groups: 3, ..padded.clone() }).unwrap_err();
    assert_eq!(refused.to_string(), "groups: 4 input and 8 output channels can't be divided into 3 groups");
    let wide = PoolConfig { padding: [2; 3], ..PoolConfig::new([2; 3], [2; 3]) };
    assert!(matches!(graph.max_pool(x, &wide), Err(GraphError::Window { .. })));
    assert!(matches!(Graph::new([3, 0, 4, 4]), Err(GraphError::Shape { .. })));
    assert!(matches!(Graph::new([usize::MAX, 2, 4, 4]), Err(GraphError::Shape { .. })));
    assert!(matches!(graph.linear("fc", x, 5), Err(GraphError::LinearInput { .. })));

    let y = graph.conv("conv", x, &padded).unwrap();
    assert!(matches!(graph.add(x, y), Err(GraphError::InputShapes { .. })));
    assert!(matches!(graph.strided_pick(y, [1; 3], 7), Err(GraphError::Pick { channels: 7, .. })));
    let mut other = Graph::new([4, 2, 6, 6]).unwrap();
    assert!(matches!(other.relu(y), Err(GraphError::UnknownNode { index: 1, .. })));

    let few = graph.bind(|_| Ok::<_, std::convert::Infallible>(vec![0.0; 3])).unwrap_err();
    assert_eq!(few.to_string(), "conv.weight has 3 values; its shape needs 864");
    assert!(matches!(graph.compile(PlanOptions::default()), Err(PlanError::Graph(GraphError::Unbound { .. }))));
    let options = |threads, max_batch| PlanOptions { threads, max_batch, ..Default::default() };
    for options in [options(0, 1), options(1, 0), options(1 << 20, 1), options(1, 1 << 20)] {
        assert!(matches!(layers().memory_bytes(options), Err(PlanError::PlanOption { .. })));
    }
    let mut without_outputs = layers();
    without_outputs.set_outputs(&[]).unwrap();
    let refused = without_outputs.memory_bytes(PlanOptions::default());
    assert!(matches!(refused, Err(PlanError::PlanOption { option: "outputs", .. })));
}
