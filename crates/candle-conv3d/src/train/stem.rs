//! Winograd for the first convolution of a video network: (kt, 7, 7) with stride (1, 2, 2) on few channels.
//!
//! With the four phases of each 2 x 2 square as channels, it is a convolution of stride 1 with 4 x 4 taps, those of an
//! eighth row and column being 0.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::direct::Shapes;
use super::kernel::PANEL;
use super::tile_transform::{FourTaps, OUT};
use super::volume::Padded;
use super::winograd::{Tiles, Winograd};

const KERNEL: usize = 7;

/// Whether this convolution can run here.
pub(crate) fn applies(shapes: &Shapes) -> bool {
    let window = shapes.window;
    window.kernel[1..] == [KERNEL; 2]
        && window.stride == [1, 2, 2]
        && window.padding[1..] == [3; 2]
        && 4 * shapes.in_channels <= PANEL
        && shapes.out_channels.is_multiple_of(PANEL)
        && shapes.input[1..].iter().all(|size| size.is_multiple_of(2))
}

/// As [`direct::forward`](super::direct::forward).
pub(crate) fn forward(shapes: &Shapes, input: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut panels = vec![0f32; shapes.out_channels * shapes.window.kernel[0] * 4 * 4 * 4 * shapes.in_channels];
    for_each_weight(shapes, |place, index| panels[place] = weight[index]);
    winograd(shapes).correlate(&phases(shapes, input), &panels)
}

/// As [`direct::weight_gradient`](super::direct::weight_gradient).
pub(crate) fn weight_gradient(shapes: &Shapes, input: &[f32], upstream: &[f32]) -> Vec<f32> {
    let [_, height, width] = shapes.output;
    let tiles = Tiles::covering([height, width]);
    let after = [tiles.down * OUT - height, tiles.across * OUT - width];
    let upstream = Padded::new(upstream, shapes.output_dims(), [0, 0], after);
    let panels = winograd(shapes).tap_gradient(&phases(shapes, input), &upstream);
    let mut gradient = vec![0f32; shapes.out_channels * shapes.in_channels * shapes.taps()];
    for_each_weight(shapes, |place, index| gradient[index] = panels[place]);
    gradient
}

fn winograd(shapes: &Shapes) -> Winograd<FourTaps, 4, 7> {
    Winograd {
        clips: shapes.clips,
        channels: 4 * shapes.in_channels,
        out_channels: shapes.out_channels,
        frames: [shapes.input[0], shapes.output[0]],
        area: [shapes.output[1], shapes.output[2]],
        taps: shapes.window.kernel[0],
        padding: shapes.window.padding[0],
        axis: PhantomData,
    }
}

/// `input` (n, c, t, h, w) as (n, t, h / 2, w / 2, 16) with the channels (phase of h, phase of w, c), two rows and
/// columns of zeros before it (four of the input: three of padding and one for the eighth tap) and whole tiles.
fn phases(shapes: &Shapes, input: &[f32]) -> Padded {
    let [n, channels, frames, h, w] = shapes.input_dims();
    let tiles = Tiles::covering([shapes.output[1], shapes.output[2]]);
    let (rows, columns) = (tiles.down * OUT + 3, tiles.across * OUT + 3);
    let mut data = vec![0f32; n * frames * rows * columns * PANEL];
    data.par_chunks_mut(rows * columns * PANEL).enumerate().for_each(|(frame, data)| {
        let (clip, t) = (frame / frames, frame % frames);
        for c in 0..channels {
            let plane = &input[((clip * channels + c) * frames + t) * h * w..][..h * w];
            for (y, row) in plane.chunks_exact(w).enumerate() {
                let out = &mut data[((y / 2 + 2) * columns + 2) * PANEL..][..w / 2 * PANEL];
                let phase = y % 2 * 2 * channels + c;
                for (pair, out) in row.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<PANEL>().0) {
                    out[phase] = pair[0];
                    out[phase + channels] = pair[1];
                }
            }
        }
    });
    Padded { data, frames, rows, columns, channels: PANEL, before: [2, 2] }
}

/// Calls `visit(place in (oc / 16, kt, 4, 4, 4 ic, 16), index in (oc, ic, kt, 7, 7))` for each weight.
fn for_each_weight(shapes: &Shapes, mut visit: impl FnMut(usize, usize)) {
    let (channels, kt) = (shapes.in_channels, shapes.window.kernel[0]);
    let volume = channels * kt * KERNEL * KERNEL;
    for index in 0..shapes.out_channels * volume {
        let (oc, c) = (index / volume, index / (kt * KERNEL * KERNEL) % channels);
        let (t, y, x) = (index / (KERNEL * KERNEL) % kt, index / KERNEL % KERNEL + 1, index % KERNEL + 1);
        let row = ((oc / PANEL * kt + t) * 4 + y / 2) * 4 + x / 2;
        let channel = (y % 2 * 2 + x % 2) * channels + c;
        visit((row * 4 * channels + channel) * PANEL + oc % PANEL, index);
    }
}
