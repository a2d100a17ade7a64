//! Which network a checkpoint is of, from the names and shapes of its tensors.

use std::collections::BTreeMap;

use super::residual::DEPTHS;
use super::{Architecture, ArchitectureError};
use crate::model::spec::ClipSpec;

/// Names and shapes of a checkpoint's tensors.
#[derive(Debug, Clone, Default)]
pub struct TensorShapes(BTreeMap<String, Vec<usize>>);

/// What a checkpoint was recognised as.
#[derive(Debug, Clone, PartialEq)]
pub struct Detected {
    /// Family and settings. What tensors don't show is as in the family's published networks.
    pub architecture: Architecture,
    /// Outputs of the last layer.
    pub classes: usize,
}

/// Why a checkpoint is of no known network.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DetectError {
    /// No family has such names.
    #[error(
        "the checkpoint has none of the tensors {} by which networks are told, but {}, ...; --key, --prefix and --rename say \
         where the weights of one are", markers().join(", "), names.join(", ")
    )]
    UnknownNames {
        /// The first of its tensors.
        names: Vec<String>,
    },
    /// Block counts of no known depth.
    #[error(
        "the checkpoint has {blocks:?} {} blocks in its four stages; no depth of {DEPTHS:?} does",
        if *bottleneck { "bottleneck" } else { "basic" }
    )]
    UnknownDepth {
        /// In the four stages.
        blocks: [usize; 4],
        /// Whether a block has a third convolution.
        bottleneck: bool,
    },
    /// A tensor that a family needs is not there.
    #[error("the checkpoint has no tensor {name}")]
    Missing {
        /// Name in the checkpoint.
        name: String,
    },
    /// A tensor of another shape than its layer's.
    #[error("tensor {name} has shape {found:?}; expected {expected}")]
    Shape {
        /// Name in the checkpoint.
        name: String,
        /// Dimensions.
        found: Vec<usize>,
        /// Dimensions or a pattern of them.
        expected: String,
    },
}

/// Tensors by which families are told, each once.
fn markers() -> Vec<&'static str> {
    let mut markers: Vec<&str> = Architecture::MARKERS.iter().map(|[marker, _]| *marker).collect();
    markers.sort_unstable();
    markers.dedup();
    markers
}

impl TensorShapes {
    /// From names and shapes.
    pub fn new<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Self {
        Self(tensors.into_iter().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect())
    }

    /// Whether there is a tensor of a name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A tensor's shape, of as many dimensions as `expected`'s pattern says in words.
    pub(super) fn shape<const N: usize>(&self, name: &str, expected: &str) -> Result<[usize; N], DetectError> {
        let found = self.0.get(name).ok_or_else(|| DetectError::Missing { name: name.to_owned() })?;
        found.as_slice().try_into().map_err(|_| self.misfit(name, expected))
    }

    /// An error about a tensor's shape.
    pub(super) fn misfit(&self, name: &str, expected: &str) -> DetectError {
        let found = self.0.get(name).cloned().unwrap_or_default();
        DetectError::Shape { name: name.to_owned(), found, expected: expected.to_owned() }
    }

    /// Outputs of the last layer `name`.
    pub(super) fn classes(&self, name: &str) -> Result<usize, DetectError> {
        let [classes, _] = self.shape(name, "[classes, features]")?;
        Ok(classes)
    }

    /// Tensors that differ from a network's: missing, of another shape, or of no layer.
    fn misfits(&self, architecture: &Architecture, classes: usize) -> Result<usize, ArchitectureError> {
        let graph = architecture.graph(ClipSpec::default(), classes)?;
        let mut known = 0;
        let mut misfits = 0;
        for parameter in graph.parameters() {
            let found = self.0.get(&parameter.name);
            known += usize::from(found.is_some());
            misfits += usize::from(found != Some(&parameter.shape));
        }
        let counters = self.0.keys().filter(|name| name.ends_with(".num_batches_tracked")).count();
        Ok(misfits + self.0.len() - counters - known)
    }
}

/// The network of a checkpoint: of the families whose names it has the one that fits most of its tensors. Whether all fit is
/// not said.
pub fn detect(shapes: &TensorShapes) -> Result<Detected, DetectError> {
    let mut best: Option<(usize, Detected)> = None;
    let mut refused = None;
    for candidate in Architecture::candidates(shapes) {
        match candidate {
            Ok((architecture, classes)) => {
                let misfits = shapes.misfits(&architecture, classes).unwrap_or(usize::MAX);
                if best.as_ref().is_none_or(|(least, _)| misfits < *least) {
                    best = Some((misfits, Detected { architecture, classes }));
                }
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match (best, refused) {
        (Some((_, detected)), _) => Ok(detected),
        (None, Some(error)) => Err(error),
        (None, None) => Err(DetectError::UnknownNames { names: shapes.0.keys().take(4).cloned().collect() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_told_from_its_own_tensors() {
        for family in Architecture::FAMILIES {
            let architecture = Architecture::standard(family).unwrap();
            let graph = architecture.graph(ClipSpec::default(), 7).unwrap();
            let shapes = TensorShapes::new(graph.parameters().map(|p| (p.name.as_str(), p.shape.as_slice())));
            assert_eq!(detect(&shapes), Ok(Detected { architecture: architecture.clone(), classes: 7 }), "{family}");
            assert_eq!(shapes.misfits(&architecture, 7), Ok(0));
        }
    }

    #[test]
    fn a_checkpoint_of_something_else_is_refused_with_its_names() {
        let shapes = TensorShapes::new([("encoder.weight", &[3, 4][..]), ("decoder.weight", &[4, 3])]);
        let error = detect(&shapes).unwrap_err().to_string();
        assert!(error.contains("conv1.weight") && error.contains("but decoder.weight, encoder.weight, ..."), "{error}");
    }
}
