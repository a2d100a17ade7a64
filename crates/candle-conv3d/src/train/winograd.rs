//! Winograd convolution over height and width with output tiles of 4 x 4; the temporal taps are summed as they are. A
//! quarter of the arithmetic of [`direct`](super::direct).
//!
//! For each point the convolution is a matrix product over (frame and tile) x channels, with the temporal taps as
//! runs. [`tile_transform`](super::tile_transform) has the mathematics.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Gathered, PANEL, Shared, accumulate_transposed, product, vectorized};
use super::scratch::Scratch;
use super::tile_transform::{Axis, Lanes, OUT, Square, both_axes, zeros};
use super::volume::Banded;

/// Floats of transformed input that a task works on, so that they and the products fit into a second-level cache
/// of 1 MB.
const TASK_FLOATS: usize = 160 * 1024;

/// Floats of transformed input and upstream gradient together that are held for the gradient of the weight: 16 MB,
/// within a last-level cache.
const HELD_FLOATS: usize = 4 << 20;

/// Places that one call of the transposed product sums over, as in the direct weight gradient.
const SUMMED_PLACES: usize = 128;

/// Tiles of an image, along height and width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) down: usize,
    pub(crate) across: usize,
}

impl Tiles {
    /// Tiles that cover (h, w) of an output.
    pub(crate) fn covering([h, w]: [usize; 2]) -> Self {
        Self { down: h.div_ceil(OUT), across: w.div_ceil(OUT) }
    }

    pub(crate) fn count(&self) -> usize {
        self.down * self.across
    }
}

/// A convolution of stride 1 with T x T spatial taps, transformed by `A` to P x P points.
///
/// Its source is padded so that the tap (0, 0) of output (0, 0) meets its corner and whole tiles fit across. It has a
/// multiple of 16 channels, of which the first `channels` are summed over.
pub(crate) struct Winograd<A, const T: usize, const P: usize> {
    pub(crate) clips: usize,
    /// Source channels that the sum runs over.
    pub(crate) channels: usize,
    /// Result channels, a multiple of 16.
    pub(crate) out_channels: usize,
    /// Frames of the source and of the result.
    pub(crate) frames: [usize; 2],
    /// Height and width of the result.
    pub(crate) area: [usize; 2],
    /// Temporal taps; result frame t sums source frames t + tap - padding.
    pub(crate) taps: usize,
    pub(crate) padding: usize,
    pub(crate) axis: PhantomData<A>,
}

#[inline(always)]
fn lanes_at(data: &[f32], index: usize) -> Lanes {
    *data[index..].first_chunk().expect("16 channels at every index")
}

/// The square of N x N places whose corner lies at `corner` of (rows, columns, channels), 16 channels of it.
#[inline(always)]
fn square_at<const N: usize>(band: &[f32], row_len: usize, channels: usize, corner: usize) -> Square<N> {
    let mut square: Square<N> = zeros();
    for (y, row) in square.iter_mut().enumerate() {
        for (x, lanes) in row.iter_mut().enumerate() {
            *lanes = lanes_at(band, corner + y * row_len + x * channels);
        }
    }
    square
}

impl<A: Axis<T, P> + Sync, const T: usize, const P: usize> Winograd<A, T, P> {
    const SQUARE: usize = P * P;

    /// Writes the result (n, t', h, w, oc) of `source` and the taps `panels` (oc / 16, kt, T, T, channels, 16).
    pub(crate) fn correlate(&self, source: &impl Banded, panels: &[f32], result: &mut [f32]) {
        let points = self.transformed_weights(panels);
        let tiles = Tiles::covering(self.area);
        let target = Shared::new(result);
        let band =
            Self::SQUARE * tiles.across * (self.frames[0] * source.channels()).max(self.frames[1] * self.out_channels);
        let down = (TASK_FLOATS / band).clamp(1, tiles.down);
        let bands = tiles.down.div_ceil(down);
        (0..self.clips * bands).into_par_iter().for_each(|task| {
            let (clip, first) = (task / bands, task % bands * down);
            let rows = first..tiles.down.min(first + down);
            let transformed = self.transform(source, clip, rows.clone());
            let products = self.multiply(rows.len() * tiles.across, source.channels(), &points, &transformed);
            self.store(&products, clip, rows, &target);
        });
    }

    /// The weights as (points, oc / 16, kt, channels, 16).
    fn transformed_weights(&self, panels: &[f32]) -> Scratch {
        let channels = self.channels;
        let point_len = self.out_channels * self.taps * channels;
        let mut points = Scratch::any(Self::SQUARE * point_len);
        let target = Shared::new(&mut points);
        panels.par_chunks(T * T * channels * PANEL).enumerate().for_each(|(i, taps)| {
            vectorized(|| {
                for c in 0..channels {
                    let mut square: Square<T> = zeros();
                    for (tap, lanes) in square.as_flattened_mut().iter_mut().enumerate() {
                        *lanes = lanes_at(taps, (tap * channels + c) * PANEL);
                    }
                    for (point, lanes) in both_axes(&square, A::weight).as_flattened().iter().enumerate() {
                        let place = point * point_len + (i * channels + c) * PANEL;
                        // SAFETY: this task alone writes the rows of its panel and temporal tap.
                        unsafe { target.slice(place, PANEL) }.copy_from_slice(lanes);
                    }
                }
            });
        });
        points
    }

    /// Tile rows `rows` of a clip as (points, source frame, tile, source channels).
    fn transform(&self, source: &impl Banded, clip: usize, rows: Range<usize>) -> Scratch {
        let tiles = rows.len() * Tiles::covering(self.area).across;
        let point_len = self.frames[0] * tiles * source.channels();
        let mut transformed = Scratch::any(Self::SQUARE * point_len);
        for frame in 0..self.frames[0] {
            let start = frame * tiles * source.channels();
            self.transform_frame(source, clip, frame, rows.clone(), |point, place, lanes| {
                transformed[point * point_len + start + place..][..PANEL].copy_from_slice(lanes);
            });
        }
        transformed
    }

    /// Transforms tile rows `rows` of a frame; `put` takes point, place in (tile, channels) and 16 channels.
    #[inline(always)]
    fn transform_frame(
        &self,
        source: &impl Banded,
        clip: usize,
        frame: usize,
        rows: Range<usize>,
        mut put: impl FnMut(usize, usize, &Lanes),
    ) {
        let (channels, row_len, across) = (source.channels(), source.row_len(), Tiles::covering(self.area).across);
        let mut band = Scratch::zeros((rows.len() * OUT + T - 1) * row_len);
        source.copy(clip, frame, rows.start * OUT, &mut band);
        vectorized(|| {
            for tile in 0..rows.len() * across {
                let corner = tile / across * OUT * row_len + tile % across * OUT * channels;
                for c in (0..channels).step_by(PANEL) {
                    let square = both_axes(&square_at(&band, row_len, channels, corner + c), A::input);
                    for (point, lanes) in square.as_flattened().iter().enumerate() {
                        put(point, tile * channels + c, lanes);
                    }
                }
            }
        });
    }

    /// The products (points, oc / 16, result frame, tile, 16).
    fn multiply(&self, tiles: usize, stride: usize, points: &[f32], transformed: &[f32]) -> Scratch {
        let (channels, panels) = (self.channels, self.out_channels / PANEL);
        let panel_len = self.taps * channels * PANEL;
        let frames = self.frames[1];
        let mut all = Scratch::any(Self::SQUARE * panels * frames * tiles * PANEL);
        let spans = self.spans();
        let matrices = transformed.chunks_exact(self.frames[0] * tiles * stride);
        let weights = points.chunks_exact(panels * panel_len);
        let products = all.chunks_exact_mut(panels * frames * tiles * PANEL);
        let rows: Vec<usize> = (0..frames * tiles).map(|row| row * stride).collect();
        for ((data, weights), products) in matrices.zip(weights).zip(products) {
            let products = products.chunks_exact_mut(frames * tiles * PANEL);
            for (panel, products) in weights.chunks_exact(panel_len).zip(products) {
                for (frames, taps) in &spans {
                    let out = &mut products[frames.start * tiles * PANEL..frames.end * tiles * PANEL];
                    if taps.is_empty() {
                        out.fill(0.);
                        continue;
                    }
                    let runs: Vec<usize> =
                        taps.clone().map(|tap| (frames.start + tap - self.padding) * tiles * stride).collect();
                    let left = Gathered { data, rows: &rows[..frames.len() * tiles], runs: &runs, run_len: channels };
                    product(left, &panel[taps.start * channels * PANEL..], out);
                }
            }
        }
        all
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

    /// Transforms the products back and writes the volume.
    fn store(&self, products: &[f32], clip: usize, rows: Range<usize>, target: &Shared) {
        let ([height, width], frames) = (self.area, self.frames[1]);
        let across = Tiles::covering(self.area).across;
        let (tiles, panels) = (rows.len() * across, self.out_channels / PANEL);
        let point_len = panels * frames * tiles * PANEL;
        for frame in 0..frames {
            for (i, y) in rows.clone().enumerate() {
                let down = OUT.min(height - y * OUT);
                let top = (((clip * frames + frame) * height) + y * OUT) * width;
                vectorized(|| {
                    for x in 0..across {
                        for panel in 0..panels {
                            let first = ((panel * frames + frame) * tiles + i * across + x) * PANEL;
                            let mut square: Square<P> = zeros();
                            for (point, lanes) in square.as_flattened_mut().iter_mut().enumerate() {
                                *lanes = lanes_at(products, point * point_len + first);
                            }
                            let tile = both_axes(&square, A::output);
                            for (row, lanes) in tile.iter().enumerate().take(down) {
                                for (column, lanes) in lanes.iter().enumerate().take(width - x * OUT) {
                                    let place = top + row * width + x * OUT + column;
                                    let start = place * self.out_channels + panel * PANEL;
                                    // SAFETY: a task owns these tile rows of this clip.
                                    unsafe { target.slice(start, PANEL) }.copy_from_slice(lanes);
                                }
                            }
                        }
                    }
                });
            }
        }
    }

    /// Gradient of the taps (oc / 16, kt, T, T, channels, 16) from the source of [`Self::correlate`] and the upstream
    /// gradient, which is padded to whole tiles across and not before.
    pub(crate) fn tap_gradient(&self, source: &impl Banded, upstream: &impl Banded) -> Scratch {
        let tiles = Tiles::covering(self.area);
        let [t_in, t_out] = self.frames;
        let (channels, panels) = (self.channels, self.out_channels / PANEL);

        // The clips are cut into bands of tile rows, and as many bands are held at a time as the cache allows.
        let row_floats = Self::SQUARE * tiles.across * (t_in * source.channels() + t_out * self.out_channels);
        let down = (HELD_FLOATS / row_floats).clamp(1, tiles.down);
        let bands = tiles.down.div_ceil(down);
        let units = self.clips * bands;
        let group = (HELD_FLOATS / (down * row_floats)).clamp(1, units);
        let band = |unit: usize| {
            let first = unit % bands * down;
            first..tiles.down.min(first + down)
        };
        let most = down * tiles.across;
        // (points, unit, frame, tile, channels) and (points, oc / 16, unit, frame, tile, 16).
        let [left_unit, right_unit] = [t_in * most * source.channels(), t_out * most * PANEL];
        let [left_point, right_point] = [group * left_unit, panels * group * right_unit];
        let mut left = Scratch::any(Self::SQUARE * left_point);
        let mut right = Scratch::any(Self::SQUARE * right_point);
        // (points, oc / 16, kt, channels, 16)
        let point_len = panels * self.taps * channels * PANEL;
        let mut sums = Scratch::zeros(Self::SQUARE * point_len);
        let rows: Vec<usize> = (0..t_out * most).map(|row| row * source.channels()).collect();

        for first in (0..units).step_by(group) {
            let count = group.min(units - first);
            let (left_target, right_target) = (Shared::new(&mut left), Shared::new(&mut right));
            (0..count * (t_in + t_out)).into_par_iter().for_each(|task| {
                let (i, frame) = (task / (t_in + t_out), task % (t_in + t_out));
                let (clip, band) = ((first + i) / bands, band(first + i));
                let tiles_here = band.len() * tiles.across;
                let Some(frame) = frame.checked_sub(t_in) else {
                    let start = i * left_unit + frame * tiles_here * source.channels();
                    self.transform_frame(source, clip, frame, band, |point, place, lanes| {
                        // SAFETY: this task alone writes the rows of its unit and frame.
                        unsafe { left_target.slice(point * left_point + start + place, PANEL) }.copy_from_slice(lanes);
                    });
                    return;
                };
                let row_len = upstream.row_len();
                let mut rows = Scratch::zeros(band.len() * OUT * row_len);
                upstream.copy(clip, frame, band.start * OUT, &mut rows);
                vectorized(|| {
                    for tile in 0..tiles_here {
                        let corner = (tile / tiles.across * row_len + tile % tiles.across * self.out_channels) * OUT;
                        for panel in 0..panels {
                            let square = square_at(&rows, row_len, self.out_channels, corner + panel * PANEL);
                            let square = both_axes(&square, A::upstream);
                            let row = (panel * group + i) * right_unit + (frame * tiles_here + tile) * PANEL;
                            for (point, lanes) in square.as_flattened().iter().enumerate() {
                                // SAFETY: this task alone writes the rows of its unit and frame.
                                unsafe { right_target.slice(point * right_point + row, PANEL) }.copy_from_slice(lanes);
                            }
                        }
                    }
                });
            });
            sums.par_chunks_mut(self.taps * channels * PANEL).enumerate().for_each(|(task, sums)| {
                let (point, panel) = (task / panels, task % panels);
                let left = &left[point * left_point..][..left_point];
                let right = &right[point * right_point + panel * group * right_unit..][..group * right_unit];
                for i in 0..count {
                    let tiles = band(first + i).len() * tiles.across;
                    let (left, right) = (&left[i * left_unit..][..left_unit], &right[i * right_unit..][..right_unit]);
                    for (tap, sums) in sums.chunks_exact_mut(channels * PANEL).enumerate() {
                        // Result frames t whose source frame t + tap - padding exists.
                        let start = self.padding.saturating_sub(tap);
                        let end = t_out.min((t_in + self.padding).saturating_sub(tap));
                        let count = end.saturating_sub(start) * tiles;
                        if count == 0 {
                            continue;
                        }
                        let runs = &[(start + tap - self.padding) * tiles * source.channels()];
                        let right = &right[start * tiles * PANEL..][..count * PANEL];
                        let blocks = rows[..count].chunks(SUMMED_PLACES).zip(right.chunks(SUMMED_PLACES * PANEL));
                        for (rows, right) in blocks {
                            let left = Gathered { data: left, rows, runs, run_len: channels };
                            accumulate_transposed(left, right, sums);
                        }
                    }
                }
            });
        }

        let mut taps = Scratch::any(panels * self.taps * T * T * channels * PANEL);
        taps.par_chunks_mut(T * T * channels * PANEL).enumerate().for_each(|(i, taps)| {
            vectorized(|| {
                for c in 0..channels {
                    let mut square: Square<P> = zeros();
                    for (point, lanes) in square.as_flattened_mut().iter_mut().enumerate() {
                        *lanes = lanes_at(&sums, point * point_len + (i * channels + c) * PANEL);
                    }
                    for (tap, lanes) in both_axes(&square, A::weight_gradient).as_flattened().iter().enumerate() {
                        taps[(tap * channels + c) * PANEL..][..PANEL].copy_from_slice(lanes);
                    }
                }
            });
        });
        taps
    }
}
