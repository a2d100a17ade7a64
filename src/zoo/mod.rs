//! Families of networks, one file each: a serialisable `Config`, the graph it describes with the names of a publisher's
//! checkpoint, how a checkpoint is recognised, and the groups of layers that training freezes.
//!
//! Nothing outside this module knows a layer's name. A new family is a file that implements [`Family`] and a line in
//! `families!`; `docs/architectures.md` leads through it.

mod c3d;
mod densenet;
mod detect;
mod error;
mod mc3;
mod preact_resnet;
mod r2plus1d;
mod residual;
pub mod resnet3d;
mod resnext;
mod torchvision_r2plus1d;
mod torchvision_r3d;
mod wide_resnet;

pub use c3d::{Config as C3dConfig, Pool5};
pub use densenet::{Config as DenseNetConfig, Names as DenseNetNames};
pub use detect::{DetectError, Detected, TensorShapes, detect};
pub use error::ArchitectureError;
pub use mc3::Config as Mc3Config;
pub use preact_resnet::Config as PreactResNetConfig;
pub use r2plus1d::Config as R2Plus1dConfig;
pub use residual::DEPTHS;
pub(crate) use residual::{HEAD, HEAD_ALIASES, HEAD_WEIGHT};
pub use resnext::Config as ResNeXtConfig;
pub use torchvision_r2plus1d::Config as TorchvisionR2Plus1dConfig;
pub use torchvision_r3d::Config as TorchvisionR3dConfig;
pub use wide_resnet::Config as WideResNetConfig;

use std::fmt;

use candle_conv3d::graph::{Graph, NodeId, Operation};
use serde::{Deserialize, Serialize};

use crate::model::spec::ClipSpec;

/// A family of networks: what its `Config` means.
pub trait Family: fmt::Display + Sized {
    /// A tensor by whose name a checkpoint is searched for a network of this family, whatever stands before the name.
    const MARKER: &'static str;

    /// What the names of others of its tensors begin with, behind the same.
    const FIRST_BLOCK: &'static str = "layer1.0.";

    /// What the configuration of a network without any settings is: that of the best-known network of the family.
    fn standard() -> Self;

    /// The network for clips of a geometry. Outputs are logits and the features that the last layer sees.
    fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError>;

    /// The configuration and class count of a checkpoint; `None` if its names are those of another family.
    fn detect(shapes: &TensorShapes) -> Option<Result<(Self, usize), DetectError>>;

    /// The parts from which training can begin, in order. The last is the head alone.
    fn layer_groups(&self) -> Vec<LayerGroup>;
}

/// Layers that are trained or kept together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerGroup {
    /// What `--begin-at` calls it.
    pub name: &'static str,
    /// What the names of its parameters begin with, up to a dot.
    pub prefixes: Vec<&'static str>,
}

/// Declares [`Architecture`] from a line for each family.
macro_rules! families {
    ($($(#[$documentation:meta])* $family:ident($name:literal) = $config:ty,)*) => {
        /// A network: its family and the family's settings, as a model file holds them.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "family")]
        pub enum Architecture {
            $($(#[$documentation])* #[serde(rename = $name)] $family($config),)*
        }

        impl Architecture {
            /// Names of all families.
            pub const FAMILIES: &[&str] = &[$($name),*];

            /// [`Family::MARKER`] and [`Family::FIRST_BLOCK`] of all families.
            pub(crate) const MARKERS: &[[&str; 2]] =
                &[$([<$config as Family>::MARKER, <$config as Family>::FIRST_BLOCK]),*];

            /// The name of its family.
            pub fn family(&self) -> &'static str {
                match self {
                    $(Self::$family(_) => $name,)*
                }
            }

            /// The best-known network of a family.
            pub fn standard(family: &str) -> Result<Self, ArchitectureError> {
                match family {
                    $($name => Ok(Self::$family(<$config as Family>::standard())),)*
                    _ => Err(ArchitectureError::UnknownFamily { actual: family.to_owned() }),
                }
            }

            /// As [`Family::graph`].
            pub fn graph(&self, clip: ClipSpec, classes: usize) -> Result<Graph, ArchitectureError> {
                if classes == 0 {
                    return Err(ArchitectureError::NoClasses);
                }
                match self {
                    $(Self::$family(config) => config.graph(clip, classes),)*
                }
            }

            /// As [`Family::layer_groups`].
            pub fn layer_groups(&self) -> Vec<LayerGroup> {
                match self {
                    $(Self::$family(config) => config.layer_groups(),)*
                }
            }

            /// What each family whose names a checkpoint has makes of it.
            fn candidates(shapes: &TensorShapes) -> Vec<Result<(Self, usize), DetectError>> {
                let mut candidates = Vec::new();
                $(candidates.extend(
                    <$config as Family>::detect(shapes)
                        .map(|found| found.map(|(config, classes)| (Self::$family(config), classes))),
                );)*
                candidates
            }
        }

        impl fmt::Display for Architecture {
            /// In words, such as `3D ResNet-34, shortcut A`.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$family(config) => config.fmt(f),)*
                }
            }
        }
    };
}

families! {
    /// 3D ResNet as in 3D-ResNets-PyTorch.
    ResNet3d("resnet3d") = resnet3d::Config,
    /// The same network with torchvision's names: `r3d_18`.
    TorchvisionR3d("torchvision-r3d") = torchvision_r3d::Config,
    /// R(2+1)D as in 3D-ResNets-PyTorch.
    R2Plus1d("r2plus1d") = r2plus1d::Config,
    /// R(2+1)D as in torchvision and IG-65M.
    TorchvisionR2Plus1d("torchvision-r2plus1d") = torchvision_r2plus1d::Config,
    /// torchvision's `mc3_18`.
    Mc3("mc3") = mc3::Config,
    /// ResNeXt as in 3D-ResNets-PyTorch of 2018.
    ResNeXt("resnext") = resnext::Config,
    /// Wide ResNet as in 3D-ResNets-PyTorch of 2018.
    WideResNet("wide-resnet") = wide_resnet::Config,
    /// Pre-activation ResNet as in 3D-ResNets-PyTorch of 2018.
    PreactResNet("preact-resnet") = preact_resnet::Config,
    /// DenseNet as in 3D-ResNets-PyTorch.
    DenseNet("densenet") = densenet::Config,
    /// C3D as in its PyTorch ports.
    C3d("c3d") = c3d::Config,
}

impl Architecture {
    /// One setting by its name, dots leading inwards, such as `depth` or `stem.max_pool`.
    pub fn setting(&self, key: &str) -> Option<serde_json::Value> {
        let value = serde_json::to_value(self).ok()?;
        key.split('.').try_fold(value, |value, part| value.get(part).cloned())
    }

    /// The same network with a setting of its family changed; `value` is JSON, or a word.
    pub fn with_setting(&self, key: &str, value: &str) -> Result<Self, ArchitectureError> {
        let family = self.family();
        let refused = |reason: String| ArchitectureError::Setting { family, key: key.to_owned(), reason };
        let mut whole = serde_json::to_value(self).map_err(|error| refused(error.to_string()))?;
        let place = key.split('.').try_fold(&mut whole, |value, part| value.get_mut(part));
        let Some(place) = place.filter(|_| key != "family") else {
            let serde_json::Value::Object(settings) = &whole else { unreachable!("a family is an object") };
            let names: Vec<&str> = settings.keys().map(String::as_str).filter(|name| *name != "family").collect();
            return Err(refused(format!("there is no such setting; there are {}", names.join(", "))));
        };
        *place = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        serde_json::from_value(whole).map_err(|error| refused(error.to_string()))
    }

    /// The group of layers that a parameter belongs to, counted from 0. What no group names belongs to the first.
    pub fn group_of(&self, parameter: &str) -> usize {
        let begins = |prefix: &&str| {
            parameter.strip_prefix(*prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.layer_groups().iter().position(|group| group.prefixes.iter().any(begins)).unwrap_or(0)
    }

    /// The group of layers of a name, counted from 0. `stem` is the first, `head` the last, whatever they are called.
    pub fn group_named(&self, name: &str) -> Result<usize, ArchitectureError> {
        let groups = self.layer_groups();
        let index = match name {
            "stem" => Some(0),
            "head" => Some(groups.len() - 1),
            _ => groups.iter().position(|group| group.name == name),
        };
        index.ok_or_else(|| {
            let names: Vec<&str> = groups.iter().map(|group| group.name).collect();
            ArchitectureError::UnknownGroup { actual: name.to_owned(), groups: names.join(", ") }
        })
    }

    /// Whether a parameter belongs to the last, linear layer.
    pub fn is_head(&self, parameter: &str) -> bool {
        self.group_of(parameter) + 1 == self.layer_groups().len()
    }
}

/// Channels of a network's logits and features: classes, and the length of an embedding.
pub fn output_lens(graph: &Graph) -> [usize; 2] {
    let len =
        |index: usize| graph.outputs().get(index).and_then(|&output| graph.shape(output).ok()).map(|shape| shape[0]);
    [len(0).unwrap_or(0), len(1).unwrap_or(0)]
}

/// Names of the layers that normalise by batches.
pub(crate) fn batch_norms(graph: &Graph) -> impl Iterator<Item = &str> {
    graph.nodes().filter(|(_, node)| matches!(node.operation(), Operation::BatchNorm(_))).map(|(_, node)| node.name())
}

/// Ends a graph as all families do: global mean, linear layer; outputs are logits and features.
fn add_head(graph: &mut Graph, x: NodeId, name: &str, classes: usize) -> Result<(), ArchitectureError> {
    let features = graph.global_avg_pool(x)?;
    let logits = graph.linear(name, features, classes)?;
    graph.set_outputs(&[logits, features])?;
    Ok(())
}

/// A graph for clips of a geometry.
fn graph_of(clip: ClipSpec) -> Result<Graph, ArchitectureError> {
    Ok(Graph::new([3, clip.frames, clip.size, clip.size])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that training changes: all but running statistics.
    pub(super) fn parameter_count(graph: &Graph) -> usize {
        let trained = graph.parameters().filter(|parameter| !parameter.name.contains("running"));
        trained.map(candle_conv3d::graph::Parameter::len).sum()
    }

    /// Multiply-adds of a clip in millions, rounded as publishers round them.
    pub(super) fn mega_products(graph: &Graph) -> u64 {
        (graph.multiply_adds() + 500_000) / 1_000_000
    }

    pub(super) fn parameter_shape(graph: &Graph, name: &str) -> Option<Vec<usize>> {
        graph.parameters().find(|parameter| parameter.name == name).map(|parameter| parameter.shape.clone())
    }

    /// What a checkpoint of a network has.
    pub(super) fn shapes_of(graph: &Graph) -> TensorShapes {
        TensorShapes::new(graph.parameters().map(|parameter| (parameter.name.as_str(), parameter.shape.as_slice())))
    }

    #[test]
    fn every_parameter_belongs_to_a_group_and_every_group_has_some() {
        for family in Architecture::FAMILIES {
            let architecture = Architecture::standard(family).unwrap();
            let graph = architecture.graph(ClipSpec::default(), 7).unwrap();
            let groups = architecture.layer_groups();
            let begins = |prefix: &str, name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
            let mut counts = vec![0; groups.len()];
            for parameter in graph.parameters() {
                let of = |group: &LayerGroup| group.prefixes.iter().any(|prefix| begins(prefix, &parameter.name));
                assert_eq!(groups.iter().filter(|group| of(group)).count(), 1, "{family}: {}", parameter.name);
                counts[architecture.group_of(&parameter.name)] += 1;
            }
            assert!(counts.iter().all(|count| *count > 0), "{family}: {counts:?}");
            assert_eq!(counts.last(), Some(&2), "{family}: the head has a weight and a bias");
        }
    }

    #[test]
    fn every_standard_network_ends_in_logits_and_the_features_before_them() {
        for family in Architecture::FAMILIES {
            let graph = Architecture::standard(family).unwrap().graph(ClipSpec::default(), 7).unwrap();
            let [logits, features] = graph.outputs() else { panic!("{family} has two outputs") };
            assert_eq!(graph.shape(*logits), Ok([7, 1, 1, 1]), "{family}");
            assert!(matches!(graph.shape(*features), Ok([_, 1, 1, 1])), "{family}");
        }
    }
}
