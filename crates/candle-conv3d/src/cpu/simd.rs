//! The vector operations the kernels are written in, and the portable implementation of them.
//!
//! A kernel is one generic function over [`Simd`]; [`dispatch`] compiles it once an instruction set and picks
//! the copy at run time, so one binary runs on any processor of its architecture.

use super::InstructionSet;

/// A kernel generic over the instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Runs the kernel with the vectors of `S`. Must be `#[inline(always)]`, or the vector operations are compiled
    /// as calls.
    ///
    /// # Safety
    /// The processor supports `S`, and whatever the kernel's own documentation asks for holds.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// f32 vectors of one instruction set.
///
/// # Safety
/// Every function needs a processor that supports the instruction set. `load` reads and `store` writes
/// [`LANES`](Self::LANES) floats at any alignment.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type V: Copy;
    const LANES: usize;
    /// Rows of the largest register block whose accumulators, [`PANEL_VECTORS`] vectors a row, stay in registers.
    const MAX_ROWS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Calls `kernel` compiled for this instruction set.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;
}

/// Vectors side by side in one row of a register block; a packed weight panel is this many vectors wide.
pub(crate) const PANEL_VECTORS: usize = 2;

/// Runs `kernel` with the vectors of `instruction_set`.
///
/// # Safety
/// As [`Kernel::run`]; that the processor supports `instruction_set` was checked when it was made.
pub(crate) unsafe fn dispatch<K: Kernel>(instruction_set: InstructionSet, kernel: K) -> K::Output {
    // SAFETY: an InstructionSet is only handed to the kernels after InstructionSet::is_available said yes.
    unsafe {
        match instruction_set {
            InstructionSet::Portable => Portable::call(kernel),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => super::simd_x86::Avx2::call(kernel),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => super::simd_x86::Avx512::call(kernel),
        }
    }
}

/// A function that hints at the cache line at an address, where the processor takes hints.
macro_rules! prefetch {
    ($(#[$documentation:meta])* $name:ident, $hint:ident) => {
        $(#[$documentation])*
        #[inline(always)]
        pub(crate) fn $name(address: *const f32) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the instruction is in every x86-64 processor, or does nothing there; it never faults.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::$hint }>(address.cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = address;
        }
    };
}

prefetch! {
    /// Asks for the cache line at `address`, which is about to be read; any address will do.
    prefetch, _MM_HINT_T0
}
prefetch! {
    /// As [`prefetch`], into the second-level cache: for what is needed a little later.
    prefetch_early, _MM_HINT_T1
}
prefetch! {
    /// As [`prefetch`], for a line that is about to be written.
    prefetch_to_write, _MM_HINT_ET0
}

/// Eight lanes of plain Rust, which the compiler turns into whatever the baseline of the target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn lanes(f: impl Fn(usize) -> f32) -> [f32; 8] {
    let mut out = [0.0; 8];
    for (i, x) in out.iter_mut().enumerate() {
        *x = f(i);
    }
    out
}

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    // SSE2 and NEON have 16 and 32 registers of four lanes.
    const MAX_ROWS: usize = 3;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller gives eight readable floats.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller gives eight writable floats.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Not f32::mul_add: without hardware support that is a library call.
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: needs no processor feature; the rest is the caller's contract.
        unsafe { kernel.run::<Self>() }
    }
}
