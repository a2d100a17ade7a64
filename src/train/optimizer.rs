//! The optimiser of a network: groups of parameters, each with its own learning rate, and what of it a checkpoint keeps.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use candle_nn::{Optimizer as _, ParamsAdamW};

use super::adamw::AdamW;
use super::sgd::{Sgd, SgdConfig};

/// Which rule moves the weights.
#[derive(Debug, Clone, PartialEq)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent.
    Sgd(SgdConfig),
    /// AdamW.
    AdamW {
        /// Learning rate.
        learning_rate: f64,
        /// Decay of the weights, times the learning rate.
        weight_decay: f64,
    },
}

impl OptimizerConfig {
    /// The learning rate before any schedule.
    pub fn learning_rate(&self) -> f64 {
        match self {
            Self::Sgd(config) => config.learning_rate,
            Self::AdamW { learning_rate, .. } => *learning_rate,
        }
    }
}

/// Moves all parameters that are trained.
#[derive(Debug)]
pub struct Optimizer {
    groups: Vec<Group>,
}

/// Parameters of one learning rate.
#[derive(Debug)]
struct Group {
    names: Vec<String>,
    /// Times the schedule's learning rate.
    factor: f64,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    Sgd(Sgd),
    AdamW(AdamW),
}

impl Optimizer {
    /// An optimiser of `parameters` in two groups: the last layer, and all others, at `backbone_factor` times the learning
    /// rate.
    pub fn new(parameters: Vec<(String, Var)>, config: &OptimizerConfig, backbone_factor: f64) -> Result<Self> {
        let (head, backbone): (Vec<_>, Vec<_>) = parameters.into_iter().partition(|(name, _)| name.starts_with("fc."));
        let group = |parameters: Vec<(String, Var)>, factor: f64| {
            let (names, variables) = parameters.into_iter().unzip();
            let rule = match config {
                OptimizerConfig::Sgd(config) => Rule::Sgd(Sgd::new(variables, *config)?),
                &OptimizerConfig::AdamW { learning_rate, weight_decay } => {
                    let config = ParamsAdamW { lr: learning_rate, weight_decay, ..ParamsAdamW::default() };
                    Rule::AdamW(AdamW::new(variables, config)?)
                }
            };
            Ok::<_, candle_core::Error>(Group { names, factor, rule })
        };
        Ok(Self { groups: vec![group(backbone, backbone_factor)?, group(head, 1.0)?] })
    }

    /// One step at a learning rate.
    pub fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<()> {
        for group in &mut self.groups {
            let learning_rate = learning_rate * group.factor;
            match &mut group.rule {
                Rule::Sgd(sgd) => {
                    sgd.set_learning_rate(learning_rate);
                    sgd.step(gradients)?;
                }
                Rule::AdamW(adamw) => {
                    adamw.set_learning_rate(learning_rate);
                    adamw.step(gradients)?;
                }
            }
        }
        Ok(())
    }

    /// What later steps depend on, by parameter.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for Group { names, rule, .. } in &self.groups {
            match rule {
                Rule::Sgd(sgd) => {
                    let directions = names.iter().zip(sgd.directions());
                    state.extend(directions.filter_map(|(name, v)| Some((format!("direction.{name}"), v.clone()?))));
                }
                Rule::AdamW(adamw) => {
                    for (name, [first, second]) in names.iter().zip(adamw.moments()) {
                        state.push((format!("moment1.{name}"), first.clone()));
                        state.push((format!("moment2.{name}"), second.clone()));
                    }
                }
            }
        }
        state
    }

    /// Goes on from a [`state`](Self::state), after so many steps. The tensors are taken as they are.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>, steps: u64) -> Result<()> {
        for Group { names, rule, .. } in &mut self.groups {
            match rule {
                Rule::Sgd(sgd) => {
                    let direction =
                        |name: &String| state.get(&format!("direction.{name}")).map(Tensor::copy).transpose();
                    sgd.set_directions(names.iter().map(direction).collect::<Result<_>>()?);
                }
                Rule::AdamW(adamw) => {
                    let moment = |kind: &str, name: &str| match state.get(&format!("{kind}.{name}")) {
                        Some(moment) => moment.copy(),
                        None => candle_core::bail!("{kind} of {name} is missing"),
                    };
                    let moments = names.iter().map(|name| Ok([moment("moment1", name)?, moment("moment2", name)?]));
                    adamw.resume(moments.collect::<Result<_>>()?, steps);
                }
            }
        }
        Ok(())
    }
}
