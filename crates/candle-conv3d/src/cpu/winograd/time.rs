//! The temporal half of the algorithm, between the spatial transforms.

use super::super::microkernel::Gemm;
use super::super::simd::Simd;
use super::transform::{Axis, POINTS, data, inverse};

/// How the temporal taps meet the frames.
#[derive(Clone, Copy, Debug)]
pub(super) enum Time {
    /// One tap meets data: a kernel of one frame, or a single frame between padding.
    Single { tap: usize, frames: usize },
    /// Two frames between padding, exactly, in three products: with P = k1 (x0 + x1), the results are
    /// y0 = P + (k2 - k1) x1 and y1 = P + (k0 - k1) x0.
    Pair,
    /// Tiles of four frames and one of the rest.
    Tiles(Axis),
}

impl Time {
    /// For a kernel of `kt` (1, or 3 with padding 1) frames on `frames` frames.
    pub(super) fn new(kt: usize, frames: usize) -> Self {
        match (kt, frames) {
            (1, _) => Self::Single { tap: 0, frames },
            (_, 1) => Self::Single { tap: 1, frames },
            (_, 2) => Self::Pair,
            _ => Self::Tiles(Axis::new(frames, 4)),
        }
    }

    /// Sets of transformed weights.
    pub(super) fn points(&self) -> usize {
        match self {
            Self::Single { .. } => 1,
            Self::Pair => 3,
            Self::Tiles(axis) => axis.points(),
        }
    }

    /// Products a spatial point.
    pub(super) fn products(&self) -> usize {
        match self {
            Self::Single { frames, .. } => *frames,
            Self::Pair => 3,
            Self::Tiles(axis) => axis.products(),
        }
    }

    /// The weights of each point from the taps'.
    pub(super) fn weights(&self, taps: &[f64]) -> [f64; POINTS] {
        match (self, taps) {
            (Self::Tiles(_), &[k0, k1, k2]) => super::transform::weights([k0, k1, k2]),
            (Self::Pair, &[k0, k1, k2]) => [k1, k2 - k1, k0 - k1, 0.0, 0.0, 0.0],
            (Self::Single { tap, .. }, taps) => [taps[*tap], 0.0, 0.0, 0.0, 0.0, 0.0],
            (_, taps) => unreachable!("{} temporal taps", taps.len()),
        }
    }

    /// Floats of scratch that [`multiply`](Self::multiply) needs.
    pub(super) fn scratch_len(&self, rows: usize, k: usize, columns: usize) -> usize {
        match self {
            Self::Single { frames, .. } => rows * frames * columns,
            Self::Pair => rows * (k + 3 * columns),
            Self::Tiles(axis) => rows * axis.points() * axis.tiles() * (k + columns),
        }
    }

    /// Transforms `v`, `[t][rows][k]`, in time, multiplies it by the weights, `[point]` packed `k x columns`, and leaves
    /// the convolution in time in `v`, `[t][rows][columns]`.
    ///
    /// # Safety
    /// `v` has room for the larger of the two, `weights` for all points, `scratch` for
    /// [`scratch_len`](Self::scratch_len); no other thread uses `v` and `scratch` meanwhile. `rows > 0`.
    #[inline(always)]
    pub(super) unsafe fn multiply<S: Simd>(
        &self,
        v: *mut f32,
        rows: usize,
        weights: *const f32,
        k: usize,
        columns: usize,
        scratch: *mut f32,
    ) {
        let product = |a: *const f32, rows: usize, point: usize, c: *mut f32| {
            let b = weights.add(point * k * columns);
            S::call(Gemm { a, lda: k, rows, k, b, columns, c, ldc: columns });
        };
        let (from, to) = (rows * k, rows * columns);
        match *self {
            Self::Single { frames, .. } => {
                product(v, frames * rows, 0, scratch);
                std::ptr::copy_nonoverlapping(scratch, v, frames * to);
            }
            Self::Pair => {
                let (sum, products) = (scratch, scratch.add(from));
                for i in (0..from).step_by(S::LANES) {
                    S::store(sum.add(i), S::add(S::load(v.add(i)), S::load(v.add(from + i))));
                }
                product(sum, rows, 0, products);
                product(v.add(from), rows, 1, products.add(to));
                product(v, rows, 2, products.add(2 * to));
                for i in (0..to).step_by(S::LANES) {
                    let shared = S::load(products.add(i));
                    S::store(v.add(i), S::add(shared, S::load(products.add(to + i))));
                    S::store(v.add(to + i), S::add(shared, S::load(products.add(2 * to + i))));
                }
            }
            Self::Tiles(axis) => {
                let tiles = axis.tiles();
                let products = scratch.add(axis.points() * tiles * from);
                for tile in 0..tiles {
                    let (first, len) = axis.tile(tile);
                    let ends = (first == 0, first + len == axis.len);
                    let (read, write) = (v.add(first * from), scratch.add(tile * from));
                    match len {
                        4 => transform_frames::<S, 4>(read, ends, from, write, tiles * from),
                        3 => transform_frames::<S, 3>(read, ends, from, write, tiles * from),
                        2 => transform_frames::<S, 2>(read, ends, from, write, tiles * from),
                        _ => transform_frames::<S, 1>(read, ends, from, write, tiles * from),
                    }
                }
                for point in 0..axis.points() {
                    let count = axis.tiles_with(point) * rows;
                    product(scratch.add(point * tiles * from), count, point, products.add(point * tiles * to));
                }
                for tile in 0..tiles {
                    let (first, len) = axis.tile(tile);
                    let (read, write) = (products.add(tile * to), v.add(first * to));
                    match len {
                        4 => inverse_frames::<S, 4>(read, tiles * to, write, to),
                        3 => inverse_frames::<S, 3>(read, tiles * to, write, to),
                        2 => inverse_frames::<S, 2>(read, tiles * to, write, to),
                        _ => inverse_frames::<S, 1>(read, tiles * to, write, to),
                    }
                }
            }
        }
    }
}

/// Data transform of a tile of `M` frames of `len` floats each: frame `i` of the tile is at `frames + i * len`, point
/// `p` goes to `points + p * stride`. `ends` says whether the tile begins and ends at padding.
#[inline(always)]
unsafe fn transform_frames<S: Simd, const M: usize>(
    frames: *const f32,
    ends: (bool, bool),
    len: usize,
    points: *mut f32,
    stride: usize,
) {
    let before = frames.wrapping_sub(len);
    for i in (0..len).step_by(S::LANES) {
        let mut d = [S::splat(0.0); POINTS];
        if !ends.0 {
            d[0] = S::load(before.wrapping_add(i));
        }
        for frame in 0..M {
            d[frame + 1] = S::load(frames.add(frame * len + i));
        }
        if !ends.1 {
            d[M + 1] = S::load(frames.add(M * len + i));
        }
        let transformed = data::<S, M>(&d);
        for point in 0..M + 2 {
            S::store(points.add(point * stride + i), transformed[point]);
        }
    }
}

/// Inverse transform of a tile of `M` frames of `len` floats each.
#[inline(always)]
unsafe fn inverse_frames<S: Simd, const M: usize>(points: *const f32, stride: usize, frames: *mut f32, len: usize) {
    for i in (0..len).step_by(S::LANES) {
        let mut p = [S::splat(0.0); POINTS];
        for point in 0..M + 2 {
            p[point] = S::load(points.add(point * stride + i));
        }
        let results = inverse::<S, M>(&p);
        for frame in 0..M {
            S::store(frames.add(frame * len + i), results[frame]);
        }
    }
}
