//! How much one video may ask for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one video may cost at most. Each limit is checked as early as it can be known, and again while decoding,
/// because headers lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Encoded bytes; 512 MiB.
    pub max_bytes: u64,
    /// Decoded frames; 54,000, which is 15 minutes at 60 frames per second.
    pub max_frames: u64,
    /// Clips; 3,375, as many as the default frames make at 16 frames a clip.
    pub max_clips: u64,
    /// Presentation time from the first frame to the end of the last; 30 minutes.
    pub max_duration: Duration,
    /// Pixels of one frame; 4096 x 2304, the largest size of H.264 level 5.2.
    pub max_pixels: u64,
    /// Changes of picture size or pixel format in mid-stream; 16. Each makes the transform plan anew.
    pub max_format_changes: u32,
    /// CPU time of the decoding thread; 10 minutes.
    pub max_cpu_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 512 << 20,
            max_frames: 54_000,
            max_clips: 3_375,
            max_duration: Duration::from_secs(30 * 60),
            max_pixels: 4096 * 2304,
            max_format_changes: 16,
            max_cpu_time: Duration::from_secs(10 * 60),
        }
    }
}
