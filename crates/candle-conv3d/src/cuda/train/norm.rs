//! A convolution with its normalisation and what follows it, on a GPU.
#![allow(unsafe_code)]

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{DType, Error, Result, Shape, Tensor, bail};

use super::super::lower::PoolShape;
use super::super::rearrange::padded;
use super::convolution::{Convolution, Geometry, volume_bytes, volume_len};
use super::machine::{Grid, Machine, Memory, launch};
use super::{Activations, Content, load};
use crate::train::tape::{
    Backward, BatchStatistics, ConvNormLayer, Data, Following, Made, Statistics, Volume, VolumeGradients,
    insert_gradient,
};
use crate::{Activation, MaxPool3dConfig};

/// Taps of a pool's window are remembered in 16 bits.
const MOST_TAPS: usize = 1 << 16;

/// The output of a layer.
pub(crate) fn conv_norm(from: &Activations, input: &Volume, layer: &ConvNormLayer<'_>) -> Result<Made> {
    let machine = &from.machine;
    let Some(geometry) = Geometry::new(input.dims, layer.weight.dims5()?.into(), &layer.config) else {
        return Err(layer.misfit(input.dims));
    };
    let (convolution, source) = match &from.content {
        Content::Clips(clips) => {
            let (shape, convolution) = geometry.stem(machine, layer.weight.is_variable())?;
            (convolution, Source::Loaded(load(&**machine, clips, shape)?))
        }
        Content::Volume(_) => (geometry.convolution(machine), Source::Volume(Arc::clone(&input.data))),
    };
    let dims = convolution.output;
    layer.check(dims[4])?;
    let weight = convolution.pack(layer.weight)?;
    let convolved = convolution.forward(source.memory()?, &weight)?;

    let parameter = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
    let (scale, bias) = (parameter(layer.norm_weight)?, parameter(layer.norm_bias)?);
    let place = Place { machine: Arc::clone(machine), rows: dims[..4].iter().product(), channels: dims[4] };
    let epsilon = layer.epsilon as f32;
    let norm = match layer.statistics {
        Statistics::Batch => place.of_batch(&convolved, [&scale, &bias], epsilon)?,
        Statistics::Fixed { mean, variance } => {
            place.fixed([&parameter(mean)?, &parameter(variance)?], [&scale, &bias], epsilon)?
        }
    };
    let statistics =
        norm.variance.clone().map(|variance| BatchStatistics { mean: norm.mean.clone(), variance, count: place.rows });

    let relu = layer.activation == Activation::Relu;
    let (following, dims, data) = match layer.following {
        Following::MaxPool(config) => {
            let pool = Pool::new(&config, dims, relu)?;
            let (data, taps) = pool.forward(&**machine, &convolved, &norm.affine)?;
            (Behind::MaxPool { pool, taps }, pool.output, data)
        }
        Following::Add(other) if other.dims != dims => {
            bail!("{:?} can't be added to {dims:?}, both (n, t, h, w, c)", other.dims)
        }
        Following::Add(other) => {
            let residual = other.data.gpu()?.memory_on(machine)?.address();
            (Behind::Add { other: other.id }, dims, place.normalize(&convolved, &norm.affine, residual, relu)?)
        }
        Following::Nothing => (Behind::Add { other: None }, dims, place.normalize(&convolved, &norm.affine, 0, relu)?),
    };
    let data = Arc::new(Data::Gpu(Activations::volume(machine, data)));
    let step = ConvNorm {
        convolution,
        source,
        packed: weight,
        weight: layer.weight.clone(),
        scale: layer.norm_weight.clone(),
        bias: layer.norm_bias.clone(),
        place,
        norm,
        input: input.id,
        convolved,
        output: Arc::clone(&data),
        relu,
        following,
    };
    Ok(Made { dims, data, statistics, step: Box::new(step) })
}

/// What a convolution reads.
#[derive(Debug)]
enum Source {
    /// Clips, loaded for it.
    Loaded(Memory),
    Volume(Arc<Data>),
}

impl Source {
    fn memory(&self) -> Result<&Memory> {
        match self {
            Self::Loaded(memory) => Ok(memory),
            Self::Volume(data) => data.gpu()?.memory(),
        }
    }
}

/// Rows of a volume that are normalised by channel.
#[derive(Debug)]
struct Place {
    machine: Arc<dyn Machine>,
    rows: usize,
    channels: usize,
}

/// By what a volume is normalised.
#[derive(Debug)]
struct Norm {
    /// (c)
    mean: Tensor,
    /// (c), unless mean and variance are constants.
    variance: Option<Tensor>,
    /// 1 / sqrt(variance + epsilon)
    inverse: Memory,
    /// Factor and summand of each channel as stored.
    affine: Memory,
}

impl Place {
    fn stored(&self) -> usize {
        padded(self.channels)
    }

    fn values(&self) -> usize {
        self.rows * self.stored()
    }

    /// Room for `count` floats of each channel as stored.
    fn floats(&self, count: usize) -> Result<Memory> {
        self.machine.allocate(4 * count * self.stored())
    }

    fn tensor(&self, memory: Memory) -> Result<Tensor> {
        self.machine.to_tensor(memory, &Shape::from(self.channels), DType::F32)
    }

    /// By the mean and the biased variance of each channel of `input`.
    fn of_batch(&self, input: &Memory, parameters: [&Tensor; 2], epsilon: f32) -> Result<Norm> {
        let (channels, stored, rows) = (self.channels as i32, self.stored() as i32, self.rows as u64);
        let (partials, grid) = Grid::columns(self.rows, self.stored());
        let partial = self.floats(2 * partials)?;
        let (x, sums, blocks) = (input.address(), partial.address(), partials as i32);
        // SAFETY: a volume of these rows, and room for two sums of each channel of each block.
        unsafe { launch!(self.machine, statistics, grid, x, sums, stored, rows)? };
        let one = || self.machine.allocate(4 * self.channels);
        let (mean, variance, inverse, affine) = (one()?, one()?, one()?, self.floats(2)?);
        let [weight, bias] = parameters.map(|parameter| self.machine.address(parameter));
        let (weight, bias) = (weight?, bias?);
        let [to_mean, to_variance, to_inverse, to_affine] = [&mean, &variance, &inverse, &affine].map(Memory::address);
        // SAFETY: the sums of so many blocks, parameters of each channel, and room for the results.
        unsafe {
            launch!(
                self.machine,
                finish_statistics,
                Grid::partials(self.stored()),
                x,
                sums,
                blocks,
                weight,
                bias,
                to_mean,
                to_variance,
                to_inverse,
                to_affine,
                channels,
                stored,
                rows,
                epsilon,
            )?;
        };
        Ok(Norm { mean: self.tensor(mean)?, variance: Some(self.tensor(variance)?), inverse, affine })
    }

    /// By a mean and a variance that are given.
    fn fixed(&self, statistics: [&Tensor; 2], parameters: [&Tensor; 2], epsilon: f32) -> Result<Norm> {
        for statistic in statistics {
            if statistic.dims() != [self.channels] {
                bail!("{} channels are normalised by statistics {:?}", self.channels, statistic.shape());
            }
        }
        let (channels, stored) = (self.channels as i32, self.stored() as i32);
        let (inverse, affine) = (self.machine.allocate(4 * self.channels)?, self.floats(2)?);
        let address = |tensor: &Tensor| self.machine.address(tensor);
        let (mean, variance) = (address(statistics[0])?, address(statistics[1])?);
        let (weight, bias) = (address(parameters[0])?, address(parameters[1])?);
        let (to_inverse, to_affine) = (inverse.address(), affine.address());
        let grid = Grid::Work(self.stored());
        // SAFETY: statistics and parameters of each channel, and room for the results.
        unsafe {
            launch!(
                self.machine,
                fixed_statistics,
                grid,
                mean,
                variance,
                weight,
                bias,
                to_inverse,
                to_affine,
                channels,
                stored,
                epsilon,
            )?;
        };
        Ok(Norm { mean: statistics[0].clone(), variance: None, inverse, affine })
    }

    /// The normalised volume plus another one at `residual`, or 0 without one.
    fn normalize(&self, input: &Memory, affine: &Memory, residual: u64, relu: bool) -> Result<Memory> {
        let output = self.machine.allocate(input.bytes())?;
        let (x, constants, y) = (input.address(), affine.address(), output.address());
        let (stored, relu, values) = (self.stored() as i32, i32::from(relu), self.values() as u64);
        let grid = Grid::Work(self.values() / 8);
        // SAFETY: volumes of as many values, and two floats of each channel as stored.
        unsafe { launch!(self.machine, normalize, grid, x, constants, residual, y, stored, relu, values)? };
        Ok(output)
    }

    /// Replaces the volume `x` that was normalised by its gradient, and the gradient `g` of the result by what of it passes
    /// the ReLU whose results are at `y` (0 without one). Returns the gradients of weight and bias.
    fn backward(&self, norm: &Norm, weight: &Tensor, x: &Memory, g: &Memory, y: u64) -> Result<[Tensor; 2]> {
        let (channels, stored, rows) = (self.channels as i32, self.stored() as i32, self.rows as u64);
        let (partials, grid) = Grid::columns(self.rows, self.stored());
        let partial = self.floats(2 * partials)?;
        let (gradient, volume, sums) = (g.address(), x.address(), partial.address());
        let (mean, weight) = (self.machine.address(&norm.mean)?, self.machine.address(weight)?);
        // SAFETY: volumes of these rows, a mean of each channel, and room for two sums of each channel of each block.
        unsafe {
            launch!(self.machine, gradient_sums, grid, gradient, y, volume, mean, sums, channels, stored, rows)?;
        };
        let (of_weight, of_bias) =
            (self.machine.allocate(4 * self.channels)?, self.machine.allocate(4 * self.channels)?);
        let terms = self.floats(3)?;
        let [to_weight, to_bias, to_terms] = [&of_weight, &of_bias, &terms].map(Memory::address);
        let (blocks, inverse, fixed) = (partials as i32, norm.inverse.address(), i32::from(norm.variance.is_none()));
        let grid = Grid::partials(self.stored());
        // SAFETY: the sums of so many blocks, a mean, deviation and weight of each channel, and room for the results.
        unsafe {
            launch!(
                self.machine,
                finish_gradients,
                grid,
                sums,
                blocks,
                mean,
                inverse,
                weight,
                to_weight,
                to_bias,
                to_terms,
                channels,
                stored,
                rows,
                fixed,
            )?;
        };
        let values = self.values() as u64;
        let grid = Grid::Work(self.values() / 8);
        // SAFETY: volumes of as many values, and three floats of each channel as stored.
        unsafe { launch!(self.machine, norm_gradient, grid, gradient, y, volume, to_terms, stored, values)? };
        Ok([self.tensor(of_weight)?, self.tensor(of_bias)?])
    }
}

/// The max pool behind a normalisation.
#[derive(Clone, Copy, Debug)]
struct Pool {
    shape: PoolShape,
    /// (n, t, h, w, c)
    input: [usize; 5],
    output: [usize; 5],
    relu: bool,
}

impl Pool {
    fn new(config: &MaxPool3dConfig, input: [usize; 5], relu: bool) -> Result<Self> {
        let [n, t, h, w, c] = input;
        let [to, ho, wo] = config.output_dims([t, h, w]).map_err(Error::wrap)?;
        if config.kernel.iter().product::<usize>() > MOST_TAPS {
            bail!("a max pool of {:?} places on a GPU; at most {MOST_TAPS} in all", config.kernel);
        }
        let shape = PoolShape::new(padded(c), [t, h, w], [to, ho, wo], &config.window());
        Ok(Self { shape, input, output: [n, to, ho, wo, c], relu })
    }

    /// The maxima, and which taps of their windows they were.
    fn forward(&self, machine: &dyn Machine, input: &Memory, affine: &Memory) -> Result<(Memory, Memory)> {
        let len = volume_len(self.output);
        let (output, taps) = (machine.allocate(volume_bytes(machine, self.output))?, machine.allocate(2 * len)?);
        let (x, constants, y, places) = (input.address(), affine.address(), output.address(), taps.address());
        let (shape, relu, n) = (self.shape, i32::from(self.relu), self.input[0] as i32);
        // SAFETY: volumes of the shape's dimensions, two floats of each channel as stored, and a tap of each maximum.
        unsafe { launch!(machine, normalize_pool, Grid::Work(len / 8), x, constants, y, places, shape, relu, n)? };
        Ok((output, taps))
    }

    /// The gradient of what is pooled, from that of the maxima.
    fn backward(&self, machine: &dyn Machine, upstream: &Memory, output: &Memory, taps: &Memory) -> Result<Memory> {
        let gradient = machine.allocate(volume_bytes(machine, self.input))?;
        let y = if self.relu { output.address() } else { 0 };
        let (g, places, to) = (upstream.address(), taps.address(), gradient.address());
        let (shape, n) = (self.shape, self.input[0] as i32);
        let grid = Grid::Work(volume_len(self.input) / 8);
        // SAFETY: as in `forward`.
        unsafe { launch!(machine, pool_gradient, grid, g, y, places, to, shape, n)? };
        Ok(gradient)
    }
}

/// What [`Following`] leaves for the way back.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one a layer")]
enum Behind {
    /// Another volume was added, unless there was none or it wants no gradient.
    Add {
        other: Option<usize>,
    },
    MaxPool {
        pool: Pool,
        taps: Memory,
    },
}

#[derive(Debug)]
struct ConvNorm {
    convolution: Convolution,
    source: Source,
    packed: Memory,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    place: Place,
    norm: Norm,
    /// Of the input, if its gradient is wanted.
    input: Option<usize>,
    /// What the normalisation took.
    convolved: Memory,
    output: Arc<Data>,
    relu: bool,
    following: Behind,
}

impl Backward for ConvNorm {
    fn backward(
        self: Box<Self>,
        upstream: Data,
        volumes: &mut VolumeGradients,
        gradients: &mut GradStore,
    ) -> Result<()> {
        let Self { convolution, source, packed, weight, scale, bias, place, norm, convolved, output, .. } = *self;
        let upstream = upstream.into_gpu()?.into_memory()?;
        let results = output.gpu()?.memory()?;
        let factors = scale.to_dtype(DType::F32)?.contiguous()?;
        let of_parameters = match &self.following {
            Behind::Add { .. } => {
                let y = if self.relu { results.address() } else { 0 };
                place.backward(&norm, &factors, &convolved, &upstream, y)?
            }
            Behind::MaxPool { pool, taps } => {
                let upstream = pool.backward(&*place.machine, &upstream, results, taps)?;
                place.backward(&norm, &factors, &convolved, &upstream, 0)?
            }
        };
        for (variable, gradient) in [&scale, &bias].into_iter().zip(of_parameters) {
            insert_gradient(gradients, variable, gradient)?;
        }
        let gradient = convolved;
        if let Behind::Add { other: Some(other) } = self.following {
            volumes.add(other, Data::Gpu(Activations::volume(&place.machine, upstream)))?;
        }
        if weight.is_variable() {
            insert_gradient(gradients, &weight, convolution.weight_gradient(source.memory()?, &gradient)?)?;
        }
        if let Some(id) = self.input {
            let of_input = convolution.input_gradient(&packed, &gradient)?;
            volumes.add(id, Data::Gpu(Activations::volume(&place.machine, of_input)))?;
        }
        Ok(())
    }
}
