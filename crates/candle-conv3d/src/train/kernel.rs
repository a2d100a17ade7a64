//! The inner loops: two register-blocked matrix products and a transposition.
//!
//! All three have a version for AVX2+FMA and a portable one, the products one for AVX-512 too, chosen once at run time. A
//! panel is [`PANEL`] neighbouring output channels, contiguous for each row of a matrix.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::LazyLock;

use crate::cpu::InstructionSet;
use crate::cpu::microkernel::row_blocks;

/// Channels a panel holds: two AVX2 vectors, one of AVX-512.
pub(crate) const PANEL: usize = 16;

static INSTRUCTIONS: LazyLock<InstructionSet> = LazyLock::new(InstructionSet::detect);

/// Rows of a register block. On AVX2, 6 x 16 takes 12 of the 16 vector registers and leaves room for the operands; on
/// AVX-512 16 x 16 takes half of 32.
fn block_rows() -> usize {
    match *INSTRUCTIONS {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => 16,
        _ => 6,
    }
}

/// Runs `f` compiled for the best vectors this machine has, as far as it is inlined.
#[inline(always)]
pub(crate) fn vectorized<T>(f: impl FnOnce() -> T) -> T {
    match *INSTRUCTIONS {
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => unsafe { avx512::run(f) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { avx2::run(f) },
        InstructionSet::Portable => f(),
    }
}

/// Calls a function generic over the rows of a block, of which there are 1 to 16.
macro_rules! for_rows {
    ($rows:expr, $function:ident($($argument:expr),*)) => {
        match $rows {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            3 => $function::<3>($($argument),*),
            4 => $function::<4>($($argument),*),
            5 => $function::<5>($($argument),*),
            6 => $function::<6>($($argument),*),
            7 => $function::<7>($($argument),*),
            8 => $function::<8>($($argument),*),
            9 => $function::<9>($($argument),*),
            10 => $function::<10>($($argument),*),
            11 => $function::<11>($($argument),*),
            12 => $function::<12>($($argument),*),
            13 => $function::<13>($($argument),*),
            14 => $function::<14>($($argument),*),
            15 => $function::<15>($($argument),*),
            16 => $function::<16>($($argument),*),
            rows => unreachable!("a block of {rows} rows"),
        }
    };
}

/// The left matrix of a product, read in place: row `r` is the concatenation, over `runs`, of the `run_len` floats
/// that start at `data[rows[r] + run]`.
#[derive(Clone, Copy)]
pub(crate) struct Gathered<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: &'a [usize],
    pub(crate) runs: &'a [usize],
    pub(crate) run_len: usize,
}

impl Gathered<'_> {
    /// Panics unless every float that a kernel will read lies in `data`.
    fn check(&self) {
        let last_row = self.rows.iter().max().copied().unwrap_or(0);
        let last_run = self.runs.iter().max().copied().unwrap_or(0);
        assert!(last_row + last_run + self.run_len <= self.data.len(), "a row of the left matrix ends past its data");
    }
}

/// `out` (rows, 16) = `left` (rows, k) x `panel` (k, 16).
pub(crate) fn product(left: Gathered, panel: &[f32], out: &mut [f32]) {
    left.check();
    assert!(panel.len() >= left.runs.len() * left.run_len * PANEL, "the panel is shorter than the rows");
    assert!(out.len() >= left.rows.len() * PANEL, "the output holds fewer rows than the left matrix");
    for (first, count) in row_blocks(left.rows.len(), block_rows()) {
        let block = Gathered { rows: &left.rows[first..first + count], ..left };
        let out = &mut out[first * PANEL..(first + count) * PANEL];
        for_rows!(count, product_block(block, panel, out));
    }
}

fn product_block<const R: usize>(left: Gathered, panel: &[f32], out: &mut [f32]) {
    match *INSTRUCTIONS {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instructions were detected; `product` has checked that rows, panel and output lie in their
        // slices, and a block has R rows.
        InstructionSet::Avx512 => return unsafe { avx512::product_block::<R>(left, panel.as_ptr(), out.as_mut_ptr()) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        InstructionSet::Avx2 => return unsafe { avx2::product_block::<R>(left, panel.as_ptr(), out.as_mut_ptr()) },
        InstructionSet::Portable => {}
    }
    let mut sums = [[0f32; PANEL]; R];
    for (&run, panel) in left.runs.iter().zip(panel.chunks_exact(left.run_len * PANEL)) {
        for (k, weights) in panel.chunks_exact(PANEL).enumerate() {
            for (sums, &row) in sums.iter_mut().zip(left.rows) {
                let x = left.data[row + run + k];
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum += x * weight;
                }
            }
        }
    }
    out.as_chunks_mut::<PANEL>().0.copy_from_slice(&sums);
}

/// `out` (m, 16) += transpose of `left` (positions, m) x `panel` (positions, 16): row `p` of `left` is the
/// `columns` floats of `left.data` from `left.rows[p] + left.runs[0]`, with `columns` = `left.run_len`.
pub(crate) fn accumulate_transposed(left: Gathered, panel: &[f32], out: &mut [f32]) {
    left.check();
    let &[offset] = left.runs else { panic!("the transposed product takes one run") };
    assert!(panel.len() >= left.rows.len() * PANEL, "the panel is shorter than the rows");
    assert!(out.len() >= left.run_len * PANEL, "the output holds fewer rows than the left matrix has columns");
    for (first, count) in row_blocks(left.run_len, block_rows()) {
        let runs = &[offset + first];
        let block = Gathered { runs, run_len: count, ..left };
        let out = &mut out[first * PANEL..(first + count) * PANEL];
        for_rows!(count, transposed_block(block, panel, out));
    }
}

fn transposed_block<const R: usize>(left: Gathered, panel: &[f32], out: &mut [f32]) {
    match *INSTRUCTIONS {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => {
            // SAFETY: the instructions were detected; `accumulate_transposed` has checked that rows, panel and output lie
            // in their slices, and a block has R columns.
            return unsafe { avx512::transposed_block::<R>(left, panel.as_ptr(), out.as_mut_ptr()) };
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        InstructionSet::Avx2 => return unsafe { avx2::transposed_block::<R>(left, panel.as_ptr(), out.as_mut_ptr()) },
        InstructionSet::Portable => {}
    }
    let mut sums = [[0f32; PANEL]; R];
    for (&row, weights) in left.rows.iter().zip(panel.chunks_exact(PANEL)) {
        let from = row + left.runs[0];
        for (sums, &x) in sums.iter_mut().zip(&left.data[from..from + R]) {
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum += x * weight;
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums.as_flattened()) {
        *out += sum;
    }
}

/// Copies a matrix of `rows` x `columns` to its transpose: `dst[dst_column(column) + row] = src[src_row(row) + column]`.
///
/// The two functions place each source row and each destination row, so that a copy can reorder them too.
pub(crate) fn transpose(
    [rows, columns]: [usize; 2],
    src: &[f32],
    src_row: impl Fn(usize) -> usize,
    dst: &mut [f32],
    dst_column: impl Fn(usize) -> usize,
) {
    #[cfg(target_arch = "x86_64")]
    let (whole_rows, whole_columns) =
        if *INSTRUCTIONS == InstructionSet::Portable { (0, 0) } else { (rows / 8 * 8, columns / 8 * 8) };
    #[cfg(not(target_arch = "x86_64"))]
    let (whole_rows, whole_columns) = (0, 0);
    #[cfg(target_arch = "x86_64")]
    for row in (0..whole_rows).step_by(8) {
        let sources: [&[f32]; 8] = std::array::from_fn(|i| &src[src_row(row + i)..][..whole_columns]);
        for column in (0..whole_columns).step_by(8) {
            let dst = Shared::new(dst);
            let targets = std::array::from_fn(|i| dst.at(dst_column(column + i) + row, 8));
            // SAFETY: AVX2 was detected; each source holds 8 floats from `column` <= `whole_columns` - 8, each target 8.
            unsafe { avx2::transpose_block(sources.map(|s| s.as_ptr().add(column)), targets) };
        }
    }
    for row in 0..rows {
        let from = if row < whole_rows { whole_columns } else { 0 };
        let source = &src[src_row(row)..][..columns];
        for (column, &value) in source.iter().enumerate().skip(from) {
            dst[dst_column(column) + row] = value;
        }
    }
}

/// A slice that several threads fill, each its own places.
pub(crate) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Shared` stands for an exclusive borrow of plain floats. Writing through it is unsafe, and those who do
// vouch that no two threads touch the same place.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The address of `count` floats at `index`. Panics if they end outside.
    pub(crate) fn at(&self, index: usize, count: usize) -> *mut f32 {
        assert!(index + count <= self.len, "place {index} + {count} lies outside a slice of {}", self.len);
        // SAFETY: the index lies in the slice, checked above.
        unsafe { self.start.add(index) }
    }

    /// # Safety
    /// No other thread may touch these `count` floats at `index` while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the borrow that `Shared` stands for is exclusive")]
    pub(crate) unsafe fn slice(&self, index: usize, count: usize) -> &mut [f32] {
        // SAFETY: `at` has checked the place; the caller vouches that it is this thread's own.
        unsafe { std::slice::from_raw_parts_mut(self.at(index, count), count) }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{Gathered, PANEL};

    /// # Safety
    /// Needs AVX-512F, AVX2 and FMA.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub(super) unsafe fn run<T>(f: impl FnOnce() -> T) -> T {
        f()
    }

    /// # Safety
    /// Needs AVX-512F; and R rows in `left`, all of whose runs lie in its data, `panel` of (k, 16) and `out` of (R, 16).
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn product_block<const R: usize>(left: Gathered, mut panel: *const f32, out: *mut f32) {
        let mut sums = [_mm512_setzero_ps(); R];
        for &run in left.runs {
            // SAFETY: the caller vouches for rows, runs, panel and output; `panel` moves by one row each step and ends
            // one past its last.
            unsafe {
                let mut rows = [std::ptr::null(); R];
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = left.data.as_ptr().add(*left.rows.get_unchecked(r) + run);
                }
                for k in 0..left.run_len {
                    let weights = _mm512_loadu_ps(panel);
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        *sum = _mm512_fmadd_ps(_mm512_set1_ps(*row.add(k)), weights, *sum);
                    }
                    panel = panel.add(PANEL);
                }
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            // SAFETY: `out` holds R rows of 16.
            unsafe { _mm512_storeu_ps(out.add(r * PANEL), sum) };
        }
    }

    /// # Safety
    /// Needs AVX-512F; and one run of R floats in `left`, `panel` of (positions, 16) and `out` of (R, 16).
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transposed_block<const R: usize>(left: Gathered, mut panel: *const f32, out: *mut f32) {
        let mut sums = [_mm512_setzero_ps(); R];
        // SAFETY: the caller vouches for rows, run, panel and output.
        unsafe {
            let data = left.data.as_ptr().add(left.runs[0]);
            for &row in left.rows {
                let x = data.add(row);
                let weights = _mm512_loadu_ps(panel);
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(_mm512_set1_ps(*x.add(r)), weights, *sum);
                }
                panel = panel.add(PANEL);
            }
            for (r, sum) in sums.into_iter().enumerate() {
                let out = out.add(r * PANEL);
                _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sum));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Gathered, PANEL};

    /// # Safety
    /// Needs AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run<T>(f: impl FnOnce() -> T) -> T {
        f()
    }

    /// # Safety
    /// Needs AVX2 and FMA, R rows in `left`, all of whose runs lie in its data, `panel` of (k, 16) and `out` of (R, 16).
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn product_block<const R: usize>(left: Gathered, mut panel: *const f32, out: *mut f32) {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for &run in left.runs {
            // SAFETY: the caller vouches for rows, runs, panel and output; `panel` moves by one row each step and ends
            // one past its last.
            unsafe {
                let mut rows = [std::ptr::null(); R];
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = left.data.as_ptr().add(*left.rows.get_unchecked(r) + run);
                }
                for k in 0..left.run_len {
                    let low = _mm256_loadu_ps(panel);
                    let high = _mm256_loadu_ps(panel.add(8));
                    for r in 0..R {
                        let x = _mm256_broadcast_ss(&*rows[r].add(k));
                        sums[r][0] = _mm256_fmadd_ps(x, low, sums[r][0]);
                        sums[r][1] = _mm256_fmadd_ps(x, high, sums[r][1]);
                    }
                    panel = panel.add(PANEL);
                }
            }
        }
        for (r, [low, high]) in sums.into_iter().enumerate() {
            // SAFETY: `out` holds R rows of 16.
            unsafe {
                _mm256_storeu_ps(out.add(r * PANEL), low);
                _mm256_storeu_ps(out.add(r * PANEL + 8), high);
            }
        }
    }

    /// # Safety
    /// Needs AVX2 and FMA, one run of R floats in `left`, `panel` of (positions, 16) and `out` of (R, 16).
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn transposed_block<const R: usize>(left: Gathered, mut panel: *const f32, out: *mut f32) {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        // SAFETY: the caller vouches for rows, run, panel and output.
        unsafe {
            let data = left.data.as_ptr().add(left.runs[0]);
            for &row in left.rows {
                let x = data.add(row);
                let low = _mm256_loadu_ps(panel);
                let high = _mm256_loadu_ps(panel.add(8));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*x.add(r));
                    sums[0] = _mm256_fmadd_ps(x, low, sums[0]);
                    sums[1] = _mm256_fmadd_ps(x, high, sums[1]);
                }
                panel = panel.add(PANEL);
            }
            for (r, [low, high]) in sums.into_iter().enumerate() {
                let out = out.add(r * PANEL);
                _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), low));
                _mm256_storeu_ps(out.add(8), _mm256_add_ps(_mm256_loadu_ps(out.add(8)), high));
            }
        }
    }

    /// # Safety
    /// Needs AVX2; all 16 rows hold 8 floats.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn transpose_block(src: [*const f32; 8], dst: [*mut f32; 8]) {
        // SAFETY: the caller vouches for the rows.
        unsafe {
            let [a, b, c, d, e, f, g, h] = [
                _mm256_loadu_ps(src[0]),
                _mm256_loadu_ps(src[1]),
                _mm256_loadu_ps(src[2]),
                _mm256_loadu_ps(src[3]),
                _mm256_loadu_ps(src[4]),
                _mm256_loadu_ps(src[5]),
                _mm256_loadu_ps(src[6]),
                _mm256_loadu_ps(src[7]),
            ];
            let (ab0, ab1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (cd0, cd1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (ef0, ef1) = (_mm256_unpacklo_ps(e, f), _mm256_unpackhi_ps(e, f));
            let (gh0, gh1) = (_mm256_unpacklo_ps(g, h), _mm256_unpackhi_ps(g, h));
            let mut halves = [[a; 4]; 2];
            for (half, [x0, x1, y0, y1]) in halves.iter_mut().zip([[ab0, ab1, cd0, cd1], [ef0, ef1, gh0, gh1]]) {
                half[0] = _mm256_shuffle_ps::<0x44>(x0, y0);
                half[1] = _mm256_shuffle_ps::<0xEE>(x0, y0);
                half[2] = _mm256_shuffle_ps::<0x44>(x1, y1);
                half[3] = _mm256_shuffle_ps::<0xEE>(x1, y1);
            }
            let [top, bottom] = halves;
            for i in 0..4 {
                let first = _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]);
                let second = _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]);
                _mm256_storeu_ps(dst[i], first);
                _mm256_storeu_ps(dst[i + 4], second);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposition_handles_whole_blocks_and_rests() {
        for (rows, columns) in [(8, 8), (16, 24), (3, 5), (13, 9), (7, 64), (1, 1)] {
            let src: Vec<f32> = (0..rows * (columns + 2)).map(|i| i as f32).collect();
            let mut dst = vec![-1.; columns * (rows + 3)];
            transpose([rows, columns], &src, |row| row * (columns + 2), &mut dst, |column| column * (rows + 3));
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(dst[column * (rows + 3) + row], src[row * (columns + 2) + column]);
                }
            }
        }
    }
}
