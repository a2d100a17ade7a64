//! Winograd convolution for kernels of (kt, 3, 3) with stride 1: F(4x4, 3x3) over height and width, the temporal taps
//! summed as they are. A quarter of the arithmetic of [`direct`](super::direct).
//!
//! For each of the 36 points the convolution is a matrix product over (frame and tile) x channels, with the temporal
//! taps as runs. [`tile_transform`](super::tile_transform) has the mathematics.

#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::direct::{self, Panels, Shapes};
use super::kernel::{Gathered, PANEL, Shared, accumulate_transposed, product, transpose_shared, vectorized};
use super::tile_transform::{self, Lanes, OUT, POINTS, Square, TAPS, zeros};
use super::volume::Padded;

/// Points of the transform over both axes.
const SQUARE: usize = POINTS * POINTS;

/// Rows of the matrix products below which transforming the weights costs more than it saves.
const LEAST_ROWS: usize = 128;

/// Floats of transformed input that a task works on, so that they and the products fit into a second-level cache
/// of 1 MB.
const TASK_FLOATS: usize = 160 * 1024;

/// Floats of transformed input and upstream gradient together that are held for the gradient of the weight: 16 MB,
/// within a last-level cache.
const HELD_FLOATS: usize = 4 << 20;

/// Places that one call of the transposed product sums over, as in the direct weight gradient.
const SUMMED_PLACES: usize = 128;

/// Whether this convolution can run here and is worth it.
pub(crate) fn applies(shapes: &Shapes) -> bool {
    let window = shapes.window;
    let rows = shapes.clips * shapes.input[0] * Tiles::new(shapes).count();
    window.kernel[1..] == [TAPS; 2]
        && window.stride == [1; 3]
        && window.padding[1..] == [1; 2]
        && shapes.in_channels.is_multiple_of(PANEL)
        && shapes.out_channels.is_multiple_of(PANEL)
        && rows >= LEAST_ROWS
}

/// As [`direct::forward`].
pub(crate) fn forward(shapes: &Shapes, input: &[f32], weight: &[f32]) -> Vec<f32> {
    let points = transformed_weights(&direct::forward_panels(shapes, weight), shapes.window.kernel[0]);
    Correlation {
        clips: shapes.clips,
        channels: [shapes.in_channels, shapes.out_channels],
        frames: [shapes.input[0], shapes.output[0]],
        area: [shapes.input[1], shapes.input[2]],
        taps: shapes.window.kernel[0],
        padding: shapes.window.padding[0],
        tiles: Tiles::new(shapes),
        points: &points,
    }
    .run(input)
}

/// As [`direct::input_gradient`].
pub(crate) fn input_gradient(shapes: &Shapes, weight: &[f32], upstream: &[f32]) -> Vec<f32> {
    let points = transformed_weights(&direct::flipped_panels(shapes, weight), shapes.window.kernel[0]);
    Correlation {
        clips: shapes.clips,
        channels: [shapes.out_channels, shapes.in_channels],
        frames: [shapes.output[0], shapes.input[0]],
        area: [shapes.input[1], shapes.input[2]],
        taps: shapes.window.kernel[0],
        padding: shapes.window.kernel[0] - 1 - shapes.window.padding[0],
        tiles: Tiles::new(shapes),
        points: &points,
    }
    .run(upstream)
}

/// Tiles of an image, along height and width.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    down: usize,
    across: usize,
}

impl Tiles {
    fn new(shapes: &Shapes) -> Self {
        Self { down: shapes.input[1].div_ceil(OUT), across: shapes.input[2].div_ceil(OUT) }
    }

    fn count(&self) -> usize {
        self.down * self.across
    }
}

/// The volume with a border for the kernel, filled up to whole tiles.
fn bordered(src: &[f32], dims: [usize; 5], tiles: Tiles) -> Padded {
    let after = [tiles.down * OUT + 1 - dims[3], tiles.across * OUT + 1 - dims[4]];
    Padded::new(src, dims, [1, 1], after)
}

/// `panels` (c / 16, kt, 3, 3, source channels, 16) as (36, c / 16, kt, source channels, 16).
fn transformed_weights(panels: &Panels, kt: usize) -> Vec<f32> {
    let channels = panels.rows / (kt * TAPS * TAPS);
    let point_len = panels.count * kt * channels * PANEL;
    let mut points = vec![0f32; SQUARE * point_len];
    let target = Shared::new(&mut points);
    panels.data.par_chunks(TAPS * TAPS * channels * PANEL).enumerate().for_each(|(i, taps)| {
        vectorized(|| {
            for c in 0..channels {
                let mut square = zeros::<TAPS>();
                for (tap, lanes) in square.as_flattened_mut().iter_mut().enumerate() {
                    *lanes = lanes_at(taps, (tap * channels + c) * PANEL);
                }
                for (point, lanes) in tile_transform::weight(&square).as_flattened().iter().enumerate() {
                    // SAFETY: this task alone writes the rows of its panel and temporal tap.
                    unsafe { target.slice(point * point_len + (i * channels + c) * PANEL, PANEL) }
                        .copy_from_slice(lanes);
                }
            }
        });
    });
    points
}

#[inline(always)]
fn lanes_at(data: &[f32], index: usize) -> Lanes {
    *data[index..].first_chunk().expect("16 channels at every index")
}

/// The transformed tile of `padded` whose corner lies at `corner`, 16 channels of it; `put` takes point and lanes.
#[inline(always)]
fn transform_input(padded: &Padded, corner: usize, mut put: impl FnMut(usize, &Lanes)) {
    let mut tile: Square<POINTS> = zeros();
    for (y, row) in tile.iter_mut().enumerate() {
        for (x, lanes) in row.iter_mut().enumerate() {
            *lanes = lanes_at(&padded.data, corner + y * padded.row_len() + x * padded.channels);
        }
    }
    for (point, lanes) in tile_transform::input(&tile).as_flattened().iter().enumerate() {
        put(point, lanes);
    }
}

/// A convolution of stride 1 that keeps height and width.
struct Correlation<'a> {
    clips: usize,
    /// Of the source and of the result.
    channels: [usize; 2],
    /// Of the source and of the result.
    frames: [usize; 2],
    /// Height and width.
    area: [usize; 2],
    /// Temporal taps; result frame t sums source frames t + tap - padding.
    taps: usize,
    padding: usize,
    tiles: Tiles,
    /// Weights (36, c / 16, kt, source channels, 16).
    points: &'a [f32],
}

impl Correlation<'_> {
    fn run(&self, source: &[f32]) -> Vec<f32> {
        let [height, width] = self.area;
        let padded = bordered(source, [self.clips, self.channels[0], self.frames[0], height, width], self.tiles);
        let mut result = vec![0f32; self.clips * self.channels[1] * self.frames[1] * height * width];
        let target = Shared::new(&mut result);
        let band = SQUARE * self.frames[0] * self.tiles.across * self.channels[0];
        let down = (TASK_FLOATS / band).clamp(1, self.tiles.down);
        let bands = self.tiles.down.div_ceil(down);
        (0..self.clips * bands).into_par_iter().for_each_init(
            || (Vec::new(), Vec::new()),
            |(transformed, products), task| {
                let (clip, first) = (task / bands, task % bands * down);
                let rows = first..self.tiles.down.min(first + down);
                self.transform(&padded, clip, rows.clone(), transformed);
                self.multiply(rows.len() * self.tiles.across, transformed, products);
                self.store(products, clip, rows, &target);
            },
        );
        result
    }

    /// Tile rows `rows` of a clip as (36, source frame, tile, source channels).
    fn transform(&self, padded: &Padded, clip: usize, rows: Range<usize>, transformed: &mut Vec<f32>) {
        let (channels, across) = (self.channels[0], self.tiles.across);
        let tiles = rows.len() * across;
        let point_len = self.frames[0] * tiles * channels;
        transformed.resize(SQUARE * point_len, 0.);
        for frame in 0..self.frames[0] {
            let start = clip * padded.clip_len() + frame * padded.frame_len();
            for tile in 0..tiles {
                let (y, x) = (rows.start + tile / across, tile % across);
                let corner = start + y * OUT * padded.row_len() + x * OUT * channels;
                let row = (frame * tiles + tile) * channels;
                vectorized(|| {
                    for c in (0..channels).step_by(PANEL) {
                        transform_input(padded, corner + c, |point, lanes| {
                            transformed[point * point_len + row + c..][..PANEL].copy_from_slice(lanes);
                        });
                    }
                });
            }
        }
    }

    /// The products (36, c / 16, result frame, tile, 16).
    fn multiply(&self, tiles: usize, transformed: &[f32], products: &mut Vec<f32>) {
        let (channels, panels) = (self.channels[0], self.channels[1] / PANEL);
        let panel_len = self.taps * channels * PANEL;
        let frames = self.frames[1];
        products.resize(SQUARE * panels * frames * tiles * PANEL, 0.);
        let spans = self.spans();
        let matrices = transformed.chunks_exact(self.frames[0] * tiles * channels);
        let weights = self.points.chunks_exact(panels * panel_len);
        let products = products.chunks_exact_mut(panels * frames * tiles * PANEL);
        let rows: Vec<usize> = (0..frames * tiles).map(|row| row * channels).collect();
        for ((data, weights), products) in matrices.zip(weights).zip(products) {
            for (panel, products) in
                weights.chunks_exact(panel_len).zip(products.chunks_exact_mut(frames * tiles * PANEL))
            {
                for (frames, taps) in &spans {
                    let out = &mut products[frames.start * tiles * PANEL..frames.end * tiles * PANEL];
                    if taps.is_empty() {
                        out.fill(0.);
                        continue;
                    }
                    let runs: Vec<usize> =
                        taps.clone().map(|tap| (frames.start + tap - self.padding) * tiles * channels).collect();
                    let left = Gathered { data, rows: &rows[..frames.len() * tiles], runs: &runs, run_len: channels };
                    product(left, &panel[taps.start * channels * PANEL..], out);
                }
            }
        }
    }

    /// Runs of result frames that meet the same taps, with these taps.
    fn spans(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let mut spans: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        for frame in 0..self.frames[1] {
            let first = self.padding.saturating_sub(frame).min(self.taps);
            let end = (self.frames[0] + self.padding).saturating_sub(frame).min(self.taps).max(first);
            match spans.last_mut() {
                Some((frames, taps)) if *taps == (first..end) => frames.end = frame + 1,
                _ => spans.push((frame..frame + 1, first..end)),
            }
        }
        spans
    }

    /// Transforms the products back and writes the images.
    fn store(&self, products: &[f32], clip: usize, rows: Range<usize>, target: &Shared) {
        let ([height, width], across, frames) = (self.area, self.tiles.across, self.frames[1]);
        let (tiles, panels) = (rows.len() * across, self.channels[1] / PANEL);
        let point_len = panels * frames * tiles * PANEL;
        let mut strip = vec![0f32; OUT * width * PANEL];
        for panel in 0..panels {
            for frame in 0..frames {
                for (i, y) in rows.clone().enumerate() {
                    let first = ((panel * frames + frame) * tiles + i * across) * PANEL;
                    let down = OUT.min(height - y * OUT);
                    vectorized(|| {
                        for x in 0..across {
                            let mut square: Square<POINTS> = zeros();
                            for (point, lanes) in square.as_flattened_mut().iter_mut().enumerate() {
                                *lanes = lanes_at(products, point * point_len + first + x * PANEL);
                            }
                            let tile = tile_transform::output(&square);
                            for (row, lanes) in tile.iter().enumerate().take(down) {
                                for (column, lanes) in lanes.iter().enumerate().take(width - x * OUT) {
                                    let place = row * width + x * OUT + column;
                                    strip[place * PANEL..][..PANEL].copy_from_slice(lanes);
                                }
                            }
                        }
                    });
                    let plane = |c: usize| {
                        let channel = clip * self.channels[1] + panel * PANEL + c;
                        ((channel * frames + frame) * height + y * OUT) * width
                    };
                    // SAFETY: a task owns these tile rows of this clip.
                    unsafe { transpose_shared([down * width, PANEL], &strip, |place| place * PANEL, target, plane) };
                }
            }
        }
    }
}

/// As [`direct::weight_gradient`].
pub(crate) fn weight_gradient(shapes: &Shapes, input: &[f32], upstream: &[f32]) -> Vec<f32> {
    let tiles = Tiles::new(shapes);
    let (kt, pt) = (shapes.window.kernel[0], shapes.window.padding[0]);
    let [channels, out_channels] = [shapes.in_channels, shapes.out_channels];
    let (t_in, t_out, panels) = (shapes.input[0], shapes.output[0], out_channels / PANEL);
    let input = bordered(input, shapes.input_dims(), tiles);
    let upstream = bordered(upstream, shapes.output_dims(), tiles);

    let clip_rows = [t_in * tiles.count(), t_out * tiles.count()];
    let clip_floats = SQUARE * (clip_rows[0] * channels + clip_rows[1] * out_channels);
    let group = (HELD_FLOATS / clip_floats).clamp(1, shapes.clips);
    // (36, clip, frame, tile, channels) and (36, c / 16, clip, frame, tile, 16).
    let mut left = vec![0f32; SQUARE * group * clip_rows[0] * channels];
    let mut right = vec![0f32; SQUARE * group * clip_rows[1] * out_channels];
    // (36, c / 16, kt, channels, 16)
    let point_len = panels * kt * channels * PANEL;
    let mut sums = vec![0f32; SQUARE * point_len];
    for first in (0..shapes.clips).step_by(group) {
        let clips = group.min(shapes.clips - first);
        let [left_len, right_len] = [clips * clip_rows[0] * channels, clips * clip_rows[1] * out_channels];
        let (left_target, right_target) = (Shared::new(&mut left), Shared::new(&mut right));
        (0..clips * (t_in + t_out)).into_par_iter().for_each(|task| {
            let (clip, frame) = (task / (t_in + t_out), task % (t_in + t_out));
            if let Some(frame) = frame.checked_sub(t_in) {
                let start = (first + clip) * upstream.clip_len() + frame * upstream.frame_len();
                let row = (clip * t_out + frame) * tiles.count();
                vectorized(|| {
                    for tile in 0..tiles.count() {
                        // Past the border of one place that the input needs and the upstream gradient doesn't.
                        let (y, x) = (tile / tiles.across * OUT + 1, tile % tiles.across * OUT + 1);
                        let corner = start + y * upstream.row_len() + x * out_channels;
                        for panel in 0..panels {
                            let mut square: Square<OUT> = zeros();
                            for (place, lanes) in square.as_flattened_mut().iter_mut().enumerate() {
                                let (y, x) = (place / OUT, place % OUT);
                                let place = corner + y * upstream.row_len() + x * out_channels + panel * PANEL;
                                *lanes = lanes_at(&upstream.data, place);
                            }
                            let row = (panel * clips * clip_rows[1] + row + tile) * PANEL;
                            for (point, lanes) in tile_transform::upstream(&square).as_flattened().iter().enumerate() {
                                // SAFETY: this task alone writes the rows of its clip and frame.
                                unsafe { right_target.slice(point * right_len + row, PANEL) }.copy_from_slice(lanes);
                            }
                        }
                    }
                });
            } else {
                let start = (first + clip) * input.clip_len() + frame * input.frame_len();
                let row = (clip * t_in + frame) * tiles.count();
                vectorized(|| {
                    for tile in 0..tiles.count() {
                        let (y, x) = (tile / tiles.across * OUT, tile % tiles.across * OUT);
                        let corner = start + y * input.row_len() + x * channels;
                        for c in (0..channels).step_by(PANEL) {
                            transform_input(&input, corner + c, |point, lanes| {
                                let place = point * left_len + (row + tile) * channels + c;
                                // SAFETY: this task alone writes the rows of its clip and frame.
                                unsafe { left_target.slice(place, PANEL) }.copy_from_slice(lanes);
                            });
                        }
                    }
                });
            }
        });
        let rows: Vec<usize> = (0..t_out.min(t_in) * tiles.count()).map(|row| row * channels).collect();
        sums.par_chunks_mut(kt * channels * PANEL).enumerate().for_each(|(task, sums)| {
            let (point, panel) = (task / panels, task % panels);
            let data = &left[point * left_len..][..left_len];
            let right =
                &right[point * right_len + panel * clips * clip_rows[1] * PANEL..][..clips * clip_rows[1] * PANEL];
            for clip in 0..clips {
                for (tap, sums) in sums.chunks_exact_mut(channels * PANEL).enumerate() {
                    // Output frames t whose source frame t + tap - padding exists.
                    let start = pt.saturating_sub(tap);
                    let end = t_out.min((t_in + pt).saturating_sub(tap));
                    let count = end.saturating_sub(start) * tiles.count();
                    if count == 0 {
                        continue;
                    }
                    let frame = clip * t_in + start + tap - pt;
                    let runs = &[frame * tiles.count() * channels];
                    let right = &right[(clip * t_out + start) * tiles.count() * PANEL..][..count * PANEL];
                    for (rows, right) in rows[..count].chunks(SUMMED_PLACES).zip(right.chunks(SUMMED_PLACES * PANEL)) {
                        accumulate_transposed(Gathered { data, rows, runs, run_len: channels }, right, sums);
                    }
                }
            }
        });
    }

    // Back to (c / 16, kt, 3, 3, channels, 16).
    let mut taps = vec![0f32; panels * kt * TAPS * TAPS * channels * PANEL];
    taps.par_chunks_mut(TAPS * TAPS * channels * PANEL).enumerate().for_each(|(i, taps)| {
        vectorized(|| {
            for c in 0..channels {
                let mut square: Square<POINTS> = zeros();
                for (point, lanes) in square.as_flattened_mut().iter_mut().enumerate() {
                    *lanes = lanes_at(&sums, point * point_len + (i * channels + c) * PANEL);
                }
                for (tap, lanes) in tile_transform::weight_gradient(&square).as_flattened().iter().enumerate() {
                    taps[(tap * channels + c) * PANEL..][..PANEL].copy_from_slice(lanes);
                }
            }
        });
    });
    direct::unpacked_weight(shapes, &taps)
}
