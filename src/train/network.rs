//! A network whose weights are variables: which of them are trained, from what they start, and how they become a model
//! file again.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use candle_conv3d::Precision;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;

use crate::model::counter::CounterStream;
use crate::model::file::{Model, ModelFileError};
use crate::model::init;
use crate::model::resnet::{ForwardPass, NormMode, ResNet3d};
use crate::model::spec::ModelSpec;

/// The layers of a 3D ResNet from which training can begin, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// The first convolution and its batch norm (torchvision's `stem`): everything is trained.
    Conv1,
    /// The first stage.
    Layer1,
    /// The second stage.
    Layer2,
    /// The third stage.
    Layer3,
    /// The last stage.
    Layer4,
    /// The last, linear layer alone.
    Fc,
}

/// A layer that no 3D ResNet has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{actual:?} is no layer of the network; its layers are conv1, layer1, layer2, layer3, layer4 and fc")]
pub struct UnknownLayer {
    /// What was asked for.
    pub actual: String,
}

impl Layer {
    const NAMES: [(&'static str, Self); 6] = [
        ("conv1", Self::Conv1),
        ("layer1", Self::Layer1),
        ("layer2", Self::Layer2),
        ("layer3", Self::Layer3),
        ("layer4", Self::Layer4),
        ("fc", Self::Fc),
    ];

    /// The layer that the parameter `name` of a checkpoint belongs to.
    pub(super) fn of_parameter(name: &str) -> Self {
        let prefix = name.split('.').next().unwrap_or(name);
        // What isn't one of the others is the stem: conv1 and bn1, or torchvision's stem.
        Self::NAMES.into_iter().find(|(layer, _)| *layer == prefix).map_or(Self::Conv1, |(_, layer)| layer)
    }
}

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownLayer> {
        let name = if name == "stem" { "conv1" } else { name };
        let found = Self::NAMES.into_iter().find(|(layer, _)| *layer == name);
        found.map(|(_, layer)| layer).ok_or_else(|| UnknownLayer { actual: name.to_owned() })
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = Self::NAMES.into_iter().find(|(_, layer)| layer == self).expect("every layer has a name");
        f.write_str(name)
    }
}

/// A network in training.
#[derive(Debug)]
pub struct Network {
    spec: ModelSpec,
    resnet: ResNet3d,
    /// The same weights without gradients, which would keep the activations of all layers.
    served: ResNet3d,
    /// Every parameter by its name in the checkpoint, in the order of the layers; those that don't change are plain tensors.
    parameters: Vec<(String, Tensor)>,
    mode: NormMode,
    precision: Precision,
}

impl Network {
    /// The network of `model` in f32 on `device`. Layers before `begin_at` stay as they are, running statistics included,
    /// and are not gone through backwards. With `frozen_norm` all batch norms normalise by their running statistics and keep
    /// them; their weights and biases are trained still.
    pub fn new(model: &Model, begin_at: Layer, frozen_norm: bool, device: &Device) -> Result<Self> {
        let mut parameters = Vec::new();
        for parameter in model.layout.parameters() {
            let tensor = model.tensors[&parameter.name].to_dtype(DType::F32)?.to_device(device)?;
            let changes =
                Layer::of_parameter(&parameter.name) >= begin_at && !(frozen_norm && is_statistic(&parameter.name));
            // A copy, so that the model's own tensors never change.
            let tensor = if changes { Var::from_tensor(&tensor.copy()?)?.into_inner() } else { tensor };
            parameters.push((parameter.name, tensor));
        }
        let tensors: HashMap<String, Tensor> = parameters.iter().cloned().collect();
        // Detached tensors share the variables' values.
        let detached = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
        let resnet = ResNet3d::new(&model.layout, VarBuilder::from_tensors(tensors, DType::F32, device))?;
        let served = ResNet3d::new(&model.layout, VarBuilder::from_tensors(detached, DType::F32, device))?;
        let first_block = model.layout.blocks.iter().position(|block| {
            let name = block.convs.first().map_or("", |conv| conv.conv.as_str());
            Layer::of_parameter(name) >= begin_at
        });
        let mode = if frozen_norm {
            NormMode::Fixed
        } else {
            NormMode::Batch { stem: begin_at == Layer::Conv1, from_block: first_block.unwrap_or(usize::MAX) }
        };
        Ok(Self { spec: model.spec.clone(), resnet, served, parameters, mode, precision: Precision::F32 })
    }

    /// The network where a GPU computes in a precision of its own; weights, statistics and their gradients stay f32.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// A pass over `clips` in training: batch norms by the batch, running statistics moved, gradients tracked.
    pub fn train(&self, clips: &Tensor) -> Result<ForwardPass> {
        self.resnet.forward_pass(clips, self.mode, self.precision)
    }

    /// Logits `(n, classes)` of `clips` as when the network is served.
    pub fn evaluate(&self, clips: &Tensor) -> Result<Tensor> {
        Ok(self.served.forward_pass(clips, NormMode::Fixed, self.precision)?.logits)
    }

    /// What is trained: names and variables, in the order of the layers.
    pub fn trained(&self) -> Vec<(String, Var)> {
        self.variables(|name| !is_statistic(name))
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
    let (classes, features) = (spec.labels.len(), model.layout.features);
    let bound = 1.0 / (features as f32).sqrt();
    for (name, shape) in [("fc.weight", vec![classes, features]), ("fc.bias", vec![classes])] {
        let stream = CounterStream::new(seed, name);
        let len = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..len).map(|index| stream.uniform(index) * bound).collect();
        model.tensors.insert(name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Model::new(spec, model.tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builtin;

    #[test]
    fn layers_are_told_by_the_names_of_parameters() {
        for (name, layer) in [
            ("conv1.weight", Layer::Conv1),
            ("bn1.running_var", Layer::Conv1),
            ("stem.0.weight", Layer::Conv1),
            ("layer1.0.conv1.weight", Layer::Layer1),
            ("layer4.2.bn2.bias", Layer::Layer4),
            ("fc.bias", Layer::Fc),
        ] {
            assert_eq!(Layer::of_parameter(name), layer, "{name}");
        }
    }

    #[test]
    fn layer_that_is_not_there_is_refused_with_those_that_are() {
        assert_eq!("layer4".parse(), Ok(Layer::Layer4));
        let error = "layer5".parse::<Layer>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"layer5\" is no layer of the network; its layers are conv1, layer1, layer2, layer3, layer4 and fc"
        );
    }

    #[test]
    fn frozen_layers_have_no_variables() {
        let model = builtin::model().unwrap();
        let network = Network::new(&model, Layer::Layer4, false, &Device::Cpu).unwrap();
        let trained: Vec<_> = network.trained().into_iter().map(|(name, _)| name).collect();
        assert!(trained.iter().all(|name| name.starts_with("layer4.") || name.starts_with("fc.")), "{trained:?}");
        assert_eq!(network.statistics().len(), 6, "mean and variance of two convolutions and a projection");
        let frozen_norm = Network::new(&model, Layer::Layer4, true, &Device::Cpu).unwrap();
        assert_eq!((frozen_norm.trained().len(), frozen_norm.statistics().len()), (trained.len(), 0));
    }

    #[test]
    fn training_moves_what_is_trained_and_its_statistics_only() {
        let model = builtin::model().unwrap();
        let network = Network::new(&model, Layer::Layer3, false, &Device::Cpu).unwrap();
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
            assert_eq!(moved, is_statistic(name) && Layer::of_parameter(name) >= Layer::Layer3, "{name}");
        }
    }
}
