//! The optimiser of a network: groups of parameters, each with its own learning rate, and what of it a checkpoint keeps.

use std::collections::HashMap;
use std::fmt;

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};
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

/// In a person's words, as the settings of a run and its messages say it.
impl fmt::Display for OptimizerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sgd(SgdConfig { learning_rate, momentum, dampening, nesterov, weight_decay }) => {
                write!(f, "SGD, learning rate {learning_rate}, momentum {momentum}")?;
                if *dampening != 0.0 {
                    write!(f, ", dampening {dampening}")?;
                }
                if *nesterov {
                    f.write_str(" (Nesterov's)")?;
                }
                write!(f, ", weight decay {weight_decay}")
            }
            Self::AdamW { learning_rate, weight_decay } => {
                write!(f, "AdamW, learning rate {learning_rate}, weight decay {weight_decay}")
            }
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
    variables: Vec<Var>,
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
    /// An optimiser of parameters in two groups: the last layer, and all others, at `backbone_factor` times the learning rate.
    pub fn new(
        [backbone, head]: [Vec<(String, Var)>; 2],
        config: &OptimizerConfig,
        backbone_factor: f64,
    ) -> Result<Self> {
        let group = |parameters: Vec<(String, Var)>, factor: f64| {
            let (names, variables): (Vec<String>, Vec<Var>) = parameters.into_iter().unzip();
            let rule = match config {
                OptimizerConfig::Sgd(config) => Rule::Sgd(Sgd::new(variables.clone(), *config)?),
                &OptimizerConfig::AdamW { learning_rate, weight_decay } => {
                    let config = ParamsAdamW { lr: learning_rate, weight_decay, ..ParamsAdamW::default() };
                    Rule::AdamW(AdamW::new(variables.clone(), config)?)
                }
            };
            Ok::<_, candle_core::Error>(Group { names, variables, factor, rule })
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

    /// Goes on from a [`state`](Self::state), after so many steps. Wherever its tensors are and whatever their type is, what
    /// is made of them is beside the parameter they belong to.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>, steps: u64) -> Result<()> {
        for Group { names, variables, rule, .. } in &mut self.groups {
            let parameters = || names.iter().zip(variables.iter());
            let beside = |kind: &str, name: &str, variable: &Var| {
                let Some(tensor) = state.get(&format!("{kind}.{name}")) else { return Ok(None) };
                // A copy, which no step changes under the hands of the state's owner.
                let tensor = tensor.to_dtype(variable.dtype())?.to_device(variable.device())?.copy()?;
                if tensor.dims() != variable.dims() {
                    candle_core::bail!(
                        "{kind} of {name} is {:?}; the parameter is {:?}",
                        tensor.dims(),
                        variable.dims()
                    );
                }
                Ok(Some(tensor))
            };
            match rule {
                Rule::Sgd(sgd) => {
                    let directions = parameters().map(|(name, variable)| beside("direction", name, variable));
                    sgd.set_directions(directions.collect::<Result<_>>()?);
                }
                Rule::AdamW(adamw) => {
                    let moment = |kind: &str, name: &str, variable: &Var| match beside(kind, name, variable)? {
                        Some(moment) => Ok(moment),
                        None => candle_core::bail!("{kind} of {name} is missing"),
                    };
                    let moments = parameters().map(|(name, variable)| {
                        Ok([moment("moment1", name, variable)?, moment("moment2", name, variable)?])
                    });
                    adamw.resume(moments.collect::<Result<_>>()?, steps);
                }
            }
        }
        Ok(())
    }
}

/// Scales all gradients down if they are longer than `limit` together, as `torch.nn.utils.clip_grad_norm_`; gives their
/// length before.
pub fn clip_norm(gradients: &mut GradStore, parameters: &[(String, Var)], limit: f64) -> Result<f64> {
    let mut squares = 0.0;
    for (_, variable) in parameters {
        if let Some(gradient) = gradients.get(variable) {
            squares += f64::from(gradient.sqr()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        }
    }
    let norm = squares.sqrt();
    // A norm that is no number stays one: the loss tells of it.
    if norm > limit {
        for (_, variable) in parameters {
            if let Some(gradient) = gradients.get(variable) {
                let clipped = (gradient * (limit / (norm + 1e-6)))?;
                gradients.insert(variable, clipped);
            }
        }
    }
    Ok(norm)
}
