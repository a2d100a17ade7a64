//! Time of a training step (forward, backward, SGD) of a full-width 3D ResNet-34 with shortcut A and batch
//! normalisation, on clips of 3x16x112x112.
//!
//!     cargo run --release --example training_step -- [BATCH] [STEPS]
//!
//! `training_step.py` is the same for PyTorch.

use std::time::Instant;

use candle_conv3d::{
    Activation, Conv3d, Conv3dConfig, MaxPool3d, MaxPool3dConfig, add_relu, batch_norm, conv3d_no_bias,
};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Init, Linear, Module, Optimizer, SGD, VarBuilder, VarMap, linear, loss::cross_entropy};

const CLASSES: usize = 400;

/// A convolution and the batch normalisation after it.
struct Unit {
    conv: Conv3d,
    weight: Tensor,
    bias: Tensor,
}

impl Unit {
    fn new(channels: [usize; 2], kernel: usize, stride: [usize; 3], vb: VarBuilder) -> Result<Self> {
        let config = Conv3dConfig { stride, padding: [kernel / 2; 3] };
        Ok(Self {
            conv: conv3d_no_bias(channels[0], channels[1], [kernel; 3], config, vb.pp("conv"))?,
            weight: vb.get_with_hints(channels[1], "bn.weight", Init::Const(1.))?,
            bias: vb.get_with_hints(channels[1], "bn.bias", Init::Const(0.))?,
        })
    }

    fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        Ok(batch_norm(&self.conv.forward(x)?, &self.weight, &self.bias, 1e-5, activation)?.output)
    }
}

struct Block {
    first: Unit,
    second: Unit,
    /// Strided picking, where the block halves the volume.
    pick: Option<MaxPool3d>,
}

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let branch = self.second.forward(&self.first.forward(x, Activation::Relu)?, Activation::Identity)?;
        let shortcut = match &self.pick {
            Some(pick) => pick.forward(x)?.pad_with_zeros(1, 0, branch.dim(1)? - x.dim(1)?)?,
            None => x.clone(),
        };
        add_relu(&branch, &shortcut)
    }
}

struct Network {
    stem: Unit,
    pool: MaxPool3d,
    blocks: Vec<Block>,
    head: Linear,
}

impl Network {
    fn new(vb: VarBuilder) -> Result<Self> {
        let mut blocks = Vec::new();
        let mut channels = 64;
        for (layer, count) in [3, 4, 6, 3].into_iter().enumerate() {
            for i in 0..count {
                let vb = vb.pp(format!("layer{}.{i}", layer + 1));
                let halves = layer > 0 && i == 0;
                let stride = if halves { [2; 3] } else { [1; 3] };
                let input = if halves { channels / 2 } else { channels };
                let pick = MaxPool3d::new(MaxPool3dConfig { kernel: [1; 3], stride: [2; 3], padding: [0; 3] });
                blocks.push(Block {
                    first: Unit::new([input, channels], 3, stride, vb.pp("1"))?,
                    second: Unit::new([channels, channels], 3, [1; 3], vb.pp("2"))?,
                    pick: halves.then_some(pick),
                });
            }
            channels *= 2;
        }
        Ok(Self {
            stem: Unit::new([3, 64], 7, [1, 2, 2], vb.pp("stem"))?,
            pool: MaxPool3d::new(MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] }),
            blocks,
            head: linear(512, CLASSES, vb.pp("fc"))?,
        })
    }

    fn forward(&self, clips: &Tensor) -> Result<Tensor> {
        let mut x = self.pool.forward(&self.stem.forward(clips, Activation::Relu)?)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.head.forward(&x.flatten_from(2)?.mean(2)?)
    }
}

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse::<usize>().expect("BATCH and STEPS are numbers"));
    let (batch, steps) = (numbers.next().unwrap_or(8), numbers.next().unwrap_or(5));
    let variables = VarMap::new();
    let network = Network::new(VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let mut optimizer = SGD::new(variables.all_vars(), 0.01)?;
    let clips = Tensor::randn(0f32, 1., (batch, 3, 16, 112, 112), &Device::Cpu)?;
    let labels = Tensor::arange(0u32, batch as u32, &Device::Cpu)?;
    for step in 0..=steps {
        let start = Instant::now();
        let loss = cross_entropy(&network.forward(&clips)?, &labels)?;
        let forward = start.elapsed();
        let gradients = loss.backward()?;
        let backward = start.elapsed() - forward;
        optimizer.step(&gradients)?;
        println!(
            "step {step}: {:.3} s (forward {:.3}, backward {:.3}), loss {:.4}",
            start.elapsed().as_secs_f64(),
            forward.as_secs_f64(),
            backward.as_secs_f64(),
            loss.to_scalar::<f32>()?
        );
    }
    Ok(())
}
