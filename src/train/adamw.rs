//! AdamW (Loshchilov, Hutter 2019) as `torch.optim.AdamW` and candle's do it. candle's own keeps its moments to itself, so
//! that a run which uses it could not be resumed.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};

/// AdamW with moments that can be saved.
#[derive(Debug)]
pub struct AdamW {
    config: ParamsAdamW,
    variables: Vec<Var>,
    /// First and second moment of each variable.
    moments: Vec<[Tensor; 2]>,
    steps: u64,
}

impl Optimizer for AdamW {
    type Config = ParamsAdamW;

    fn new(vars: Vec<Var>, config: ParamsAdamW) -> Result<Self> {
        let variables: Vec<Var> = vars.into_iter().filter(|var| var.dtype().is_float()).collect();
        let zeros = |var: &Var| Ok([var.zeros_like()?, var.zeros_like()?]);
        let moments = variables.iter().map(zeros).collect::<Result<_>>()?;
        Ok(Self { config, variables, moments, steps: 0 })
    }

    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let ParamsAdamW { lr, beta1, beta2, eps, weight_decay } = self.config;
        self.steps += 1;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (first_scale, second_scale) = (1.0 / (1.0 - beta1.powi(power)), 1.0 / (1.0 - beta2.powi(power)));
        for (variable, moments) in self.variables.iter().zip(&mut self.moments) {
            let Some(gradient) = gradients.get(variable) else { continue };
            let [first, second] = &*moments;
            let first = ((first * beta1)? + (gradient * (1.0 - beta1))?)?;
            let second = ((second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let step = ((&first * first_scale)? / ((&second * second_scale)?.sqrt()? + eps)?)?;
            let decayed = (variable.as_detached_tensor() * (1.0 - lr * weight_decay))?;
            variable.set(&(decayed - (step * lr)?)?)?;
            *moments = [first.detach(), second.detach()];
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.config.lr
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.config.lr = learning_rate;
    }
}

impl AdamW {
    /// First and second moment of each variable, in their order.
    pub fn moments(&self) -> &[[Tensor; 2]] {
        &self.moments
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Goes on from the moments and steps of an earlier process.
    pub fn resume(&mut self, moments: Vec<[Tensor; 2]>, steps: u64) {
        assert_eq!(moments.len(), self.variables.len(), "moments for each variable");
        (self.moments, self.steps) = (moments, steps);
    }
}
