//! Winograd for the convolutions of residual blocks: kernels of (kt, 3, 3) with stride 1 that keep height and width.

use std::marker::PhantomData;

use super::direct::{Shapes, flipped_panels, forward_panels, unpacked_weight};
use super::kernel::PANEL;
use super::tile_transform::{OUT, ThreeTaps};
use super::volume::Bordered;
use super::winograd::{Tiles, Winograd};

/// Rows of the matrix products below which transforming the weights costs more than it saves.
const LEAST_ROWS: usize = 128;

/// Whether this convolution can run here and is worth it.
pub(crate) fn applies(shapes: &Shapes) -> bool {
    let window = shapes.window;
    let tiles = Tiles::covering([shapes.input[1], shapes.input[2]]).count();
    window.kernel[1..] == [3; 2]
        && window.stride == [1; 3]
        && window.padding[1..] == [1; 2]
        && shapes.in_channels.is_multiple_of(PANEL)
        && shapes.out_channels.is_multiple_of(PANEL)
        && shapes.clips * shapes.input[0] * tiles >= LEAST_ROWS
}

/// As [`direct::forward`](super::direct::forward).
pub(crate) fn forward(shapes: &Shapes, input: &[f32], weight: &[f32], output: &mut [f32]) {
    winograd(shapes).correlate(&bordered(input, shapes.input_dims(), 1), &forward_panels(shapes, weight).data, output);
}

/// As [`direct::input_gradient`](super::direct::input_gradient): the convolution of the upstream gradient with the
/// flipped kernel.
pub(crate) fn input_gradient(shapes: &Shapes, weight: &[f32], upstream: &[f32], gradient: &mut [f32]) {
    let forward = winograd(shapes);
    let [source, result] = forward.frames;
    let padding = forward.taps - 1 - forward.padding;
    let (channels, out_channels) = (forward.out_channels, forward.channels);
    let backward = Winograd { channels, out_channels, frames: [result, source], padding, ..forward };
    let upstream = bordered(upstream, shapes.output_dims(), 1);
    backward.correlate(&upstream, &flipped_panels(shapes, weight).data, gradient);
}

/// As [`direct::weight_gradient`](super::direct::weight_gradient).
pub(crate) fn weight_gradient(shapes: &Shapes, input: &[f32], upstream: &[f32]) -> Vec<f32> {
    let (input, upstream) = (bordered(input, shapes.input_dims(), 1), bordered(upstream, shapes.output_dims(), 0));
    unpacked_weight(shapes, &winograd(shapes).tap_gradient(&input, &upstream))
}

fn winograd(shapes: &Shapes) -> Winograd<ThreeTaps, 3, 6> {
    Winograd {
        clips: shapes.clips,
        channels: shapes.in_channels,
        out_channels: shapes.out_channels,
        frames: [shapes.input[0], shapes.output[0]],
        area: [shapes.input[1], shapes.input[2]],
        taps: shapes.window.kernel[0],
        padding: shapes.window.padding[0],
        axis: PhantomData,
    }
}

/// The volume with a border of `border` for the kernel, filled up to whole tiles across.
fn bordered(src: &[f32], dims: [usize; 5], border: usize) -> Bordered<'_> {
    let columns = Tiles::covering([dims[2], dims[3]]).across * OUT + 2 * border;
    Bordered { src, dims, before: border, columns }
}
