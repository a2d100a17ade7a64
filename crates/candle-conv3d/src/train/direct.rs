//! Direct convolution: forward, gradient of the input and gradient of the weight.
//!
//! The gradient of the input is a convolution too: of the upstream gradient with the flipped kernel. With a stride,
//! each input place meets only every stride-th tap, so the input falls into phases that are convolutions of stride
//! 1 with a part of the kernel.

#![allow(unsafe_code)]

use rayon::prelude::*;

use super::kernel::{Gathered, PANEL, Shared, accumulate_transposed, product, transpose};
use super::scratch::Scratch;
use super::volume::{Padded, channel_panels};
use crate::geometry::Window;

/// Rows of the left matrix that a task takes at least, if there are as many: enough to use a panel of weights
/// several times while it lies in the cache.
const TASK_ROWS: usize = 256;

/// Places that one call of the transposed product sums over: 128 rows of a panel (8 KB) and as many cache lines of
/// the input stay in the first-level cache.
const SUMMED_PLACES: usize = 128;

/// Shapes of one convolution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shapes {
    pub(crate) clips: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    /// (t, h, w) of the input.
    pub(crate) input: [usize; 3],
    /// (t, h, w) of the output.
    pub(crate) output: [usize; 3],
    pub(crate) window: Window,
}

impl Shapes {
    pub(crate) fn taps(&self) -> usize {
        self.window.kernel.iter().product()
    }

    /// (n, t, h, w, c) of the input.
    pub(crate) fn input_dims(&self) -> [usize; 5] {
        let [t, h, w] = self.input;
        [self.clips, t, h, w, self.in_channels]
    }

    /// (n, t, h, w, c) of the output.
    pub(crate) fn output_dims(&self) -> [usize; 5] {
        let [t, h, w] = self.output;
        [self.clips, t, h, w, self.out_channels]
    }

    /// The input with as many zeros around it as the windows reach over.
    fn padded_input(&self, input: &[f32]) -> Padded {
        let Window { kernel, stride, padding, .. } = self.window;
        let after = |axis: usize| {
            let end = (self.output[axis] - 1) * stride[axis] + kernel[axis];
            end.saturating_sub(padding[axis] + self.input[axis])
        };
        Padded::new(input, self.input_dims(), [padding[1], padding[2]], [after(1), after(2)])
    }
}

/// Writes the output (n, t', h', w', oc) of `input` (n, t, h, w, ic) and `weight` (oc, ic, kt, kh, kw).
pub(crate) fn forward(shapes: &Shapes, input: &[f32], weight: &[f32], output: &mut [f32]) {
    let source = shapes.padded_input(input);
    let panels = forward_panels(shapes, weight);
    let correlation = Correlation {
        source: &source,
        clips: shapes.clips,
        panels: &panels,
        first_row: 0,
        taps: shapes.window.kernel,
        step: shapes.window.stride,
        origin: shapes.window.padding.map(|padding| -(padding as isize)),
        grid: shapes.output,
    };
    let places = Places { channels: shapes.out_channels, dims: shapes.output, first: [0; 3], stride: [1; 3] };
    correlation.run(&places, &Shared::new(output));
}

/// Writes the gradient of the input, (n, t, h, w, ic), from `upstream` (n, t', h', w', oc). Padding must be less than the
/// kernel.
pub(crate) fn input_gradient(shapes: &Shapes, weight: &[f32], upstream: &[f32], gradient: &mut [f32]) {
    let Window { kernel, stride, padding, .. } = shapes.window;
    let phases: [Vec<Phase>; 3] = std::array::from_fn(|axis| {
        let phases = (0..stride[axis])
            .map(|phase| Phase::new(phase, kernel[axis], stride[axis], padding[axis], shapes.input[axis]));
        phases.filter(|phase| phase.taps > 0 && phase.count > 0).collect()
    });
    let before = |axis: usize| phases[axis].iter().map(|phase| (-phase.origin).max(0)).max().unwrap_or(0) as usize;
    let after = |axis: usize| {
        let ends = phases[axis].iter().map(|phase| phase.origin + (phase.count + phase.taps - 1) as isize);
        (ends.max().unwrap_or(0) - shapes.output[axis] as isize).max(0) as usize
    };
    let source = Padded::new(upstream, shapes.output_dims(), [before(1), before(2)], [after(1), after(2)]);

    // The panels hold one phase after another. For each tap of the kernel, the row of its phase's block.
    let (in_channels, out_channels, taps) = (shapes.in_channels, shapes.out_channels, shapes.taps());
    let [kt, kh, kw] = kernel;
    let mut tap_row = vec![None; taps];
    let mut blocks = Vec::new();
    let mut rows = 0;
    for t in &phases[0] {
        for h in &phases[1] {
            for w in &phases[2] {
                for (tap, place) in tap_row.iter_mut().enumerate() {
                    let (a, b, c) = (tap / (kh * kw), tap / kw % kh, tap % kw);
                    if let (Some(a), Some(b), Some(c)) =
                        (t.place(a, stride[0]), h.place(b, stride[1]), w.place(c, stride[2]))
                    {
                        *place = Some(rows + ((a * h.taps + b) * w.taps + c) * out_channels);
                    }
                }
                blocks.push(([*t, *h, *w], rows));
                rows += t.taps * h.taps * w.taps * out_channels;
            }
        }
    }
    let used: Vec<(usize, usize)> =
        tap_row.iter().enumerate().filter_map(|(tap, row)| row.map(|row| (tap, row))).collect();
    debug_assert!(used.len() <= kt * kh * kw);
    let panels = Panels::new(in_channels, rows, |first, count, panel| {
        for oc in 0..out_channels {
            let weight = &weight[(oc * in_channels + first) * taps..];
            if used.len() == taps {
                transpose([count, taps], weight, |ic| ic * taps, panel, |tap| (used[tap].1 + oc) * PANEL);
            } else {
                for &(tap, row) in &used {
                    for ic in 0..count {
                        panel[(row + oc) * PANEL + ic] = weight[ic * taps + tap];
                    }
                }
            }
        }
    });

    // Places that meet no tap have no gradient.
    gradient.fill(0.);
    let target = Shared::new(gradient);
    for (phases, first_row) in blocks {
        let correlation = Correlation {
            source: &source,
            clips: shapes.clips,
            panels: &panels,
            first_row,
            taps: phases.map(|phase| phase.taps),
            step: [1; 3],
            origin: phases.map(|phase| phase.origin),
            grid: phases.map(|phase| phase.count),
        };
        let first = phases.map(|phase| phase.first);
        correlation.run(&Places { channels: in_channels, dims: shapes.input, first, stride }, &target);
    }
}

/// One phase of an axis: the inputs `first`, `first + stride`, ... that meet the taps `phase`, `phase + stride`, ...
#[derive(Debug, Clone, Copy)]
struct Phase {
    phase: usize,
    /// First input of the phase.
    first: usize,
    /// Inputs of the phase.
    count: usize,
    /// Taps of the phase.
    taps: usize,
    /// Output that the first input's last tap leads to; the earlier taps lead to the following outputs.
    origin: isize,
}

impl Phase {
    /// Input i meets tap k at output (i + padding - k) / stride, if that is whole.
    fn new(phase: usize, kernel: usize, stride: usize, padding: usize, input: usize) -> Self {
        let taps = kernel.saturating_sub(phase).div_ceil(stride);
        // i + padding = stride * q + phase
        let q = padding.saturating_sub(phase).div_ceil(stride);
        let first = stride * q + phase - padding;
        let count = input.saturating_sub(first).div_ceil(stride);
        Self { phase, first, count, taps, origin: q as isize - taps as isize + 1 }
    }

    /// Where `tap` of the kernel stands among the phase's taps, which are in the order of the outputs.
    fn place(&self, tap: usize, stride: usize) -> Option<usize> {
        (tap % stride == self.phase).then(|| self.taps - 1 - tap / stride)
    }
}

/// Gradient of the weight, (oc, ic, kt, kh, kw), from `input` (n, t, h, w, ic) and `upstream` (n, t', h', w', oc).
pub(crate) fn weight_gradient(shapes: &Shapes, input: &[f32], upstream: &[f32]) -> Vec<f32> {
    let source = shapes.padded_input(input);
    let upstream = channel_panels(upstream, shapes.output_dims());
    let Window { kernel: [kt, kh, kw], stride: [st, sh, sw], padding: [pt, ..], .. } = shapes.window;
    let [t_out, h_out, w_out] = shapes.output;
    let (channels, clips) = (shapes.in_channels, shapes.clips);
    let places = clips * h_out * w_out;

    let rows: Vec<usize> = (0..places)
        .map(|place| {
            let (clip, y, x) = (place / (h_out * w_out), place / w_out % h_out, place % w_out);
            clip * source.clip_len() + y * sh * source.row_len() + x * sw * channels
        })
        .collect();
    // (oc / 16, kt, kh, kw, ic, 16): a task owns one (oc / 16, kt).
    let run_len = kw * channels;
    let mut panels = Scratch::zeros(shapes.out_channels.div_ceil(PANEL) * kt * kh * run_len * PANEL);
    panels.par_chunks_mut(kh * run_len * PANEL).enumerate().for_each(|(task, sums)| {
        let (panel, tap) = (task / kt, task % kt);
        for t in 0..t_out {
            let Some(frame) = (t * st + tap).checked_sub(pt).filter(|&frame| frame < source.frames) else { continue };
            let upstream = &upstream[(panel * t_out + t) * places * PANEL..][..places * PANEL];
            for (rows, upstream) in rows.chunks(SUMMED_PLACES).zip(upstream.chunks(SUMMED_PLACES * PANEL)) {
                for (y, sums) in sums.chunks_exact_mut(run_len * PANEL).enumerate() {
                    let runs = &[frame * source.frame_len() + y * source.row_len()];
                    accumulate_transposed(Gathered { data: &source.data, rows, runs, run_len }, upstream, sums);
                }
            }
        }
    });

    unpacked_weight(shapes, &panels)
}

/// Weights as panels (c / 16, rows, 16), the last filled up with zeros.
pub(crate) struct Panels {
    pub(crate) data: Scratch,
    rows: usize,
}

impl Panels {
    /// Panels for `channels` result channels. `fill(first channel, channels, panel)` writes one of them.
    fn new(channels: usize, rows: usize, fill: impl Fn(usize, usize, &mut [f32]) + Sync) -> Self {
        let count = channels.div_ceil(PANEL);
        let mut data = Scratch::zeros(count * rows * PANEL);
        data.par_chunks_mut((rows * PANEL).max(1)).enumerate().for_each(|(i, panel)| {
            let first = i * PANEL;
            fill(first, PANEL.min(channels - first), panel);
        });
        Self { data, rows }
    }

    fn panel(&self, index: usize) -> &[f32] {
        &self.data[index * self.rows * PANEL..][..self.rows * PANEL]
    }
}

/// `weight` (oc, ic, kt, kh, kw) as panels of output channels with rows (kt, kh, kw, ic).
pub(crate) fn forward_panels(shapes: &Shapes, weight: &[f32]) -> Panels {
    let (channels, taps) = (shapes.in_channels, shapes.taps());
    Panels::new(shapes.out_channels, taps * channels, |first, count, panel| {
        let weight = &weight[first * channels * taps..];
        // Columns are (ic, tap), rows of the panel (tap, ic).
        let place = |column: usize| (column % taps * channels + column / taps) * PANEL;
        transpose([count, channels * taps], weight, |oc| oc * channels * taps, panel, place);
    })
}

/// `weight` (oc, ic, kt, kh, kw) as panels of input channels with rows (kt, kh, kw, oc), the taps in reverse.
pub(crate) fn flipped_panels(shapes: &Shapes, weight: &[f32]) -> Panels {
    let (in_channels, out_channels, taps) = (shapes.in_channels, shapes.out_channels, shapes.taps());
    Panels::new(in_channels, taps * out_channels, |first, count, panel| {
        for oc in 0..out_channels {
            let weight = &weight[(oc * in_channels + first) * taps..];
            let place = |tap: usize| ((taps - 1 - tap) * out_channels + oc) * PANEL;
            transpose([count, taps], weight, |ic| ic * taps, panel, place);
        }
    })
}

/// `panels` of output channels with rows (kt, kh, kw, ic) as a weight (oc, ic, kt, kh, kw).
pub(crate) fn unpacked_weight(shapes: &Shapes, panels: &[f32]) -> Vec<f32> {
    let (channels, taps) = (shapes.in_channels, shapes.taps());
    let mut weight = vec![0f32; shapes.out_channels * channels * taps];
    weight.par_chunks_mut(PANEL * channels * taps).zip(panels.par_chunks(taps * channels * PANEL)).for_each(
        |(weight, panel)| {
            let count = weight.len() / (channels * taps);
            let row = |row: usize| (row % taps * channels + row / taps) * PANEL;
            transpose([channels * taps, count], panel, row, weight, |oc| oc * channels * taps);
        },
    );
    weight
}

/// Where the results of a [`Correlation`] go in (n, t, h, w, c): place p of an axis to `first + p * stride`.
struct Places {
    channels: usize,
    dims: [usize; 3],
    first: [usize; 3],
    stride: [usize; 3],
}

/// result(p) = sum over taps k of source(p * step + k + origin) * weight(k), for each place p of `grid`.
struct Correlation<'a> {
    source: &'a Padded,
    clips: usize,
    panels: &'a Panels,
    /// The rows of each panel from here on are (kt, kh, kw, source channels).
    first_row: usize,
    taps: [usize; 3],
    step: [usize; 3],
    origin: [isize; 3],
    grid: [usize; 3],
}

impl Correlation<'_> {
    fn run(&self, places: &Places, target: &Shared) {
        let [frames, height, width] = self.grid;
        let (area, panels) = (height * width, places.channels.div_ceil(PANEL));
        // A task takes some rows of the left matrix (whole frames of several clips or a part of one frame) and
        // some panels.
        let clips = (TASK_ROWS / area).clamp(1, self.clips);
        let parts = if clips > 1 { 1 } else { (area / TASK_ROWS).max(1) };
        let part = area.div_ceil(parts);
        let row_tasks = frames * self.clips.div_ceil(clips) * parts;
        let wanted = 8 * rayon::current_num_threads();
        let panel_tasks = wanted.div_ceil(row_tasks).min(panels);
        let panels_each = panels.div_ceil(panel_tasks);
        (0..row_tasks * panel_tasks).into_par_iter().for_each(|task| {
            let (rows, panel_task) = (task / panel_tasks, task % panel_tasks);
            let (index, frame) = (rows / frames, rows % frames);
            let (group, index) = (index / parts, index % parts);
            let clips = group * clips..self.clips.min((group + 1) * clips);
            let area = index * part..area.min((index + 1) * part);
            let panels = panel_task * panels_each..panels.min((panel_task + 1) * panels_each);
            self.task(frame, clips, area, panels, places, target);
        });
    }

    fn task(
        &self,
        frame: usize,
        clips: std::ops::Range<usize>,
        area: std::ops::Range<usize>,
        panels: std::ops::Range<usize>,
        places: &Places,
        target: &Shared,
    ) {
        let source = self.source;
        let [kt, kh, kw] = self.taps;
        let width = self.grid[2];
        let start = (frame * self.step[0]) as isize + self.origin[0];
        let frames: Vec<usize> =
            (0..kt).filter(|&tap| (0..source.frames as isize).contains(&(start + tap as isize))).collect();
        let Some(&first_tap) = frames.first() else { return };

        let top = self.origin[1] + source.before[0] as isize;
        let left = self.origin[2] + source.before[1] as isize;
        let rows: Vec<usize> = clips
            .clone()
            .flat_map(|clip| {
                area.clone().map(move |place| {
                    let y = ((place / width * self.step[1]) as isize + top) as usize;
                    let x = ((place % width * self.step[2]) as isize + left) as usize;
                    clip * source.clip_len() + y * source.row_len() + x * source.channels
                })
            })
            .collect();
        let runs: Vec<usize> = frames
            .iter()
            .flat_map(|&tap| {
                let frame = (start + tap as isize) as usize * source.frame_len();
                (0..kh).map(move |y| frame + y * source.row_len())
            })
            .collect();
        let run_len = kw * source.channels;
        let left = Gathered { data: &source.data, rows: &rows, runs: &runs, run_len };

        let mut result = Scratch::any(rows.len() * PANEL);
        for panel in panels {
            let row = self.first_row + first_tap * kh * run_len;
            let weights = &self.panels.panel(panel)[row * PANEL..];
            product(left, weights, &mut result);
            for (clip, result) in clips.clone().zip(result.chunks_exact(area.len() * PANEL)) {
                // SAFETY: tasks differ in frame, clips, area or panels, so no other one writes to these places.
                unsafe { self.store(result, clip, frame, area.clone(), panel, places, target) };
            }
        }
    }

    /// Writes `result` (area, 16) to its places.
    ///
    /// # Safety
    /// No other thread may write to the same places.
    unsafe fn store(
        &self,
        result: &[f32],
        clip: usize,
        frame: usize,
        area: std::ops::Range<usize>,
        panel: usize,
        places: &Places,
        target: &Shared,
    ) {
        let [frames, height, width] = places.dims;
        let first = panel * PANEL;
        let count = PANEL.min(places.channels - first);
        let frame = clip * frames + places.first[0] + frame * places.stride[0];
        for (place, row) in area.zip(result.chunks_exact(PANEL)) {
            let y = places.first[1] + place / self.grid[2] * places.stride[1];
            let x = places.first[2] + place % self.grid[2] * places.stride[2];
            let start = ((frame * height + y) * width + x) * places.channels + first;
            // SAFETY: the caller vouches that the places are this thread's own.
            unsafe { target.slice(start, count) }.copy_from_slice(&row[..count]);
        }
    }
}
