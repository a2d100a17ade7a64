//! Adding nodes, with inference of their shapes.

use super::operation::{AvgPool, Conv, Linear, Nonlinearity, Norm, Operation, Parameter};
use super::{Graph, GraphError, Node, NodeId};
use crate::geometry::{Shape, Window};

/// Kernel, stride and padding beyond this are refused: nothing real has them, and index sums stay far from overflow.
const WINDOW_LIMIT: usize = 1 << 16;
/// Values of one activation beyond this are refused.
const VALUE_LIMIT: usize = 1 << 36;

/// A convolution to add.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvConfig {
    /// Output channels.
    pub channels: usize,
    /// Kernel, `[t, h, w]`.
    pub kernel: [usize; 3],
    /// Stride, `[t, h, w]`.
    pub stride: [usize; 3],
    /// Zero padding before the input, `[t, h, w]`.
    pub padding: [usize; 3],
    /// Zero padding after the input, `[t, h, w]`; as before it if `None`.
    pub padding_after: Option<[usize; 3]>,
    /// Groups of channels, each convolved for itself.
    pub groups: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

impl ConvConfig {
    /// A convolution of stride 1, without padding, groups and bias.
    pub fn new(channels: usize, kernel: [usize; 3]) -> Self {
        Self { channels, kernel, stride: [1; 3], padding: [0; 3], padding_after: None, groups: 1, bias: false }
    }

    fn window(&self) -> Window {
        let Self { kernel, stride, padding, padding_after, .. } = *self;
        Window { kernel, stride, padding, padding_after: padding_after.unwrap_or(padding) }
    }
}

/// A pooling to add.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    /// Window, `[t, h, w]`.
    pub kernel: [usize; 3],
    /// Stride, `[t, h, w]`.
    pub stride: [usize; 3],
    /// Padding before the input, `[t, h, w]`.
    pub padding: [usize; 3],
    /// Padding after the input, `[t, h, w]`; as before it if `None`.
    pub padding_after: Option<[usize; 3]>,
    /// Whether windows that reach beyond the input and its padding count, as PyTorch's `ceil_mode`.
    pub ceil: bool,
    /// Whether an average counts padding as zeros, as PyTorch's `count_include_pad`. Has no meaning for a maximum.
    pub count_padding: bool,
}

impl PoolConfig {
    /// Without padding; windows stay within the input.
    pub fn new(kernel: [usize; 3], stride: [usize; 3]) -> Self {
        Self { kernel, stride, padding: [0; 3], padding_after: None, ceil: false, count_padding: true }
    }

    /// The window for an input of (t, h, w); a last, partial window becomes padding after the input.
    fn window(&self, input: [usize; 3]) -> Window {
        let Self { kernel, stride, padding, padding_after, ceil, .. } = *self;
        let mut window = Window { kernel, stride, padding, padding_after: padding_after.unwrap_or(padding) };
        if ceil {
            for axis in 0..3 {
                let padded = input[axis] + padding[axis] + window.padding_after[axis];
                let Some(rest) = padded.checked_sub(kernel[axis]) else { continue };
                let Some(windows) =
                    rest.checked_rem(stride[axis]).map(|over| rest / stride[axis] + usize::from(over > 0))
                else {
                    continue;
                };
                // As in PyTorch: the last window begins in the input or in the padding before it.
                if windows * stride[axis] < input[axis] + padding[axis] {
                    window.padding_after[axis] += windows * stride[axis] - rest;
                }
            }
        }
        window
    }
}

impl Graph {
    /// A graph of clips of shape (c, t, h, w).
    pub fn new([c, t, h, w]: [usize; 4]) -> Result<Self, GraphError> {
        let mut graph = Self { nodes: Vec::new(), outputs: Vec::new() };
        graph.push("input", Operation::Input, &[], Shape { c, t, h, w })?;
        Ok(graph)
    }

    /// Adds a convolution with the parameters `NAME.weight` and, if it has one, `NAME.bias`.
    pub fn conv(&mut self, name: &str, input: NodeId, config: &ConvConfig) -> Result<NodeId, GraphError> {
        let from = self.input_shape(name, input)?;
        let window = config.window();
        let shape = Shape { c: config.channels, ..window_output(name, from, &window)? };
        check_shape(name, shape)?;
        let groups = config.groups;
        if groups == 0 || !from.c.is_multiple_of(groups) || !shape.c.is_multiple_of(groups) {
            return Err(GraphError::Groups { layer: name.to_owned(), input: from.c, output: shape.c, groups });
        }
        let [kt, kh, kw] = window.kernel;
        let conv = Conv {
            window,
            groups,
            weight: Parameter::new(format!("{name}.weight"), &[shape.c, from.c / groups, kt, kh, kw]),
            bias: config.bias.then(|| Parameter::new(format!("{name}.bias"), &[shape.c])),
            residual: None,
            nonlinearity: None,
        };
        self.push(name, Operation::Conv(conv), &[input], shape)
    }

    /// Adds a batch normalisation with the parameters `NAME.weight`, `.bias`, `.running_mean` and `.running_var`.
    pub fn batch_norm(&mut self, name: &str, input: NodeId, epsilon: f64) -> Result<NodeId, GraphError> {
        let shape = self.input_shape(name, input)?;
        let parameter = |suffix: &str| Parameter::new(format!("{name}.{suffix}"), &[shape.c]);
        let norm = Norm {
            weight: parameter("weight"),
            bias: parameter("bias"),
            mean: parameter("running_mean"),
            variance: parameter("running_var"),
            epsilon,
        };
        self.push(name, Operation::BatchNorm(norm), &[input], shape)
    }

    /// Adds max(x, 0).
    pub fn relu(&mut self, input: NodeId) -> Result<NodeId, GraphError> {
        self.nonlinearity(input, Nonlinearity::Relu)
    }

    /// Adds a function of each value.
    pub fn nonlinearity(&mut self, input: NodeId, function: Nonlinearity) -> Result<NodeId, GraphError> {
        let shape = self.input_shape(function.name(), input)?;
        self.push(function.name(), Operation::Nonlinearity(function), &[input], shape)
    }

    /// Adds the sum of two nodes of one shape.
    pub fn add(&mut self, first: NodeId, second: NodeId) -> Result<NodeId, GraphError> {
        let shapes = [self.input_shape("add", first)?, self.input_shape("add", second)?];
        if shapes[0] != shapes[1] {
            return Err(misfit("add", shapes));
        }
        self.push("add", Operation::Add, &[first, second], shapes[0])
    }

    /// Adds the product of two nodes; the second has the first's shape or one value a channel.
    pub fn multiply(&mut self, first: NodeId, second: NodeId) -> Result<NodeId, GraphError> {
        let shapes = [self.input_shape("multiply", first)?, self.input_shape("multiply", second)?];
        if shapes[0] != shapes[1] && shapes[1] != (Shape { c: shapes[0].c, t: 1, h: 1, w: 1 }) {
            return Err(misfit("multiply", shapes));
        }
        self.push("multiply", Operation::Multiply, &[first, second], shapes[0])
    }

    /// Adds the channels of all inputs, one input after the other.
    pub fn concat(&mut self, inputs: &[NodeId]) -> Result<NodeId, GraphError> {
        let Some((&first, others)) = inputs.split_first() else {
            return Err(GraphError::UnknownNode { layer: "concat".to_owned(), index: 0 });
        };
        let mut shape = self.input_shape("concat", first)?;
        for &other in others {
            let other = self.input_shape("concat", other)?;
            if (other.t, other.h, other.w) != (shape.t, shape.h, shape.w) {
                return Err(misfit("concat", [shape, other]));
            }
            shape.c += other.c;
        }
        self.push("concat", Operation::Concat, inputs, shape)
    }

    /// Adds a max pooling. As in PyTorch, padding is at most half the window.
    pub fn max_pool(&mut self, input: NodeId, config: &PoolConfig) -> Result<NodeId, GraphError> {
        let (window, shape) = self.pool("max_pool", input, config)?;
        self.push("max_pool", Operation::MaxPool(window), &[input], shape)
    }

    /// Adds an average pooling. As in PyTorch, padding is at most half the window.
    pub fn avg_pool(&mut self, input: NodeId, config: &PoolConfig) -> Result<NodeId, GraphError> {
        let (window, shape) = self.pool("avg_pool", input, config)?;
        let after = config.padding_after.unwrap_or(config.padding);
        let counted = if config.count_padding {
            std::array::from_fn(|axis| [config.padding[axis], after[axis]])
        } else {
            [[0; 2]; 3]
        };
        self.push("avg_pool", Operation::AvgPool(AvgPool { window, counted }), &[input], shape)
    }

    /// Adds the mean over time and space: (c, 1, 1, 1).
    pub fn global_avg_pool(&mut self, input: NodeId) -> Result<NodeId, GraphError> {
        let Shape { c, .. } = self.input_shape("global_avg_pool", input)?;
        self.push("global_avg_pool", Operation::GlobalAvgPool, &[input], Shape { c, t: 1, h: 1, w: 1 })
    }

    /// Adds all values as channels of one position, in (c, t, h, w) order.
    pub fn flatten(&mut self, input: NodeId) -> Result<NodeId, GraphError> {
        let shape = self.input_shape("flatten", input)?;
        self.push("flatten", Operation::Flatten, &[input], Shape { c: shape.len(), t: 1, h: 1, w: 1 })
    }

    /// Adds a fully connected layer on one position, with the parameters `NAME.weight` and `NAME.bias`.
    pub fn linear(&mut self, name: &str, input: NodeId, outputs: usize) -> Result<NodeId, GraphError> {
        let from = self.input_shape(name, input)?;
        if from.t * from.h * from.w != 1 {
            return Err(GraphError::LinearInput { layer: name.to_owned(), actual: from.dims() });
        }
        let linear = Linear {
            weight: Parameter::new(format!("{name}.weight"), &[outputs, from.c]),
            bias: Some(Parameter::new(format!("{name}.bias"), &[outputs])),
            nonlinearity: None,
        };
        self.push(name, Operation::Linear(linear), &[input], Shape { c: outputs, t: 1, h: 1, w: 1 })
    }

    /// Adds a dropout: nothing at inference.
    pub fn dropout(&mut self, input: NodeId, probability: f64) -> Result<NodeId, GraphError> {
        let shape = self.input_shape("dropout", input)?;
        self.push("dropout", Operation::Dropout(probability), &[input], shape)
    }

    /// Adds every `stride`-th position along t, h and w, with zeros for the channels that the input lacks.
    pub fn strided_pick(&mut self, input: NodeId, stride: [usize; 3], channels: usize) -> Result<NodeId, GraphError> {
        const NAME: &str = "strided_pick";
        let from = self.input_shape(NAME, input)?;
        if stride.contains(&0) || channels < from.c {
            return Err(GraphError::Pick { layer: NAME.to_owned(), input: from.dims(), stride, channels });
        }
        let [st, sh, sw] = stride;
        let shape = Shape { c: channels, t: from.t.div_ceil(st), h: from.h.div_ceil(sh), w: from.w.div_ceil(sw) };
        self.push(NAME, Operation::StridedPick(stride), &[input], shape)
    }

    fn pool(&self, name: &str, input: NodeId, config: &PoolConfig) -> Result<(Window, Shape), GraphError> {
        let from = self.input_shape(name, input)?;
        let after = config.padding_after.unwrap_or(config.padding);
        let too_wide = (0..3).any(|axis| config.padding[axis].max(after[axis]) > config.kernel[axis] / 2);
        let window = config.window([from.t, from.h, from.w]);
        if too_wide {
            return Err(window_error(name, from, &window));
        }
        Ok((window, window_output(name, from, &window)?))
    }

    fn push(
        &mut self,
        name: &str,
        operation: Operation,
        inputs: &[NodeId],
        shape: Shape,
    ) -> Result<NodeId, GraphError> {
        check_shape(name, shape)?;
        self.nodes.push(Node { name: name.to_owned(), operation, inputs: inputs.to_vec(), shape });
        Ok(NodeId(self.nodes.len() - 1))
    }

    pub(crate) fn input_shape(&self, layer: &str, id: NodeId) -> Result<Shape, GraphError> {
        let found = self.nodes.get(id.0).map(|node| node.shape);
        found.ok_or_else(|| GraphError::UnknownNode { layer: layer.to_owned(), index: id.0 })
    }
}

fn misfit(layer: &str, [first, second]: [Shape; 2]) -> GraphError {
    GraphError::InputShapes { layer: layer.to_owned(), first: first.dims(), second: second.dims() }
}

fn check_shape(layer: &str, shape: Shape) -> Result<(), GraphError> {
    let values = shape.dims().iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match values {
        Some(1..=VALUE_LIMIT) => Ok(()),
        _ => Err(GraphError::Shape { layer: layer.to_owned(), shape: shape.dims() }),
    }
}

fn window_output(layer: &str, input: Shape, window: &Window) -> Result<Shape, GraphError> {
    let in_limits = |dims: [usize; 3], least: usize| dims.iter().all(|dim| (least..=WINDOW_LIMIT).contains(dim));
    let limited = in_limits(window.kernel, 1)
        && in_limits(window.stride, 1)
        && in_limits(window.padding, 0)
        && in_limits(window.padding_after, 0);
    match window.output_dims([input.t, input.h, input.w]) {
        Ok([t, h, w]) if limited => Ok(Shape { c: input.c, t, h, w }),
        _ => Err(window_error(layer, input, window)),
    }
}

fn window_error(layer: &str, input: Shape, window: &Window) -> GraphError {
    let Window { kernel, stride, padding, .. } = *window;
    GraphError::Window { layer: layer.to_owned(), kernel, stride, padding, input: [input.t, input.h, input.w] }
}
