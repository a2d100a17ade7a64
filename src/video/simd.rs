//! Picks the fastest build of the inner loops that the CPU can run.

#![allow(unsafe_code)]

use super::kernel::{self, ColorCoefficients, Sample};
use super::picture::Plane;
use super::weights::Taps;

/// The inner loops as compiled for one kind of CPU. Every kernel gives the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel(Build);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kernel {
    /// For any CPU.
    pub(super) const PORTABLE: Self = Self(Build::Portable);

    /// The fastest that this CPU can run.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return Self(Build::Avx2);
        }
        Self::PORTABLE
    }

    /// See [`kernel::resize_plane`].
    pub(super) fn resize_plane<T: Sample>(
        self,
        plane: &Plane<'_, T>,
        depth: u32,
        rows: &Taps,
        columns: &Taps,
        scratch: &mut Vec<i16>,
        out: &mut [i16],
    ) {
        match self.0 {
            Build::Portable => kernel::resize_plane(plane, depth, rows, columns, scratch, out),
            // SAFETY: `detect`, the only way to this variant, found AVX2 on this CPU.
            #[cfg(target_arch = "x86_64")]
            Build::Avx2 => unsafe { avx2::resize_plane(plane, depth, rows, columns, scratch, out) },
        }
    }

    /// See [`kernel::ycbcr_to_rgb`].
    pub(super) fn ycbcr_to_rgb(self, planes: [&[i16]; 3], coefficients: &ColorCoefficients, rgb: &mut [u8]) {
        let [y, u, v] = planes;
        match self.0 {
            Build::Portable => kernel::ycbcr_to_rgb(y, u, v, coefficients, rgb),
            // SAFETY: as in `resize_plane`.
            #[cfg(target_arch = "x86_64")]
            Build::Avx2 => unsafe { avx2::ycbcr_to_rgb(y, u, v, coefficients, rgb) },
        }
    }

    /// See [`kernel::planes_to_rgb`].
    pub(super) fn planes_to_rgb(self, planes: [&[i16]; 3], rgb: &mut [u8]) {
        let [r, g, b] = planes;
        match self.0 {
            Build::Portable => kernel::planes_to_rgb(r, g, b, rgb),
            // SAFETY: as in `resize_plane`.
            #[cfg(target_arch = "x86_64")]
            Build::Avx2 => unsafe { avx2::planes_to_rgb(r, g, b, rgb) },
        }
    }
}

/// The portable loops once more, compiled with AVX2.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn resize_plane<T: Sample>(
        plane: &Plane<'_, T>,
        depth: u32,
        rows: &Taps,
        columns: &Taps,
        scratch: &mut Vec<i16>,
        out: &mut [i16],
    ) {
        kernel::resize_plane(plane, depth, rows, columns, scratch, out);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn ycbcr_to_rgb(y: &[i16], u: &[i16], v: &[i16], coefficients: &ColorCoefficients, rgb: &mut [u8]) {
        kernel::ycbcr_to_rgb(y, u, v, coefficients, rgb);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn planes_to_rgb(r: &[i16], g: &[i16], b: &[i16], rgb: &mut [u8]) {
        kernel::planes_to_rgb(r, g, b, rgb);
    }
}
