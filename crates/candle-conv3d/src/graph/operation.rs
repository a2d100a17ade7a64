//! The operations of a graph.

use super::GraphError;
use crate::geometry::Window;
use std::sync::Arc;

/// A tensor of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Name in a checkpoint.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    pub(crate) values: Option<Arc<Vec<f32>>>,
}

impl Parameter {
    pub(crate) fn new(name: String, shape: &[usize]) -> Self {
        Self { name, shape: shape.to_vec(), values: None }
    }

    /// Values that its shape has.
    #[expect(clippy::len_without_is_empty, reason = "no parameter is empty")]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its values, if the graph is bound.
    pub fn values(&self) -> Result<&[f32], GraphError> {
        let values = self.values.as_ref().ok_or_else(|| GraphError::Unbound { name: self.name.clone() })?;
        Ok(values)
    }
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// The clip.
    Input,
    /// A 3D convolution (cross-correlation, as in PyTorch). A second input is its [`residual`](Conv::residual).
    Conv(Conv),
    /// Batch normalisation by running statistics: `(x - mean) / sqrt(variance + epsilon) * weight + bias`.
    BatchNorm(Norm),
    /// Each channel times a factor, plus an offset: what is left of a batch normalisation that no convolution took.
    Scale(Scale),
    /// A function of each value.
    Nonlinearity(Nonlinearity),
    /// The sum of two inputs of one shape.
    Add,
    /// The product of two inputs; the second has the first's shape or one value a channel.
    Multiply,
    /// The inputs' channels, one input after the other.
    Concat,
    /// The largest value of each window; padding never wins.
    MaxPool(Window),
    /// The mean of each window.
    AvgPool(AvgPool),
    /// The mean over time and space: (c, 1, 1, 1).
    GlobalAvgPool,
    /// All values as channels of one position, in (c, t, h, w) order.
    Flatten,
    /// A fully connected layer.
    Linear(Linear),
    /// Nothing at inference; in training values are dropped with this probability.
    Dropout(f64),
    /// Every `stride`-th position along t, h and w, and zeros for the channels that the input lacks: a shortcut without
    /// parameters.
    StridedPick([usize; 3]),
}

/// A convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    pub(crate) window: Window,
    /// The channels are divided into so many groups, each convolved for itself.
    pub groups: usize,
    /// (out, in / groups, kt, kh, kw)
    pub weight: Parameter,
    /// (out)
    pub bias: Option<Parameter>,
    /// Stride with which the second input is read and added to the result; channels that it lacks count as zero. Made by
    /// [`passes`](super::passes).
    pub residual: Option<[usize; 3]>,
    /// Applied last. Made by [`passes`](super::passes).
    pub nonlinearity: Option<Nonlinearity>,
}

/// A batch normalisation. Every parameter has one value a channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Factor.
    pub weight: Parameter,
    /// Offset.
    pub bias: Parameter,
    /// Running mean.
    pub mean: Parameter,
    /// Running variance.
    pub variance: Parameter,
    /// Added to the variance.
    pub epsilon: f64,
}

/// A factor and an offset for each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Factor (c).
    pub factor: Parameter,
    /// Offset (c).
    pub offset: Parameter,
    /// Applied last. Made by [`passes`](super::passes).
    pub nonlinearity: Option<Nonlinearity>,
}

/// An average pooling.
#[derive(Clone, Debug, PartialEq)]
pub struct AvgPool {
    pub(crate) window: Window,
    /// Whether positions in the padding count in the mean, as zeros: padding `[before, after]` that does, `[t, h, w]`.
    pub(crate) counted: [[usize; 2]; 3],
}

/// A fully connected layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// (out, in)
    pub weight: Parameter,
    /// (out)
    pub bias: Option<Parameter>,
    /// Applied last. Made by [`passes`](super::passes).
    pub nonlinearity: Option<Nonlinearity>,
}

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nonlinearity {
    /// max(x, 0)
    Relu,
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// x / (1 + exp(-x)), also called swish
    Silu,
}

impl Conv {
    /// Kernel, `[t, h, w]`.
    pub fn kernel(&self) -> [usize; 3] {
        self.window.kernel
    }

    /// Stride, `[t, h, w]`.
    pub fn stride(&self) -> [usize; 3] {
        self.window.stride
    }

    /// Zero padding before and after the input, `[t, h, w]` each.
    pub fn padding(&self) -> [[usize; 3]; 2] {
        [self.window.padding, self.window.padding_after]
    }

    /// Whether it is a convolution and nothing else.
    pub(crate) fn is_plain(&self) -> bool {
        self.residual.is_none() && self.nonlinearity.is_none()
    }
}

impl Norm {
    /// The norm as a factor and an offset for each channel, in f64; `None` without values.
    pub(crate) fn affine(&self) -> Option<Vec<[f64; 2]>> {
        let [weight, bias, mean, variance] =
            [&self.weight, &self.bias, &self.mean, &self.variance].map(|parameter| parameter.values.as_ref());
        let (weight, bias, mean, variance) = (weight?, bias?, mean?, variance?);
        let channels = weight.iter().zip(bias.iter()).zip(mean.iter().zip(variance.iter()));
        let affine = channels.map(|((&weight, &bias), (&mean, &variance))| {
            let factor = f64::from(weight) / (f64::from(variance) + self.epsilon).sqrt();
            [factor, f64::from(bias) - f64::from(mean) * factor]
        });
        Some(affine.collect())
    }
}

impl Operation {
    /// Its parameters, in the order of a PyTorch state dict.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let [a, b, c, d] = match self {
            Self::Conv(Conv { weight, bias, .. }) | Self::Linear(Linear { weight, bias, .. }) => {
                [Some(weight), bias.as_ref(), None, None]
            }
            Self::BatchNorm(Norm { weight, bias, mean, variance, .. }) => {
                [Some(weight), Some(bias), Some(mean), Some(variance)]
            }
            Self::Scale(Scale { factor, offset, .. }) => [Some(factor), Some(offset), None, None],
            _ => [None, None, None, None],
        };
        [a, b, c, d].into_iter().flatten()
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        match self {
            Self::Conv(Conv { weight, bias, .. }) | Self::Linear(Linear { weight, bias, .. }) => {
                std::iter::once(weight).chain(bias.as_mut()).collect()
            }
            Self::BatchNorm(Norm { weight, bias, mean, variance, .. }) => vec![weight, bias, mean, variance],
            Self::Scale(Scale { factor, offset, .. }) => vec![factor, offset],
            _ => Vec::new(),
        }
    }
}

impl AvgPool {
    /// Positions along `axis` that count in the mean of window `out` of an input of `len` values.
    pub(crate) fn counted_positions(&self, axis: usize, out: usize, len: usize) -> usize {
        let [before, after] = self.counted[axis];
        // Counted from the first position of the padding.
        let start = out * self.window.stride[axis];
        let end = start + self.window.kernel[axis];
        let first = self.window.padding[axis] - before;
        let last = self.window.padding[axis] + len + after;
        end.min(last).saturating_sub(start.max(first))
    }
}

impl Nonlinearity {
    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Sigmoid => "sigmoid",
            Self::Silu => "silu",
        }
    }
}

impl Operation {
    /// Its kind in a word, such as `conv`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Conv(_) => "conv",
            Self::BatchNorm(_) => "batch_norm",
            Self::Scale(_) => "scale",
            Self::Nonlinearity(function) => function.name(),
            Self::Add => "add",
            Self::Multiply => "multiply",
            Self::Concat => "concat",
            Self::MaxPool(_) => "max_pool",
            Self::AvgPool(_) => "avg_pool",
            Self::GlobalAvgPool => "global_avg_pool",
            Self::Flatten => "flatten",
            Self::Linear(_) => "linear",
            Self::Dropout(_) => "dropout",
            Self::StridedPick(_) => "strided_pick",
        }
    }
}
