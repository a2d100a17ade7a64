//! Types that GPUs compute with, named where programs without GPUs can name them too.

use std::fmt;

/// What a plan for GPUs computes with. Sums are f32 in all of them. CPUs compute in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Brain floats on tensor cores.
    #[default]
    Bf16,
    /// Half floats on tensor cores.
    F16,
    /// Floats without tensor cores.
    F32,
    /// Floats that tensor cores round to 10 bits of mantissa before they multiply.
    Tf32,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
        })
    }
}
