//! Time of a training step (forward, backward, SGD with momentum) of a full-width 3D ResNet-34 with shortcut A, as `train`
//! takes it.
//!
//!     cargo run --release --example training_step -- [BATCH] [STEPS] [GPU] [PRECISION]
//!
//! `training_step.py` is the same for PyTorch. GPU, a number, takes the feature `candle-cuda`; PRECISION is bf16, tf32 or f32.
//! On a GPU the gradients of one step are compared with those of the CPU first. Needs no FFmpeg (`--no-default-features`).

use std::time::Instant;

use candle_conv3d::{Precision, TrainingAllocator, keep_freed_memory};
use candle_core::{Device, Tensor};
use candle_nn::loss::cross_entropy;
use kinetoscope::model::file::Model;
use kinetoscope::model::scores::ScoreFunction;
use kinetoscope::model::spec::{ClipSpec, ModelSpec, Preprocessing};
use kinetoscope::train::network::{self, BeginAt, Network};
use kinetoscope::train::optimizer::{Optimizer, OptimizerConfig};
use kinetoscope::train::sgd::SgdConfig;
use kinetoscope::zoo::Architecture;
use kinetoscope::zoo::resnet3d::{Config, Shortcut};

#[global_allocator]
static ALLOCATOR: TrainingAllocator = TrainingAllocator;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().map(|argument| argument.parse::<usize>()).transpose();
    let (batch, steps, gpu) = (number()?.unwrap_or(8), number()?.unwrap_or(5), number()?);
    let (device, precision) = match gpu {
        None => (Device::Cpu, Precision::F32),
        Some(gpu) => (network::gpu(gpu)?, precision(arguments.next().as_deref())?),
    };
    keep_freed_memory();
    let model = network::from_scratch(resnet_34(), 1)?;
    if !device.is_cpu() {
        compare_gradients(&model, &device, precision)?;
    }
    let network = Network::new(&model, &BeginAt::First, false, &device)?.with_precision(precision);
    let config = OptimizerConfig::Sgd(SgdConfig::default());
    let mut optimizer = Optimizer::new(network.backbone_and_head(), &config, 1.0)?;
    let clips = Tensor::randn(0f32, 1., (batch, 3, 16, 112, 112), &device)?;
    let labels = Tensor::arange(0u32, batch as u32, &device)?;
    for step in 0..=steps {
        device.synchronize()?;
        let begin = Instant::now();
        let pass = network.train(&clips)?;
        let loss = cross_entropy(&pass.logits, &labels)?;
        let forward = begin.elapsed();
        let gradients = pass.backward(&loss)?;
        let backward = begin.elapsed() - forward;
        optimizer.step(&gradients, 0.01)?;
        device.synchronize()?;
        let total = begin.elapsed();
        // On a GPU the parts are what it takes to launch them.
        println!(
            "step {step}: {:.4} s (forward {:.4}, backward {:.4}, optimiser {:.4}), loss {:.4}",
            total.as_secs_f64(),
            forward.as_secs_f64(),
            backward.as_secs_f64(),
            (total - forward - backward).as_secs_f64(),
            loss.to_scalar::<f32>()?
        );
    }
    Ok(())
}

fn resnet_34() -> ModelSpec {
    ModelSpec {
        name: "resnet-34".to_owned(),
        version: "1".to_owned(),
        trained: false,
        license: None,
        origin: None,
        architecture: Architecture::ResNet3d(Config::paper(34, Shortcut::A)),
        clip: ClipSpec::default(),
        preprocessing: Preprocessing::AUTHORS_2020,
        labels: (0..400).map(|class| class.to_string()).collect(),
        scores: ScoreFunction::default(),
    }
}

fn precision(name: Option<&str>) -> Result<Precision, Error> {
    let all = [Precision::Bf16, Precision::Tf32, Precision::F32];
    let Some(name) = name else { return Ok(Precision::default()) };
    all.into_iter().find(|precision| precision.to_string() == name).ok_or_else(|| format!("no precision {name}").into())
}

/// Loss and gradients of a step in evaluation mode of batch norms, whose statistics over few clips would make every rounding
/// a large difference: distance over length for the first convolution, and over all variables.
fn compare_gradients(model: &Model, device: &Device, precision: Precision) -> Result<(), Error> {
    let clips = Tensor::randn(0f32, 1., (2, 3, 16, 112, 112), &Device::Cpu)?;
    let mut results = Vec::new();
    for (device, precision) in [(&Device::Cpu, Precision::F32), (device, precision)] {
        let network = Network::new(model, &BeginAt::First, true, device)?.with_precision(precision);
        let pass = network.train(&clips.to_device(device)?)?;
        let loss = cross_entropy(&pass.logits, &Tensor::new(&[1u32, 2], device)?)?;
        let gradients = pass.backward(&loss)?;
        let values = network.trained().into_iter().map(|(_, variable)| {
            let gradient = gradients.get(&variable).ok_or("a variable without gradient")?;
            Ok::<_, Error>(gradient.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?)
        });
        results.push((loss.to_scalar::<f32>()?, values.collect::<Result<Vec<_>, _>>()?));
    }
    let [(expected_loss, expected), (loss, actual)] = &results[..] else { unreachable!("two devices") };
    let squares = |pair: (&Vec<f32>, &Vec<f32>)| {
        let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
        [sum(&mut pair.0.iter().zip(pair.1).map(|(a, e)| a - e)), sum(&mut pair.1.iter().copied())]
    };
    let all: Vec<[f64; 2]> = actual.iter().zip(expected).map(squares).collect();
    let ratio = |[distance, length]: [f64; 2]| (distance / length).sqrt();
    let whole = all.iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]]);
    println!(
        "{precision} beside the CPU: loss {loss:.4} and {expected_loss:.4}, gradients {:.2e} apart, the first ones {:.2e}",
        ratio(whole),
        ratio(all[0])
    );
    Ok(())
}
