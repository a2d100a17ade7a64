//! Forward passes that can be gone through backwards without candle's help.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Device, Error, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::convolution::Convolution;
use super::norm::Normalization;
use super::pooled_norm::PooledNorm;
use super::scratch::Scratch;
use super::volume::channels_last;
use super::{fits, with_slices};
use crate::geometry::volume_dims;
use crate::{Activation, Conv3dConfig, MaxPool3dConfig};

/// Floats that a task adds.
const TASK_FLOATS: usize = 32 * 1024;

/// A forward pass of a residual network on the CPU in f32, and the way back.
///
/// Layers can be trained as operations on tensors too ([`conv3d`](crate::conv3d), [`batch_norm`](crate::batch_norm)). A
/// tape is faster: activations keep the kernels' own order of dimensions from layer to layer, what stands around a
/// convolution is one pass with it, gradients are added where they belong, and the memory of one step serves the next.
///
/// Layers with variables are remembered. [`mean`](Self::mean) ends the pass with features that are a variable, so that
/// candle leads the gradient of any loss to them, and [`backward`](Self::backward) leads it on to the layers.
///
/// ```
/// use candle_conv3d::{Activation, Conv3dConfig, ConvNormLayer, Following, Statistics, Tape, Volume};
/// use candle_core::{DType, Device, Tensor, Var};
///
/// # fn main() -> candle_core::Result<()> {
/// let weight = Var::randn(0f32, 0.1, (8, 3, 3, 3, 3), &Device::Cpu)?;
/// let scale = Var::ones(8, DType::F32, &Device::Cpu)?;
/// let bias = Var::zeros(8, DType::F32, &Device::Cpu)?;
/// let layer = ConvNormLayer {
///     weight: &weight,
///     config: Conv3dConfig { stride: [1; 3], padding: [1; 3] },
///     norm_weight: &scale,
///     norm_bias: &bias,
///     statistics: Statistics::Batch,
///     epsilon: 1e-5,
///     activation: Activation::Relu,
///     following: Following::Nothing,
/// };
/// let mut tape = Tape::default();
/// let clips = Volume::from_tensor(&Tensor::randn(0f32, 1., (2, 3, 4, 8, 8), &Device::Cpu)?)?;
/// let (volume, _) = tape.conv_norm(&clips, &layer)?;
/// let features = tape.mean(&volume)?;
/// assert_eq!(features.dims(), [2, 8]);
///
/// let mut gradients = features.sqr()?.sum_all()?.backward()?;
/// tape.backward(&mut gradients)?;
/// assert_eq!(gradients.get(&weight).map(Tensor::dims), Some(&[8, 3, 3, 3, 3][..]));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Tape {
    steps: Vec<Step>,
    /// Volumes whose gradients are wanted.
    tracked: usize,
    end: Option<End>,
}

/// Activations in a [`Tape`].
#[derive(Debug, Clone)]
pub struct Volume {
    /// (n, t, h, w, c)
    dims: [usize; 5],
    data: Arc<Scratch>,
    /// Number among the volumes with gradients.
    id: Option<usize>,
}

/// A convolution without bias, the batch normalisation behind it and what follows.
#[derive(Debug, Clone, Copy)]
pub struct ConvNormLayer<'a> {
    /// Weight of the convolution (oc, ic, kt, kh, kw).
    pub weight: &'a Tensor,
    /// Its stride and padding; less padding than the kernel is large.
    pub config: Conv3dConfig,
    /// Scale of the normalisation (oc).
    pub norm_weight: &'a Tensor,
    /// Move of the normalisation (oc).
    pub norm_bias: &'a Tensor,
    /// What it normalises by.
    pub statistics: Statistics<'a>,
    /// Added to the variance.
    pub epsilon: f64,
    /// Applied at the end, but before a pool.
    pub activation: Activation,
    /// What comes between normalisation and activation, or after them.
    pub following: Following<'a>,
}

/// What a normalisation goes by.
#[derive(Debug, Clone, Copy)]
pub enum Statistics<'a> {
    /// Mean and variance of the batch.
    Batch,
    /// These constants (c).
    Fixed {
        /// Mean.
        mean: &'a Tensor,
        /// Variance.
        variance: &'a Tensor,
    },
}

/// What follows a normalisation.
#[derive(Debug, Clone, Copy)]
pub enum Following<'a> {
    /// The activation alone.
    Nothing,
    /// The other branch of a residual block is added before the activation.
    Add(&'a Volume),
    /// A max pool after the activation.
    MaxPool(MaxPool3dConfig),
}

/// Statistics of a batch, for running ones.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// Mean of each channel (c).
    pub mean: Tensor,
    /// Biased variance of each channel (c).
    pub variance: Tensor,
    /// Values of a channel.
    pub count: usize,
}

impl Volume {
    /// The input of a network: `clips` (n, c, t, h, w), which get no gradient.
    pub fn from_tensor(clips: &Tensor) -> Result<Self> {
        let [n, c, t, h, w] = volume_dims(clips)?;
        let clips = clips.contiguous()?;
        let data = with_slices(&clips, &clips, |clips, _| channels_last(clips, c, t * h * w))?;
        Ok(Self { dims: [n, t, h, w, c], data: Arc::new(data), id: None })
    }
}

impl Tape {
    /// Whether a tape can take `clips`: f32 on the CPU.
    pub fn takes(clips: &Tensor) -> bool {
        fits(clips)
    }

    /// A convolution with its normalisation, and the statistics of the batch if it went by them.
    pub fn conv_norm(
        &mut self,
        input: &Volume,
        layer: &ConvNormLayer<'_>,
    ) -> Result<(Volume, Option<BatchStatistics>)> {
        let (weight, scale, bias) =
            (layer.weight.contiguous()?, layer.norm_weight.contiguous()?, layer.norm_bias.contiguous()?);
        let Some(convolution) = Convolution::new(input.dims, weight.dims5()?.into(), &layer.config) else {
            bail!("a tape has no convolution of (n, t, h, w, c) {:?} by {:?}: {:?}", input.dims, weight, layer.config);
        };
        let dims = convolution.output_dims();
        let channels = dims[4];
        for parameter in [&scale, &bias] {
            if parameter.dims() != [channels] {
                bail!("{channels} channels are normalised by {:?}", parameter.shape());
            }
        }
        let mut convolved = Scratch::any(dims.iter().product());
        with_slices(&weight, &weight, |weight, _| convolution.forward(&input.data, weight, &mut convolved))?;

        let (norm, statistics) = match layer.statistics {
            Statistics::Batch => {
                let (norm, variance) = Normalization::of_batch(&convolved, channels, layer.epsilon);
                let mean = Tensor::from_slice(&norm.mean, channels, &Device::Cpu)?;
                let variance = Tensor::from_vec(variance, channels, &Device::Cpu)?;
                let count = convolved.len() / channels;
                (norm, Some(BatchStatistics { mean, variance, count }))
            }
            Statistics::Fixed { mean, variance } => {
                (Normalization::by(mean.to_vec1()?, &variance.to_vec1::<f32>()?, layer.epsilon), None)
            }
        };
        let relu = layer.activation == Activation::Relu;
        let (following, dims, data) = with_slices(&scale, &bias, |scale, bias| {
            let mut residual = None;
            let following = match layer.following {
                Following::MaxPool(config) => {
                    let output = config.output_dims([dims[1], dims[2], dims[3]]).map_err(Error::wrap)?;
                    let window = config.window();
                    let input = [dims[1], dims[2], dims[3]];
                    let pool = PooledNorm { clips: dims[0], channels, input, output, window, relu };
                    let len = dims[0] * output.iter().product::<usize>() * channels;
                    let (mut maxima, mut taps) = (Scratch::any(len), vec![0; len]);
                    pool.forward(&norm, &convolved, [scale, bias], &mut maxima, &mut taps);
                    let dims = [dims[0], output[0], output[1], output[2], channels];
                    return Ok((Behind::MaxPool { pool, taps }, dims, maxima));
                }
                Following::Add(other) if other.dims != dims => {
                    bail!("{:?} can't be added to {dims:?}, both (n, t, h, w, c)", other.dims)
                }
                Following::Add(other) => {
                    residual = Some(&other.data[..]);
                    Behind::Add { other: other.id }
                }
                Following::Nothing => Behind::Add { other: None },
            };
            let mut output = Scratch::any(convolved.len());
            norm.forward(&convolved, [scale, bias], residual, relu, &mut output);
            Ok((following, dims, output))
        })??;

        let tracked = input.id.is_some()
            || matches!(following, Behind::Add { other: Some(_) })
            || [&weight, &scale, &bias].into_iter().any(Tensor::is_variable);
        let output = Volume { dims, data: Arc::new(data), id: tracked.then(|| self.track()) };
        if tracked {
            let (input, output) = (input.clone(), output.clone());
            let step = ConvNorm { convolution, weight, scale, bias, norm, input, convolved, output, relu, following };
            self.steps.push(Step::ConvNorm(Box::new(step)));
        }
        Ok((output, statistics))
    }

    /// Every `stride`-th place along t, h and w, and zeros for more channels: a shortcut without weights.
    pub fn strided_shortcut(&mut self, input: &Volume, stride: usize, channels: usize) -> Result<Volume> {
        if stride == 0 || channels < input.dims[4] {
            bail!("no shortcut of stride {stride} leads from {} to {channels} channels", input.dims[4]);
        }
        let [n, t, h, w, _] = input.dims;
        let dims = [n, t.div_ceil(stride), h.div_ceil(stride), w.div_ceil(stride), channels];
        let id = input.id.map(|_| self.track());
        let shortcut = Shortcut { input: input.dims, output: dims, stride, ids: input.id.zip(id) };
        let mut data = Scratch::any(dims.iter().product());
        shortcut.forward(&input.data, &mut data);
        if id.is_some() {
            self.steps.push(Step::Shortcut(shortcut));
        }
        Ok(Volume { dims, data: Arc::new(data), id })
    }

    /// The end of the pass: the mean (n, c) of each channel of each clip. A variable if there are gradients behind it.
    pub fn mean(&mut self, volume: &Volume) -> Result<Tensor> {
        let [n, t, h, w, channels] = volume.dims;
        let places = t * h * w;
        let mut means = vec![0f32; n * channels];
        for (means, clip) in means.chunks_exact_mut(channels).zip(volume.data.chunks_exact(places * channels)) {
            let mut sums = vec![0f64; channels];
            for place in clip.chunks_exact(channels) {
                sums.iter_mut().zip(place).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            means.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = (sum / places as f64) as f32);
        }
        let features = Tensor::from_vec(means, (n, channels), &Device::Cpu)?;
        let Some(id) = volume.id else { return Ok(features) };
        let features = Var::from_tensor(&features)?.into_inner();
        self.end = Some(End { features: features.clone(), id, dims: volume.dims });
        Ok(features)
    }

    /// Leads the gradient of the features on to the variables of all layers, and puts theirs into `gradients`.
    pub fn backward(self, gradients: &mut GradStore) -> Result<()> {
        let Some(end) = self.end else { return Ok(()) };
        let Some(upstream) = gradients.remove(&end.features) else { return Ok(()) };
        let mut volumes = VolumeGradients((0..self.tracked).map(|_| None).collect());
        volumes.0[end.id] = Some(end.spread(&upstream)?);
        for step in self.steps.into_iter().rev() {
            match step {
                Step::ConvNorm(layer) => layer.backward(&mut volumes, gradients)?,
                Step::Shortcut(shortcut) => shortcut.backward(&mut volumes),
            }
        }
        Ok(())
    }

    fn track(&mut self) -> usize {
        self.tracked += 1;
        self.tracked - 1
    }
}

#[derive(Debug)]
enum Step {
    ConvNorm(Box<ConvNorm>),
    Shortcut(Shortcut),
}

/// Gradients of volumes by their ids, as far as they are known.
struct VolumeGradients(Vec<Option<Scratch>>);

impl VolumeGradients {
    fn take(&mut self, id: Option<usize>) -> Option<Scratch> {
        self.0[id?].take()
    }

    fn add(&mut self, id: usize, gradient: Scratch) {
        let Some(sum) = &mut self.0[id] else {
            self.0[id] = Some(gradient);
            return;
        };
        sum.par_chunks_mut(TASK_FLOATS).zip(gradient.par_chunks(TASK_FLOATS)).for_each(|(sum, gradient)| {
            sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
        });
    }
}

/// The mean over all places.
#[derive(Debug)]
struct End {
    features: Tensor,
    id: usize,
    dims: [usize; 5],
}

impl End {
    fn spread(&self, upstream: &Tensor) -> Result<Scratch> {
        let [_, t, h, w, channels] = self.dims;
        let places = t * h * w;
        let mut gradient = Scratch::any(self.dims.iter().product());
        let upstream = upstream.flatten_all()?.to_vec1::<f32>()?;
        for (clip, upstream) in gradient.chunks_exact_mut(places * channels).zip(upstream.chunks_exact(channels)) {
            for place in clip.chunks_exact_mut(channels) {
                place.iter_mut().zip(upstream).for_each(|(gradient, upstream)| *gradient = upstream / places as f32);
            }
        }
        Ok(gradient)
    }
}

#[derive(Debug)]
struct ConvNorm {
    convolution: Convolution,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    norm: Normalization,
    input: Volume,
    /// What the normalisation took.
    convolved: Scratch,
    output: Volume,
    relu: bool,
    following: Behind,
}

/// What [`Following`] leaves for the way back.
#[derive(Debug)]
enum Behind {
    /// Another volume was added, unless there was none or it wants no gradient.
    Add {
        other: Option<usize>,
    },
    MaxPool {
        pool: PooledNorm,
        taps: Vec<u32>,
    },
}

impl ConvNorm {
    fn backward(self, volumes: &mut VolumeGradients, gradients: &mut GradStore) -> Result<()> {
        let Some(mut upstream) = volumes.take(self.output.id) else { return Ok(()) };
        let Self { convolution, weight, norm, input, convolved: mut gradient, output, .. } = self;
        let of_parameters = with_slices(&self.scale, &self.scale, |scale, _| match &self.following {
            Behind::Add { .. } => {
                norm.backward(&mut gradient, scale, self.relu.then_some(&output.data[..]), &mut upstream)
            }
            Behind::MaxPool { pool, taps } => {
                pool.backward(&norm, &mut gradient, scale, [&output.data, &upstream], taps)
            }
        })?;
        insert(gradients, &self.scale, of_parameters.weight)?;
        insert(gradients, &self.bias, of_parameters.bias)?;
        drop(output);
        if let Behind::Add { other: Some(other) } = self.following {
            volumes.add(other, upstream);
        }
        if weight.is_variable() {
            insert(gradients, &weight, convolution.weight_gradient(&input.data, &gradient))?;
        }
        if let Some(id) = input.id {
            let mut of_input = Scratch::any(input.data.len());
            with_slices(&weight, &weight, |weight, _| convolution.input_gradient(weight, &gradient, &mut of_input))?;
            volumes.add(id, of_input);
        }
        Ok(())
    }
}

/// Adds to the gradient of `variable`, unless it is no variable.
fn insert(gradients: &mut GradStore, variable: &Tensor, gradient: Vec<f32>) -> Result<()> {
    if variable.is_variable() {
        let gradient = Tensor::from_vec(gradient, variable.shape(), &Device::Cpu)?;
        let sum = match gradients.remove(variable) {
            Some(other) => (other + gradient)?,
            None => gradient,
        };
        gradients.insert(variable, sum);
    }
    Ok(())
}

#[derive(Debug)]
struct Shortcut {
    /// (n, t, h, w, c)
    input: [usize; 5],
    output: [usize; 5],
    stride: usize,
    /// Of input and output, if gradients are wanted.
    ids: Option<(usize, usize)>,
}

impl Shortcut {
    fn forward(&self, input: &[f32], output: &mut [f32]) {
        let ([_, t, h, w, channels], [_, t_out, h_out, w_out, all]) = (self.input, self.output);
        output.par_chunks_mut(w_out * all).enumerate().for_each(|(row, output)| {
            let [frame, y] = [row / h_out, row % h_out];
            let frame = frame / t_out * t + frame % t_out * self.stride;
            let input = &input[(frame * h + y * self.stride) * w * channels..];
            for (x, place) in output.chunks_exact_mut(all).enumerate() {
                place[..channels].copy_from_slice(&input[x * self.stride * channels..][..channels]);
                place[channels..].fill(0.);
            }
        });
    }

    fn backward(self, volumes: &mut VolumeGradients) {
        let Some((input, output)) = self.ids else { return };
        let Some(upstream) = volumes.take(Some(output)) else { return };
        let mut gradient = volumes.take(Some(input)).unwrap_or_else(|| Scratch::zeros(self.input.iter().product()));
        let ([_, t, h, w, channels], [_, t_out, h_out, w_out, all]) = (self.input, self.output);
        let clips = gradient.par_chunks_mut(t * h * w * channels);
        clips.zip(upstream.par_chunks(t_out * h_out * w_out * all)).for_each(|(gradient, upstream)| {
            for (place, upstream) in upstream.chunks_exact(all).enumerate() {
                let at = [place / (h_out * w_out), place / w_out % h_out, place % w_out].map(|at| at * self.stride);
                let gradient = &mut gradient[((at[0] * h + at[1]) * w + at[2]) * channels..][..channels];
                gradient.iter_mut().zip(upstream).for_each(|(gradient, upstream)| *gradient += upstream);
            }
        });
        volumes.0[input] = Some(gradient);
    }
}
