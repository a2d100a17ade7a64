//! What can be wrong with a graph.

/// An operation that does not fit, by the name of its layer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// A dimension is zero or beyond what memory can hold.
    #[error("{layer}: shape {shape:?} (c, t, h, w) has a zero or is over 2^36 values")]
    Shape {
        /// Name of the layer.
        layer: String,
        /// The shape (c, t, h, w).
        shape: [usize; 4],
    },
    /// Kernel, stride or padding make no output.
    #[error(
        "{layer}: kernel {kernel:?}, stride {stride:?}, padding {padding:?} do not fit an input of (t, h, w) {input:?}"
    )]
    Window {
        /// Name of the layer.
        layer: String,
        /// Kernel, `[t, h, w]`.
        kernel: [usize; 3],
        /// Stride, `[t, h, w]`.
        stride: [usize; 3],
        /// Padding before the input, `[t, h, w]`.
        padding: [usize; 3],
        /// Input `[t, h, w]`.
        input: [usize; 3],
    },
    /// Channels that can't be divided into groups.
    #[error("{layer}: {input} input and {output} output channels can't be divided into {groups} groups")]
    Groups {
        /// Name of the layer.
        layer: String,
        /// Channels of the input.
        input: usize,
        /// Channels of the output.
        output: usize,
        /// Groups.
        groups: usize,
    },
    /// A parameter's values are not as many as its shape has.
    #[error("{name} has {actual} values; its shape needs {expected}")]
    ParameterLength {
        /// The parameter.
        name: String,
        /// Values found.
        actual: usize,
        /// Values needed.
        expected: usize,
    },
    /// A parameter has no values.
    #[error("{name} has no values: the graph is not bound")]
    Unbound {
        /// The parameter.
        name: String,
    },
    /// Inputs whose shapes can't be combined.
    #[error("{layer}: inputs of (c, t, h, w) {first:?} and {second:?} do not fit each other")]
    InputShapes {
        /// Name of the layer.
        layer: String,
        /// Shape of the first input.
        first: [usize; 4],
        /// Shape of the one that does not fit.
        second: [usize; 4],
    },
    /// A pick that skips everything, or drops channels.
    #[error("{layer}: no pick of stride {stride:?} leads from (c, t, h, w) {input:?} to {channels} channels")]
    Pick {
        /// Name of the layer.
        layer: String,
        /// Shape of the input.
        input: [usize; 4],
        /// Stride, `[t, h, w]`.
        stride: [usize; 3],
        /// Channels of the result.
        channels: usize,
    },
    /// A linear layer follows an activation that still has time or space.
    #[error("{layer}: a linear layer takes a flat input, not (c, t, h, w) {actual:?}")]
    LinearInput {
        /// Name of the layer.
        layer: String,
        /// Shape of its input.
        actual: [usize; 4],
    },
    /// A node of another graph, or an operation with too few inputs.
    #[error("{layer}: node {index} is not of this graph")]
    UnknownNode {
        /// Name of the layer.
        layer: String,
        /// The node's number.
        index: usize,
    },
}

/// Why parameters got no values.
#[derive(Debug, thiserror::Error)]
pub enum BindError<E> {
    /// The values don't fit the graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Where they come from failed.
    #[error(transparent)]
    Values(E),
}
