//! The matrix product of a spatial point, its inner dimension in runs that lie apart.

use super::super::microkernel::{accumulate, for_rows, panels, row_blocks};
use super::super::simd::{Kernel, PANEL_VECTORS, Simd};

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
            for (row, rows) in row_blocks(self.rows, S::MAX_ROWS) {
                let a = self.a.add(row * self.lda);
                let c = self.c.add(row * self.columns + column);
                if width == PANEL_VECTORS * S::LANES {
                    for_rows!(S, rows, block, 2, (&self, a, b, c));
                } else {
                    for_rows!(S, rows, block, 1, (&self, a, b, c));
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
) {
    let TapProduct { lda, tap_stride, taps, run, columns, .. } = *product;
    let mut acc = [[S::splat(0.0); NV]; MR];
    for tap in 0..taps {
        let mut rows = [a; MR];
        for (row, pointer) in rows.iter_mut().enumerate() {
            *pointer = a.add(tap * tap_stride + row * lda);
        }
        accumulate::<S, MR, NV>(&mut acc, &rows, b.add(tap * run * NV * S::LANES), run);
    }
    for (row, sums) in acc.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            S::store(c.add(row * columns + v * S::LANES), sum);
        }
    }
}
