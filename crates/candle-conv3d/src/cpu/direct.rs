//! Direct convolution as an implicit matrix product: right for every kernel, stride and padding.
//!
//! A row of the product is one output position; its inputs are runs of contiguous floats, one a kernel tap, found
//! through a table of addresses. Taps in spatial padding read a vector of zeros; temporal taps that only meet padding
//! are skipped, since all rows of one block belong to the same output frame.

use super::memory::{Buffer, Slot};
use super::microkernel::{Ahead, accumulate, for_rows, packed_index, panels, row_blocks};
use super::program::{Context, Epilogue, Operator};
use super::simd::{Kernel, PANEL_VECTORS, Simd, prefetch_early};
use super::team::Team;
use super::{CHANNEL_BLOCK, Shape};
use crate::geometry::Window;
use std::ops::Range;

/// Output positions a work item covers: enough for a panel of weights to be worth loading into the second-level cache.
const POSITIONS: usize = 96;

/// Weights are asked for this many floats ahead.
const AHEAD: usize = 4 << 10;

/// How the input is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Padded channels, no spatial padding.
    Activation,
    /// Frames with their spatial zero padding and unpadded channels: one row of the kernel is one run. For networks'
    /// few-channel inputs.
    Haloed,
}

/// Frames of the kernel between the first and the last that meet data anywhere in the output.
fn kernel_frames(from: Shape, to: Shape, window: &Window) -> Range<usize> {
    let valid = (0..to.t).map(|t| window.valid_taps(0, t, from.t)).filter(|(begin, end)| begin < end);
    let [first, last] = valid.fold([usize::MAX, 0], |[first, last], (begin, end)| [first.min(begin), last.max(end)]);
    first.min(last)..last
}

/// Groups of a convolution that are computed as one, with zeros where they don't meet, so that every panel of output channels
/// reads one run of input channels.
#[derive(Clone, Copy, Debug)]
struct Grouping {
    /// Groups of the convolution.
    groups: usize,
    /// Input and output channels of those that are computed together.
    channels: [usize; 2],
}

impl Grouping {
    /// The fewest groups whose output channels fill whole panels; all of them where none do.
    fn new(groups: usize, from: Shape, to: Shape) -> Self {
        const PANEL: usize = PANEL_VECTORS * CHANNEL_BLOCK;
        let merged = (1..=groups)
            .find(|&merged| groups.is_multiple_of(merged) && (to.c / groups * merged).is_multiple_of(PANEL));
        let channels = [from.c, to.c].map(|c| c / groups * merged.unwrap_or(groups));
        Self { groups, channels }
    }

    /// Contiguous floats a tap reads of an activation.
    fn run(&self, from: Shape) -> usize {
        if self.channels[0] == from.c { from.cp() } else { self.channels[0] }
    }
}

/// A convolution with bias, residual and ReLU.
pub(crate) struct Direct {
    input: Slot,
    output: Slot,
    window: Window,
    grouping: Grouping,
    storage: Storage,
    /// Frames of the kernel that ever meet data. The others have no weights here.
    kernel_frames: Range<usize>,
    /// Taps of one temporal kernel position.
    frame_taps: usize,
    /// Contiguous floats a tap.
    run: usize,
    /// `[panel][kt][tap][run][panel width]`
    weights: Buffer,
    epilogue: Epilogue,
    zeros: Buffer,
}

impl Direct {
    /// Multiplications of one clip and floats of weights.
    pub(crate) fn cost(from: Shape, to: Shape, window: &Window, groups: usize) -> (usize, usize) {
        let run = Grouping::new(groups, from, to).run(from);
        let taps = window.kernel[1] * window.kernel[2] * run * to.cp();
        let frames: usize = (0..to.t).map(|t| window.valid_taps(0, t, from.t)).map(|(begin, end)| end - begin).sum();
        (to.h * to.w * frames * taps, kernel_frames(from, to, window).len() * taps)
    }

    /// Without weights, which [`pack`](Operator::pack) brings.
    /// A haloed input has no groups.
    pub(crate) fn new(
        input: Slot,
        output: Slot,
        window: Window,
        groups: usize,
        storage: Storage,
        epilogue: Epilogue,
    ) -> Self {
        let [_, kh, kw] = window.kernel;
        let grouping = Grouping::new(groups, input.shape, output.shape);
        let (frame_taps, run) = match storage {
            Storage::Activation => (kh * kw, grouping.run(input.shape)),
            Storage::Haloed => (kh, kw * input.shape.c),
        };
        let kernel_frames = kernel_frames(input.shape, output.shape, &window);
        let (weights, zeros) = (Buffer::zeroed(0), Buffer::zeroed(run.max(input.shape.cp())));
        Self { input, output, window, grouping, storage, kernel_frames, frame_taps, run, weights, epilogue, zeros }
    }

    /// Floats of scratch a thread needs: for each position of an item the address of its result, its residual and its taps.
    fn thread_scratch_len(&self) -> usize {
        let addresses = POSITIONS * (2 + self.window.kernel[0] * self.frame_taps);
        (addresses * size_of::<usize>() / size_of::<f32>()).next_multiple_of(16)
    }

    /// Products of one output value.
    fn k_len(&self) -> usize {
        self.kernel_frames.len() * self.frame_taps * self.run
    }
}

/// Positions `begin..end` of output frame `frame`, counted over clips, for columns `first..last`.
struct Item<'a> {
    layer: &'a Direct,
    context: &'a Context<'a>,
    scratch: *mut *const f32,
    frame: usize,
    begin: usize,
    end: usize,
    first: usize,
    last: usize,
}

impl Kernel for Item<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let layer = self.layer;
        let (tap_begin, tap_end) = layer.window.valid_taps(0, self.frame, layer.input.shape.t);
        let taps = (tap_end - tap_begin) * layer.frame_taps;
        let all_taps = layer.kernel_frames.len() * layer.frame_taps;
        // A block of R rows takes R * (2 + taps) addresses.
        for (row, rows) in row_blocks(self.end - self.begin, S::MAX_ROWS) {
            let table = self.scratch.add(row * (2 + taps));
            for i in 0..rows {
                layer.fill_addresses(
                    self.context,
                    self.frame,
                    self.begin + row + i,
                    tap_begin..tap_end,
                    table,
                    rows,
                    i,
                );
            }
        }
        for (column, width) in panels(layer.output.shape.cp(), S::LANES) {
            if column < self.first || column >= self.last {
                continue;
            }
            // Within the weights even where no tap is left.
            let first_frame = tap_begin.saturating_sub(layer.kernel_frames.start).min(layer.kernel_frames.len());
            let first_tap = first_frame * layer.frame_taps;
            let b = layer.weights.as_ptr().add((column * all_taps + first_tap * width) * layer.run);
            let [ic, oc] = layer.grouping.channels;
            let offset = if oc == layer.output.shape.c { 0 } else { column / oc * ic };
            let is_first = column % oc == 0;
            for (row, rows) in row_blocks(self.end - self.begin, S::MAX_ROWS) {
                let table = self.scratch.add(row * (2 + taps));
                if width == PANEL_VECTORS * S::LANES {
                    for_rows!(
                        S,
                        rows,
                        block,
                        2,
                        (Reads { table, taps, run: layer.run, offset, is_first }, b, &layer.epilogue, column)
                    );
                } else {
                    for_rows!(
                        S,
                        rows,
                        block,
                        1,
                        (Reads { table, taps, run: layer.run, offset, is_first }, b, &layer.epilogue, column)
                    );
                }
            }
        }
    }
}

impl Direct {
    /// Writes row `i` of a block's address table: `[result; rows] [residual; rows] [[tap; rows]; taps]`.
    #[inline(always)]
    unsafe fn fill_addresses(
        &self,
        context: &Context,
        frame: usize,
        position: usize,
        kt: Range<usize>,
        table: *mut *const f32,
        rows: usize,
        i: usize,
    ) {
        let Shape { h, w, .. } = self.output.shape;
        let (clip, y, x) = (position / (h * w), position / w % h, position % w);
        let cp = self.output.shape.cp();
        let result =
            context.arena.at(self.output.offset + clip * self.output.clip_len + ((frame * h + y) * w + x) * cp);
        *table.add(i) = result;
        *table.add(rows + i) = self.epilogue.residual_at(context, clip, frame, y, x);
        let input = context.arena.at(self.input.offset + clip * self.input.clip_len).cast_const();
        let Shape { h, w, c, .. } = self.input.shape;
        let [_, kh, kw] = self.window.kernel;
        let [st, sh, sw] = self.window.stride;
        let [pt, ph, pw] = self.window.padding;
        let mut at = table.add(2 * rows + i);
        for kt in kt {
            let t = frame * st + kt - pt;
            match self.storage {
                Storage::Activation => {
                    for ky in 0..kh {
                        for kx in 0..kw {
                            // Positions in the padding wrap round to huge numbers.
                            let (y, x) = ((y * sh + ky).wrapping_sub(ph), (x * sw + kx).wrapping_sub(pw));
                            let inside = y < h && x < w;
                            *at = if inside {
                                input.add(((t * h + y) * w + x) * self.input.shape.cp())
                            } else {
                                self.zeros.as_ptr()
                            };
                            at = at.add(rows);
                        }
                    }
                }
                Storage::Haloed => {
                    let [_, after_h, after_w] = self.window.padding_after;
                    let (h, w) = (ph + h + after_h, pw + w + after_w);
                    for ky in 0..kh {
                        *at = input.add(((t * h + y * sh + ky) * w + x * sw) * c);
                        at = at.add(rows);
                    }
                }
            }
        }
    }
}

/// What a register block reads of its input.
#[derive(Clone, Copy)]
struct Reads {
    /// As [`Direct::fill_addresses`] makes it.
    table: *const *const f32,
    taps: usize,
    /// Floats of each tap.
    run: usize,
    /// Of the first of them, from the address in the table.
    offset: usize,
    /// Whether these floats have not been read for other columns.
    is_first: bool,
}

/// One register block: `MR` positions, `NV` vectors of output channels from `column` on, all taps.
#[inline(always)]
unsafe fn block<S: Simd, const MR: usize, const NV: usize>(
    reads: Reads,
    b: *const f32,
    epilogue: &Epilogue,
    column: usize,
) {
    let Reads { table, taps, run, offset, is_first } = reads;
    let mut acc = [[S::splat(0.0); NV]; MR];
    let tap_len = run * NV * S::LANES;
    let mut ahead = Ahead::new::<S>(b.wrapping_add(AHEAD), NV * S::LANES, MR);
    for tap in 0..taps {
        let mut rows = table.add((2 + tap) * MR).cast::<[*const f32; MR]>().read();
        rows.iter_mut().for_each(|row| *row = row.add(offset));
        if is_first && tap + 1 < taps {
            // Later panels find them in the cache.
            for next in table.add((3 + tap) * MR).cast::<[*const f32; MR]>().read() {
                for i in (0..run).step_by(CHANNEL_BLOCK) {
                    prefetch_early(next.wrapping_add(offset + i));
                }
            }
        }
        accumulate::<S, MR, NV>(&mut acc, &rows, b.add(tap * tap_len), run, &mut ahead);
    }
    for (row, sums) in acc.iter().enumerate() {
        let result = *table.add(row);
        let residual = *table.add(MR + row);
        for (v, &sum) in sums.iter().enumerate() {
            epilogue.finish::<S>(sum, result.cast_mut(), residual, column + v * S::LANES);
        }
    }
}

impl Operator for Direct {
    fn scratch_len(&self, threads: usize) -> usize {
        threads * self.thread_scratch_len()
    }

    fn pack(&mut self, weight: &[f32], lanes: usize, team: &mut Team) {
        let Self { input, output, grouping, storage, run, ref kernel_frames, .. } = *self;
        let [kt, kh, kw] = self.window.kernel;
        let (ic, per_group) = (input.shape.c / grouping.groups, output.shape.c / grouping.groups);
        let k_len = self.k_len();
        let columns = output.shape.cp();
        let mut weights = Buffer::zeroed(self.weight_len());
        let packed = weights.shared();
        team.run(&|member| {
            member.share(output.shape.c, |oc| {
                // The first of its group's channels among those that are computed together.
                let first = oc / per_group * ic % grouping.channels[0];
                for i in 0..ic {
                    let taps = &weight[(oc * ic + i) * kt * kh * kw..][..kt * kh * kw];
                    let taps = &taps[kernel_frames.start * kh * kw..kernel_frames.end * kh * kw];
                    for (tap, &value) in taps.iter().enumerate() {
                        let k = match storage {
                            Storage::Activation => tap * run + first + i,
                            Storage::Haloed => tap / kw * run + tap % kw * ic + i,
                        };
                        let index = packed_index(k_len, columns, lanes, k, oc);
                        // SAFETY: index < k_len * columns; each output channel is packed by one thread.
                        unsafe { *packed.at(index) = value };
                    }
                }
            });
        });
        self.weights = weights;
    }

    fn weight_len(&self) -> usize {
        self.k_len() * self.output.shape.cp()
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context) {
        let Shape { t, h, w, .. } = self.output.shape;
        let positions = context.batch * h * w;
        let chunks = positions.div_ceil(POSITIONS);
        let width = PANEL_VECTORS * S::LANES;
        let all_panels = self.output.shape.cp().div_ceil(width);
        let member = context.member;
        let splits = (4 * member.threads()).div_ceil(t * chunks).min(all_panels);
        let scratch = context.scratch.at(member.index() * self.thread_scratch_len());
        member.share(t * chunks * splits, |item| {
            let (split, rest) = (item % splits, item / splits);
            // Slowest over time, so that neighbours in time of claiming use the same weights.
            let (chunk, frame) = (rest % chunks, rest / chunks);
            // Balanced chunks.
            let begin = positions * chunk / chunks;
            let end = positions * (chunk + 1) / chunks;
            let first = (all_panels * split / splits) * width;
            let last = (all_panels * (split + 1) / splits * width).min(self.output.shape.cp());
            S::call(Item { layer: self, context, scratch: scratch.cast(), frame, begin, end, first, last });
        });
    }
}
