//! From a model file to the graph of an inference plan, and to the plan for CPUs: batch norm folded into the convolutions,
//! residual sums and ReLU into their ends.

use std::collections::HashMap;

use candle_conv3d::plan::{ConvSpec, GraphBuilder, Node, Plan, PlanError, PlanOptions, Residual};
use candle_core::{DType, Tensor};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::file::Model;
use super::layout::{Block, BlockShortcut, ConvLayer, Layout};
use super::spec::ClipSpec;

/// Added to the variance before its root: `eps` of PyTorch's batch norm.
const NORM_EPSILON: f64 = 1e-5;

/// Why a model has no plan.
#[derive(Debug, thiserror::Error)]
pub enum ModelPlanError {
    /// The network and the plan don't fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A tensor can't be read.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Compiles a model for CPUs, for clips of its geometry. The plan has two outputs: logits `(n, classes)` and the pooled
/// features before the last layer `(n, features)`.
pub fn compile(model: &Model, options: PlanOptions) -> Result<Plan, ModelPlanError> {
    let folded = FoldedModel::of(model)?;
    let (graph, outputs) = folded.graph()?;
    Ok(graph.compile(&outputs, options)?)
}

/// Bytes that [`compile`]'s plan of a network would hold, found without its weights and without taking that memory.
pub fn memory_bytes(layout: &Layout, clip: ClipSpec, options: PlanOptions) -> Result<usize, ModelPlanError> {
    let conv = |layer| conv_spec(layer, &[], &[]);
    let last = Linear { weight: Vec::new(), bias: vec![0.0; layout.classes] };
    let (graph, outputs) = graph(GraphBuilder::sketch(clip_dims(clip))?, layout, conv, last)?;
    Ok(graph.memory_bytes(&outputs, options)?)
}

/// A model whose batch norm is folded into its convolutions.
pub struct FoldedModel<'a> {
    model: &'a Model,
    convs: HashMap<&'a str, Folded>,
}

impl<'a> FoldedModel<'a> {
    /// Folds a model.
    pub fn of(model: &'a Model) -> Result<Self, ModelPlanError> {
        let convs: Vec<&ConvLayer> = model.layout.convs().collect();
        let folded: Result<HashMap<&str, Folded>, candle_core::Error> =
            convs.into_par_iter().map(|layer| Ok((layer.conv.as_str(), fold(model, layer)?))).collect();
        Ok(Self { model, convs: folded? })
    }

    /// The network for clips of the model's geometry, and its outputs: logits `(n, classes)` and the pooled features before
    /// the last layer `(n, features)`.
    pub fn graph(&self) -> Result<(GraphBuilder<'_>, [Node; 2]), ModelPlanError> {
        let Self { model, convs } = self;
        let conv = |layer: &'a ConvLayer| {
            let Folded { weight, bias } = &convs[layer.conv.as_str()];
            conv_spec(layer, weight, bias)
        };
        let [weight, bias] = ["fc.weight", "fc.bias"].map(|name| values(&model.tensors[name]));
        let last = Linear { weight: weight?, bias: bias? };
        Ok(graph(GraphBuilder::new(clip_dims(model.spec.clip))?, &model.layout, conv, last)?)
    }
}

/// The last layer: weights `(classes, features)`, and biases.
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// `(c, t, h, w)`.
fn clip_dims(clip: ClipSpec) -> [usize; 4] {
    [3, clip.frames, clip.size, clip.size]
}

/// Adds a network's layers to an empty graph; `conv` gives each convolution's weights.
fn graph<'a, 'l>(
    mut graph: GraphBuilder<'a>,
    layout: &'l Layout,
    conv: impl Fn(&'l ConvLayer) -> ConvSpec<'a>,
    last: Linear,
) -> Result<(GraphBuilder<'a>, [Node; 2]), PlanError> {
    let input = graph.input();
    let mut x = graph.conv(input, ConvSpec { relu: true, ..conv(&layout.stem) })?;
    if layout.max_pool {
        x = graph.max_pool(x, [3; 3], [2; 3], [1; 3])?;
    }
    for block in &layout.blocks {
        x = add_block(&mut graph, x, block, &conv)?;
    }
    let features = graph.global_avg_pool(x)?;
    let logits = graph.linear(features, last.weight, last.bias)?;
    Ok((graph, [logits, features]))
}

fn add_block<'a, 'l>(
    graph: &mut GraphBuilder<'a>,
    input: Node,
    block: &'l Block,
    conv: &impl Fn(&'l ConvLayer) -> ConvSpec<'a>,
) -> Result<Node, PlanError> {
    let residual = match &block.shortcut {
        BlockShortcut::Identity => Residual::Identity(input),
        &BlockShortcut::Strided { stride, .. } => Residual::Strided { node: input, stride: [stride; 3] },
        BlockShortcut::Projection(layer) => Residual::Identity(graph.conv(input, conv(layer))?),
    };
    let mut x = input;
    for (index, layer) in block.convs.iter().enumerate() {
        let is_last = index + 1 == block.convs.len();
        let residual = is_last.then_some(residual);
        x = graph.conv(x, ConvSpec { residual, relu: true, ..conv(layer) })?;
    }
    Ok(x)
}

fn conv_spec<'a>(layer: &'a ConvLayer, weight: &'a [f32], bias: &'a [f32]) -> ConvSpec<'a> {
    let spec = ConvSpec::new(&layer.conv, layer.out_channels, layer.kernel, weight, bias);
    ConvSpec { stride: layer.stride, padding: layer.padding, ..spec }
}

/// A convolution that does its batch norm too.
struct Folded {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// `gamma * (conv(x) - mean) / sqrt(var + eps) + beta` as one convolution with bias.
fn fold(model: &Model, layer: &ConvLayer) -> Result<Folded, candle_core::Error> {
    let norm = |name: &str| values(&model.tensors[&format!("{}.{name}", layer.norm)]);
    let (gamma, beta) = (norm("weight")?, norm("bias")?);
    let (mean, variance) = (norm("running_mean")?, norm("running_var")?);
    let mut weight = values(&model.tensors[&format!("{}.weight", layer.conv)])?;
    let mut bias = Vec::with_capacity(layer.out_channels);
    for (channel, taps) in weight.chunks_exact_mut(weight_len(layer)).enumerate() {
        // In f64, so that folding adds nothing to the rounding of the convolution itself.
        let scale = f64::from(gamma[channel]) / (f64::from(variance[channel]) + NORM_EPSILON).sqrt();
        taps.iter_mut().for_each(|tap| *tap = (f64::from(*tap) * scale) as f32);
        bias.push((f64::from(beta[channel]) - f64::from(mean[channel]) * scale) as f32);
    }
    Ok(Folded { weight, bias })
}

/// Weights of one output channel.
fn weight_len(layer: &ConvLayer) -> usize {
    layer.in_channels * layer.kernel.iter().product::<usize>()
}

fn values(tensor: &Tensor) -> Result<Vec<f32>, candle_core::Error> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
