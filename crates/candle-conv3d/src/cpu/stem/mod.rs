//! Winograd for the first convolution of a video network: (kt, 7, 7), stride (1, 2, 2), padding 3, few channels.
//!
//! With the four phases of each 2 x 2 square as channels it is a convolution of stride 1, whose seven taps an axis are
//! four of the one phase and three of the other. Both kinds take F(4, .) at shared points, so that a spatial point is
//! one product over the channels of all phases it has. A group of tiles goes through three phases on one thread, as in
//! [`winograd`](super::winograd): the spatial data transform, the products with the temporal transforms around them, and
//! the spatial inverse. A max pooling that follows is computed from the results of a group while they are in registers: the
//! convolution's own, the largest of the whole network, are never stored.

mod pool;
mod product;
mod time;
mod transform;
mod weights;

use super::memory::{Buffer, Slot};
use super::program::{Context, Epilogue, Operator};
use super::simd::{Kernel, Simd, prefetch, prefetch_to_write};
use super::team::Team;
use super::{CHANNEL_BLOCK, Shape};
use crate::geometry::Window;
use pool::{NoFrameYet, PoolingInverse, Seam};
use time::Time;
use transform::{INPUTS, POINTS, THREE_TAP_POINTS, TILE, data_four, inverse};

const KERNEL: usize = 7;
/// Rows and columns of squares before the first that holds data: three pixels of padding and one more, because the
/// first of the eight taps that four squares have is zero.
const HALO: usize = 2;
/// Floats of a group's spatial points, all frames before the products and four after: fewer tiles read the weights more
/// often, more leave the last-level cache. Two register blocks of rows on most maps.
const GROUP: usize = 720 << 10;
/// A product of this algorithm against one of direct convolution, transforms included.
const PRODUCT_COST: usize = 2;

/// The input of a [`Stem`]: squares of 2 x 2 pixels, `(t, rows, columns, CHANNEL_BLOCK)`, with zeros around.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Phases {
    /// Rows and columns of squares.
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Phases {
    /// For a clip of shape `input`.
    pub(crate) fn new(input: Shape) -> Self {
        let [down, across] = tiles(input);
        Self { rows: down * TILE + INPUTS - TILE, columns: across * TILE + INPUTS - TILE }
    }

    pub(crate) fn frame_len(&self) -> usize {
        self.rows * self.columns * CHANNEL_BLOCK
    }

    /// The square of pixel (y, x), counted over the frame, and the first channel of its phase of `channels`.
    #[inline(always)]
    pub(crate) fn place(&self, y: usize, x: usize, channels: usize) -> (usize, usize) {
        ((y / 2 + HALO) * self.columns + x / 2 + HALO, phase(y % 2, x % 2) * channels)
    }
}

/// Position of a phase among the channels. In this order the phases with four taps along an axis are neighbours, for
/// either axis: those with four vertical taps come first, with four horizontal ones in the middle.
#[inline(always)]
fn phase(y: usize, x: usize) -> usize {
    match (y, x) {
        (1, 0) => 0,
        (1, _) => 1,
        (_, 1) => 2,
        _ => 3,
    }
}

/// First phase and number of phases that have spatial point (`qy`, `qx`).
#[inline(always)]
fn point_phases(qy: usize, qx: usize) -> (usize, usize) {
    match (qy == THREE_TAP_POINTS, qx == THREE_TAP_POINTS) {
        (false, false) => (0, 4),
        (true, false) => (0, 2),
        (false, true) => (1, 2),
        (true, true) => (1, 1),
    }
}

/// Tiles down and across of the convolution of a clip of shape `input`.
fn tiles(input: Shape) -> [usize; 2] {
    [input.h, input.w].map(|len| len.div_ceil(2).div_ceil(TILE))
}

/// The convolution of a clip with bias, residual and ReLU, or with bias, ReLU and max pooling.
pub(crate) struct Stem {
    input: Slot,
    output: Slot,
    /// Of the convolution's result.
    shape: Shape,
    /// Whether the output is that after max pooling over 3 x 3 x 3, stride 2, padding 1.
    pooled: bool,
    tiles: [usize; 2],
    time: Time,
    /// `[spatial point]`, the temporal sets of each packed together in panels.
    weights: Buffer,
    /// -1/2 in the channels whose phase has four taps along an axis, `[h, w]`, 0 in the others.
    minus_half: [[f32; CHANNEL_BLOCK]; 2],
    epilogue: Epilogue,
    /// Tiles of a group.
    group: usize,
    max_batch: usize,
}

impl Stem {
    /// Whether the algorithm serves a convolution from `from` to `to` and takes less time than a direct one.
    pub(crate) fn serves(window: &Window, from: Shape, to: Shape) -> bool {
        let Window { kernel, stride, padding, padding_after } = *window;
        let [down, across] = tiles(from);
        let direct = (0..to.t).map(|t| window.valid_taps(0, t, from.t)).map(|(begin, end)| end - begin).sum::<usize>();
        let products = |time: Time| PRODUCT_COST * 4 * down * across * time.products();
        kernel[1..] == [KERNEL; 2]
            && stride == [1, 2, 2]
            && padding[1..] == [KERNEL / 2; 2]
            && padding_after == padding
            && 4 * from.c <= CHANNEL_BLOCK
            && products(Time::new(kernel[0], padding[0], from.t, to.t)) <= to.h * to.w * direct
    }

    /// Whether [`Stem`] can do a max pooling of its result.
    pub(crate) fn pools(window: &Window) -> bool {
        *window == Window::new([3; 3], [2; 3], [1; 3])
    }

    /// Without weights, which [`pack`](Operator::pack) brings. Where max pooling follows, `unpooled` is the shape before it.
    /// Groups are sized for `max_batch` clips and `threads`.
    pub(crate) fn new(
        input: Slot,
        output: Slot,
        unpooled: Option<Shape>,
        window: Window,
        epilogue: Epilogue,
        max_batch: usize,
        threads: usize,
    ) -> Self {
        let (shape, pooled) = (unpooled.unwrap_or(output.shape), unpooled.is_some());
        let channels = input.shape.c;
        let tiles = tiles(input.shape);
        let time = Time::new(window.kernel[0], window.padding[0], input.shape.t, shape.t);
        let mut minus_half = [[0.0; CHANNEL_BLOCK]; 2];
        for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for c in 0..channels {
                let channel = phase(y, x) * channels + c;
                minus_half[0][channel] = if y == 1 { -0.5 } else { 0.0 };
                minus_half[1][channel] = if x == 1 { -0.5 } else { 0.0 };
            }
        }
        let floats = POINTS * POINTS * (time.padded_frames() * CHANNEL_BLOCK + TILE * shape.cp());
        let all = max_batch * tiles[0] * tiles[1];
        // Pooling takes whole rows of tiles.
        let unit = if pooled { tiles[1] } else { 1 };
        // At least two groups a thread, or the last ones leave threads idle.
        let group = ((GROUP / floats).min(all / (2 * threads)) / unit).max(1) * unit;
        let weights = Buffer::zeroed(0);
        Self { input, output, shape, pooled, tiles, time, weights, minus_half, epilogue, group, max_batch }
    }

    /// Floats between two spatial points before and after the products. Odd numbers of cache lines: with a power of two
    /// the points of one channel would compete for the same few lines of the first-level cache.
    fn point_strides(&self) -> [usize; 2] {
        [self.time.padded_frames() * CHANNEL_BLOCK, TILE * self.shape.cp()]
            .map(|floats| ((self.group * floats / 16) | 1) * 16)
    }

    fn product_len(&self) -> usize {
        self.time.scratch_len(self.group).next_multiple_of(16)
    }

    /// Floats of scratch a thread needs for itself.
    fn thread_len(&self) -> usize {
        let [before, after] = self.point_strides();
        POINTS * POINTS * (before + after) + self.product_len() + self.partials_len()
    }

    /// Clip, row and column of a tile.
    #[inline(always)]
    fn tile_at(&self, tile: usize) -> (usize, usize, usize) {
        let [down, across] = self.tiles;
        (tile / across / down, tile / across % down, tile % across)
    }
}

/// Tiles `begin..end`, counted over clips.
#[derive(Clone, Copy)]
struct Group<'a> {
    layer: &'a Stem,
    context: &'a Context<'a>,
    begin: usize,
    end: usize,
    /// `thread_len` floats of this thread.
    v: *mut f32,
}

impl Kernel for Group<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let layer = self.layer;
        let tiles = self.end - self.begin;
        let [v_stride, m_stride] = layer.point_strides();
        let m = self.v.add(POINTS * POINTS * v_stride);
        let scratch = m.add(POINTS * POINTS * m_stride);
        let partials = scratch.add(layer.product_len());
        self.clear_padding(tiles * CHANNEL_BLOCK, v_stride);
        S::call(DataTransform { group: self });
        let (channels, columns) = (layer.input.shape.c, layer.shape.cp());
        if layer.pooled {
            S::call(NoFrameYet { group: self, partials });
        }
        for frames in layer.time.blocks() {
            let mut weights = layer.weights.as_ptr();
            for point in 0..POINTS * POINTS {
                let (first, phases) = point_phases(point / POINTS, point % POINTS);
                let run = phases * channels;
                let (v, m) = (self.v.add(point * v_stride).cast_const(), m.add(point * m_stride));
                let channels = [first * channels, run];
                layer.time.multiply::<S>(v, tiles, channels, weights, columns, frames.clone(), m, scratch);
                weights = weights.add(layer.time.weight_taps() * run * columns);
            }
            if layer.pooled {
                S::call(PoolingInverse { group: self, m, partials, begin: frames.start, end: frames.end });
            } else {
                S::call(InverseTransform { group: self, m, begin: frames.start, end: frames.end });
            }
        }
    }
}

impl Group<'_> {
    /// Zeros the frames of temporal padding.
    #[inline(always)]
    unsafe fn clear_padding(&self, frame: usize, stride: usize) {
        let time = &self.layer.time;
        let (first, all) = (time.first_frame(), time.padded_frames());
        let last = first + self.layer.input.shape.t;
        for point in 0..POINTS * POINTS {
            let v = self.v.add(point * stride);
            std::ptr::write_bytes(v, 0, first * frame);
            std::ptr::write_bytes(v.add(last * frame), 0, (all - last) * frame);
        }
    }
}

/// Spatial data transform of a group: frame after frame, each tile by tile, the order in which both sides are stored.
#[derive(Clone, Copy)]
struct DataTransform<'a> {
    group: Group<'a>,
}

impl Kernel for DataTransform<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { group } = self;
        let layer = group.layer;
        let Phases { columns, .. } = Phases::new(layer.input.shape);
        let frame_len = Phases::new(layer.input.shape).frame_len();
        let stride = layer.point_strides()[0];
        let zero = S::splat(0.0);
        let mut to = group.v.add(layer.time.first_frame() * (group.end - group.begin) * CHANNEL_BLOCK);
        for t in 0..layer.input.shape.t {
            for tile in group.begin..group.end {
                let (clip, ty, tx) = layer.tile_at(tile);
                let corner = t * frame_len + (ty * TILE * columns + tx * TILE) * CHANNEL_BLOCK;
                let clip = layer.input.offset + clip * layer.input.clip_len;
                let from = group.context.arena.at(clip + corner).cast_const();
                for c in (0..CHANNEL_BLOCK).step_by(S::LANES) {
                    let [half_y, half_x] = [0, 1].map(|axis| S::load(layer.minus_half[axis].as_ptr().add(c)));
                    // [qx][row]
                    let mut half_way = [[zero; INPUTS]; POINTS];
                    for row in 0..INPUTS {
                        let mut d = [zero; INPUTS];
                        for (column, d) in d.iter_mut().enumerate() {
                            let from = from.add((row * columns + column) * CHANNEL_BLOCK + c);
                            prefetch(from.wrapping_add(TILE * CHANNEL_BLOCK));
                            *d = S::load(from);
                        }
                        let points = data_four::<S>(&d, half_x);
                        for qx in 0..POINTS {
                            half_way[qx][row] = points[qx];
                        }
                    }
                    for qx in 0..POINTS {
                        let points = data_four::<S>(&half_way[qx], half_y);
                        for qy in 0..POINTS {
                            let to = to.add((qy * POINTS + qx) * stride + c);
                            prefetch_to_write(to.wrapping_add(4 * CHANNEL_BLOCK));
                            S::store(to, points[qy]);
                        }
                    }
                }
                to = to.add(CHANNEL_BLOCK);
            }
        }
    }
}

/// Spatial inverse of a group, in the same order, and the end of the layer.
#[derive(Clone, Copy)]
struct InverseTransform<'a> {
    group: Group<'a>,
    m: *const f32,
    /// Frames of the output.
    begin: usize,
    end: usize,
}

impl Kernel for InverseTransform<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { group, m, begin, end } = self;
        let layer = group.layer;
        let shape @ Shape { h, w, .. } = layer.shape;
        let cp = shape.cp();
        let stride = layer.point_strides()[1];
        let mut from = m;
        for t in begin..end {
            for tile in group.begin..group.end {
                let (clip, ty, tx) = layer.tile_at(tile);
                let (y, x) = (ty * TILE, tx * TILE);
                // The last tiles may reach beyond the map.
                let (rows, columns) = (TILE.min(h - y), TILE.min(w - x));
                let corner = ((t * h + y) * w + x) * cp;
                let to = group.context.arena.at(layer.output.offset + clip * layer.output.clip_len + corner);
                for c in (0..cp).step_by(S::LANES) {
                    let half_way = inverse_columns::<S>(from.add(c), stride, cp);
                    for (row, points) in half_way.iter().enumerate().take(rows) {
                        for (column, &result) in inverse::<S>(points).iter().enumerate().take(columns) {
                            let residual = layer.epilogue.residual_at(group.context, clip, t, y + row, x + column);
                            let to = to.add((row * w + column) * cp);
                            prefetch_to_write(to.wrapping_add(TILE * cp + c));
                            layer.epilogue.finish::<S>(result, to, residual, c);
                        }
                    }
                }
                from = from.add(cp);
            }
        }
    }
}

/// The vertical half of a tile's inverse transform, `[row][qx]`: the points of one vector of channels are `stride` apart
/// from `from` on, those that come next `ahead` floats behind them.
///
/// # Safety
/// All points are readable.
#[inline(always)]
unsafe fn inverse_columns<S: Simd>(from: *const f32, stride: usize, ahead: usize) -> [[S::V; POINTS]; TILE] {
    let zero = S::splat(0.0);
    let mut half_way = [[zero; POINTS]; TILE];
    for qx in 0..POINTS {
        let mut p = [zero; POINTS];
        for (qy, p) in p.iter_mut().enumerate() {
            let from = from.add((qy * POINTS + qx) * stride);
            prefetch(from.wrapping_add(ahead));
            *p = S::load(from);
        }
        let results = inverse::<S>(&p);
        for row in 0..TILE {
            half_way[row][qx] = results[row];
        }
    }
    half_way
}

impl Operator for Stem {
    fn scratch_len(&self, threads: usize) -> usize {
        threads * self.thread_len() + self.seams_len()
    }

    fn pack(&mut self, weight: &[f32], lanes: usize, _team: &mut Team) {
        self.weights = weights::transform(weight, [self.shape.c, self.input.shape.c], self.time, lanes);
    }

    fn weight_len(&self) -> usize {
        weights::len([self.shape.c, self.input.shape.c], self.time)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context) {
        let member = context.member;
        let unit = if self.pooled { self.tiles[1] } else { 1 };
        let count = context.batch * self.tiles[0] * self.tiles[1] / unit;
        let groups = (count * unit).div_ceil(self.group);
        let v = context.scratch.at(member.index() * self.thread_len());
        member.share(groups, |index| {
            // Balanced: no short group at the end.
            let (begin, end) = (count * index / groups * unit, count * (index + 1) / groups * unit);
            S::call(Group { layer: self, context, begin, end, v });
        });
        if self.pooled {
            member.barrier();
            member.share(context.batch * self.tiles[0], |row| S::call(Seam { layer: self, context, row }));
        }
    }
}
