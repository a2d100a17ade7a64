//! The three phases of a group of tiles.

use super::super::Shape;
use super::super::program::Context;
use super::super::simd::{Kernel, Simd, prefetch, prefetch_early, prefetch_to_write};
use super::transform::{POINTS, data, inverse};
use super::{Group, Winograd};

/// Calls a function generic over the sizes (1 to 4) of a tile's two sides.
macro_rules! for_tile {
    ($my:expr, $mx:expr, $S:ident, $self:ident . $function:ident ($($argument:expr),*)) => {
        match ($my, $mx) {
            (4, 4) => $self.$function::<$S, 4, 4>($($argument),*),
            (4, 3) => $self.$function::<$S, 4, 3>($($argument),*),
            (4, 2) => $self.$function::<$S, 4, 2>($($argument),*),
            (4, 1) => $self.$function::<$S, 4, 1>($($argument),*),
            (3, 4) => $self.$function::<$S, 3, 4>($($argument),*),
            (3, 3) => $self.$function::<$S, 3, 3>($($argument),*),
            (3, 2) => $self.$function::<$S, 3, 2>($($argument),*),
            (3, 1) => $self.$function::<$S, 3, 1>($($argument),*),
            (2, 4) => $self.$function::<$S, 2, 4>($($argument),*),
            (2, 3) => $self.$function::<$S, 2, 3>($($argument),*),
            (2, 2) => $self.$function::<$S, 2, 2>($($argument),*),
            (2, 1) => $self.$function::<$S, 2, 1>($($argument),*),
            (1, 4) => $self.$function::<$S, 1, 4>($($argument),*),
            (1, 3) => $self.$function::<$S, 1, 3>($($argument),*),
            (1, 2) => $self.$function::<$S, 1, 2>($($argument),*),
            (1, 1) => $self.$function::<$S, 1, 1>($($argument),*),
            sides => unreachable!("a tile of {sides:?} outputs"),
        }
    };
}

/// A spatial transform.
#[derive(Clone, Copy)]
pub(super) enum Phase {
    /// From the input to `V`.
    Data,
    /// From `V` to the output.
    Inverse,
}

/// A spatial transform of the items `begin..end` of a group: frame after frame, and each tile by tile, so that the rows
/// of the maps and the points of `V` are walked in the order they are stored in. Of the maps the next tile is asked for,
/// and in a private group, which is small, this tile of the next frame.
#[derive(Clone, Copy)]
pub(super) struct Transform<'a> {
    pub(super) layer: &'a Winograd,
    pub(super) context: &'a Context<'a>,
    pub(super) group: Group,
    pub(super) phase: Phase,
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// One tile in one frame.
#[derive(Clone, Copy)]
struct Place {
    clip: usize,
    t: usize,
    /// First row and column.
    y: usize,
    x: usize,
    /// Rows of `V` before this one at each kind of point.
    rows: Kinds,
}

/// Of the points along y and x: those that all tiles have, and those that the last one lacks.
type Kinds = [[usize; 2]; 2];

impl Kernel for Transform<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { layer, group, .. } = self;
        let first_lacking = [layer.y.points_of_last(), layer.x.points_of_last()];
        let before = |tile| {
            let kinds = |qy, qx| layer.tiles_before(tile, qy, qx);
            [
                [kinds(0, 0), kinds(0, first_lacking[1])],
                [kinds(first_lacking[0], 0), kinds(first_lacking[0], first_lacking[1])],
            ]
        };
        let (begin, end) = (before(group.begin), before(group.end));
        let tiles = group.end - group.begin;
        let (mut index, mut t) = (group.begin + self.begin % tiles, self.begin / tiles);
        for _ in self.begin..self.end {
            let (clip, ty, tx) = layer.tile_at(index);
            let ((y, my), (x, mx)) = (layer.y.tile(ty), layer.x.tile(tx));
            let own = before(index);
            let rows = std::array::from_fn(|ky| {
                std::array::from_fn(|kx| t * (end[ky][kx] - begin[ky][kx]) + own[ky][kx] - begin[ky][kx])
            });
            let place = Place { clip, t, y, x, rows };
            match self.phase {
                Phase::Data => for_tile!(my, mx, S, self.data(place)),
                Phase::Inverse => for_tile!(my, mx, S, self.inverse(place)),
            }
            index += 1;
            if index == group.end {
                (index, t) = (group.begin, t + 1);
            }
        }
    }
}

impl Transform<'_> {
    #[inline(always)]
    unsafe fn data<S: Simd, const MY: usize, const MX: usize>(self, place: Place) {
        let layer = self.layer;
        let Shape { h, w, .. } = layer.input.shape;
        let cp = layer.input.shape.cp();
        let Place { clip, t, y, x, .. } = place;
        // Tiles end where the map ends, so only the outermost inputs can be padding.
        let (top, bottom) = (y == 0, y + MY == h);
        let (left, right) = (x == 0, x + MX == w);
        let to = self.addresses(place, cp, [MY + 2, MX + 2]);
        let clip = self.context.arena.at(layer.input.offset + clip * layer.input.clip_len).cast_const();
        // Above and left of the map at the first tiles: never read there.
        let from = clip.wrapping_add((t * h + y) * w * cp + x * cp).wrapping_sub((w + 1) * cp);
        let zero = S::splat(0.0);
        for c in (0..cp).step_by(S::LANES) {
            let mut rows = [[zero; POINTS]; POINTS];
            for dy in 0..MY + 2 {
                if (dy == 0 && top) || (dy == MY + 1 && bottom) {
                    continue;
                }
                let mut d = [zero; POINTS];
                let row = from.wrapping_add(dy * w * cp + c);
                for dx in 2..MX + 2 {
                    prefetch(row.wrapping_add((MX + dx) * cp));
                    if layer.private {
                        prefetch_early(row.wrapping_add((h * w + dx) * cp));
                    }
                }
                if !left {
                    d[0] = S::load(row);
                }
                for (dx, value) in d[..MX + 1].iter_mut().enumerate().skip(1) {
                    *value = S::load(row.wrapping_add(dx * cp));
                }
                if !right {
                    d[MX + 1] = S::load(row.wrapping_add((MX + 1) * cp));
                }
                let points = data::<S, MX>(&d);
                for qx in 0..MX + 2 {
                    rows[qx][dy] = points[qx];
                }
            }
            for qx in 0..MX + 2 {
                let points = data::<S, MY>(&rows[qx]);
                for qy in 0..MY + 2 {
                    prefetch_to_write(to[qy][qx].wrapping_add(cp + c));
                    S::store(to[qy][qx].add(c), points[qy]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn inverse<S: Simd, const MY: usize, const MX: usize>(self, place: Place) {
        let layer = self.layer;
        let Shape { h, w, .. } = layer.output.shape;
        let cp = layer.output.shape.cp();
        let Place { clip, t, y, x, .. } = place;
        let from = self.addresses(place, cp, [MY + 2, MX + 2]);
        let to = self.context.arena.at(layer.output.offset + clip * layer.output.clip_len + ((t * h + y) * w + x) * cp);
        let mut residuals = [[std::ptr::null(); MX]; MY];
        for (oy, row) in residuals.iter_mut().enumerate() {
            for (ox, residual) in row.iter_mut().enumerate() {
                *residual = layer.epilogue.residual_at(self.context, clip, t, y + oy, x + ox);
            }
        }
        let zero = S::splat(0.0);
        for c in (0..cp).step_by(S::LANES) {
            let mut rows = [[zero; POINTS]; 4];
            for qx in 0..MX + 2 {
                let mut points = [zero; POINTS];
                for qy in 0..MY + 2 {
                    prefetch(from[qy][qx].wrapping_add(cp + c));
                    points[qy] = S::load(from[qy][qx].add(c));
                }
                let results = inverse::<S, MY>(&points);
                for oy in 0..MY {
                    rows[oy][qx] = results[oy];
                }
            }
            for oy in 0..MY {
                let results = inverse::<S, MX>(&rows[oy]);
                for ox in 0..MX {
                    prefetch_to_write(to.wrapping_add((oy * w + ox + MX) * cp + c));
                    if layer.private {
                        prefetch_early(to.wrapping_add(((h + oy) * w + ox) * cp + c));
                    }
                    prefetch(residuals[oy][ox].wrapping_add(MX * cp + c));
                    layer.epilogue.finish::<S>(results[ox], to.add((oy * w + ox) * cp), residuals[oy][ox], c);
                }
            }
        }
    }

    /// Addresses in `V` of a place at each spatial point, for `channels` stored channels.
    #[inline(always)]
    unsafe fn addresses(&self, place: Place, channels: usize, points: [usize; 2]) -> [[*mut f32; POINTS]; POINTS] {
        let layer = self.layer;
        let (last_y, last_x) = (layer.y.points_of_last(), layer.x.points_of_last());
        let mut addresses = [[std::ptr::null_mut(); POINTS]; POINTS];
        for (qy, row) in addresses.iter_mut().enumerate().take(points[0]) {
            for (qx, address) in row.iter_mut().enumerate().take(points[1]) {
                let rows = place.rows[usize::from(qy >= last_y)][usize::from(qx >= last_x)];
                let point = qy * layer.x.points() + qx;
                *address = self.group.v.add(point * layer.point_stride() + rows * channels);
            }
        }
        addresses
    }
}

/// Phase 2 of one spatial point.
#[derive(Clone, Copy)]
pub(super) struct PointProducts<'a> {
    pub(super) layer: &'a Winograd,
    pub(super) group: Group,
    pub(super) point: usize,
    /// `product_len` floats of this thread.
    pub(super) scratch: *mut f32,
}

impl Kernel for PointProducts<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let layer = self.layer;
        let (k, columns) = (layer.input.shape.cp(), layer.output.shape.cp());
        let (qy, qx) = (self.point / layer.x.points(), self.point % layer.x.points());
        let rows = layer.rows(&self.group, qy, qx);
        if rows == 0 {
            return;
        }
        let v = self.group.v.add(self.point * layer.point_stride());
        let weights = layer.weights.as_ptr().add(self.point * layer.time.points() * k * columns);
        layer.time.multiply::<S>(v, rows, weights, k, columns, self.scratch);
    }
}
