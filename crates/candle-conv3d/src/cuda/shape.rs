//! How elements are stored, and what a convolution looks like to a GPU.

use std::fmt;

use crate::Precision;

impl Precision {
    pub(crate) fn element(self) -> Element {
        match self {
            Self::Bf16 => Element::Bf16,
            Self::F16 => Element::F16,
            Self::F32 | Self::Tf32 => Element::F32,
        }
    }

    /// Largest error of one convolution, relative to values of size one: a rounding of the result, and for TF32 those of
    /// the factors.
    pub(crate) fn convolution_tolerance(self) -> f32 {
        match self {
            Self::Bf16 => 1.6e-2,
            Self::F16 | Self::Tf32 => 4e-3,
            Self::F32 => 1e-4,
        }
    }
}

/// How activations and weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// `TYPE` of kernels.cu.
    pub(crate) fn kernel_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 2,
        }
    }

    pub(crate) fn encode(self, value: f32, to: &mut Vec<u8>) {
        match self {
            Self::F32 => to.extend(value.to_ne_bytes()),
            Self::F16 => to.extend(half::f16::from_f32(value).to_ne_bytes()),
            Self::Bf16 => to.extend(half::bf16::from_f32(value).to_ne_bytes()),
        }
    }
}

/// A convolution of channels-last volumes, (c, t, h, w) of one clip, channels as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConvShape {
    pub(crate) input: [usize; 4],
    pub(crate) output: [usize; 4],
    pub(crate) kernel: [usize; 3],
    pub(crate) stride: [usize; 3],
    /// Zeros before and after the data.
    pub(crate) pre: [usize; 3],
    pub(crate) post: [usize; 3],
}

impl ConvShape {
    /// Whether it has no time: a convolution of pictures, for which libraries have more algorithms.
    pub(crate) fn is_flat(&self) -> bool {
        self.input[1] == 1 && self.output[1] == 1 && self.kernel[0] == 1
    }

    /// Products of one output.
    pub(crate) fn fan_in(&self) -> usize {
        self.input[0] * self.kernel.iter().product::<usize>()
    }
}

/// What is computed of a convolution: its output, or by the output's gradient that of input or weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    /// With bias, residual and ReLU.
    Inference,
    /// The bare convolution, as the gradients are.
    Forward,
    InputGradient,
    WeightGradient,
}

/// All that decides which algorithm is best for a convolution on one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Signature {
    pub(crate) pass: Pass,
    pub(crate) shape: ConvShape,
    pub(crate) batch: usize,
    pub(crate) precision: Precision,
    /// In inference only.
    pub(crate) residual: bool,
    pub(crate) relu: bool,
}

impl Signature {
    /// Values of input, weight and output.
    pub(crate) fn lens(&self) -> [usize; 3] {
        let ConvShape { input, output, .. } = &self.shape;
        let [input, output] = [input, output].map(|dims| self.batch * dims.iter().product::<usize>());
        [input, self.shape.output[0] * self.shape.fan_in(), output]
    }

    /// Products that are added for one value.
    pub(crate) fn products(&self) -> usize {
        let ConvShape { output: [k, to, ho, wo], kernel, .. } = &self.shape;
        match self.pass {
            Pass::Inference | Pass::Forward => self.shape.fan_in(),
            Pass::InputGradient => k * kernel.iter().product::<usize>(),
            Pass::WeightGradient => self.batch * to * ho * wo,
        }
    }

    /// Values of what is computed.
    pub(crate) fn result_len(&self) -> usize {
        let [input, weight, output] = self.lens();
        match self.pass {
            Pass::Inference | Pass::Forward => output,
            Pass::InputGradient => input,
            Pass::WeightGradient => weight,
        }
    }
}

impl fmt::Display for Signature {
    /// One word, for files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, shape, batch, precision, residual, relu } = self;
        let ConvShape { input, output, kernel, stride, pre, post } = shape;
        let list = |dims: &[usize]| dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        write!(
            f,
            "{precision}:n{batch}:{}:{}:k{}:s{}:p{}:{}{}{}{}",
            list(input),
            list(output),
            list(kernel),
            list(stride),
            list(pre),
            list(post),
            if *residual { ":sum" } else { "" },
            if *relu { ":relu" } else { "" },
            match pass {
                Pass::Inference => "",
                Pass::Forward => ":y",
                Pass::InputGradient => ":dx",
                Pass::WeightGradient => ":dw",
            },
        )
    }
}
