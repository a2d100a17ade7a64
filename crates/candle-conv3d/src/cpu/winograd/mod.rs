//! Winograd convolution: 3x3x3 (or 1x3x3) kernels, stride 1, padding 1.
//!
//! A group of spatial tiles goes through three phases:
//! 1. the spatial data transform of every frame, into `V[point][t][tile][channel]`;
//! 2. for each spatial point: the temporal transform, one matrix product a temporal point with the input channels as
//!    its inner dimension, the temporal inverse, back into `V`;
//! 3. the spatial inverse, bias, residual and ReLU.
//!
//! Where the weights fit the second-level cache's neighbourhood, each thread takes groups of its own through all phases;
//! otherwise the team shares large groups and splits the points, so that each weight is read once a group.

mod phases;
mod time;
mod transform;
mod weights;

use super::Shape;
use super::memory::{Buffer, Slot, second_level_cache};
use super::program::{Context, Epilogue, Operator};
use super::simd::Simd;
use super::team::Team;
use crate::geometry::Window;
use phases::{Phase, PointProducts, Transform};
use time::Time;
use transform::Axis;

/// Bytes of `V` of a group that one thread takes through all phases: at least so many, or three quarters of a larger
/// second-level cache, in which it should stay.
const PRIVATE_GROUP: usize = 640 << 10;
/// Floats of `V` of a group that the team shares: it should stay in the last-level cache.
const SHARED_GROUP: usize = 2 << 20;
/// Weights up to this many floats are read once a private group.
const PRIVATE_WEIGHTS: usize = 1 << 20;

/// A convolution by Winograd's algorithm.
pub(crate) struct Winograd {
    input: Slot,
    output: Slot,
    y: Axis,
    x: Axis,
    time: Time,
    /// `[spatial point][temporal point]`, each packed in panels.
    weights: Buffer,
    epilogue: Epilogue,
    /// Tiles of a group.
    group: usize,
    /// Whether a group belongs to one thread.
    private: bool,
}

/// Tiles `begin..end`, counted over clips, and where their `V` is.
#[derive(Clone, Copy)]
struct Group {
    begin: usize,
    end: usize,
    v: *mut f32,
}

impl Winograd {
    /// Whether the algorithm serves a convolution.
    pub(crate) fn serves(window: &Window) -> bool {
        let Window { kernel, stride, padding, padding_after } = *window;
        stride == [1; 3]
            && padding == padding_after
            && matches!((kernel, padding), ([3, 3, 3], [1, 1, 1]) | ([1, 3, 3], [0, 1, 1]))
    }

    /// Multiplications of one clip and floats of transformed weights, for tiles of `tile` (2 or 4) outputs a side.
    pub(crate) fn cost(shape: Shape, channels: [usize; 2], kt: usize, tile: usize) -> (usize, usize) {
        let (y, x, time) = (Axis::new(shape.h, tile), Axis::new(shape.w, tile), Time::new(kt, shape.t));
        let [ic, oc] = channels;
        let products = y.products() * x.products() * time.products() * ic * oc;
        (products, y.points() * x.points() * time.points() * ic * oc)
    }

    /// Without weights, which [`pack`](Operator::pack) brings. `tile` is 2 or 4; groups are sized for `max_batch` clips and
    /// `threads`.
    pub(crate) fn new(
        input: Slot,
        output: Slot,
        kt: usize,
        tile: usize,
        epilogue: Epilogue,
        max_batch: usize,
        threads: usize,
    ) -> Self {
        let Shape { t, h, w, .. } = output.shape;
        let (y, x, time) = (Axis::new(h, tile), Axis::new(w, tile), Time::new(kt, t));
        let (_, weight_len) = Self::cost(output.shape, [input.shape.cp(), output.shape.cp()], kt, tile);
        let tile_floats = y.points() * x.points() * t * input.shape.cp().max(output.shape.cp());
        let all_tiles = max_batch * y.tiles() * x.tiles();
        let private_len = PRIVATE_GROUP.max(second_level_cache() / 4 * 3) / size_of::<f32>();
        // At least two groups a thread, or the last ones leave threads idle.
        let private_tiles = (private_len / tile_floats).min(all_tiles / (2 * threads));
        let private = weight_len <= PRIVATE_WEIGHTS && private_tiles >= 4;
        let group = if private { private_tiles } else { (SHARED_GROUP / tile_floats).max(8) }.min(all_tiles);
        Self { input, output, y, x, time, weights: Buffer::zeroed(0), epilogue, group, private }
    }

    /// Floats of `V` between two spatial points. An odd number of cache lines: with a power of two the points of one
    /// channel would all compete for the same few lines of the first-level cache.
    fn point_stride(&self) -> usize {
        let lines = self.group * self.output.shape.t * self.input.shape.cp().max(self.output.shape.cp()) / 16;
        (lines | 1) * 16
    }

    fn v_len(&self) -> usize {
        self.y.points() * self.x.points() * self.point_stride()
    }

    fn product_len(&self) -> usize {
        self.time.scratch_len(self.group, self.input.shape.cp(), self.output.shape.cp()).next_multiple_of(16)
    }

    /// Tiles before `tile` that have point (`qy`, `qx`), counted over clips.
    #[inline(always)]
    fn tiles_before(&self, tile: usize, qy: usize, qx: usize) -> usize {
        let (rows, columns) = (self.y.tiles_with(qy), self.x.tiles_with(qx));
        let (clip, ty, tx) = self.tile_at(tile);
        let in_row = if ty < rows { tx.min(columns) } else { 0 };
        (clip * rows + ty.min(rows)) * columns + in_row
    }

    /// Clip, row and column of a tile.
    #[inline(always)]
    fn tile_at(&self, tile: usize) -> (usize, usize, usize) {
        let (rows, columns) = (self.y.tiles(), self.x.tiles());
        (tile / columns / rows, tile / columns % rows, tile % columns)
    }

    /// Tiles of a group that have point (`qy`, `qx`).
    #[inline(always)]
    fn rows(&self, group: &Group, qy: usize, qx: usize) -> usize {
        self.tiles_before(group.end, qy, qx) - self.tiles_before(group.begin, qy, qx)
    }
}

impl Operator for Winograd {
    fn scratch_len(&self, threads: usize) -> usize {
        if self.private {
            threads * (self.v_len() + self.product_len())
        } else {
            self.v_len() + threads * self.product_len()
        }
    }

    fn pack(&mut self, weight: &[f32], lanes: usize, team: &mut Team) {
        let channels = [self.output.shape.c, self.input.shape.c];
        let kt = weight.len() / (9 * channels[0] * channels[1]);
        let points = [self.y.points(), self.x.points()];
        self.weights = weights::transform(weight, channels, kt, points, self.time, lanes, team);
    }

    fn weight_len(&self) -> usize {
        let points = self.y.points() * self.x.points() * self.time.points();
        points * self.input.shape.cp() * self.output.shape.cp()
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(&self, context: &Context) {
        let member = context.member;
        let tiles = context.batch * self.y.tiles() * self.x.tiles();
        let mut groups = tiles.div_ceil(self.group);
        if self.private {
            // As many a thread.
            groups = groups.next_multiple_of(member.threads()).min(tiles);
        }
        // Balanced: no short group at the end.
        let group_at =
            |index: usize, v: *mut f32| Group { begin: tiles * index / groups, end: tiles * (index + 1) / groups, v };
        let t = self.output.shape.t;
        let points = self.y.points() * self.x.points();
        if self.private {
            let own = context.scratch.at(member.index() * (self.v_len() + self.product_len()));
            let scratch = own.add(self.v_len());
            member.share(groups, |index| {
                let group = group_at(index, own);
                let end = (group.end - group.begin) * t;
                S::call(Transform { layer: self, context, group, phase: Phase::Data, begin: 0, end });
                for point in 0..points {
                    S::call(PointProducts { layer: self, group, point, scratch });
                }
                S::call(Transform { layer: self, context, group, phase: Phase::Inverse, begin: 0, end });
            });
            return;
        }
        let scratch = context.scratch.at(self.v_len() + member.index() * self.product_len());
        for index in 0..groups {
            let group = group_at(index, context.scratch.at(0));
            let count = (group.end - group.begin) * t;
            let chunks = count.min(4 * member.threads());
            let transform = |phase| {
                member.share(chunks, |chunk| {
                    let (begin, end) = (count * chunk / chunks, count * (chunk + 1) / chunks);
                    S::call(Transform { layer: self, context, group, phase, begin, end });
                });
                member.barrier();
            };
            transform(Phase::Data);
            member.share(points, |point| S::call(PointProducts { layer: self, group, point, scratch }));
            member.barrier();
            // The barrier after it keeps the next group's data transform from overwriting V.
            transform(Phase::Inverse);
        }
    }
}
