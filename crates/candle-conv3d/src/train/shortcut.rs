//! A shortcut without weights, on the CPU.

use std::sync::Arc;

use candle_core::Result;
use candle_core::backprop::GradStore;
use rayon::prelude::*;

use super::scratch::Scratch;
use super::tape::{Backward, Data, Made, Volume, VolumeGradients};

/// Every `stride`-th place along t, h and w of a volume, and zeros for more channels.
pub(super) fn forward(input: &Volume, stride: usize, dims: [usize; 5]) -> Result<Made> {
    let shortcut = Shortcut { input: input.dims, output: dims, stride, id: input.id };
    let mut data = Scratch::any(dims.iter().product());
    shortcut.forward(input.data.host()?, &mut data);
    Ok(Made { dims, data: Arc::new(Data::Cpu(data)), statistics: None, step: Box::new(shortcut) })
}

#[derive(Debug)]
struct Shortcut {
    /// (n, t, h, w, c)
    input: [usize; 5],
    output: [usize; 5],
    stride: usize,
    /// Of the input, if its gradient is wanted.
    id: Option<usize>,
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
}

impl Backward for Shortcut {
    fn backward(self: Box<Self>, upstream: Data, volumes: &mut VolumeGradients, _: &mut GradStore) -> Result<()> {
        let Some(id) = self.id else { return Ok(()) };
        let upstream = upstream.into_host()?;
        let gradient = volumes.take(id).map(Data::into_host).transpose()?;
        let mut gradient = gradient.unwrap_or_else(|| Scratch::zeros(self.input.iter().product()));
        let ([_, t, h, w, channels], [_, t_out, h_out, w_out, all]) = (self.input, self.output);
        let clips = gradient.par_chunks_mut(t * h * w * channels);
        clips.zip(upstream.par_chunks(t_out * h_out * w_out * all)).for_each(|(gradient, upstream)| {
            for (place, upstream) in upstream.chunks_exact(all).enumerate() {
                let at = [place / (h_out * w_out), place / w_out % h_out, place % w_out].map(|at| at * self.stride);
                let gradient = &mut gradient[((at[0] * h + at[1]) * w + at[2]) * channels..][..channels];
                gradient.iter_mut().zip(upstream).for_each(|(gradient, upstream)| *gradient += upstream);
            }
        });
        volumes.add(id, Data::Cpu(gradient))
    }
}
