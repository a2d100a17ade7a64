//! What training needs of a GPU, so that tests can stand in for one.

use std::ffi::c_void;
use std::fmt;

use candle_core::{DType, Result, Shape, Tensor, bail};
use cudarc::driver::CudaSlice;

use super::super::shape::Signature;
use crate::Precision;

/// Kernels count their work in 32 bits, most of them signed.
const WORK_LIMIT: usize = 1 << 31;
/// Threads of a block that adds columns.
const THREADS: usize = 256;
/// Groups of 8 channels that such a block has at a time, at most; as in training.cu.
const TILE: usize = 32;
/// Rows that a thread of such a block adds, at least.
const ROWS: usize = 8;
/// Partial sums of a channel, at most.
const MOST_BLOCKS: usize = 512;

/// Memory of a machine; freed when it is dropped, behind all work that uses it.
pub(crate) struct Memory {
    address: u64,
    bytes: usize,
    owner: Owner,
}

/// What a [`Memory`] is made of.
pub(super) enum Owner {
    #[cfg_attr(not(feature = "candle-cuda"), allow(dead_code))]
    Gpu(CudaSlice<u8>),
    /// In tests.
    #[cfg(test)]
    Host(Vec<u128>),
}

impl Memory {
    pub(super) fn new(address: u64, bytes: usize, owner: Owner) -> Self {
        Self { address, bytes, owner }
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn into_owner(self) -> Owner {
        self.owner
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:#x}", self.bytes, self.address)
    }
}

/// How work is spread over blocks of threads. Every kernel strides over its grid, so that any grid gives the same result
/// but for the order of sums.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grid {
    /// So many independent pieces of work.
    Work(usize),
    /// So many blocks, whose threads work together.
    Blocks([usize; 2]),
}

impl Grid {
    /// For sums over rows of `stored` channels, and how many partial sums of a channel there are then.
    pub(super) fn columns(rows: usize, stored: usize) -> (usize, Self) {
        let groups = stored / 8;
        let tile = groups.min(TILE);
        let across = groups.div_ceil(tile);
        let along = rows.div_ceil(THREADS / tile * ROWS).clamp(1, (2 * MOST_BLOCKS / across).clamp(1, MOST_BLOCKS));
        (along, Self::Blocks([along, across]))
    }

    /// For the sums of partial sums.
    pub(super) fn partials(stored: usize) -> Self {
        Self::Blocks([stored.div_ceil(32), 1])
    }

    /// An error if there is more work than kernels can count.
    pub(super) fn check(self) -> Result<Self> {
        match self {
            Self::Work(work) if work >= WORK_LIMIT => {
                bail!("a layer of {work} values at a time; GPUs take fewer than {WORK_LIMIT}: take fewer clips a batch")
            }
            grid => Ok(grid),
        }
    }
}

/// A GPU in one precision, or what stands in for it.
pub(crate) trait Machine: fmt::Debug + Send + Sync {
    fn precision(&self) -> Precision;

    /// Memory that holds anything.
    fn allocate(&self, bytes: usize) -> Result<Memory>;

    /// Where a contiguous tensor of this machine begins.
    fn address(&self, tensor: &Tensor) -> Result<u64>;

    /// Memory as a tensor that is as large; the work that writes it has been launched.
    fn to_tensor(&self, memory: Memory, shape: &Shape, dtype: DType) -> Result<Tensor>;

    /// Puts a kernel behind all work before it.
    ///
    /// # Safety
    /// `arguments` point to values of the kernel's parameters, whose addresses are memory of this machine that holds what the
    /// kernel's comment says; freed by its owner only after this call.
    unsafe fn launch(&self, kernel: &'static str, grid: Grid, arguments: &mut [*mut c_void]) -> Result<()>;

    /// Puts a pass of a bare convolution behind all work before it.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch): input, weight and output (or their gradients) of the signature's shape.
    unsafe fn convolve(&self, signature: &Signature, operands: [u64; 3]) -> Result<()>;

    /// What a pass of a convolution takes.
    fn micros(&self, signature: &Signature) -> Result<f32>;
}

/// Kernels that are launched through a [`Machine`].
pub(crate) const KERNELS: [&str; 22] = [
    "add",
    "channels_first",
    "channels_last",
    "direct_conv",
    "direct_input_gradient",
    "direct_weight_gradient",
    "finish_gradients",
    "finish_statistics",
    "fixed_statistics",
    "gather",
    "gradient_sums",
    "load_values",
    "mean",
    "norm_gradient",
    "normalize",
    "normalize_pool",
    "pack_weight",
    "pool_gradient",
    "shortcut_gradient",
    "spread",
    "statistics",
    "unpack_weight",
];

/// Pointers to values, as launches take them.
macro_rules! arguments {
    ($($argument:expr),+ $(,)?) => { &mut [$(std::ptr::from_ref(&$argument).cast_mut().cast()),+] };
}
pub(crate) use arguments;

/// Launches a kernel with values as its parameters.
macro_rules! launch {
    ($machine:expr, $kernel:ident, $grid:expr, $($argument:expr),+ $(,)?) => {{
        let grid = $crate::cuda::train::machine::Grid::check($grid)?;
        $machine.launch(stringify!($kernel), grid, $crate::cuda::train::machine::arguments!($($argument),+))
    }};
}
pub(super) use launch;
