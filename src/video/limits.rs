//! How much one video may ask for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one video may cost at most. Limits hold for what is decoded, not for what a header says, and any of them can be
/// taken away: see [`Limits::UNLIMITED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Encoded bytes; 512 MiB.
    pub max_bytes: u64,
    /// Frames that are decoded; 54,000, which is 15 minutes at 60 frames per second. Those that
    /// [`DecodeOptions::clip_stride`](super::DecodeOptions::clip_stride) lets decoding jump over don't count.
    pub max_frames: u64,
    /// Clips; 3,375, as many as the default frames make at 16 frames a clip.
    pub max_clips: u64,
    /// Presentation time of the frames that are looked at, from each to the next; 30 minutes. Frames of clips that nobody
    /// wants don't count.
    pub max_duration: Duration,
    /// Pixels of one frame; 4096 x 2304, the largest size of H.264 level 5.2.
    pub max_pixels: u64,
    /// CPU time of the decoding thread; 10 minutes. It also bounds what only costs time, such as a picture that changes its
    /// size.
    pub max_cpu_time: Duration,
}

impl Limits {
    /// No limits but those of memory: for files that are the user's own.
    pub const UNLIMITED: Self = Self {
        max_bytes: u64::MAX,
        max_frames: u64::MAX,
        max_clips: u64::MAX,
        max_duration: Duration::MAX,
        max_pixels: u64::MAX,
        max_cpu_time: Duration::MAX,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 512 << 20,
            max_frames: 54_000,
            max_clips: 3_375,
            max_duration: Duration::from_secs(30 * 60),
            max_pixels: 4096 * 2304,
            max_cpu_time: Duration::from_secs(10 * 60),
        }
    }
}
