//! What can be wrong with a network's settings.

use candle_conv3d::graph::GraphError;

use super::{Architecture, DEPTHS};

/// Settings that no network has.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ArchitectureError {
    /// Not one of the published depths.
    #[error("depth is {actual}; allowed are {DEPTHS:?}")]
    Depth {
        /// What the settings say.
        actual: u32,
    },
    /// Channels would vanish or not fit.
    #[error("widen factor is {actual}; allowed is more than 0 (every layer keeps a channel) and up to 16")]
    WidenFactor {
        /// What the settings say.
        actual: f64,
    },
    /// An even kernel has no middle.
    #[error("temporal kernel of the stem is {actual}; allowed are odd sizes from 1 to 31")]
    StemKernel {
        /// What the settings say.
        actual: usize,
    },
    /// A stride that skips everything or nothing.
    #[error("temporal stride of the stem is {actual}; allowed is 1 to 16")]
    StemStride {
        /// What the settings say.
        actual: usize,
    },
    /// Batch norm would divide by zero.
    #[error("epsilon of batch norm is {actual}; allowed is more than 0 and up to 1")]
    Epsilon {
        /// What the settings say.
        actual: f64,
    },
    /// A network without outputs.
    #[error("the network has no classes")]
    NoClasses,
    /// A family that there is not.
    #[error("{actual:?} is no family of networks; there are {}", Architecture::FAMILIES.join(", "))]
    UnknownFamily {
        /// What was asked for.
        actual: String,
    },
    /// A setting that the family does not have or take.
    #[error("{key} of {family}: {reason}")]
    Setting {
        /// The family.
        family: &'static str,
        /// The setting's name.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A group of layers that the network does not have.
    #[error("{actual:?} is no layer of the network; its layers are {groups}")]
    UnknownGroup {
        /// What was asked for.
        actual: String,
        /// Those there are.
        groups: String,
    },
    /// The clips don't fit the network.
    #[error(transparent)]
    Graph(#[from] GraphError),
}
