//! Time of each convolution of a 3D ResNet-34 in training, forward and backward, clips of 3x16x112x112.
//!
//!     cargo run --release --example training_layers -- [BATCH] [ROUNDS]
//!
//! `training_layers.py` is the same for PyTorch.

use std::time::Instant;

use candle_conv3d::{Conv3d, Conv3dConfig};
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::Module;

/// Name, convolutions of this shape, in channels, out channels, kernel, stride, input (t, h, w).
type Layer = (&'static str, usize, usize, usize, usize, [usize; 3], [usize; 3]);

#[rustfmt::skip]
const LAYERS: [Layer; 8] = [
    ("conv1", 1, 3, 64, 7, [1, 2, 2], [16, 112, 112]),
    ("layer1", 6, 64, 64, 3, [1, 1, 1], [8, 28, 28]),
    ("layer2.0", 1, 64, 128, 3, [2, 2, 2], [8, 28, 28]),
    ("layer2", 7, 128, 128, 3, [1, 1, 1], [4, 14, 14]),
    ("layer3.0", 1, 128, 256, 3, [2, 2, 2], [4, 14, 14]),
    ("layer3", 11, 256, 256, 3, [1, 1, 1], [2, 7, 7]),
    ("layer4.0", 1, 256, 512, 3, [2, 2, 2], [2, 7, 7]),
    ("layer4", 5, 512, 512, 3, [1, 1, 1], [1, 4, 4]),
];

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|arg| arg.parse::<usize>().expect("BATCH and ROUNDS are numbers"));
    let (batch, rounds) = (numbers.next().unwrap_or(8), numbers.next().unwrap_or(5));
    let [mut forward_total, mut backward_total] = [0.; 2];
    for (name, count, in_channels, out_channels, kernel, stride, [t, h, w]) in LAYERS {
        let input = Tensor::randn(0f32, 1., (batch, in_channels, t, h, w), &Device::Cpu)?;
        // The first layer's input is data and needs no gradient.
        let input = if in_channels == 3 { input } else { Var::from_tensor(&input)?.into_inner() };
        let weight = Var::randn(0f32, 0.1, (out_channels, in_channels, kernel, kernel, kernel), &Device::Cpu)?;
        let layer = Conv3d::new(weight.into_inner(), None, Conv3dConfig { stride, padding: [kernel / 2; 3] });
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..=rounds {
            let start = Instant::now();
            let output = layer.forward(&input)?;
            times[0].push(start.elapsed());
            let start = Instant::now();
            output.backward()?;
            times[1].push(start.elapsed());
        }
        // The median, without the first round that warms up.
        let [forward, backward] = times.map(|mut times| {
            times.remove(0);
            times.sort();
            times[times.len() / 2].as_secs_f64() * 1e3
        });
        println!("{name:9} x{count:2}  forward {forward:7.2} ms  backward {backward:7.2} ms");
        forward_total += count as f64 * forward;
        backward_total += count as f64 * backward;
    }
    println!("all: forward {forward_total:.0} ms, backward {backward_total:.0} ms");
    Ok(())
}
