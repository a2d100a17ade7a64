//! Register blocks: the inner loops of every matrix product.
//!
//! Weights are packed in panels of [`PANEL_VECTORS`] vectors: panel after panel, `k` rows of one panel's columns each.
//! The columns are a multiple of [`CHANNEL_BLOCK`](super::CHANNEL_BLOCK); with 16 lanes the last panel may be half as
//! wide. Whatever the block size, each result is summed over `k` in order by one chain of fused multiply-adds, so it
//! does not depend, to the last bit, on which rows share a block.

use super::simd::{Kernel, PANEL_VECTORS, Simd, prefetch_early};

/// Rows of `k` handled at once in [`Gemm`]: a panel of them, 16 or 32 KiB, stays in the first-level cache.
const K_BLOCK: usize = 256;

/// First column and width of every panel of `columns` columns for vectors of `lanes`. The packed panel begins at
/// `first column * k` floats.
pub(crate) fn panels(columns: usize, lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    let width = PANEL_VECTORS * lanes;
    (0..columns).step_by(width).map(move |first| (first, width.min(columns - first)))
}

/// Where element (`k`, `column`) stands in a matrix packed for vectors of `lanes`.
pub(crate) fn packed_index(k_len: usize, columns: usize, lanes: usize, k: usize, column: usize) -> usize {
    let width = PANEL_VECTORS * lanes;
    let first = column / width * width;
    first * k_len + k * width.min(columns - first) + column - first
}

/// Splits `rows` into the fewest blocks of at most `max`, as equal as can be: `(first row, rows)`.
#[inline(always)]
pub(crate) fn row_blocks(rows: usize, max: usize) -> impl Iterator<Item = (usize, usize)> {
    let blocks = rows.div_ceil(max);
    let (base, longer) = (rows.checked_div(blocks).unwrap_or(0), rows.checked_rem(blocks).unwrap_or(0));
    let mut first = 0;
    (0..blocks).map(move |i| {
        let len = base + usize::from(i < longer);
        first += len;
        (first - len, len)
    })
}

/// Calls a function generic over the rows of a block, which are at most `S::MAX_ROWS`.
macro_rules! for_rows {
    ($S:ident, $rows:expr, $function:ident, $nv:expr, ($($argument:expr),*)) => {
        match $rows {
            1 => $function::<$S, 1, $nv>($($argument),*),
            2 => $function::<$S, 2, $nv>($($argument),*),
            3 => $function::<$S, 3, $nv>($($argument),*),
            4 if $S::MAX_ROWS >= 4 => $function::<$S, 4, $nv>($($argument),*),
            5 if $S::MAX_ROWS >= 5 => $function::<$S, 5, $nv>($($argument),*),
            6 if $S::MAX_ROWS >= 6 => $function::<$S, 6, $nv>($($argument),*),
            7 if $S::MAX_ROWS >= 7 => $function::<$S, 7, $nv>($($argument),*),
            8 if $S::MAX_ROWS >= 8 => $function::<$S, 8, $nv>($($argument),*),
            9 if $S::MAX_ROWS >= 9 => $function::<$S, 9, $nv>($($argument),*),
            10 if $S::MAX_ROWS >= 10 => $function::<$S, 10, $nv>($($argument),*),
            11 if $S::MAX_ROWS >= 11 => $function::<$S, 11, $nv>($($argument),*),
            12 if $S::MAX_ROWS >= 12 => $function::<$S, 12, $nv>($($argument),*),
            rows => unreachable!("a block of {rows} rows"),
        }
    };
}
pub(crate) use for_rows;

/// Weights that are used soon and asked for now: processors look ahead too little by themselves, and not beyond a page.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    next: *const f32,
    /// Floats for each row of `k` that is multiplied meanwhile.
    step: usize,
}

impl Ahead {
    /// Floats of a cache line.
    const LINE: usize = 16;

    /// The `width` columns of a panel from `next` on, in equal parts by each register block of `rows` rows.
    #[inline(always)]
    pub(crate) fn new<S: Simd>(next: *const f32, width: usize, rows: usize) -> Self {
        Self { next, step: width.div_ceil(rows.div_ceil(S::MAX_ROWS)) }
    }

    #[inline(always)]
    fn advance(&mut self) {
        prefetch_early(self.next);
        // A step is a panel's width at most: two lines.
        if self.step > Self::LINE {
            prefetch_early(self.next.wrapping_add(Self::LINE));
        }
        self.next = self.next.wrapping_add(self.step);
    }
}

/// `acc[i] += a[i][0..k] * b`, with `b` a panel of `NV` vectors.
///
/// # Safety
/// Every `a[i]` has `k` readable floats, `b` has `k * NV * LANES`.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Simd, const MR: usize, const NV: usize>(
    acc: &mut [[S::V; NV]; MR],
    a: &[*const f32; MR],
    b: *const f32,
    k: usize,
    ahead: &mut Ahead,
) {
    for step in 0..k {
        ahead.advance();
        let b = b.add(step * NV * S::LANES);
        let mut columns = [S::splat(0.0); NV];
        for (v, column) in columns.iter_mut().enumerate() {
            *column = S::load(b.add(v * S::LANES));
        }
        for (row, sums) in acc.iter_mut().enumerate() {
            let x = S::splat(*a[row].add(step));
            for (sum, &column) in sums.iter_mut().zip(&columns) {
                *sum = S::mul_add(x, column, *sum);
            }
        }
    }
}

/// `c = a * b`: `a` is `rows x k` with row distance `lda`, `b` packed for `columns`, `c` `rows x columns`, row
/// distance `ldc`.
///
/// # Safety
/// To run it the pointers must have these extents, and no other thread may use `c` meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Gemm {
    pub(crate) a: *const f32,
    pub(crate) lda: usize,
    pub(crate) rows: usize,
    pub(crate) k: usize,
    pub(crate) b: *const f32,
    pub(crate) columns: usize,
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
}

impl Kernel for Gemm {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (column, width) in panels(self.columns, S::LANES) {
            let panel = self.b.add(column * self.k);
            for k in (0..self.k).step_by(K_BLOCK) {
                let k_len = K_BLOCK.min(self.k - k);
                let b = panel.add(k * width);
                let mut ahead = Ahead::new::<S>(b.wrapping_add(2 * k_len * width), width, self.rows);
                for (row, rows) in row_blocks(self.rows, S::MAX_ROWS) {
                    let a = self.a.add(row * self.lda + k);
                    let c = self.c.add(row * self.ldc + column);
                    if width == PANEL_VECTORS * S::LANES {
                        for_rows!(S, rows, block, 2, (a, self.lda, k_len, b, c, self.ldc, k > 0, &mut ahead));
                    } else {
                        for_rows!(S, rows, block, 1, (a, self.lda, k_len, b, c, self.ldc, k > 0, &mut ahead));
                    }
                }
            }
        }
    }
}

/// One register block of [`Gemm`]; `add` continues sums already in `c`.
#[inline(always)]
unsafe fn block<S: Simd, const MR: usize, const NV: usize>(
    a: *const f32,
    lda: usize,
    k: usize,
    b: *const f32,
    c: *mut f32,
    ldc: usize,
    add: bool,
    ahead: &mut Ahead,
) {
    let mut acc = [[S::splat(0.0); NV]; MR];
    if add {
        for (row, sums) in acc.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(c.add(row * ldc + v * S::LANES));
            }
        }
    }
    let mut rows = [a; MR];
    for (row, pointer) in rows.iter_mut().enumerate() {
        *pointer = a.add(row * lda);
    }
    accumulate::<S, MR, NV>(&mut acc, &rows, b, k, ahead);
    for (row, sums) in acc.iter().enumerate() {
        for (v, &sum) in sums.iter().enumerate() {
            S::store(c.add(row * ldc + v * S::LANES), sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::InstructionSet;
    use super::super::simd::dispatch;
    use super::*;

    #[test]
    fn row_blocks_cover_all_rows_evenly() {
        for rows in 0..40 {
            for max in 1..13 {
                let blocks: Vec<_> = row_blocks(rows, max).collect();
                assert_eq!(blocks.iter().map(|b| b.1).sum::<usize>(), rows);
                assert!(blocks.iter().all(|b| b.1 <= max && b.1 > 0));
                assert!(blocks.windows(2).all(|w| w[0].0 + w[0].1 == w[1].0 && w[0].1 - w[1].1 <= 1));
            }
        }
    }

    #[test]
    fn gemm_equals_the_naive_product_on_every_instruction_set() {
        for instruction_set in InstructionSet::available() {
            for (rows, k, columns) in [(1, 1, 16), (5, 40, 16), (13, 24, 48), (31, 300, 32), (7, 515, 80)] {
                let a: Vec<f32> = (0..rows * k).map(|i| ((i * 7 % 23) as f32 - 11.0) / 8.0).collect();
                let b: Vec<f32> = (0..k * columns).map(|i| ((i * 5 % 17) as f32 - 8.0) / 8.0).collect();
                let mut packed = vec![0.0; k * columns];
                for i in 0..k {
                    for j in 0..columns {
                        packed[packed_index(k, columns, instruction_set.lanes(), i, j)] = b[i * columns + j];
                    }
                }
                let mut c = vec![f32::NAN; rows * columns];
                let gemm = Gemm {
                    a: a.as_ptr(),
                    lda: k,
                    rows,
                    k,
                    b: packed.as_ptr(),
                    columns,
                    c: c.as_mut_ptr(),
                    ldc: columns,
                };
                // SAFETY: the three vectors have the extents the fields say.
                unsafe { dispatch(instruction_set, gemm) };
                for i in 0..rows {
                    for j in 0..columns {
                        // Sums of multiples of 1/64 below 2^18: exact in f32.
                        let expected: f32 = (0..k).map(|l| a[i * k + l] * b[l * columns + j]).sum();
                        assert_eq!(c[i * columns + j], expected, "{instruction_set:?} {rows}x{k}x{columns} at {i},{j}");
                    }
                }
            }
        }
    }
}
