//! CPU kernels of the inference plan.
//!
//! The one place of this crate with `unsafe`: kernels work on raw pointers into one arena, which several threads
//! write at once, in disjoint parts. Inside an `unsafe fn` here the body is not wrapped in `unsafe` blocks again; the
//! function's `# Safety` section is the proof obligation, and the geometry was checked when the step was built.
//!
//! Activations are channels-last, `(clip, t, h, w, c)`, with the channels padded to [`CHANNEL_BLOCK`]; the padding
//! channels are always zero.
#![allow(unsafe_code, unsafe_op_in_unsafe_fn)]
#![allow(clippy::needless_range_loop, reason = "an index that walks several arrays at once is clearer than zips")]

pub(crate) mod arrange;
pub(crate) mod depthwise;
pub(crate) mod direct;
pub(crate) mod elementwise;
pub(crate) mod input;
pub(crate) mod linear;
pub(crate) mod memory;
pub(crate) mod microkernel;
pub(crate) mod output;
pub(crate) mod pooling;
pub(crate) mod program;
pub(crate) mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_x86;
pub(crate) mod stem;
pub(crate) mod team;
pub(crate) mod winograd;

pub(crate) use crate::geometry::Shape;
use std::fmt;

/// Activations hold a multiple of this many channels: one AVX-512 vector, two AVX2 vectors.
pub(crate) const CHANNEL_BLOCK: usize = 16;

/// The channels an activation of `channels` channels is stored with.
pub(crate) fn padded_channels(channels: usize) -> usize {
    channels.next_multiple_of(CHANNEL_BLOCK)
}

/// The vector instructions the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstructionSet {
    /// What every processor of the target architecture has.
    Portable,
    /// AVX2 and FMA, 256 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512F, 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
        })
    }
}

impl InstructionSet {
    /// Every instruction set this processor has, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                if is_x86_feature_detected!("avx512f") {
                    all.push(Self::Avx512);
                }
                all.push(Self::Avx2);
            }
        }
        all.push(Self::Portable);
        all
    }

    /// Whether this processor has the instruction set.
    pub fn is_available(self) -> bool {
        Self::available().contains(&self)
    }

    /// The fastest instruction set of this processor.
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// Floats a vector.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Self::Portable => 8,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 8,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 16,
        }
    }
}

impl Shape {
    /// Channels as stored.
    pub(crate) fn cp(&self) -> usize {
        padded_channels(self.c)
    }

    /// Floats of one clip as stored.
    pub(crate) fn stored_len(&self) -> usize {
        self.t * self.h * self.w * self.cp()
    }
}
