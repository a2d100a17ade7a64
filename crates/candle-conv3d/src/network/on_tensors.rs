//! A graph as operations on candle's tensors, each differentiable.

use std::collections::HashMap;

use candle_core::{Result, Tensor};

use super::{BatchNormOutput, Device, Mode, Network, only_readers};
use crate::graph::{AvgPool, Conv, Linear, Node, NodeId, Nonlinearity, Norm, Operation, Scale};
use crate::{Activation, Conv3d, Conv3dConfig, MaxPool3d, MaxPool3dConfig, add_relu, batch_norm, fixed_norm};
use candle_nn::Module;

impl Network {
    /// All outputs; nodes that are `known` already, and what only they need, are not computed.
    pub(super) fn on_tensors(
        &self,
        clips: &Tensor,
        mode: &Mode,
        known: HashMap<NodeId, Tensor>,
    ) -> Result<Vec<Tensor>> {
        let wanted = self.wanted(&known);
        let readers = only_readers(&self.graph);
        let mut results: Vec<Option<Tensor>> = vec![None; self.graph.nodes.len()];
        for (id, tensor) in known {
            results[id.0] = Some(tensor);
        }
        for (index, node) in self.graph.nodes.iter().enumerate() {
            if results[index].is_some() || !wanted[index] {
                continue;
            }
            let inputs: Vec<&Tensor> =
                node.inputs.iter().map(|input| results[input.0].as_ref().expect("inputs run first")).collect();
            // ReLU is one operation with the norm or sum that it alone reads.
            let has_relu =
                |id: NodeId| matches!(self.graph.nodes[id.0].operation, Operation::Nonlinearity(Nonlinearity::Relu));
            let takes_relu = readers[index].is_some_and(has_relu);
            let result = match &node.operation {
                Operation::Nonlinearity(Nonlinearity::Relu) if self.has_taken_relu(node, &readers) => inputs[0].clone(),
                Operation::BatchNorm(norm) => self.normalise(node, norm, inputs[0], takes_relu, mode)?,
                Operation::Add if takes_relu => add_relu(inputs[0], inputs[1])?,
                Operation::Input => clips.clone(),
                _ => self.compute(index, node, &inputs, mode)?,
            };
            results[index] = Some(result);
        }
        let outputs = self.graph.outputs.iter().map(|output| results[output.0].clone().expect("outputs are wanted"));
        outputs.map(|output| if self.is_flat(&output) { output.flatten_from(1) } else { Ok(output) }).collect()
    }

    /// Nodes that are needed for the outputs beside those that are known.
    fn wanted(&self, known: &HashMap<NodeId, Tensor>) -> Vec<bool> {
        let mut wanted = vec![false; self.graph.nodes.len()];
        self.graph.outputs.iter().for_each(|output| wanted[output.0] = true);
        for (index, node) in self.graph.nodes.iter().enumerate().rev() {
            if wanted[index] && !known.contains_key(&NodeId(index)) {
                node.inputs.iter().for_each(|input| wanted[input.0] = true);
            }
        }
        wanted
    }

    /// Whether the node before a ReLU has applied it.
    fn has_taken_relu(&self, node: &Node, readers: &[Option<NodeId>]) -> bool {
        let input = node.inputs[0];
        let takes = matches!(self.graph.nodes[input.0].operation, Operation::BatchNorm(_) | Operation::Add);
        takes && readers[input.0].is_some()
    }

    /// Whether a result has one position.
    fn is_flat(&self, tensor: &Tensor) -> bool {
        matches!(tensor.dims(), [_, _, 1, 1, 1])
    }

    fn normalise(&self, node: &Node, norm: &Norm, input: &Tensor, relu: bool, mode: &Mode) -> Result<Tensor> {
        let [weight, bias] = [self.tensor(&norm.weight), self.tensor(&norm.bias)];
        let activation = if relu { Activation::Relu } else { Activation::Identity };
        if !mode.batch_norms.contains(&node.name) {
            let (mean, variance) = (self.tensor(&norm.mean).detach(), self.tensor(&norm.variance).detach());
            return fixed_norm(input, weight, bias, &mean, &variance, norm.epsilon, activation);
        }
        let BatchNormOutput { output, mean, variance } = batch_norm(input, weight, bias, norm.epsilon, activation)?;
        let count = input.elem_count() / input.dim(1)?.max(1);
        self.move_statistics(norm, &mean, &variance, count)?;
        Ok(output)
    }

    fn compute(&self, index: usize, node: &Node, inputs: &[&Tensor], mode: &Mode) -> Result<Tensor> {
        let channels = node.shape.c;
        match &node.operation {
            Operation::Conv(conv) => self.convolve(conv, inputs),
            Operation::Scale(Scale { factor, offset, nonlinearity }) => {
                let of_channels = |tensor: &Tensor| tensor.reshape((1, channels, 1, 1, 1));
                let scaled = inputs[0]
                    .broadcast_mul(&of_channels(self.tensor(factor))?)?
                    .broadcast_add(&of_channels(self.tensor(offset))?)?;
                apply(*nonlinearity, scaled)
            }
            Operation::Nonlinearity(function) => apply(Some(*function), inputs[0].clone()),
            Operation::Add => inputs[0] + inputs[1],
            Operation::Multiply => volume(inputs[0])?.broadcast_mul(&volume(inputs[1])?),
            Operation::Concat => Tensor::cat(inputs, 1),
            Operation::MaxPool(window) => {
                let config = MaxPool3dConfig { kernel: window.kernel, stride: window.stride, padding: window.padding };
                if window.padding == window.padding_after {
                    return MaxPool3d::new(config).forward(inputs[0]);
                }
                let padded = pad(inputs[0], [window.padding, window.padding_after], f64::NEG_INFINITY)?;
                MaxPool3d::new(MaxPool3dConfig { padding: [0; 3], ..config }).forward(&padded)
            }
            Operation::AvgPool(pool) => average(pool, inputs[0], node),
            Operation::GlobalAvgPool => volume(inputs[0])?.flatten_from(2)?.mean(2),
            Operation::Flatten => inputs[0].flatten_from(1),
            Operation::Linear(Linear { weight, bias, nonlinearity }) => {
                let bias = bias.as_ref().map(|bias| self.tensor(bias).clone());
                let linear = candle_nn::Linear::new(self.tensor(weight).clone(), bias);
                apply(*nonlinearity, linear.forward(&inputs[0].flatten_from(1)?)?)
            }
            Operation::Dropout(probability) => match mode.dropout {
                Some(seed) => drop_out(inputs[0], *probability, seed ^ (index as u64) << 48),
                None => Ok(inputs[0].clone()),
            },
            Operation::StridedPick(stride) => {
                // A pool over single positions picks, and is the fastest that does.
                let pick = MaxPool3dConfig { kernel: [1; 3], stride: *stride, padding: [0; 3] };
                let picked =
                    if *stride == [1; 3] { inputs[0].clone() } else { MaxPool3d::new(pick).forward(inputs[0])? };
                picked.pad_with_zeros(1, 0, channels - inputs[0].dim(1)?)
            }
            Operation::Input | Operation::BatchNorm(_) => unreachable!("computed elsewhere"),
        }
    }

    fn convolve(&self, conv: &Conv, inputs: &[&Tensor]) -> Result<Tensor> {
        let window = conv.window;
        let mut input = volume(inputs[0])?;
        let mut config = Conv3dConfig { stride: window.stride, padding: window.padding };
        if window.padding != window.padding_after {
            input = pad(&input, [window.padding, window.padding_after], 0.0)?;
            config.padding = [0; 3];
        }
        let (weight, groups) = (self.tensor(&conv.weight), conv.groups);
        let bias = conv.bias.as_ref().map(|bias| self.tensor(bias));
        if groups == 1 {
            return Conv3d::new(weight.clone(), bias.cloned(), config).forward(&input);
        }
        let (from, to) = (input.dim(1)? / groups, weight.dim(0)? / groups);
        let parts = (0..groups).map(|group| {
            let part = input.narrow(1, group * from, from)?.contiguous()?;
            let weight = weight.narrow(0, group * to, to)?.contiguous()?;
            Conv3d::new(weight, None, config).forward(&part)
        });
        let output = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)?;
        match bias {
            Some(bias) => output.broadcast_add(&bias.reshape((1, (), 1, 1, 1))?),
            None => Ok(output),
        }
    }
}

/// As (n, c, t, h, w).
fn volume(tensor: &Tensor) -> Result<Tensor> {
    match *tensor.dims() {
        [n, c] => tensor.reshape((n, c, 1, 1, 1)),
        _ => Ok(tensor.clone()),
    }
}

fn apply(function: Option<Nonlinearity>, x: Tensor) -> Result<Tensor> {
    match function {
        None => Ok(x),
        Some(Nonlinearity::Relu) => x.relu(),
        Some(Nonlinearity::Sigmoid) => candle_nn::ops::sigmoid(&x),
        Some(Nonlinearity::Silu) => x.silu(),
    }
}

/// With `value` before and after t, h and w.
fn pad(x: &Tensor, [before, after]: [[usize; 3]; 2], value: f64) -> Result<Tensor> {
    let mut padded = x.clone();
    for axis in 0..3 {
        let filled = |count: usize| {
            let mut dims = padded.dims().to_vec();
            dims[axis + 2] = count;
            Tensor::full(value as f32, dims, x.device())?.to_dtype(x.dtype())
        };
        let mut parts = vec![padded.clone()];
        if before[axis] > 0 {
            parts.insert(0, filled(before[axis])?);
        }
        if after[axis] > 0 {
            parts.push(filled(after[axis])?);
        }
        padded = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, axis + 2)? };
    }
    Ok(padded)
}

/// One axis after the other: the sum over the taps, each a strided slice; then divided by the positions that count.
fn average(pool: &AvgPool, input: &Tensor, node: &Node) -> Result<Tensor> {
    let window = pool.window;
    let lens: Vec<usize> = input.dims()[2..].to_vec();
    let mut sum = pad(input, [window.padding, window.padding_after], 0.0)?;
    let out = [node.shape.t, node.shape.h, node.shape.w];
    for (axis, &count) in out.iter().enumerate() {
        let (dim, stride) = (axis + 2, window.stride[axis]);
        let taps = (0..window.kernel[axis]).map(|tap| crate::reference::pick(&sum, dim, tap, stride, count));
        let taps = taps.collect::<Result<Vec<_>>>()?;
        sum = taps.iter().skip(1).try_fold(taps[0].clone(), |total, tap| total + tap)?;
    }
    let mut shares = Vec::with_capacity(out.iter().product());
    for index in 0..out.iter().product() {
        let at = [index / (out[1] * out[2]), index / out[2] % out[1], index % out[2]];
        let count: usize = (0..3).map(|axis| pool.counted_positions(axis, at[axis], lens[axis])).product();
        shares.push(1.0 / count as f32);
    }
    let shares = Tensor::from_vec(shares, (1, 1, out[0], out[1], out[2]), &Device::Cpu)?;
    sum.broadcast_mul(&shares.to_dtype(input.dtype())?.to_device(input.device())?)
}

/// Drops values with a probability and scales up the others, the same ones for the same seed.
fn drop_out(x: &Tensor, probability: f64, seed: u64) -> Result<Tensor> {
    let kept = |index: usize| {
        // SplitMix64's finaliser.
        let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 >= probability
    };
    let factor = (1.0 / (1.0 - probability)) as f32;
    let mask: Vec<f32> = (0..x.elem_count()).map(|index| if kept(index) { factor } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, x.dims(), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())?;
    x * mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_keeps_the_mean_and_depends_on_its_seed_alone() {
        let x = Tensor::ones((4, 5000), candle_core::DType::F32, &Device::Cpu).unwrap();
        let dropped = |seed| drop_out(&x, 0.25, seed).unwrap();
        let mean = dropped(1).mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(dropped(1)), values(dropped(1)));
        assert_ne!(values(dropped(1)), values(dropped(2)));
        assert_eq!(dropped(3).dims(), [4, 5000]);
    }
}
