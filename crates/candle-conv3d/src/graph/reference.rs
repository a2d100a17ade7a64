//! A graph by plain loops, one clip at a time, in f32 or f64: what everything faster is compared with.

use super::{AvgPool, Conv, Graph, GraphError, Linear, Node, Nonlinearity, Norm, Operation, Parameter};
use crate::geometry::{Shape, Window};
use std::ops::{Add, AddAssign, Div, Mul};

/// f32 or f64.
pub trait Float:
    Copy + PartialOrd + Default + Add<Output = Self> + Mul<Output = Self> + Div<Output = Self> + AddAssign
{
    /// The nearest value.
    fn from_f64(value: f64) -> Self;
    /// The same value.
    fn to_f64(self) -> f64;
}

impl Float for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Float for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// The outputs of a bound graph for one clip (c, t, h, w), each (c, t, h, w).
///
/// # Panics
/// If the clip has not as many values as its shape.
pub fn run<F: Float>(graph: &Graph, clip: &[F]) -> Result<Vec<Vec<F>>, GraphError> {
    let mut values: Vec<Vec<F>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let inputs: Vec<Volume<'_, F>> = node
            .inputs
            .iter()
            .map(|input| Volume { shape: graph.nodes[input.0].shape, values: &values[input.0] })
            .collect();
        let result = compute(node, &inputs, clip)?;
        assert_eq!(result.len(), node.shape.len(), "{}", node.name);
        values.push(result);
    }
    Ok(graph.outputs.iter().map(|output| values[output.0].clone()).collect())
}

/// An activation of one clip, (c, t, h, w).
#[derive(Clone, Copy)]
struct Volume<'a, F> {
    shape: Shape,
    values: &'a [F],
}

impl<F: Float> Volume<'_, F> {
    fn at(&self, c: usize, [t, h, w]: [usize; 3]) -> F {
        self.values[((c * self.shape.t + t) * self.shape.h + h) * self.shape.w + w]
    }

    fn channel(&self, c: usize) -> &[F] {
        let positions = self.shape.t * self.shape.h * self.shape.w;
        &self.values[c * positions..][..positions]
    }
}

fn compute<F: Float>(node: &Node, inputs: &[Volume<'_, F>], clip: &[F]) -> Result<Vec<F>, GraphError> {
    let shape = node.shape;
    Ok(match &node.operation {
        Operation::Input => clip.to_vec(),
        Operation::Conv(conv) => convolve(conv, inputs, shape)?,
        Operation::BatchNorm(norm) => normalise(norm, inputs[0])?,
        Operation::Scale(scale) => {
            let [factor, offset] = [floats::<F>(&scale.factor)?, floats(&scale.offset)?];
            let scaled = (0..shape.c).flat_map(|c| inputs[0].channel(c).iter().map(move |&x| (c, x)));
            scaled.map(|(c, x)| apply(scale.nonlinearity, x * factor[c] + offset[c])).collect()
        }
        Operation::Nonlinearity(function) => inputs[0].values.iter().map(|&x| apply(Some(*function), x)).collect(),
        Operation::Add => inputs[0].values.iter().zip(inputs[1].values).map(|(&a, &b)| a + b).collect(),
        Operation::Multiply => {
            let repeat = shape.len() / inputs[1].values.len();
            inputs[0].values.iter().enumerate().map(|(i, &a)| a * inputs[1].values[i / repeat]).collect()
        }
        Operation::Concat => inputs.iter().flat_map(|input| input.values.iter().copied()).collect(),
        Operation::MaxPool(window) => {
            let largest = |a: F, b: F| if b > a { b } else { a };
            each_position(shape, |c, out| {
                let lowest = F::from_f64(f64::NEG_INFINITY);
                taps(window, out, inputs[0].shape).fold(lowest, |max, (at, _)| largest(max, inputs[0].at(c, at)))
            })
        }
        Operation::AvgPool(pool) => average(pool, inputs[0], shape),
        Operation::GlobalAvgPool => (0..shape.c).map(|c| mean(inputs[0].channel(c))).collect(),
        Operation::Flatten | Operation::Dropout(_) => inputs[0].values.to_vec(),
        Operation::Linear(linear) => multiply(linear, inputs[0].values)?,
        Operation::StridedPick([st, sh, sw]) => each_position(shape, |c, [t, h, w]| {
            if c < inputs[0].shape.c { inputs[0].at(c, [t * st, h * sh, w * sw]) } else { F::default() }
        }),
    })
}

fn convolve<F: Float>(conv: &Conv, inputs: &[Volume<'_, F>], shape: Shape) -> Result<Vec<F>, GraphError> {
    let weight = floats::<F>(&conv.weight)?;
    let bias = conv.bias.as_ref().map(floats::<F>).transpose()?;
    let (per_group, per_group_out) = (conv.weight.shape[1], shape.c / conv.groups);
    let taps: usize = conv.window.kernel.iter().product();
    let mut output = vec![F::default(); shape.len()];
    for (c, result) in output.chunks_exact_mut(shape.len() / shape.c).enumerate() {
        for i in 0..per_group {
            let input = inputs[0].channel(c / per_group_out * per_group + i);
            let weight = &weight[(c * per_group + i) * taps..][..taps];
            add_convolved(&conv.window, input, inputs[0].shape, weight, result, shape);
        }
    }
    Ok(each_position(shape, |c, out| {
        let mut sum = output[((c * shape.t + out[0]) * shape.h + out[1]) * shape.w + out[2]];
        if let Some(bias) = &bias {
            sum += bias[c];
        }
        if let Some([st, sh, sw]) = conv.residual
            && c < inputs[1].shape.c
        {
            sum += inputs[1].at(c, [out[0] * st, out[1] * sh, out[2] * sw]);
        }
        apply(conv.nonlinearity, sum)
    }))
}

/// Adds one input channel's part of one output channel.
fn add_convolved<F: Float>(window: &Window, input: &[F], from: Shape, weight: &[F], result: &mut [F], to: Shape) {
    let [_, kh, kw] = window.kernel;
    let ([st, sh, sw], [pt, ph, pw]) = (window.stride, window.padding);
    for t in 0..to.t {
        let frames = window.valid_taps(0, t, from.t);
        for y in 0..to.h {
            let rows = window.valid_taps(1, y, from.h);
            for x in 0..to.w {
                let (first, end) = window.valid_taps(2, x, from.w);
                let mut sum = result[(t * to.h + y) * to.w + x];
                for kt in frames.0..frames.1 {
                    for ky in rows.0..rows.1 {
                        let row = ((t * st + kt - pt) * from.h + y * sh + ky - ph) * from.w;
                        let weight = &weight[(kt * kh + ky) * kw..][..kw];
                        for kx in first..end {
                            sum += input[row + x * sw + kx - pw] * weight[kx];
                        }
                    }
                }
                result[(t * to.h + y) * to.w + x] = sum;
            }
        }
    }
}

fn normalise<F: Float>(norm: &Norm, input: Volume<'_, F>) -> Result<Vec<F>, GraphError> {
    for parameter in [&norm.weight, &norm.bias, &norm.mean, &norm.variance] {
        parameter.values()?;
    }
    let affine = norm.affine().expect("all its parameters have values");
    let values =
        affine.iter().enumerate().flat_map(|(c, pair)| input.channel(c).iter().map(move |x| (pair, x.to_f64())));
    Ok(values.map(|([factor, offset], x)| F::from_f64(x * factor + offset)).collect())
}

fn average<F: Float>(pool: &AvgPool, input: Volume<'_, F>, shape: Shape) -> Vec<F> {
    let Shape { t, h, w, .. } = input.shape;
    let lens = [t, h, w];
    each_position(shape, |c, out| {
        let count: usize = (0..3).map(|axis| pool.counted_positions(axis, out[axis], lens[axis])).product();
        let mut sum = F::default();
        for (at, _) in taps(&pool.window, out, input.shape) {
            sum += input.at(c, at);
        }
        sum / F::from_f64(count as f64)
    })
}

fn multiply<F: Float>(linear: &Linear, input: &[F]) -> Result<Vec<F>, GraphError> {
    let weight = floats::<F>(&linear.weight)?;
    let bias = linear.bias.as_ref().map(floats::<F>).transpose()?;
    let rows = weight.chunks_exact(input.len()).enumerate().map(|(c, row)| {
        let mut sum = F::default();
        for (&w, &x) in row.iter().zip(input) {
            sum += w * x;
        }
        if let Some(bias) = &bias {
            sum += bias[c];
        }
        apply(linear.nonlinearity, sum)
    });
    Ok(rows.collect())
}

fn mean<F: Float>(values: &[F]) -> F {
    let mut sum = F::default();
    values.iter().for_each(|&x| sum += x);
    sum / F::from_f64(values.len() as f64)
}

pub(crate) fn apply<F: Float>(function: Option<Nonlinearity>, x: F) -> F {
    let sigmoid = |x: F| 1.0 / (1.0 + (-x.to_f64()).exp());
    match function {
        None => x,
        Some(Nonlinearity::Relu) if x > F::default() => x,
        Some(Nonlinearity::Relu) => F::default(),
        Some(Nonlinearity::Sigmoid) => F::from_f64(sigmoid(x)),
        Some(Nonlinearity::Silu) => F::from_f64(x.to_f64() * sigmoid(x)),
    }
}

/// Where a window's taps that meet data lie in the input, and their numbers in the kernel.
fn taps(window: &Window, out: [usize; 3], input: Shape) -> impl Iterator<Item = ([usize; 3], usize)> {
    let lens = [input.t, input.h, input.w];
    let ranges: [_; 3] = std::array::from_fn(|axis| {
        let (begin, end) = window.valid_taps(axis, out[axis], lens[axis]);
        (begin..end).map(move |tap| (out[axis] * window.stride[axis] + tap - window.padding[axis], tap))
    });
    let [frames, rows, columns] = ranges;
    let [_, kh, kw] = window.kernel;
    frames.flat_map(move |(t, kt)| {
        let columns = columns.clone();
        rows.clone().flat_map(move |(h, y)| columns.clone().map(move |(w, x)| ([t, h, w], (kt * kh + y) * kw + x)))
    })
}

fn each_position<F>(shape: Shape, mut value: impl FnMut(usize, [usize; 3]) -> F) -> Vec<F> {
    let Shape { c, t, h, w } = shape;
    let mut values = Vec::with_capacity(shape.len());
    for index in 0..c * t * h * w {
        values.push(value(index / (t * h * w), [index / (h * w) % t, index / w % h, index % w]));
    }
    values
}

fn floats<F: Float>(parameter: &Parameter) -> Result<Vec<F>, GraphError> {
    Ok(parameter.values()?.iter().map(|&value| F::from_f64(f64::from(value))).collect())
}
