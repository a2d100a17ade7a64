//! Stochastic gradient descent as `torch.optim.SGD` does it.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var};
use candle_nn::Optimizer;
use rayon::prelude::*;

/// Settings, with PyTorch's names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Learning rate.
    pub learning_rate: f64,
    /// Part of the last step's direction that is kept; 0 keeps none and needs no buffers.
    pub momentum: f64,
    /// Part of the gradient that does not join the direction.
    pub dampening: f64,
    /// Looks one step ahead along the direction. Wants momentum and no dampening.
    pub nesterov: bool,
    /// Times the weight itself is added to its gradient.
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    /// The paper's (section 3.2.1).
    fn default() -> Self {
        Self { learning_rate: 0.1, momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.001 }
    }
}

/// Stochastic gradient descent with momentum, dampening, Nesterov's look ahead and weight decay.
///
/// A step passes over weights and directions twice and allocates nothing, on CPUs in f32.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    variables: Vec<Var>,
    /// The direction of each variable; `None` before its first step.
    directions: Vec<Option<Tensor>>,
}

impl Optimizer for Sgd {
    type Config = SgdConfig;

    fn new(vars: Vec<Var>, config: SgdConfig) -> Result<Self> {
        if config.nesterov && (config.momentum <= 0.0 || config.dampening != 0.0) {
            candle_core::bail!("Nesterov's step wants momentum above 0 and dampening 0");
        }
        let variables: Vec<Var> = vars.into_iter().filter(|var| var.dtype().is_float()).collect();
        let directions = vec![None; variables.len()];
        Ok(Self { config, variables, directions })
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let SgdConfig { learning_rate, momentum, dampening, nesterov, weight_decay } = self.config;
        for (variable, direction) in self.variables.iter().zip(&mut self.directions) {
            let Some(gradient) = gradients.get(variable) else { continue };
            let gradient = gradient.contiguous()?;
            let weight = variable.as_detached_tensor();
            if momentum == 0.0 {
                // direction = gradient + weight_decay * weight; both are in the one expression of the last step.
                descend(
                    &weight,
                    &gradient,
                    None,
                    Descent { learning_rate, along_gradient: 1.0, momentum, weight_decay },
                )?;
                continue;
            }
            match direction {
                Some(direction) => {
                    turn(direction, &gradient, &weight, Turn { momentum, rate: 1.0 - dampening, weight_decay })?;
                }
                // PyTorch's first direction is the gradient, whatever the dampening.
                None => {
                    let first = Tensor::zeros_like(&gradient)?;
                    turn(&first, &gradient, &weight, Turn { momentum: 0.0, rate: 1.0, weight_decay })?;
                    *direction = Some(first);
                }
            }
            let along_gradient = if nesterov { 1.0 } else { 0.0 };
            let along_direction = if nesterov { momentum } else { 1.0 };
            let descent = Descent { learning_rate, along_gradient, momentum: along_direction, weight_decay };
            descend(&weight, &gradient, direction.as_ref(), descent)?;
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.config.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.config.learning_rate = learning_rate;
    }
}

impl Sgd {
    /// The direction of each variable, in their order; `None` where there was no step yet.
    pub fn directions(&self) -> &[Option<Tensor>] {
        &self.directions
    }

    /// Goes on from directions of an earlier process.
    pub fn set_directions(&mut self, directions: Vec<Option<Tensor>>) {
        assert_eq!(directions.len(), self.variables.len(), "a direction for each variable");
        self.directions = directions;
    }
}

/// direction = momentum * direction + rate * (gradient + weight_decay * weight).
#[derive(Debug, Clone, Copy)]
struct Turn {
    momentum: f64,
    rate: f64,
    weight_decay: f64,
}

/// weight -= learning_rate * (along_gradient * (gradient + weight_decay * weight) + momentum * direction).
#[derive(Debug, Clone, Copy)]
struct Descent {
    learning_rate: f64,
    along_gradient: f64,
    momentum: f64,
    weight_decay: f64,
}

fn turn(direction: &Tensor, gradient: &Tensor, weight: &Tensor, turn: Turn) -> Result<()> {
    if on_cpu(direction) {
        return direction.inplace_op3(gradient, weight, &turn);
    }
    let mut turned = (gradient + (weight * turn.weight_decay)?)?;
    if turn.rate != 1.0 {
        turned = (turned * turn.rate)?;
    }
    direction.slice_set(&((direction * turn.momentum)? + turned)?, 0, 0)
}

fn descend(weight: &Tensor, gradient: &Tensor, direction: Option<&Tensor>, descent: Descent) -> Result<()> {
    let Descent { learning_rate, along_gradient, momentum, weight_decay } = descent;
    if on_cpu(weight) {
        return match direction {
            Some(direction) => weight.inplace_op3(gradient, direction, &descent),
            None => weight.inplace_op2(gradient, &descent),
        };
    }
    // Each operation passes over all weights: those that would add zeros are left out.
    let mut moved = weight.clone();
    if along_gradient != 0.0 {
        moved = (moved - ((gradient + (weight * weight_decay)?)? * (along_gradient * learning_rate))?)?;
    }
    if let Some(direction) = direction {
        moved = (moved - (direction * (momentum * learning_rate))?)?;
    }
    weight.slice_set(&moved, 0, 0)
}

fn on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == candle_core::DType::F32
}

impl InplaceOp3 for Turn {
    fn name(&self) -> &'static str {
        "sgd-turn"
    }

    fn cpu_fwd(
        &self,
        direction: &mut CpuStorage,
        direction_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        let [momentum, rate, decay] = [self.momentum, self.rate, self.weight_decay].map(|x| x as f32);
        let direction = floats_mut(direction, direction_layout)?;
        let operands = [floats(gradient, gradient_layout)?, floats(weight, weight_layout)?];
        for_each(direction, operands, |v, [g, w]| *v = momentum * *v + rate * (g + decay * w));
        Ok(())
    }
}

impl InplaceOp3 for Descent {
    fn name(&self) -> &'static str {
        "sgd-descend"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
        direction: &CpuStorage,
        direction_layout: &Layout,
    ) -> Result<()> {
        let [rate, momentum, decay] = [self.learning_rate, self.momentum, self.weight_decay].map(|x| x as f32);
        let weight = floats_mut(weight, weight_layout)?;
        let operands = [floats(gradient, gradient_layout)?, floats(direction, direction_layout)?];
        if self.along_gradient == 0.0 {
            for_each(weight, operands, |w, [_, v]| *w -= rate * (momentum * v));
        } else {
            for_each(weight, operands, |w, [g, v]| *w -= rate * (g + decay * *w + momentum * v));
        }
        Ok(())
    }
}

impl InplaceOp2 for Descent {
    fn name(&self) -> &'static str {
        "sgd-descend"
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        let [rate, decay] = [self.learning_rate, self.weight_decay].map(|x| x as f32);
        let gradient = floats(gradient, gradient_layout)?;
        for_each(floats_mut(weight, weight_layout)?, [gradient, gradient], |w, [g, _]| *w -= rate * (g + decay * *w));
        Ok(())
    }
}

/// The floats of a contiguous CPU tensor.
pub(super) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("an optimiser's tensors are contiguous"),
    }
}

/// The floats of a contiguous CPU tensor, to be changed.
pub(super) fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("an optimiser's tensors are contiguous f32"),
    }
}

/// Runs `f` over all places, in parallel.
pub(super) fn for_each<const N: usize>(
    target: &mut [f32],
    operands: [&[f32]; N],
    f: impl Fn(&mut f32, [f32; N]) + Sync,
) {
    /// Floats a task takes: some 100 microseconds.
    const CHUNK: usize = 64 * 1024;
    target.par_chunks_mut(CHUNK).enumerate().for_each(|(index, target)| {
        let operands = operands.map(|operand| &operand[index * CHUNK..][..target.len()]);
        for (place, value) in target.iter_mut().enumerate() {
            f(value, operands.map(|operand| operand[place]));
        }
    });
}
