//! Winograd for the first convolution of a video network: (kt, 7, 7) with stride (1, 2, 2) on few channels.
//!
//! With the four phases of each 2 x 2 square as channels, it is a convolution of stride 1 with 4 x 4 taps, those of an
//! eighth row and column being 0.

use std::marker::PhantomData;

use super::direct::Shapes;
use super::kernel::PANEL;
use super::tile_transform::{FourTaps, OUT};
use super::volume::{Banded, Bordered};
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
pub(crate) fn forward(shapes: &Shapes, input: &[f32], weight: &[f32], output: &mut [f32]) {
    let mut panels = vec![0f32; shapes.out_channels * shapes.window.kernel[0] * 4 * 4 * 4 * shapes.in_channels];
    for_each_weight(shapes, |place, index| panels[place] = weight[index]);
    winograd(shapes).correlate(&Phases::new(shapes, input), &panels, output);
}

/// As [`direct::weight_gradient`](super::direct::weight_gradient).
pub(crate) fn weight_gradient(shapes: &Shapes, input: &[f32], upstream: &[f32]) -> Vec<f32> {
    let [_, height, width] = shapes.output;
    let columns = Tiles::covering([height, width]).across * OUT;
    let upstream = Bordered { src: upstream, dims: shapes.output_dims(), before: 0, columns };
    let panels = winograd(shapes).tap_gradient(&Phases::new(shapes, input), &upstream);
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

/// A volume (n, t, h, w, c) as (n, t, h / 2, w / 2, 16) with the channels (phase of h, phase of w, c), two rows and
/// columns of zeros before it (four of the input: three of padding and one for the eighth tap) and whole tiles.
struct Phases<'a> {
    src: &'a [f32],
    /// (n, t, h, w, c) of `src`.
    dims: [usize; 5],
    columns: usize,
}

/// Rows and columns of zeros before the phases.
const BEFORE: usize = 2;

impl<'a> Phases<'a> {
    fn new(shapes: &Shapes, src: &'a [f32]) -> Self {
        let columns = Tiles::covering([shapes.output[1], shapes.output[2]]).across * OUT + 3;
        Self { src, dims: shapes.input_dims(), columns }
    }
}

impl Banded for Phases<'_> {
    fn columns(&self) -> usize {
        self.columns
    }

    fn channels(&self) -> usize {
        PANEL
    }

    fn copy(&self, clip: usize, frame: usize, first: usize, band: &mut [f32]) {
        let [_, frames, h, w, channels] = self.dims;
        for (row, band) in (first..).zip(band.chunks_exact_mut(self.row_len())) {
            let Some(row) = row.checked_sub(BEFORE).filter(|&row| row < h / 2) else { continue };
            let band = &mut band[BEFORE * PANEL..];
            for y in 0..2 {
                let src = &self.src[((clip * frames + frame) * h + 2 * row + y) * w * channels..][..w * channels];
                // Both phases of w lie side by side as they do in the row.
                let phase = y * 2 * channels;
                for (pair, place) in src.chunks_exact(2 * channels).zip(band.as_chunks_mut::<PANEL>().0) {
                    place[phase..phase + pair.len()].copy_from_slice(pair);
                }
            }
        }
    }
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
