//! The matrix products of a spatial point, their inner dimension in runs that lie apart.

use super::super::CHANNEL_BLOCK;
use super::super::microkernel::{Ahead, accumulate, for_rows, panels, row_blocks};
use super::super::simd::{Kernel, PANEL_VECTORS, Simd};
use super::time::Time;
use super::transform::{POINTS, inverse};

/// `c = sum over taps of a[tap] * b[tap]`: row `r` of `a[tap]` is the `run` floats at `a + tap * tap_stride + r * lda`.
///
/// # Safety
/// To run it the pointers must have these extents, and no other thread may use `c` meanwhile.
#[derive(Clone, Copy)]
pub(super) struct TapProduct {
    pub(super) a: *const f32,
    pub(super) lda: usize,
    pub(super) tap_stride: usize,
    pub(super) rows: usize,
    pub(super) taps: usize,
    pub(super) run: usize,
    /// Packed for `columns` columns and `all_taps * run` rows; the product begins at tap `first_tap`.
    pub(super) b: *const f32,
    pub(super) all_taps: usize,
    pub(super) first_tap: usize,
    pub(super) columns: usize,
    /// `rows x columns`.
    pub(super) c: *mut f32,
}

impl Kernel for TapProduct {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (column, width) in panels(self.columns, S::LANES) {
            let b = self.b.add((column * self.all_taps + self.first_tap * width) * self.run);
            let mut ahead = Ahead::new::<S>(b.wrapping_add(2 * self.taps * self.run * width), width, self.rows);
            for (row, rows) in row_blocks(self.rows, S::MAX_ROWS) {
                let a = self.a.add(row * self.lda);
                let c = self.c.add(row * self.columns + column);
                if width == PANEL_VECTORS * S::LANES {
                    for_rows!(S, rows, block, 2, (&self, a, b, c, &mut ahead));
                } else {
                    for_rows!(S, rows, block, 1, (&self, a, b, c, &mut ahead));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn block<S: Simd, const MR: usize, const NV: usize>(
    product: &TapProduct,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    ahead: &mut Ahead,
) {
    let TapProduct { lda, tap_stride, taps, run, columns, .. } = *product;
    let acc = sum_taps::<S, MR, NV>(a, lda, tap_stride, taps, run, b, ahead);
    for (row, sums) in acc.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            S::store(c.add(row * columns + v * S::LANES), sum);
        }
    }
}

/// The products at the points of one temporal tile, and their inverse transform.
///
/// The products of one register block at a time wait for it in `products`, in the first-level cache: written out, they
/// are nearly twice the results.
///
/// # Safety
/// To run it the pointers must have these extents, and no other thread may use `c` and `products` meanwhile.
#[derive(Clone, Copy)]
pub(super) struct TileProducts<'a> {
    pub(super) time: &'a Time,
    /// Row `r` of tap `tap` is the `run` floats at `a + tap * tap_stride + r * CHANNEL_BLOCK`.
    pub(super) a: *const f32,
    pub(super) tap_stride: usize,
    pub(super) rows: usize,
    pub(super) run: usize,
    /// Packed for `columns` columns and as many rows as all points together have.
    pub(super) b: *const f32,
    pub(super) columns: usize,
    /// [`PRODUCTS`] floats.
    pub(super) products: *mut f32,
    /// `[frame][rows][columns]`
    pub(super) c: *mut f32,
    /// Frames of the tile, at most [`TILE`].
    pub(super) frames: usize,
}

/// Floats of the largest register block at every point.
pub(super) const PRODUCTS: usize = POINTS * 12 * PANEL_VECTORS * 16;

impl Kernel for TileProducts<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let k = self.time.weight_taps() * self.run;
        for (column, width) in panels(self.columns, S::LANES) {
            let b = self.b.add(column * k);
            let mut ahead = Ahead::new::<S>(b.wrapping_add(2 * k * width), width, self.rows);
            for (row, rows) in row_blocks(self.rows, S::MAX_ROWS) {
                if width == PANEL_VECTORS * S::LANES {
                    for_rows!(S, rows, tile_block, 2, (&self, row, column, b, &mut ahead));
                } else {
                    for_rows!(S, rows, tile_block, 1, (&self, row, column, b, &mut ahead));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile_block<S: Simd, const MR: usize, const NV: usize>(
    tile: &TileProducts,
    row: usize,
    column: usize,
    b: *const f32,
    ahead: &mut Ahead,
) {
    const { assert!(POINTS * MR * NV * S::LANES <= PRODUCTS) };
    let TileProducts { a, tap_stride, run, columns, products, .. } = *tile;
    let a = a.add(row * CHANNEL_BLOCK);
    let (mut tap, mut points) = (0, 0);
    for taps in tile.time.sets() {
        let b = b.add(tap * run * NV * S::LANES);
        let acc = sum_taps::<S, MR, NV>(a.add(tap * tap_stride), CHANNEL_BLOCK, tap_stride, taps, run, b, ahead);
        for (i, &sum) in acc.as_flattened().iter().enumerate() {
            S::store(products.add((points * MR * NV + i) * S::LANES), sum);
        }
        tap += taps;
        points += 1;
    }
    let c = tile.c.add(row * columns + column);
    for i in 0..MR * NV {
        let mut p = [S::splat(0.0); POINTS];
        for (point, p) in p.iter_mut().enumerate().take(points) {
            *p = S::load(products.add((point * MR * NV + i) * S::LANES));
        }
        for (frame, &result) in inverse::<S>(&p).iter().enumerate().take(tile.frames) {
            S::store(c.add((frame * tile.rows + i / NV) * columns + i % NV * S::LANES), result);
        }
    }
}

/// The sum over taps of a register block: row `r` of tap `t` is the `run` floats at `a + t * tap_stride + r * lda`, `b`
/// a panel of `NV` vectors.
#[inline(always)]
unsafe fn sum_taps<S: Simd, const MR: usize, const NV: usize>(
    a: *const f32,
    lda: usize,
    tap_stride: usize,
    taps: usize,
    run: usize,
    b: *const f32,
    ahead: &mut Ahead,
) -> [[S::V; NV]; MR] {
    let mut acc = [[S::splat(0.0); NV]; MR];
    for tap in 0..taps {
        let mut rows = [a; MR];
        for (row, pointer) in rows.iter_mut().enumerate() {
            *pointer = a.add(tap * tap_stride + row * lda);
        }
        accumulate::<S, MR, NV>(&mut acc, &rows, b.add(tap * run * NV * S::LANES), run, ahead);
    }
    acc
}
