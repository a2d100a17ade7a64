//! Times a 3D ResNet on the inference plan: `bench_plan [depth] [batch,...] [threads,...]`, defaults
//! `34 1,4,8,16 1,2`. Prints milliseconds a clip (the median of paired rounds), and the time of every layer at the
//! last setting. Environment-free and self-made: He-initialised weights, noise clips on the 0-255 scale.

use candle_conv3d::graph::{ConvConfig, Graph, GraphError, NodeId, Parameter, PoolConfig};
use candle_conv3d::plan::{Input, InstructionSet, Plan, PlanOptions};
use std::error::Error;
use std::time::{Duration, Instant};

const CLASSES: usize = 400;
const MEAN: [f32; 3] = [114.7748, 107.7354, 99.4750];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers = |index: usize, default: &str| -> Result<Vec<usize>, std::num::ParseIntError> {
        arguments.get(index).map_or(default, String::as_str).split(',').map(str::parse).collect()
    };
    let depth = numbers(0, "34")?[0];
    let batches = numbers(1, "1,4,8,16")?;
    let threads = numbers(2, "1,2")?;
    let instruction_set = match arguments.get(3).map(String::as_str) {
        None => InstructionSet::detect(),
        Some(name) => *InstructionSet::available()
            .iter()
            .find(|set| format!("{set:?}").eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("this processor has no {name}"))?,
    };
    let winograd = arguments.get(4).is_none_or(|word| word != "direct");

    let clips: Vec<Vec<u8>> = (0..*batches.iter().max().unwrap_or(&1)).map(noise_clip).collect();
    let table: [[f32; 256]; 3] = std::array::from_fn(|c| std::array::from_fn(|byte| byte as f32 - MEAN[c]));
    println!("ResNet-{depth}, {instruction_set:?}, winograd {winograd}");
    println!(
        "{:>5} {:>7} {:>9} {:>8} {:>9} {:>8} {:>8}",
        "batch", "threads", "ms/clip", "least", "GFLOP/s", "load s", "MiB"
    );
    let mut last = None;
    for &batch in &batches {
        for &threads in &threads {
            let begin = Instant::now();
            let options = PlanOptions { threads, max_batch: batch, instruction_set: Some(instruction_set), winograd };
            let mut plan = resnet(depth, options)?;
            let load = begin.elapsed();
            let clips: Vec<&[u8]> = clips[..batch].iter().map(Vec::as_slice).collect();
            let mut logits = vec![0.0; batch * CLASSES];
            let mut rounds = Vec::new();
            let begin = Instant::now();
            while rounds.len() < 5 || begin.elapsed() < Duration::from_millis(1500) && rounds.len() < 100 {
                let begin = Instant::now();
                let layers = plan.run_profiled(Input::Rgb { clips: &clips, table: &table }, &mut [&mut logits])?;
                rounds.push((begin.elapsed(), layers));
            }
            rounds.sort();
            let per_clip = |time: Duration| time.as_secs_f64() * 1e3 / batch as f64;
            let (median, least) = (per_clip(rounds[rounds.len() / 2].0), per_clip(rounds[0].0));
            let flops: u64 = plan.layers().iter().map(|layer| 2 * layer.multiply_adds).sum();
            println!(
                "{batch:>5} {threads:>7} {median:>9.2} {least:>8.2} {:>9.1} {:>8.2} {:>8}",
                flops as f64 / median / 1e6,
                load.as_secs_f64(),
                plan.memory_bytes() >> 20,
            );
            assert!(logits.iter().all(|x| x.is_finite()));
            last = Some((plan, rounds, batch));
        }
    }
    if let Some((plan, rounds, batch)) = last {
        print_layers(&plan, &rounds, batch);
    }
    Ok(())
}

fn print_layers(plan: &Plan, rounds: &[(Duration, Vec<Duration>)], batch: usize) {
    println!("{:<22} {:<28} {:>20} {:>8} {:>9}", "layer", "algorithm", "output", "ms/clip", "GFLOP/s");
    for (index, layer) in plan.layers().iter().enumerate() {
        let mut times: Vec<Duration> = rounds.iter().map(|(_, layers)| layers[index]).collect();
        times.sort();
        let ms = times[times.len() / 2].as_secs_f64() * 1e3 / batch as f64;
        let rate = 2.0 * layer.multiply_adds as f64 / ms / 1e6;
        let output = format!("{:?}", layer.output);
        println!("{:<22} {:<28} {output:>20} {ms:>8.3} {rate:>9.1}", layer.name, layer.algorithm.to_string());
    }
}

/// A 3D ResNet (arXiv 1708.07632): depths 18 and 34 with shortcut A, 50 with shortcut B.
fn resnet(depth: usize, options: PlanOptions) -> Result<Plan, Box<dyn Error>> {
    let (blocks, bottleneck) = match depth {
        18 => ([2, 2, 2, 2], false),
        50 => ([3, 4, 6, 3], true),
        _ => ([3, 4, 6, 3], false),
    };
    let mut graph = Graph::new([3, 16, 112, 112])?;
    let stem = ConvConfig { stride: [1, 2, 2], padding: [3; 3], bias: true, ..ConvConfig::new(64, [7; 3]) };
    let x = graph.conv("conv1", graph.input(), &stem)?;
    let x = graph.relu(x)?;
    let mut x = graph.max_pool(x, &PoolConfig { padding: [1; 3], ..PoolConfig::new([3; 3], [2; 3]) })?;
    for (stage, &count) in blocks.iter().enumerate() {
        for block in 0..count {
            let stride = [if stage > 0 && block == 0 { 2 } else { 1 }; 3];
            let name = format!("layer{}.{block}", stage + 1);
            x = residual_block(&mut graph, x, &name, 64 << stage, stride, bottleneck)?;
        }
    }
    let x = graph.global_avg_pool(x)?;
    let x = graph.linear("fc", x, CLASSES)?;
    graph.set_outputs(&[x])?;
    graph.bind(|parameter| Ok::<_, std::convert::Infallible>(values(parameter)))?;
    Ok(graph.compile(options)?)
}

fn residual_block(
    graph: &mut Graph,
    x: NodeId,
    name: &str,
    width: usize,
    stride: [usize; 3],
    bottleneck: bool,
) -> Result<NodeId, GraphError> {
    let layers = if bottleneck { vec![(width, 1), (width, 3), (4 * width, 1)] } else { vec![(width, 3); 2] };
    let config = |channels: usize, kernel: usize, stride: [usize; 3]| ConvConfig {
        stride,
        padding: [kernel / 2; 3],
        bias: true,
        ..ConvConfig::new(channels, [kernel; 3])
    };
    let strided = usize::from(bottleneck);
    let channels = layers.last().map_or(width, |&(channels, _)| channels);
    let shortcut = match graph.shape(x)?[0] {
        from if from == channels => x,
        _ if bottleneck => graph.conv(&format!("{name}.downsample"), x, &config(channels, 1, stride))?,
        _ => graph.strided_pick(x, stride, channels)?,
    };
    let mut y = x;
    for (index, &(channels, kernel)) in layers.iter().enumerate() {
        let stride = if index == strided { stride } else { [1; 3] };
        y = graph.conv(&format!("{name}.conv{}", index + 1), y, &config(channels, kernel, stride))?;
        if index + 1 < layers.len() {
            y = graph.relu(y)?;
        }
    }
    let sum = graph.add(y, shortcut)?;
    graph.relu(sum)
}

/// He initialisation, uniform, less for the ends of blocks, so that activations keep their size; no biases.
fn values(parameter: &Parameter) -> Vec<f32> {
    let [_, fan_in @ ..] = parameter.shape.as_slice() else { return Vec::new() };
    if fan_in.is_empty() {
        return vec![0.0; parameter.len()];
    }
    let seed = parameter.name.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let gain = match parameter.name.as_str() {
        "conv1.weight" => 1.0 / 64.0,
        name if name.ends_with("downsample.weight") => 0.7,
        name if name.ends_with("conv3.weight") => 0.3,
        _ => 1.0,
    };
    let scale = gain * (6.0 / fan_in.iter().product::<usize>() as f32).sqrt();
    (0..parameter.len()).map(|i| scale * noise(seed, i)).collect()
}

fn noise_clip(index: usize) -> Vec<u8> {
    (0..16 * 112 * 112 * 3).map(|i| ((noise(index as u64, i) + 1.0) * 127.9) as u8).collect()
}

/// A repeatable value in -1..1: splitmix64's finaliser on a counter.
fn noise(seed: u64, index: usize) -> f32 {
    let mut z = (seed << 32).wrapping_add(index as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}
