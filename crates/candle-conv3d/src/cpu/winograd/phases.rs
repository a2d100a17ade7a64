//! The three phases of a group of tiles.

use super::super::Shape;
use super::super::program::Context;
use super::super::simd::{Kernel, Simd};
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

/// Phase 1 of one tile, frames `frames.0..frames.1`.
#[derive(Clone, Copy)]
pub(super) struct DataTransform<'a> {
    pub(super) layer: &'a Winograd,
    pub(super) context: &'a Context<'a>,
    pub(super) group: Group,
    pub(super) tile: usize,
    pub(super) frames: (usize, usize),
}

impl Kernel for DataTransform<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (_, ty, tx) = self.layer.tile_at(self.tile);
        let (my, mx) = (self.layer.y.tile(ty).1, self.layer.x.tile(tx).1);
        for_tile!(my, mx, S, self.transform());
    }
}

impl DataTransform<'_> {
    #[inline(always)]
    unsafe fn transform<S: Simd, const MY: usize, const MX: usize>(self) {
        let layer = self.layer;
        let Shape { h, w, .. } = layer.input.shape;
        let cp = layer.input.shape.cp();
        let (clip, ty, tx) = layer.tile_at(self.tile);
        let (y, x) = (layer.y.tile(ty).0, layer.x.tile(tx).0);
        // Tiles end where the map ends, so only the outermost inputs can be padding.
        let (top, bottom) = (y == 0, y + MY == h);
        let (left, right) = (x == 0, x + MX == w);
        let clip = self.context.arena.at(layer.input.offset + clip * layer.input.clip_len).cast_const();
        let zero = S::splat(0.0);
        for t in self.frames.0..self.frames.1 {
            let to = layer.addresses(&self.group, self.tile, t, cp, [MY + 2, MX + 2]);
            // Above and left of the map at the first tiles: never read there.
            let from = clip.wrapping_add((t * h + y) * w * cp + x * cp).wrapping_sub((w + 1) * cp);
            for c in (0..cp).step_by(S::LANES) {
                let mut rows = [[zero; POINTS]; POINTS];
                for dy in 0..MY + 2 {
                    if (dy == 0 && top) || (dy == MY + 1 && bottom) {
                        continue;
                    }
                    let mut d = [zero; POINTS];
                    let row = from.wrapping_add(dy * w * cp + c);
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
                        S::store(to[qy][qx].add(c), points[qy]);
                    }
                }
            }
        }
    }
}

impl Winograd {
    /// Addresses in `V` of one tile and frame at each spatial point, for `channels` stored channels.
    #[inline(always)]
    unsafe fn addresses(
        &self,
        group: &Group,
        tile: usize,
        t: usize,
        channels: usize,
        points: [usize; 2],
    ) -> [[*mut f32; POINTS]; POINTS] {
        let mut addresses = [[std::ptr::null_mut(); POINTS]; POINTS];
        // Only two kinds of points differ along each axis: those that the last tile has, and the others.
        for (qy, row) in addresses.iter_mut().enumerate().take(points[0]) {
            for (qx, address) in row.iter_mut().enumerate().take(points[1]) {
                let before = self.tiles_before(group.begin, qy, qx);
                let position = self.tiles_before(tile, qy, qx) - before;
                let rows = self.tiles_before(group.end, qy, qx) - before;
                let point = qy * self.x.points() + qx;
                *address = group.v.add(point * self.point_stride() + (t * rows + position) * channels);
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

/// Phase 3 of one tile, frames `frames.0..frames.1`.
#[derive(Clone, Copy)]
pub(super) struct InverseTransform<'a> {
    pub(super) layer: &'a Winograd,
    pub(super) context: &'a Context<'a>,
    pub(super) group: Group,
    pub(super) tile: usize,
    pub(super) frames: (usize, usize),
}

impl Kernel for InverseTransform<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (_, ty, tx) = self.layer.tile_at(self.tile);
        let (my, mx) = (self.layer.y.tile(ty).1, self.layer.x.tile(tx).1);
        for_tile!(my, mx, S, self.transform());
    }
}

impl InverseTransform<'_> {
    #[inline(always)]
    unsafe fn transform<S: Simd, const MY: usize, const MX: usize>(self) {
        let layer = self.layer;
        let Shape { h, w, .. } = layer.output.shape;
        let cp = layer.output.shape.cp();
        let (clip, ty, tx) = layer.tile_at(self.tile);
        let (y, x) = (layer.y.tile(ty).0, layer.x.tile(tx).0);
        let to = self.context.arena.at(layer.output.offset + clip * layer.output.clip_len);
        let zero = S::splat(0.0);
        for t in self.frames.0..self.frames.1 {
            let from = layer.addresses(&self.group, self.tile, t, cp, [MY + 2, MX + 2]);
            let mut residuals = [[std::ptr::null(); MX]; MY];
            for (oy, row) in residuals.iter_mut().enumerate() {
                for (ox, residual) in row.iter_mut().enumerate() {
                    *residual = layer.epilogue.residual_at(self.context, clip, t, y + oy, x + ox);
                }
            }
            for c in (0..cp).step_by(S::LANES) {
                let mut rows = [[zero; POINTS]; 4];
                for qx in 0..MX + 2 {
                    let mut points = [zero; POINTS];
                    for qy in 0..MY + 2 {
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
                        let result = to.add(((t * h + y + oy) * w + x + ox) * cp);
                        layer.epilogue.finish::<S>(results[ox], result, residuals[oy][ox], c);
                    }
                }
            }
        }
    }
}
