//! The max pooling after the convolution: 3 x 3 x 3, stride 2, padding 1.
//!
//! Along an axis the four results of a tile meet three windows: the first two the one that the tile before has begun, the
//! last three one of their own, and the last one that which the next tile completes. So a tile gives three partial maxima
//! an axis. Left and right neighbours meet within a group, as do blocks of frames. Rows of tiles may be on different
//! threads: the windows between two of them are left incomplete in the output and in a buffer of seams, and are completed
//! when all groups are done. Bias and ReLU keep the order of values, so they come last, on an eighth of them.

use super::super::Shape;
use super::super::program::Context;
use super::super::simd::{Kernel, Simd, prefetch_to_write};
use super::transform::{TILE, inverse};
use super::{Group, Stem, inverse_columns};

/// Windows along an axis that a tile meets.
const WINDOWS: usize = 3;
/// Windows along an axis that end in a tile.
const STEP: usize = TILE / 2;

/// The maxima of four neighbouring results in each of the windows they meet.
#[inline(always)]
unsafe fn windows<S: Simd>([a, b, c, d]: [S::V; TILE]) -> [S::V; WINDOWS] {
    [S::max(a, b), S::max(S::max(b, c), d), d]
}

impl Stem {
    /// Windows across, and the one that a last tile begins in vain.
    fn partial_columns(&self) -> usize {
        self.tiles[1] * STEP + 1
    }

    /// Floats of the partial maxima of one block of frames and one row of tiles: `[window down][window across][channel]`.
    fn partial_frame_len(&self) -> usize {
        WINDOWS * self.partial_columns() * self.shape.cp()
    }

    /// Floats of the partial maxima of one row of tiles: of the two windows in time that end in a block of frames, and of
    /// those that the last block and this one have begun.
    fn partial_row_len(&self) -> usize {
        (STEP + 2) * self.partial_frame_len()
    }

    /// Floats of a group's partial maxima.
    pub(super) fn partials_len(&self) -> usize {
        if self.pooled { self.group / self.tiles[1] * self.partial_row_len() } else { 0 }
    }

    /// Floats of what a row of tiles leaves for the row below: `[frame][column][channel]`.
    fn seam_len(&self) -> usize {
        let Shape { t, w, .. } = self.output.shape;
        t * w * self.shape.cp()
    }

    /// Floats of all seams.
    pub(super) fn seams_len(&self) -> usize {
        if self.pooled { self.max_batch * self.tiles[0] * self.seam_len() } else { 0 }
    }

    /// The seam below row `row` of tiles, counted over clips.
    #[inline(always)]
    unsafe fn seam(&self, context: &Context, row: usize) -> *mut f32 {
        context.scratch.at(context.member.threads() * self.thread_len() + row * self.seam_len())
    }

    /// Row `y` of frame `t` of the pooled output.
    #[inline(always)]
    unsafe fn pooled_row(&self, context: &Context, clip: usize, t: usize, y: usize) -> *mut f32 {
        let Shape { h, w, .. } = self.output.shape;
        context.arena.at(self.output.offset + clip * self.output.clip_len + (t * h + y) * w * self.shape.cp())
    }
}

/// Before the first block: no window in time has begun.
#[derive(Clone, Copy)]
pub(super) struct NoFrameYet<'a> {
    pub(super) group: Group<'a>,
    pub(super) partials: *mut f32,
}

impl Kernel for NoFrameYet<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { group: Group { layer, begin, end, .. }, partials } = self;
        let len = layer.partial_frame_len();
        for row in 0..(end - begin) / layer.tiles[1] {
            let begun = partials.add(row * layer.partial_row_len() + (STEP + 1) * len);
            for i in (0..len).step_by(S::LANES) {
                S::store(begun.add(i), S::splat(f32::NEG_INFINITY));
            }
        }
    }
}

/// The spatial inverse of a block of frames `begin..end` of a group of whole rows of tiles, and its max pooling.
#[derive(Clone, Copy)]
pub(super) struct PoolingInverse<'a> {
    pub(super) group: Group<'a>,
    pub(super) m: *const f32,
    pub(super) partials: *mut f32,
    pub(super) begin: usize,
    pub(super) end: usize,
}

impl Kernel for PoolingInverse<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Group { layer, begin, end, .. } = self.group;
        let Shape { h, w, .. } = layer.shape;
        let across = layer.tiles[1];
        let block = self.begin / TILE;
        // Of the windows in time that this block begins, and of those that the last one began.
        let (next, last) = (STEP + block % 2, STEP + (block + 1) % 2);
        for row in 0..(end - begin) / across {
            let partials = self.partials.add(row * layer.partial_row_len());
            for tile in row * across..(row + 1) * across {
                let (_, ty, tx) = layer.tile_at(begin + tile);
                // The last tiles may reach beyond the map.
                let (rows, columns) = (TILE.min(h - ty * TILE), TILE.min(w - tx * TILE));
                if [rows, columns] == [TILE; 2] {
                    self.tile::<S, false>(tile, tx, [TILE; 2], partials, next);
                } else {
                    self.tile::<S, true>(tile, tx, [rows, columns], partials, next);
                }
            }
            self.finish_row::<S>(begin / across + row, partials, last);
        }
    }
}

impl PoolingInverse<'_> {
    /// The partial maxima of tile `tile` of the group, in column `tx`, of which only `rows` and `columns` are on the map
    /// if it is `CUT`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const CUT: bool>(
        &self,
        tile: usize,
        tx: usize,
        [rows, columns]: [usize; 2],
        partials: *mut f32,
        next: usize,
    ) {
        let Group { layer, begin, end, .. } = self.group;
        let tiles = end - begin;
        let cp = layer.shape.cp();
        let stride = layer.point_strides()[1];
        let none = S::splat(f32::NEG_INFINITY);
        for c in (0..cp).step_by(S::LANES) {
            let mut maxima = [[[none; WINDOWS]; WINDOWS]; WINDOWS];
            for frame in 0..self.end - self.begin {
                let half_way = inverse_columns::<S>(self.m.add((frame * tiles + tile) * cp + c), stride, S::LANES);
                // [row][window across]
                let mut across = [[none; WINDOWS]; TILE];
                for row in 0..TILE {
                    let mut results = inverse::<S>(&half_way[row]);
                    if CUT {
                        let first_outside = if row < rows { columns } else { 0 };
                        results[first_outside..].fill(none);
                    }
                    across[row] = windows::<S>(results);
                }
                for x in 0..WINDOWS {
                    let down = windows::<S>(std::array::from_fn(|row| across[row][x]));
                    for y in 0..WINDOWS {
                        // The windows of `windows`, in time.
                        if frame < 2 {
                            maxima[0][y][x] = S::max(maxima[0][y][x], down[y]);
                        }
                        if frame > 0 {
                            maxima[1][y][x] = S::max(maxima[1][y][x], down[y]);
                        }
                        if frame == 3 {
                            maxima[2][y][x] = down[y];
                        }
                    }
                }
            }
            for (slot, maxima) in [0, 1, next].into_iter().zip(&maxima) {
                for (y, &[left, own, right]) in maxima.iter().enumerate() {
                    let column = (slot * WINDOWS + y) * layer.partial_columns() + tx * STEP;
                    let to = partials.add(column * cp + c);
                    S::store(to, if tx == 0 { left } else { S::max(S::load(to), left) });
                    S::store(to.add(cp), own);
                    S::store(to.add(2 * cp), right);
                }
            }
        }
    }

    /// Stores the windows that end in this block, of the row `row` of tiles, counted over clips.
    #[inline(always)]
    unsafe fn finish_row<S: Simd>(&self, row: usize, partials: *const f32, last: usize) {
        let Group { layer, context, .. } = self.group;
        let Shape { t, h, w, .. } = layer.output.shape;
        let cp = layer.shape.cp();
        let (clip, ty) = (row / layer.tiles[0], row % layer.tiles[0]);
        for window in 0..STEP {
            let frame = self.begin / 2 + window;
            if frame == t {
                break;
            }
            let row_at = |slot: usize, y: usize| partials.add((slot * WINDOWS + y) * layer.partial_columns() * cp);
            // Of the first window in time the block before has a part.
            let value = |y: usize, i: usize| {
                let own = S::load(row_at(window, y).add(i));
                if window == 0 { S::max(own, S::load(row_at(last, y).add(i))) } else { own }
            };
            let upper = layer.pooled_row(context, clip, frame, ty * STEP);
            for i in (0..w * cp).step_by(S::LANES) {
                prefetch_to_write(upper.wrapping_add(w * cp + i));
                S::store(upper.add(i), value(0, i));
            }
            if ty * STEP + 1 == h {
                continue;
            }
            let own = layer.pooled_row(context, clip, frame, ty * STEP + 1);
            for x in 0..w {
                for c in (0..cp).step_by(S::LANES) {
                    layer.epilogue.finish::<S>(value(1, x * cp + c), own.add(x * cp), std::ptr::null(), c);
                }
            }
            let seam = layer.seam(context, row).add(frame * w * cp);
            for i in (0..w * cp).step_by(S::LANES) {
                S::store(seam.add(i), value(2, i));
            }
        }
    }
}

/// Completes the windows between a row of tiles, counted over clips, and the one above.
#[derive(Clone, Copy)]
pub(super) struct Seam<'a> {
    pub(super) layer: &'a Stem,
    pub(super) context: &'a Context<'a>,
    pub(super) row: usize,
}

impl Kernel for Seam<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { layer, context, row } = self;
        let Shape { t, w, .. } = layer.output.shape;
        let cp = layer.shape.cp();
        let (clip, ty) = (row / layer.tiles[0], row % layer.tiles[0]);
        for frame in 0..t {
            let to = layer.pooled_row(context, clip, frame, ty * STEP);
            for x in 0..w {
                for c in (0..cp).step_by(S::LANES) {
                    let to = to.add(x * cp);
                    let mut max = S::load(to.add(c));
                    if ty > 0 {
                        let above = layer.seam(context, row - 1).add((frame * w + x) * cp + c);
                        max = S::max(max, S::load(above));
                    }
                    layer.epilogue.finish::<S>(max, to, std::ptr::null(), c);
                }
            }
        }
    }
}
