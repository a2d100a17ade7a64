//! The layers of a network and their shapes.

use super::PlanError;
use crate::cpu::Shape;
use crate::geometry::Window;
use std::borrow::Cow;

/// Kernel, stride and padding beyond this are refused: nothing real has them, and index sums stay far from overflow.
const WINDOW_LIMIT: usize = 1 << 16;
/// Values of one activation beyond this are refused.
const VALUE_LIMIT: usize = 1 << 36;

/// A value in a graph: the input or the output of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node(pub(crate) usize);

/// An activation added to a convolution's result before its ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// A node of the output's shape.
    Identity(Node),
    /// Shortcut A: every `stride`-th element of a node, `[t, h, w]`; channels it lacks are zero.
    Strided {
        /// The node, of at most as many channels as the output.
        node: Node,
        /// Stride, `[t, h, w]`.
        stride: [usize; 3],
    },
}

/// A convolution with its bias, residual and activation.
#[derive(Clone, Debug)]
pub struct ConvSpec<'a> {
    /// For reports and errors.
    pub name: Cow<'a, str>,
    /// Output channels.
    pub out_channels: usize,
    /// Kernel, `[t, h, w]`.
    pub kernel: [usize; 3],
    /// (out, in, kt, kh, kw), batch norm folded in.
    pub weight: Cow<'a, [f32]>,
    /// One value an output channel.
    pub bias: Cow<'a, [f32]>,
    /// Stride, `[t, h, w]`.
    pub stride: [usize; 3],
    /// Zero padding at both ends, `[t, h, w]`.
    pub padding: [usize; 3],
    /// Added before the ReLU.
    pub residual: Option<Residual>,
    /// Whether negative results become zero.
    pub relu: bool,
}

impl<'a> ConvSpec<'a> {
    /// A convolution of stride 1 without padding, residual and ReLU.
    pub fn new(
        name: impl Into<Cow<'a, str>>,
        out_channels: usize,
        kernel: [usize; 3],
        weight: impl Into<Cow<'a, [f32]>>,
        bias: impl Into<Cow<'a, [f32]>>,
    ) -> Self {
        Self {
            name: name.into(),
            out_channels,
            kernel,
            weight: weight.into(),
            bias: bias.into(),
            stride: [1; 3],
            padding: [0; 3],
            residual: None,
            relu: false,
        }
    }
}

/// Collects the layers of a network, from the input on.
pub struct GraphBuilder<'a> {
    pub(crate) layers: Vec<LayerNode<'a>>,
    /// Whether its layers have no weights.
    pub(crate) is_sketch: bool,
}

pub(crate) struct LayerNode<'a> {
    pub(crate) name: String,
    pub(crate) operation: Operation<'a>,
    pub(crate) shape: Shape,
}

pub(crate) enum Operation<'a> {
    Input,
    Conv {
        input: Node,
        window: Window,
        weight: Cow<'a, [f32]>,
        bias: Cow<'a, [f32]>,
        residual: Option<(Node, [usize; 3])>,
        relu: bool,
    },
    MaxPool {
        input: Node,
        window: Window,
    },
    GlobalAvgPool {
        input: Node,
    },
    Linear {
        input: Node,
        weight: Cow<'a, [f32]>,
        bias: Cow<'a, [f32]>,
    },
}

impl LayerNode<'_> {
    fn into_owned(self) -> LayerNode<'static> {
        let owned = |values: Cow<'_, [f32]>| Cow::Owned(values.into_owned());
        let operation = match self.operation {
            Operation::Input => Operation::Input,
            Operation::Conv { input, window, weight, bias, residual, relu } => {
                Operation::Conv { input, window, weight: owned(weight), bias: owned(bias), residual, relu }
            }
            Operation::MaxPool { input, window } => Operation::MaxPool { input, window },
            Operation::GlobalAvgPool { input } => Operation::GlobalAvgPool { input },
            Operation::Linear { input, weight, bias } => {
                Operation::Linear { input, weight: owned(weight), bias: owned(bias) }
            }
        };
        LayerNode { name: self.name, operation, shape: self.shape }
    }
}

impl Operation<'_> {
    /// The nodes it reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Node> {
        let (first, second) = match self {
            Self::Input => (None, None),
            Self::Conv { input, residual, .. } => (Some(*input), residual.map(|(node, _)| node)),
            Self::MaxPool { input, .. } | Self::GlobalAvgPool { input } | Self::Linear { input, .. } => {
                (Some(*input), None)
            }
        };
        first.into_iter().chain(second)
    }
}

impl<'a> GraphBuilder<'a> {
    /// A graph for clips of shape (c, t, h, w).
    pub fn new([c, t, h, w]: [usize; 4]) -> Result<Self, PlanError> {
        let mut graph = Self { layers: Vec::new(), is_sketch: false };
        graph.push("input", Operation::Input, Shape { c, t, h, w })?;
        Ok(graph)
    }

    /// A graph of layers without weights, for clips of shape (c, t, h, w): it tells
    /// [how much memory](Self::memory_bytes) its plan would take, and can't be compiled. Weights that layers bring are
    /// not looked at, nor are biases but that of a linear layer, whose length is that of its output.
    pub fn sketch(clip: [usize; 4]) -> Result<Self, PlanError> {
        Ok(Self { is_sketch: true, ..Self::new(clip)? })
    }

    /// The same graph with weights of its own.
    pub fn into_owned(self) -> GraphBuilder<'static> {
        let layers = self.layers.into_iter().map(LayerNode::into_owned);
        GraphBuilder { layers: layers.collect(), is_sketch: self.is_sketch }
    }

    /// The clip.
    pub fn input(&self) -> Node {
        Node(0)
    }

    /// Shape of a node for one clip, (c, t, h, w); `None` for a node of another graph.
    pub fn shape(&self, node: Node) -> Option<[usize; 4]> {
        self.layers.get(node.0).map(|layer| layer.shape.dims())
    }

    /// Adds a convolution.
    pub fn conv(&mut self, input: Node, spec: ConvSpec<'a>) -> Result<Node, PlanError> {
        let ConvSpec { name, out_channels, kernel, weight, bias, stride, padding, residual, relu } = spec;
        let from = self.shape_of(&name, input)?;
        let window = Window { kernel, stride, padding };
        let shape = Shape { c: out_channels, ..window_output(&name, from, window)? };
        check_shape(&name, shape)?;
        let taps: usize = kernel.iter().product();
        if !self.is_sketch {
            check_parameter(&name, "weight", weight.len(), [out_channels, from.c, taps])?;
            check_parameter(&name, "bias", bias.len(), [out_channels, 1, 1])?;
        }
        let residual = match residual {
            None => None,
            Some(Residual::Identity(node)) => Some((node, [1; 3])),
            Some(Residual::Strided { node, stride }) => Some((node, stride)),
        };
        if let Some((node, stride)) = residual {
            let source = self.shape_of(&name, node)?;
            let picked = |len: usize, stride: usize| if stride == 0 { 0 } else { len.div_ceil(stride) };
            let fits = source.c <= shape.c
                && picked(source.t, stride[0]) == shape.t
                && picked(source.h, stride[1]) == shape.h
                && picked(source.w, stride[2]) == shape.w
                && (!matches!(spec.residual, Some(Residual::Identity(_))) || source.c == shape.c);
            if !fits {
                return Err(PlanError::ResidualShape {
                    layer: name.into_owned(),
                    actual: source.dims(),
                    stride,
                    output: shape.dims(),
                });
            }
        }
        self.push(&name, Operation::Conv { input, window, weight, bias, residual, relu }, shape)
    }

    /// Adds max pooling; padding never wins. As in PyTorch, it is at most half the kernel.
    pub fn max_pool(
        &mut self,
        input: Node,
        kernel: [usize; 3],
        stride: [usize; 3],
        padding: [usize; 3],
    ) -> Result<Node, PlanError> {
        let from = self.shape_of("max_pool", input)?;
        let window = Window { kernel, stride, padding };
        let shape = window_output("max_pool", from, window)?;
        if (0..3).any(|axis| padding[axis] > kernel[axis] / 2) {
            return Err(window_error("max_pool", from, window));
        }
        self.push("max_pool", Operation::MaxPool { input, window }, shape)
    }

    /// Adds the mean over time and space: (c, 1, 1, 1).
    pub fn global_avg_pool(&mut self, input: Node) -> Result<Node, PlanError> {
        let Shape { c, .. } = self.shape_of("global_avg_pool", input)?;
        self.push("global_avg_pool", Operation::GlobalAvgPool { input }, Shape { c, t: 1, h: 1, w: 1 })
    }

    /// Adds a fully connected layer on an activation of one position; `weight` is (out, in), `bias` has `out` values.
    pub fn linear(
        &mut self,
        input: Node,
        weight: impl Into<Cow<'a, [f32]>>,
        bias: impl Into<Cow<'a, [f32]>>,
    ) -> Result<Node, PlanError> {
        let (weight, bias) = (weight.into(), bias.into());
        let from = self.shape_of("linear", input)?;
        if from.t * from.h * from.w != 1 {
            return Err(PlanError::LinearInput { layer: "linear".to_owned(), actual: from.dims() });
        }
        if !self.is_sketch {
            check_parameter("linear", "weight", weight.len(), [bias.len(), from.c, 1])?;
        }
        let shape = Shape { c: bias.len(), t: 1, h: 1, w: 1 };
        self.push("linear", Operation::Linear { input, weight, bias }, shape)
    }

    fn push(&mut self, name: &str, operation: Operation<'a>, shape: Shape) -> Result<Node, PlanError> {
        check_shape(name, shape)?;
        self.layers.push(LayerNode { name: name.to_owned(), operation, shape });
        Ok(Node(self.layers.len() - 1))
    }

    pub(crate) fn shape_of(&self, layer: &str, node: Node) -> Result<Shape, PlanError> {
        let found = self.layers.get(node.0).map(|layer| layer.shape);
        found.ok_or_else(|| PlanError::UnknownNode { layer: layer.to_owned(), index: node.0 })
    }
}

impl Shape {
    pub(crate) fn dims(&self) -> [usize; 4] {
        [self.c, self.t, self.h, self.w]
    }
}

fn check_shape(layer: &str, shape: Shape) -> Result<(), PlanError> {
    let values = shape.dims().iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match values {
        Some(1..=VALUE_LIMIT) if shape.c <= VALUE_LIMIT => Ok(()),
        _ => Err(PlanError::Shape { layer: layer.to_owned(), shape: shape.dims() }),
    }
}

fn check_parameter(layer: &str, parameter: &'static str, actual: usize, dims: [usize; 3]) -> Result<(), PlanError> {
    let expected = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).unwrap_or(usize::MAX);
    if actual == expected {
        return Ok(());
    }
    Err(PlanError::ParameterLength { layer: layer.to_owned(), parameter, actual, expected })
}

fn window_output(layer: &str, input: Shape, window: Window) -> Result<Shape, PlanError> {
    let Window { kernel, stride, padding } = window;
    let in_limits = |dims: [usize; 3], least: usize| dims.iter().all(|dim| (least..=WINDOW_LIMIT).contains(dim));
    if !in_limits(kernel, 1) || !in_limits(stride, 1) || !in_limits(padding, 0) {
        return Err(window_error(layer, input, window));
    }
    let output = |axis: usize, len: usize| {
        (len + 2 * padding[axis]).checked_sub(kernel[axis]).map(|room| room / stride[axis] + 1)
    };
    match (output(0, input.t), output(1, input.h), output(2, input.w)) {
        (Some(t), Some(h), Some(w)) => Ok(Shape { c: input.c, t, h, w }),
        _ => Err(window_error(layer, input, window)),
    }
}

fn window_error(layer: &str, input: Shape, window: Window) -> PlanError {
    let Window { kernel, stride, padding } = window;
    PlanError::Window { layer: layer.to_owned(), kernel, stride, padding, input: [input.t, input.h, input.w] }
}
