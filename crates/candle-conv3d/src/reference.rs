//! The operations built of candle's own differentiable ones.
//!
//! They run forward and backward on every device candle has, in f32, f16, bf16 and (CPU) f64, and are
//! what the fast paths are tested against. [`Conv3d`](crate::Conv3d) and
//! [`MaxPool3d`](crate::MaxPool3d) choose by themselves; call these to force the plain way.

use candle_core::{DType, Error, Result, Tensor};

use crate::geometry::{GeometryError, volume_dims};
use crate::{Activation, BatchNormOutput, Conv3dConfig, MaxPool3dConfig};

/// 3D convolution (cross-correlation, as in PyTorch) of `input` (n, ic, t, h, w) with `weight`
/// (oc, ic, kt, kh, kw), giving (n, oc, t', h', w').
///
/// The temporal taps are stacked on the channel axis and time is folded into the batch, so the whole sum
/// over taps is one 2D convolution. Taps that meet nothing but padding are left out.
pub fn conv3d(input: &Tensor, weight: &Tensor, config: &Conv3dConfig) -> Result<Tensor> {
    // candle's CPU matmul, and so its conv2d, has no bf16.
    if input.dtype() == DType::BF16 && input.device().is_cpu() {
        let (input, weight) = (input.to_dtype(DType::F32)?, weight.to_dtype(DType::F32)?);
        return conv3d(&input, &weight, config)?.to_dtype(DType::BF16);
    }
    let [n, in_channels, frames, height, width] = volume_dims(input)?;
    let (out_channels, weight_channels, kt, kh, kw) = weight.dims5()?;
    if in_channels != weight_channels {
        return Err(Error::wrap(GeometryError::Channels { input: in_channels, weight: weight_channels }));
    }
    let [t_out, h_out, w_out] =
        config.window([kt, kh, kw]).output_dims([frames, height, width]).map_err(Error::wrap)?;

    let ([st, sh, sw], [pt, ph, pw]) = (config.stride, config.padding);
    let meets_data =
        |tap: &usize| (0..t_out).any(|t| (pt..pt.saturating_add(frames)).contains(&(t * st).saturating_add(*tap)));
    let (Some(first), Some(last)) = ((0..kt).find(meets_data), (0..kt).rfind(meets_data)) else {
        // Every window lies in the padding, so the sum is empty.
        return Tensor::zeros((n, out_channels, t_out, h_out, w_out), input.dtype(), input.device());
    };
    let taps = last - first + 1;

    let front = pt.saturating_sub(first);
    let last_frame = (t_out - 1) * st + last;
    let back = (last_frame + 1).saturating_sub(pt + frames);
    let input = input.pad_with_zeros(2, front, back)?;
    let shifted = (first..=last).map(|tap| pick(&input, 2, tap + front - pt, st, t_out)).collect::<Result<Vec<_>>>()?;
    let input = Tensor::cat(&shifted, 1)?.transpose(1, 2)?.reshape((n * t_out, taps * in_channels, height, width))?;
    let weight = weight.narrow(2, first, taps)?.transpose(1, 2)?.contiguous()?.reshape((
        out_channels,
        taps * in_channels,
        kh,
        kw,
    ))?;

    // candle's conv2d has one padding and one stride for both axes, and its gradient wants height and width to
    // leave the same remainder. Pad by hand and cut to what the windows cover, then all three are alike.
    let stride = gcd(sh, sw);
    let covered = |size: usize, pad: usize, out: usize, stride: usize, kernel: usize| {
        let covered = (out - 1) * stride + kernel;
        (pad, covered.saturating_sub(size + pad), covered)
    };
    let (top, bottom, rows) = covered(height, ph, h_out, sh, kh);
    let (left, right, columns) = covered(width, pw, w_out, sw, kw);
    let input = input
        .pad_with_zeros(2, top, bottom)?
        .pad_with_zeros(3, left, right)?
        .narrow(2, 0, rows)?
        .narrow(3, 0, columns)?
        .contiguous()?;
    let output = input.conv2d(&weight, 0, stride, 1, 1)?;
    let output = pick(&output, 2, 0, sh / stride, h_out)?;
    let output = pick(&output, 3, 0, sw / stride, w_out)?;
    output.reshape((n, t_out, out_channels, h_out, w_out))?.transpose(1, 2)?.contiguous()
}

/// 3D max pool of `input` (n, c, t, h, w). Padding counts as minus infinity.
///
/// NaN wins over every number, and among equal values the gradient goes to the first in (t, h, w) order;
/// both as in PyTorch. The pool is separable, so it is three 1D pools.
pub fn max_pool3d(input: &Tensor, config: &MaxPool3dConfig) -> Result<Tensor> {
    let [_, _, t, h, w] = volume_dims(input)?;
    let window = config.window();
    let output = window.output_dims([t, h, w]).map_err(Error::wrap)?;
    window.check_pool_padding().map_err(Error::wrap)?;

    // Width first: the first maximum of each row, then the first such row, then the first such frame, is the
    // first maximum of the window.
    let mut pooled = input.clone();
    for axis in [2, 1, 0] {
        let (kernel, stride, padding) = (window.kernel[axis], window.stride[axis], window.padding[axis]);
        let (dim, size, count) = (axis + 2, [t, h, w][axis], output[axis]);
        let needed = (count - 1) * stride + kernel;
        let padded = pad_with_lowest(&pooled, dim, padding, needed.saturating_sub(size + padding))?;
        pooled = pick(&padded, dim, 0, stride, count)?;
        for tap in 1..kernel {
            let candidate = pick(&padded, dim, tap, stride, count)?;
            let is_nan = candidate.ne(&candidate)?;
            let wins = (candidate.gt(&pooled)? + is_nan)?;
            pooled = wins.where_cond(&candidate, &pooled)?;
        }
    }
    pooled.contiguous()
}

/// [`batch_norm`](crate::batch_norm) of `input` (n, c, ...); half precision is normalised in f32.
pub fn batch_norm(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    activation: Activation,
) -> Result<BatchNormOutput> {
    let dtype = input.dtype();
    let inner = if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
    let channels = input.dim(1)?;
    // (c, n ...), so that a channel is a row.
    let rows = input.to_dtype(inner)?.transpose(0, 1)?.flatten_from(1)?;
    let mean = rows.mean_keepdim(1)?;
    let centred = rows.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let scale = (weight.to_dtype(inner)?.reshape((channels, 1))? / (&variance + epsilon)?.sqrt()?)?;
    let rows = centred.broadcast_mul(&scale)?.broadcast_add(&bias.to_dtype(inner)?.reshape((channels, 1))?)?;
    let mut transposed = input.dims().to_vec();
    transposed.swap(0, 1);
    let output = rows.reshape(transposed)?.transpose(0, 1)?.contiguous()?.to_dtype(dtype)?;
    let output = if activation == Activation::Relu { output.relu()? } else { output };
    Ok(BatchNormOutput { output, mean: mean.flatten_all()?.detach(), variance: variance.flatten_all()?.detach() })
}

/// [`fixed_norm`](crate::fixed_norm) of `input` (n, c, ...); half precision is normalised in f32.
pub fn fixed_norm(
    input: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    epsilon: f64,
    activation: Activation,
) -> Result<Tensor> {
    let dtype = input.dtype();
    let inner = if matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype };
    let mut shape = vec![1; input.rank()];
    shape[1] = input.dim(1)?;
    let channels = |parameter: &Tensor| parameter.to_dtype(inner)?.reshape(shape.as_slice());
    let scale = (channels(weight)? / (channels(variance)? + epsilon)?.sqrt()?)?;
    let centred = input.to_dtype(inner)?.broadcast_sub(&channels(mean)?)?;
    let output = centred.broadcast_mul(&scale)?.broadcast_add(&channels(bias)?)?.to_dtype(dtype)?;
    if activation == Activation::Relu { output.relu() } else { Ok(output) }
}

/// Every `step`-th slice along `dim`: `start`, `start + step`, ..., `count` of them. Made of shape operations
/// alone, so it has a gradient for every type on every device.
pub(crate) fn pick(x: &Tensor, dim: usize, start: usize, step: usize, count: usize) -> Result<Tensor> {
    if step == 1 {
        return x.narrow(dim, start, count);
    }
    let available = (x.dim(dim)? - start).min(count * step);
    let x = x.narrow(dim, start, available)?.pad_with_zeros(dim, 0, count * step - available)?;
    let mut split = x.dims().to_vec();
    split.splice(dim..=dim, [count, step]);
    x.reshape(split)?.narrow(dim + 1, 0, 1)?.squeeze(dim + 1)
}

fn pad_with_lowest(x: &Tensor, dim: usize, before: usize, after: usize) -> Result<Tensor> {
    let lowest = |size: usize| {
        let mut dims = x.dims().to_vec();
        dims[dim] = size;
        Tensor::full(f32::NEG_INFINITY, dims, x.device())?.to_dtype(x.dtype())
    };
    let mut parts = vec![x.clone()];
    if before > 0 {
        parts.insert(0, lowest(before)?);
    }
    if after > 0 {
        parts.push(lowest(after)?);
    }
    if parts.len() == 1 { Ok(x.clone()) } else { Tensor::cat(&parts, dim) }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
