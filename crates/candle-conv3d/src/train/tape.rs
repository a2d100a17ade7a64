//! Forward passes that can be gone through backwards without candle's help.

use std::fmt;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Error, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::scratch::Scratch;
use super::volume::channels_last;
use super::{conv_norm, shortcut, with_slices};
#[cfg(feature = "cuda")]
use crate::cuda::train as gpu;
use crate::geometry::volume_dims;
use crate::{Activation, Conv3dConfig, MaxPool3dConfig, Precision};

/// Floats that a task adds.
const TASK_FLOATS: usize = 32 * 1024;

/// A forward pass of a residual network, and the way back: on the CPU in f32, and with the feature `candle-cuda` on NVIDIA GPUs.
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
    /// By the ids of their outputs.
    steps: Vec<Box<dyn Backward>>,
    end: Option<End>,
}

/// Activations in a [`Tape`].
#[derive(Debug, Clone)]
pub struct Volume {
    /// (n, t, h, w, c)
    pub(crate) dims: [usize; 5],
    pub(crate) data: Arc<Data>,
    /// Number among the volumes with gradients.
    pub(crate) id: Option<usize>,
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

impl ConvNormLayer<'_> {
    /// The answer to an input (n, t, h, w, c) that the convolution can't take.
    pub(crate) fn misfit(&self, input: [usize; 5]) -> Error {
        let Self { weight, config, .. } = self;
        Error::msg(format!("a tape has no convolution of (n, t, h, w, c) {input:?} by {weight:?}: {config:?}"))
    }

    /// Whether its normalisation fits so many channels.
    pub(crate) fn check(&self, channels: usize) -> Result<()> {
        for parameter in [self.norm_weight, self.norm_bias] {
            if parameter.dims() != [channels] {
                bail!("{channels} channels are normalised by {:?}", parameter.shape());
            }
        }
        Ok(())
    }
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
    /// The input of a network: `clips` (n, c, t, h, w) in f32, which get no gradient.
    pub fn from_tensor(clips: &Tensor) -> Result<Self> {
        Self::with_precision(clips, Precision::F32)
    }

    /// The same where a GPU computes in another precision: activations and the operands of convolutions have its type,
    /// statistics, variables and their gradients stay f32. CPUs compute in f32 only.
    pub fn with_precision(clips: &Tensor, precision: Precision) -> Result<Self> {
        let [n, c, t, h, w] = volume_dims(clips)?;
        if clips.dtype() != DType::F32 {
            bail!("a tape takes clips in f32, and not in {:?}", clips.dtype());
        }
        let clips = clips.contiguous()?;
        let data = match clips.device() {
            Device::Cpu if precision != Precision::F32 => bail!("CPUs train in f32 only, and not in {precision}"),
            Device::Cpu => Data::Cpu(with_slices(&clips, &clips, |clips, _| channels_last(clips, c, t * h * w))?),
            #[cfg(feature = "candle-cuda")]
            Device::Cuda(device) => {
                let machine = gpu::candle::machine(device, precision)?;
                Data::Gpu(gpu::Activations::clips(machine, clips))
            }
            device => bail!("a tape takes no clips of {:?}", device.location()),
        };
        Ok(Self { dims: [n, t, h, w, c], data: Arc::new(data), id: None })
    }
}

impl Tape {
    /// Whether a tape can take `clips`: f32 on the CPU, or on a GPU of candle's with the feature `candle-cuda`.
    pub fn takes(clips: &Tensor) -> bool {
        clips.dtype() == DType::F32
            && (clips.device().is_cpu() || cfg!(feature = "candle-cuda") && clips.device().is_cuda())
    }

    /// A convolution with its normalisation, and the statistics of the batch if it went by them.
    pub fn conv_norm(
        &mut self,
        input: &Volume,
        layer: &ConvNormLayer<'_>,
    ) -> Result<(Volume, Option<BatchStatistics>)> {
        let made = match &*input.data {
            Data::Cpu(_) => conv_norm::forward(input, layer)?,
            #[cfg(feature = "cuda")]
            Data::Gpu(activations) => gpu::conv_norm(activations, input, layer)?,
        };
        let tracked = input.id.is_some()
            || matches!(layer.following, Following::Add(other) if other.id.is_some())
            || [layer.weight, layer.norm_weight, layer.norm_bias].into_iter().any(Tensor::is_variable);
        let statistics = made.statistics.clone();
        Ok((self.track(made, tracked), statistics))
    }

    /// Every `stride`-th place along t, h and w, and zeros for more channels: a shortcut without weights.
    pub fn strided_shortcut(&mut self, input: &Volume, stride: usize, channels: usize) -> Result<Volume> {
        if stride == 0 || channels < input.dims[4] {
            bail!("no shortcut of stride {stride} leads from {} to {channels} channels", input.dims[4]);
        }
        let [n, t, h, w, _] = input.dims;
        let dims = [n, t.div_ceil(stride), h.div_ceil(stride), w.div_ceil(stride), channels];
        let made = match &*input.data {
            Data::Cpu(_) => shortcut::forward(input, stride, dims)?,
            #[cfg(feature = "cuda")]
            Data::Gpu(activations) => gpu::shortcut(activations, input, stride, dims)?,
        };
        Ok(self.track(made, input.id.is_some()))
    }

    /// The end of the pass: the mean (n, c) of each channel of each clip. A variable if there are gradients behind it.
    pub fn mean(&mut self, volume: &Volume) -> Result<Tensor> {
        let features = match &*volume.data {
            Data::Cpu(data) => means(data, volume.dims)?,
            #[cfg(feature = "cuda")]
            Data::Gpu(activations) => activations.means(volume.dims)?,
        };
        if volume.id.is_none() {
            return Ok(features);
        }
        let features = Var::from_tensor(&features)?.into_inner();
        self.end = Some(End { features: features.clone(), volume: volume.clone() });
        Ok(features)
    }

    /// Leads the gradient of the features on to the variables of all layers, and puts theirs into `gradients`.
    pub fn backward(self, gradients: &mut GradStore) -> Result<()> {
        let Some(end) = self.end else { return Ok(()) };
        let Some(upstream) = gradients.remove(&end.features) else { return Ok(()) };
        let Volume { dims, data, id } = end.volume;
        let upstream = match &*data {
            Data::Cpu(_) => Data::Cpu(spread(&upstream, dims)?),
            #[cfg(feature = "cuda")]
            Data::Gpu(activations) => Data::Gpu(activations.spread(&upstream, dims)?),
        };
        drop(data);
        let mut volumes = VolumeGradients((0..self.steps.len()).map(|_| None).collect());
        volumes.0[id.expect("the end of a pass is tracked")] = Some(upstream);
        for (output, step) in self.steps.into_iter().enumerate().rev() {
            if let Some(upstream) = volumes.take(output) {
                step.backward(upstream, &mut volumes, gradients)?;
            }
        }
        Ok(())
    }

    /// The volume that a layer made, whose gradient is wanted if it is `tracked`.
    fn track(&mut self, made: Made, tracked: bool) -> Volume {
        let Made { dims, data, step, .. } = made;
        let id = tracked.then_some(self.steps.len());
        if tracked {
            self.steps.push(step);
        }
        Volume { dims, data, id }
    }
}

/// What a layer made, and the way back through it.
#[derive(Debug)]
pub(crate) struct Made {
    /// (n, t, h, w, c)
    pub(crate) dims: [usize; 5],
    pub(crate) data: Arc<Data>,
    pub(crate) statistics: Option<BatchStatistics>,
    pub(crate) step: Box<dyn Backward>,
}

/// The way back through a layer.
pub(crate) trait Backward: fmt::Debug + Send + Sync {
    /// Adds to the gradients of the layer's inputs and variables, by that of its output.
    fn backward(
        self: Box<Self>,
        upstream: Data,
        volumes: &mut VolumeGradients,
        gradients: &mut GradStore,
    ) -> Result<()>;
}

/// Activations or their gradients, channels last.
#[derive(Debug)]
pub(crate) enum Data {
    Cpu(Scratch),
    #[cfg(feature = "cuda")]
    Gpu(gpu::Activations),
}

impl Data {
    /// An error for what is on a GPU.
    pub(crate) fn host(&self) -> Result<&[f32]> {
        match self {
            Self::Cpu(data) => Ok(data),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => bail!("{DEVICES}"),
        }
    }

    /// As [`host`](Self::host).
    pub(crate) fn into_host(self) -> Result<Scratch> {
        match self {
            Self::Cpu(data) => Ok(data),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => bail!("{DEVICES}"),
        }
    }

    fn add(&mut self, other: Self) -> Result<()> {
        match (self, other) {
            (Self::Cpu(sum), Self::Cpu(other)) => {
                sum.par_chunks_mut(TASK_FLOATS).zip(other.par_chunks(TASK_FLOATS)).for_each(|(sum, other)| {
                    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
                });
                Ok(())
            }
            #[cfg(feature = "cuda")]
            (Self::Gpu(sum), Self::Gpu(other)) => sum.add(&other),
            #[cfg(feature = "cuda")]
            _ => bail!("{DEVICES}"),
        }
    }
}

#[cfg(feature = "cuda")]
pub(crate) const DEVICES: &str = "the volumes of a tape are on one device";

/// Gradients of volumes by their ids, as far as they are known.
#[derive(Debug)]
pub(crate) struct VolumeGradients(Vec<Option<Data>>);

impl VolumeGradients {
    /// What is known of a gradient, to be added again.
    pub(crate) fn take(&mut self, id: usize) -> Option<Data> {
        self.0[id].take()
    }

    pub(crate) fn add(&mut self, id: usize, gradient: Data) -> Result<()> {
        match &mut self.0[id] {
            Some(sum) => sum.add(gradient),
            slot => {
                *slot = Some(gradient);
                Ok(())
            }
        }
    }
}

/// Where a pass ends.
#[derive(Debug)]
struct End {
    features: Tensor,
    /// Whose means they are.
    volume: Volume,
}

/// The mean (n, c) over all places.
fn means(data: &[f32], [n, t, h, w, channels]: [usize; 5]) -> Result<Tensor> {
    let places = t * h * w;
    let mut means = vec![0f32; n * channels];
    for (means, clip) in means.chunks_exact_mut(channels).zip(data.chunks_exact(places * channels)) {
        let mut sums = vec![0f64; channels];
        for place in clip.chunks_exact(channels) {
            sums.iter_mut().zip(place).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        means.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = (sum / places as f64) as f32);
    }
    Tensor::from_vec(means, (n, channels), &Device::Cpu)
}

/// The gradient of a volume from that of its means.
fn spread(upstream: &Tensor, dims: [usize; 5]) -> Result<Scratch> {
    let [_, t, h, w, channels] = dims;
    let places = t * h * w;
    let mut gradient = Scratch::any(dims.iter().product());
    let upstream = upstream.flatten_all()?.to_vec1::<f32>()?;
    for (clip, upstream) in gradient.chunks_exact_mut(places * channels).zip(upstream.chunks_exact(channels)) {
        for place in clip.chunks_exact_mut(channels) {
            place.iter_mut().zip(upstream).for_each(|(gradient, upstream)| *gradient = upstream / places as f32);
        }
    }
    Ok(gradient)
}

/// Adds to the gradient of `variable`, unless it is no variable.
pub(crate) fn insert_gradient(gradients: &mut GradStore, variable: &Tensor, gradient: Tensor) -> Result<()> {
    if !variable.is_variable() {
        return Ok(());
    }
    let gradient = gradient.to_dtype(variable.dtype())?;
    let sum = match gradients.remove(variable) {
        Some(other) => (other + gradient)?,
        None => gradient,
    };
    gradients.insert(variable, sum);
    Ok(())
}
