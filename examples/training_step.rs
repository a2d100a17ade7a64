//! Time of a training step (forward, backward, SGD with momentum) of a full-width 3D ResNet-34 with shortcut A, as `train`
//! takes it.
//!
//!     cargo run --release --example training_step -- [BATCH] [STEPS]
//!
//! `training_step.py` is the same for PyTorch.

use std::time::Instant;

use candle_conv3d::{TrainingAllocator, keep_freed_memory};
use candle_core::{Device, Tensor};
use candle_nn::loss::cross_entropy;
use kinetoscope::model::spec::{Architecture, ClipSpec, Family, ModelSpec, Preprocessing, Shortcut, Stem};
use kinetoscope::train::network::{self, Layer, Network};
use kinetoscope::train::optimizer::{Optimizer, OptimizerConfig};
use kinetoscope::train::sgd::SgdConfig;

#[global_allocator]
static ALLOCATOR: TrainingAllocator = TrainingAllocator;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let (batch, steps) = (numbers.next().transpose()?.unwrap_or(8), numbers.next().transpose()?.unwrap_or(5));
    keep_freed_memory();
    let spec = ModelSpec {
        name: "resnet-34".to_owned(),
        version: "1".to_owned(),
        trained: false,
        license: None,
        origin: None,
        architecture: Architecture {
            family: Family::ResNet3d,
            depth: 34,
            shortcut: Shortcut::A,
            widen_factor: 1.0,
            stem: Stem::AUTHORS,
        },
        clip: ClipSpec::default(),
        preprocessing: Preprocessing::AUTHORS_2020,
        labels: (0..400).map(|class| class.to_string()).collect(),
    };
    let network = Network::new(&network::from_scratch(spec, 1)?, Layer::Conv1, false, &Device::Cpu)?;
    let config = OptimizerConfig::Sgd(SgdConfig::default());
    let mut optimizer = Optimizer::new(network.trained(), &config, 1.0)?;
    let clips = Tensor::randn(0f32, 1., (batch, 3, 16, 112, 112), &Device::Cpu)?;
    let labels = Tensor::arange(0u32, batch as u32, &Device::Cpu)?;
    for step in 0..=steps {
        let begin = Instant::now();
        let pass = network.train(&clips)?;
        let loss = cross_entropy(&pass.logits, &labels)?;
        let forward = begin.elapsed();
        let gradients = pass.backward(&loss)?;
        let backward = begin.elapsed() - forward;
        optimizer.step(&gradients, 0.01)?;
        let total = begin.elapsed();
        println!(
            "step {step}: {:.3} s (forward {:.3}, backward {:.3}, optimiser {:.3}), loss {:.4}",
            total.as_secs_f64(),
            forward.as_secs_f64(),
            backward.as_secs_f64(),
            (total - forward - backward).as_secs_f64(),
            loss.to_scalar::<f32>()?
        );
    }
    Ok(())
}
