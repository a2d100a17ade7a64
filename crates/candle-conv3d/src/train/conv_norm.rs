//! A convolution with its normalisation and what follows it, on the CPU.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Device, Error, Result, Tensor, bail};

use super::convolution::Convolution;
use super::norm::Normalization;
use super::pooled_norm::PooledNorm;
use super::scratch::Scratch;
use super::tape::{
    Backward, BatchStatistics, ConvNormLayer, Data, Following, Made, Statistics, Volume, VolumeGradients,
    insert_gradient,
};
use super::with_slices;
use crate::Activation;

/// The output of a layer.
pub(super) fn forward(input: &Volume, layer: &ConvNormLayer<'_>) -> Result<Made> {
    let (weight, scale, bias) =
        (layer.weight.contiguous()?, layer.norm_weight.contiguous()?, layer.norm_bias.contiguous()?);
    let Some(convolution) = Convolution::new(input.dims, weight.dims5()?.into(), &layer.config) else {
        return Err(layer.misfit(input.dims));
    };
    let dims = convolution.output_dims();
    let channels = dims[4];
    layer.check(channels)?;
    let mut convolved = Scratch::any(dims.iter().product());
    let values = input.data.host()?;
    with_slices(&weight, &weight, |weight, _| convolution.forward(values, weight, &mut convolved))?;

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
                residual = Some(other.data.host()?);
                Behind::Add { other: other.id }
            }
            Following::Nothing => Behind::Add { other: None },
        };
        let mut output = Scratch::any(convolved.len());
        norm.forward(&convolved, [scale, bias], residual, relu, &mut output);
        Ok((following, dims, output))
    })??;

    let data = Arc::new(Data::Cpu(data));
    let (input, output) = (input.clone(), Arc::clone(&data));
    let step = Box::new(ConvNorm { convolution, weight, scale, bias, norm, input, convolved, output, relu, following });
    Ok(Made { dims, data, statistics, step })
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
    output: Arc<Data>,
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

impl Backward for ConvNorm {
    fn backward(
        self: Box<Self>,
        upstream: Data,
        volumes: &mut VolumeGradients,
        gradients: &mut GradStore,
    ) -> Result<()> {
        let mut upstream = upstream.into_host()?;
        let Self { convolution, weight, scale, bias, norm, input, convolved: mut gradient, output, relu, following } =
            *self;
        let results = output.host()?;
        let of_parameters = with_slices(&scale, &scale, |scale, _| match &following {
            Behind::Add { .. } => norm.backward(&mut gradient, scale, relu.then_some(results), &mut upstream),
            Behind::MaxPool { pool, taps } => pool.backward(&norm, &mut gradient, scale, [results, &upstream], taps),
        })?;
        insert(gradients, &scale, of_parameters.weight)?;
        insert(gradients, &bias, of_parameters.bias)?;
        drop(output);
        if let Behind::Add { other: Some(other) } = following {
            volumes.add(other, Data::Cpu(upstream))?;
        }
        if weight.is_variable() {
            insert(gradients, &weight, convolution.weight_gradient(input.data.host()?, &gradient))?;
        }
        if let Some(id) = input.id {
            let mut of_input = Scratch::any(input.data.host()?.len());
            with_slices(&weight, &weight, |weight, _| convolution.input_gradient(weight, &gradient, &mut of_input))?;
            volumes.add(id, Data::Cpu(of_input))?;
        }
        Ok(())
    }
}

fn insert(gradients: &mut GradStore, variable: &Tensor, gradient: Vec<f32>) -> Result<()> {
    insert_gradient(gradients, variable, Tensor::from_vec(gradient, variable.shape(), &Device::Cpu)?)
}
