//! Trains a small 3D residual network to tell which way a bright bar moves.
//!
//!     cargo run --release --example residual_block

use candle_conv3d::{Conv3d, Conv3dConfig, MaxPool3d, MaxPool3dConfig, conv3d, conv3d_no_bias};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, Optimizer, SGD, VarBuilder, VarMap, linear, loss::cross_entropy};

const FRAMES: usize = 8;
const SIZE: usize = 24;

struct Network {
    stem: Conv3d,
    pool: MaxPool3d,
    residual: [Conv3d; 2],
    head: Linear,
}

impl Network {
    fn new(vb: VarBuilder) -> Result<Self> {
        let padded = Conv3dConfig { padding: [1; 3], ..Default::default() };
        Ok(Self {
            stem: conv3d(1, 8, [3; 3], Conv3dConfig { stride: [1, 2, 2], ..padded }, vb.pp("stem"))?,
            pool: MaxPool3d::new(MaxPool3dConfig { kernel: [1, 2, 2], stride: [1, 2, 2], padding: [0; 3] }),
            residual: [
                conv3d(8, 8, [3; 3], padded, vb.pp("conv1"))?,
                conv3d_no_bias(8, 8, [3; 3], padded, vb.pp("conv2"))?,
            ],
            head: linear(8, 2, vb.pp("head"))?,
        })
    }
}

impl Module for Network {
    /// Clips (n, 1, t, h, w) to logits (n, 2).
    fn forward(&self, clips: &Tensor) -> Result<Tensor> {
        let x = self.pool.forward(&self.stem.forward(clips)?.relu()?)?;
        let [first, second] = &self.residual;
        let x = (second.forward(&first.forward(&x)?.relu()?)? + x)?.relu()?;
        self.head.forward(&x.flatten_from(2)?.mean(2)?)
    }
}

/// Clips of a bar that starts at column `start` and moves right (class 0) or left (class 1) by two pixels a frame.
fn moving_bars(starts: &[usize]) -> Result<(Tensor, Tensor)> {
    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    for &start in starts {
        for label in 0..2u32 {
            labels.push(label);
            for t in 0..FRAMES {
                let step = if label == 0 { 2 * t } else { SIZE - 2 * t };
                let bar = (start + step) % SIZE;
                pixels.extend((0..SIZE * SIZE).map(|i| f32::from(u8::from(i % SIZE == bar))));
            }
        }
    }
    let count = labels.len();
    Ok((
        Tensor::from_vec(pixels, (count, 1, FRAMES, SIZE, SIZE), &Device::Cpu)?,
        Tensor::from_vec(labels, count, &Device::Cpu)?,
    ))
}

fn main() -> Result<()> {
    let variables = VarMap::new();
    let network = Network::new(VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let (clips, labels) = moving_bars(&[0, 5, 10, 15, 20])?;
    let (unseen, unseen_labels) = moving_bars(&[2, 7, 12, 17, 22])?;

    let mut optimizer = SGD::new(variables.all_vars(), 0.3)?;
    for step in 0..=100 {
        let loss = cross_entropy(&network.forward(&clips)?, &labels)?;
        optimizer.backward_step(&loss)?;
        if step % 25 == 0 {
            let guesses = network.forward(&unseen)?.argmax(1)?;
            let right = guesses.eq(&unseen_labels)?.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
            println!("step {step}: loss {:.4}, unseen clips right {:.0}%", loss.to_scalar::<f32>()?, right * 100.);
        }
    }
    Ok(())
}
