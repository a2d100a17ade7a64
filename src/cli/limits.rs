//! Arguments that say how much one video may ask for: of a server, to which others send theirs, and here, where nothing is
//! refused unless its user says so.

use std::time::Duration as StdDuration;

use bytesize::ByteSize;
use clap::Args;
use humantime::Duration;

use crate::video::Limits;

const HEADING: &str = "Limits of a video";

/// Limits of the videos that a server takes.
#[derive(Debug, Args)]
pub(super) struct ServerLimitArgs {
    /// Largest video that is taken
    #[arg(long, env = "KINETOSCOPE_MAX_VIDEO_BYTES", value_name = "SIZE", default_value = "64MiB", help_heading = HEADING)]
    max_video_bytes: ByteSize,

    /// Longest time of a video that is classified: what a request leaves out by start, end, clip_stride or max_clips does not
    /// count
    #[arg(long, env = "KINETOSCOPE_MAX_DURATION", value_name = "TIME", default_value = "30m", help_heading = HEADING)]
    max_duration: Duration,

    /// Frames of a video that are decoded at most
    #[arg(long, env = "KINETOSCOPE_MAX_FRAMES", value_name = "N", default_value_t = Limits::default().max_frames,
          value_parser = clap::value_parser!(u64).range(1..), help_heading = HEADING)]
    max_frames: u64,

    /// Clips of a video at most
    #[arg(long, env = "KINETOSCOPE_MAX_CLIPS", value_name = "N", default_value_t = Limits::default().max_clips,
          value_parser = clap::value_parser!(u64).range(1..), help_heading = HEADING)]
    max_clips: u64,

    /// Pixels of a frame at most, as a number or as WIDTHxHEIGHT. Decoders may take memory in proportion
    #[arg(long, env = "KINETOSCOPE_MAX_PIXELS", value_name = "PIXELS", default_value = "4096x2304", value_parser = parse_pixels, help_heading = HEADING)]
    max_pixels: u64,

    /// Processor time that decoding a video may take
    #[arg(long, env = "KINETOSCOPE_MAX_DECODE_TIME", value_name = "TIME", default_value = "10m", help_heading = HEADING)]
    max_decode_time: Duration,
}

impl ServerLimitArgs {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_bytes: self.max_video_bytes.as_u64(),
            max_duration: self.max_duration.into(),
            max_frames: self.max_frames,
            max_clips: self.max_clips,
            max_pixels: self.max_pixels,
            max_cpu_time: self.max_decode_time.into(),
        }
    }
}

/// Limits of the videos of this machine. There are none by default.
#[derive(Debug, Args)]
pub(super) struct LocalLimitArgs {
    /// Refuse larger videos
    #[arg(long, value_name = "SIZE", help_heading = HEADING)]
    max_video_bytes: Option<ByteSize>,

    /// Refuse videos of which more time is looked at
    #[arg(long, value_name = "TIME", help_heading = HEADING)]
    max_duration: Option<Duration>,

    /// Refuse videos of which more frames are decoded
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = HEADING)]
    max_frames: Option<u64>,

    /// Refuse videos with larger frames; pixels as a number or as WIDTHxHEIGHT
    #[arg(long, value_name = "PIXELS", value_parser = parse_pixels, help_heading = HEADING)]
    max_pixels: Option<u64>,

    /// Refuse videos whose decoding takes more processor time
    #[arg(long, value_name = "TIME", help_heading = HEADING)]
    max_decode_time: Option<Duration>,
}

impl LocalLimitArgs {
    pub(super) fn limits(&self) -> Limits {
        let time = |time: Option<Duration>| time.map_or(StdDuration::MAX, StdDuration::from);
        Limits {
            max_bytes: self.max_video_bytes.map_or(u64::MAX, |size| size.as_u64()),
            max_duration: time(self.max_duration),
            max_frames: self.max_frames.unwrap_or(u64::MAX),
            max_pixels: self.max_pixels.unwrap_or(u64::MAX),
            max_cpu_time: time(self.max_decode_time),
            ..Limits::UNLIMITED
        }
    }

    /// A flag that was given, if any was.
    pub(super) fn given(&self) -> Option<&'static str> {
        let Self { max_video_bytes, max_duration, max_frames, max_pixels, max_decode_time } = self;
        let given = [
            (max_video_bytes.is_some(), "--max-video-bytes"),
            (max_duration.is_some(), "--max-duration"),
            (max_frames.is_some(), "--max-frames"),
            (max_pixels.is_some(), "--max-pixels"),
            (max_decode_time.is_some(), "--max-decode-time"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, flag)| flag)
    }
}

/// `12000000` or `4000x3000`.
fn parse_pixels(text: &str) -> Result<u64, String> {
    let number = |text: &str| text.trim().parse::<u64>().ok().filter(|&number| number > 0);
    let pixels = match text.split_once(['x', 'X']) {
        Some((width, height)) => {
            number(width).zip(number(height)).and_then(|(width, height)| width.checked_mul(height))
        }
        None => number(text),
    };
    pixels.ok_or_else(|| "expected a number of pixels, or WIDTHxHEIGHT such as 4000x3000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_a_number_or_a_size() {
        assert_eq!(parse_pixels("12000000"), Ok(12_000_000));
        assert_eq!(parse_pixels("4000x3000"), Ok(12_000_000));
        for wrong in ["", "x", "4000x", "0x3000", "-1", "4000x3000x2", "4294967296x4294967296"] {
            assert!(parse_pixels(wrong).is_err(), "{wrong}");
        }
    }
}
