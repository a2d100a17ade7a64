//! A network whose weights are variables: which of them are trained, from what they start, and how they become a model
//! file again.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use candle_conv3d::Precision;
use candle_conv3d::graph::Parameter;
use candle_conv3d::network::Mode;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

use crate::model::counter::CounterStream;
use crate::model::file::{Model, ModelFileError};
use crate::model::init;
use crate::model::spec::ModelSpec;
use crate::zoo::{self, Architecture, ArchitectureError};

/// The layers from which training begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum BeginAt {
    /// The first: everything is trained.
    #[default]
    First,
    /// The last before the head.
    LastStage,
    /// A group of layers by its name in the network's family.
    Group(String),
}

impl BeginAt {
    /// Its number among the groups of layers of a network.
    pub fn group(&self, architecture: &Architecture) -> std::result::Result<usize, ArchitectureError> {
        match self {
            Self::First => Ok(0),
            Self::LastStage => Ok(architecture.layer_groups().len().saturating_sub(2)),
            Self::Group(name) => architecture.group_named(name),
        }
    }

    /// The same by the name that the network's family has for it.
    pub fn named(self, architecture: &Architecture) -> std::result::Result<Self, ArchitectureError> {
        let group = self.group(architecture)?;
        Ok(if group == 0 { Self::First } else { Self::Group(architecture.layer_groups()[group].name.to_owned()) })
    }
}

impl FromStr for BeginAt {
    type Err = std::convert::Infallible;

    fn from_str(name: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match name {
            "stem" | "conv1" => Self::First,
            _ => Self::Group(name.to_owned()),
        })
    }
}

impl fmt::Display for BeginAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "conv1",
            Self::LastStage => "last stage",
            Self::Group(name) => name,
        })
    }
}

/// Logits of a batch in training, and the way back to the gradients of all variables.
#[derive(Debug)]
pub struct ForwardPass {
    /// `(n, classes)`
    pub logits: Tensor,
    pass: candle_conv3d::network::ForwardPass,
}

impl ForwardPass {
    /// Gradients of a `loss` of the logits.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        self.pass.backward(loss)
    }
}

/// A network in training.
#[derive(Debug)]
pub struct Network {
    spec: ModelSpec,
    trained: candle_conv3d::network::Network,
    /// The same weights without gradients, which would keep the activations of all layers.
    served: candle_conv3d::network::Network,
    /// Every parameter by its name in the checkpoint, in the order of the layers; those that don't change are plain tensors.
    parameters: Vec<(String, Tensor)>,
    mode: Mode,
    precision: Precision,
}

impl Network {
    /// The network of `model` in f32 on `device`. Layers before `begin_at` stay as they are, running statistics included,
    /// and are not gone through backwards. With `frozen_norm` all batch norms normalise by their running statistics and keep
    /// them; their weights and biases are trained still.
    pub fn new(model: &Model, begin_at: &BeginAt, frozen_norm: bool, device: &Device) -> Result<Self> {
        let architecture = &model.spec.architecture;
        let first_group = begin_at.group(architecture).map_err(candle_core::Error::wrap)?;
        let is_trained = |name: &str| architecture.group_of(name) >= first_group;
        let mut parameters = Vec::new();
        for Parameter { name, .. } in model.graph.parameters() {
            let tensor = model.tensors[name].to_dtype(DType::F32)?.to_device(device)?;
            let changes = is_trained(name) && !(frozen_norm && is_statistic(name));
            // A copy, so that the model's own tensors never change.
            let tensor = if changes { Var::from_tensor(&tensor.copy()?)?.into_inner() } else { tensor };
            parameters.push((name.clone(), tensor));
        }
        let tensors: HashMap<String, Tensor> = parameters.iter().cloned().collect();
        // Detached tensors share the variables' values.
        let detached = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
        let network = |tensors| candle_conv3d::network::Network::new(model.graph.clone(), tensors);
        let mut mode = Mode::default();
        if !frozen_norm {
            let norms = zoo::batch_norms(&model.graph).filter(|name| is_trained(name));
            mode.batch_norms = norms.map(str::to_owned).collect();
        }
        let (spec, precision) = (model.spec.clone(), Precision::F32);
        Ok(Self { spec, trained: network(tensors)?, served: network(detached)?, parameters, mode, precision })
    }

    /// The network where a GPU computes in a precision of its own; weights, statistics and their gradients stay f32.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// A pass over `clips` in training: batch norms by the batch, running statistics moved, gradients tracked.
    pub fn train(&self, clips: &Tensor) -> Result<ForwardPass> {
        let pass = self.trained.forward_pass(clips, &self.mode, self.precision)?;
        Ok(ForwardPass { logits: pass.outputs[0].clone(), pass })
    }

    /// Logits `(n, classes)` of `clips` as when the network is served.
    pub fn evaluate(&self, clips: &Tensor) -> Result<Tensor> {
        Ok(self.served.forward_pass(clips, &Mode::default(), self.precision)?.outputs.swap_remove(0))
    }

    /// What is trained: names and variables, in the order of the layers.
    pub fn trained(&self) -> Vec<(String, Var)> {
        self.variables(|name| !is_statistic(name))
    }

    /// [`trained`](Self::trained) in two parts: all layers but the last, and the last.
    pub fn backbone_and_head(&self) -> [Vec<(String, Var)>; 2] {
        let (head, backbone) = self.trained().into_iter().partition(|(name, _)| self.spec.architecture.is_head(name));
        [backbone, head]
    }

    /// The running statistics that change.
    pub fn statistics(&self) -> Vec<(String, Var)> {
        self.variables(is_statistic)
    }

    pub(super) fn variables(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, Var)> {
        let variables = self.parameters.iter().filter(|(name, tensor)| tensor.is_variable() && wanted(name));
        // A variable's tensor becomes that same variable.
        variables.map(|(name, tensor)| (name.clone(), Var::from_tensor(tensor).expect("it is a variable"))).collect()
    }

    /// What the network says about itself.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The weights as they are now, on the CPU. There they share the network's memory: they change with the next step.
    pub fn weights(&self) -> Result<HashMap<String, Tensor>> {
        self.parameters
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.detach().to_device(&Device::Cpu)?)))
            .collect()
    }

    /// Copies of what changes, where it is.
    pub fn copies(&self) -> Result<HashMap<String, Tensor>> {
        self.variables(|_| true).into_iter().map(|(name, variable)| Ok((name, variable.copy()?))).collect()
    }

    /// Takes the values of `tensors` for what changes; the shapes are those of this network's [`weights`](Self::weights).
    pub fn restore(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        for (name, variable) in self.variables(|_| true) {
            let Some(tensor) = tensors.get(&name) else { candle_core::bail!("{name} is missing") };
            variable.set(&tensor.to_device(variable.device())?)?;
        }
        Ok(())
    }
}

/// A GPU to train on, by the driver's number: an error in a program that is built without the feature `candle-cuda`.
pub fn gpu(number: usize) -> Result<Device> {
    #[cfg(feature = "candle-cuda")]
    return candle_conv3d::cuda::training_device(number);
    #[cfg(not(feature = "candle-cuda"))]
    candle_core::bail!(
        "this program trains on the CPU only, not on GPU {number}: build it with --features candle-cuda"
    );
}

/// Whether batch norms keep it rather than an optimiser changing it.
fn is_statistic(name: &str) -> bool {
    name.ends_with(".running_mean") || name.ends_with(".running_var")
}

/// A model to train from scratch: He-initialised convolutions, neutral batch norms, the last layer as [`with_head`] makes it.
pub fn from_scratch(spec: ModelSpec, seed: u64) -> std::result::Result<Model, ModelFileError> {
    let model = init::initialise(spec.clone(), seed)?;
    with_head(model, spec, seed)
}

/// `model` with a new last layer for the labels of `spec`: weights and biases uniform within 1 / sqrt(features), as
/// PyTorch's `Linear`.
pub fn with_head(mut model: Model, spec: ModelSpec, seed: u64) -> std::result::Result<Model, ModelFileError> {
    let graph = spec.validate()?;
    for Parameter { name, shape, .. } in
        graph.parameters().filter(|parameter| spec.architecture.is_head(&parameter.name))
    {
        let [_, features] = zoo::output_lens(&graph);
        let bound = 1.0 / (features as f32).sqrt();
        let stream = CounterStream::new(seed, name);
        let len = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..len).map(|index| stream.uniform(index) * bound).collect();
        model.tensors.insert(name.clone(), Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?);
    }
    Model::new(spec, model.tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builtin;

    #[test]
    fn the_first_layer_has_the_same_name_in_every_family() {
        for name in ["conv1", "stem"] {
            assert_eq!(name.parse(), Ok(BeginAt::First));
        }
        let unknown: BeginAt = "layer5".parse().unwrap();
        assert!(unknown.group(&builtin::spec().architecture).is_err());
    }

    #[test]
    fn frozen_layers_have_no_variables() {
        let model = builtin::model().unwrap();
        let network = Network::new(&model, &BeginAt::Group("layer4".to_owned()), false, &Device::Cpu).unwrap();
        let trained: Vec<_> = network.trained().into_iter().map(|(name, _)| name).collect();
        assert!(trained.iter().all(|name| name.starts_with("layer4.") || name.starts_with("fc.")), "{trained:?}");
        assert_eq!(network.statistics().len(), 6, "mean and variance of two convolutions and a projection");
        let frozen_norm = Network::new(&model, &BeginAt::Group("layer4".to_owned()), true, &Device::Cpu).unwrap();
        assert_eq!((frozen_norm.trained().len(), frozen_norm.statistics().len()), (trained.len(), 0));
    }

    #[test]
    fn training_moves_what_is_trained_and_its_statistics_only() {
        let model = builtin::model().unwrap();
        let network = Network::new(&model, &BeginAt::Group("layer3".to_owned()), false, &Device::Cpu).unwrap();
        let clips = Tensor::randn(0f32, 1.0, (2, 3, 8, 32, 32), &Device::Cpu).unwrap();
        let pass = network.train(&clips).unwrap();
        let loss = pass.logits.sqr().unwrap().mean_all().unwrap();
        let gradients = pass.backward(&loss).unwrap();
        for (name, variable) in network.trained() {
            assert!(gradients.get(&variable).is_some(), "{name}");
        }
        let weights = network.weights().unwrap();
        for (name, before) in &model.tensors {
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let moved = values(before) != values(&weights[name]);
            assert_eq!(moved, is_statistic(name) && model.spec.architecture.group_of(name) >= 3, "{name}");
        }
    }
}
