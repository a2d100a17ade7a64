//! What can be wrong with a video.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a video gave no answer. [`VideoError::is_input_fault`] tells whose fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum VideoError {
    /// No bytes at all.
    #[error("the video is empty (0 bytes)")]
    Empty,
    /// More bytes than [`Limits::max_bytes`](super::Limits::max_bytes).
    #[error("video is {actual} bytes; the limit is {limit}")]
    TooLarge {
        /// Bytes given.
        actual: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// No container format was recognised, or its header is unusable.
    #[error("not a video: {detail}")]
    NotAVideo {
        /// What was found instead.
        detail: String,
    },
    /// A still image.
    #[error("found a still image ({format}), expected a video")]
    Image {
        /// FFmpeg's short name of the image format.
        format: String,
    },
    /// Playlists, network descriptions, raw data: everything FFmpeg opens that is not a media container.
    #[error("container format {format} is not accepted; accepted are {accepted}")]
    Container {
        /// FFmpeg's short name of what was found.
        format: String,
        /// Short names of the accepted formats.
        accepted: String,
    },
    /// Only sound, subtitles or data.
    #[error("no video stream among the {streams} stream(s) of this {container} file")]
    NoVideoStream {
        /// Streams in the container.
        streams: usize,
        /// FFmpeg's short name of the container.
        container: String,
    },
    /// The only pictures are attachments such as an album cover.
    #[error("the only picture in this {container} file is an attached one (a cover), expected a video stream")]
    OnlyAttachedPicture {
        /// FFmpeg's short name of the container.
        container: String,
    },
    /// This build of FFmpeg has no decoder for the stream.
    #[error("no decoder for codec {codec}")]
    UnsupportedCodec {
        /// FFmpeg's short name of the codec.
        codec: String,
    },
    /// A video stream from which no frame could be decoded.
    #[error(
        "no frame could be decoded from the {codec} stream ({packets} packets read, {corrupt_packets} of them corrupt)"
    )]
    NoFrames {
        /// FFmpeg's short name of the codec.
        codec: String,
        /// Packets of the stream that were read.
        packets: u64,
        /// Packets the decoder refused.
        corrupt_packets: u64,
    },
    /// The video has frames, but none within the asked time.
    #[error("no frame is shown between {start:?} and {}", .end.map_or("the end".to_string(), |end| format!("{end:?}")))]
    NoFramesInRange {
        /// Start of the range.
        start: Duration,
        /// End of the range; the video's end if `None`.
        end: Option<Duration>,
    },
    /// More pixels a frame than [`Limits::max_pixels`](super::Limits::max_pixels).
    #[error("frames are {width}x{height} pixels ({actual}); the limit is {limit} pixels")]
    TooManyPixels {
        /// Frame width in pixels.
        width: u32,
        /// Frame height in pixels.
        height: u32,
        /// Product of both.
        actual: u64,
        /// Pixels allowed.
        limit: u64,
    },
    /// More frames than [`Limits::max_frames`](super::Limits::max_frames).
    #[error("video has more than {limit} frames, which is the limit")]
    TooManyFrames {
        /// Frames allowed.
        limit: u64,
    },
    /// More clips than [`Limits::max_clips`](super::Limits::max_clips).
    #[error("video has more than {limit} clips, which is the limit")]
    TooManyClips {
        /// Clips allowed.
        limit: u64,
    },
    /// Longer than [`Limits::max_duration`](super::Limits::max_duration).
    #[error("video lasts at least {actual:?}; the limit is {limit:?}")]
    TooLong {
        /// Duration found so far.
        actual: Duration,
        /// Duration allowed.
        limit: Duration,
    },
    /// More CPU time than [`Limits::max_cpu_time`](super::Limits::max_cpu_time).
    #[error("decoding took {actual:?} of CPU time; the limit is {limit:?}")]
    TooMuchCpuTime {
        /// CPU time used so far.
        actual: Duration,
        /// CPU time allowed.
        limit: Duration,
    },
    /// The decoder process died of this video, and so did the one that tried again.
    #[error("the decoder crashed on this video, twice: {detail}")]
    DecoderCrashed {
        /// How it died the second time.
        detail: String,
    },
    /// Decoding needs more memory than it is allowed.
    #[error("decoding ran out of memory: could not {operation}")]
    OutOfMemory {
        /// What was being done.
        operation: String,
    },
    /// No decoder process could be started.
    #[error("no decoder process could be started: {0}")]
    NoDecoder(String),
    /// The caller's token was cancelled.
    #[error("decoding was cancelled")]
    Cancelled,
    /// The file could not be opened or read.
    #[error("cannot read the video: {0}")]
    Read(String),
    /// The model's preprocessing cannot be carried out.
    #[error("preprocessing resizes to {height}x{width} (height x width), too small for a crop of {size}x{size}")]
    ResizeSmallerThanCrop {
        /// Height after the resize.
        height: usize,
        /// Width after the resize.
        width: usize,
        /// Side of the crop.
        size: usize,
    },
    /// FFmpeg failed in a way that is no fault of the input, such as running out of memory.
    #[error("FFmpeg failed to {operation}: {detail}")]
    Ffmpeg {
        /// What was being done.
        operation: String,
        /// FFmpeg's own words.
        detail: String,
    },
}

impl From<std::io::Error> for VideoError {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error.to_string())
    }
}

impl VideoError {
    /// Whether the video is to blame, rather than this process, its machine or its caller.
    pub fn is_input_fault(&self) -> bool {
        !matches!(
            self,
            Self::NoDecoder(_)
                | Self::Cancelled
                | Self::Read(_)
                | Self::ResizeSmallerThanCrop { .. }
                | Self::Ffmpeg { .. }
        )
    }

    /// FFmpeg failed to do `operation`.
    pub(super) fn ffmpeg(operation: &str, error: ffmpeg_next::Error) -> Self {
        let operation = operation.to_string();
        match error {
            ffmpeg_next::Error::Other { errno: ffmpeg_next::error::ENOMEM } => Self::OutOfMemory { operation },
            error => Self::Ffmpeg { operation, detail: error.to_string() },
        }
    }
}

/// Why only part of a video was decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum PartialReason {
    /// The file ends before its index or its headers say it does.
    #[error("the file is truncated: it should have at least {expected} {unit}, {actual} could be read")]
    Truncated {
        /// What the container says that there is, at least.
        expected: u64,
        /// What is there.
        actual: u64,
        /// What was counted.
        unit: Unit,
    },
    /// The container became unreadable.
    #[error("the file became unreadable after {packets} packets: {detail}")]
    Unreadable {
        /// Packets read until then.
        packets: u64,
        /// FFmpeg's words.
        detail: String,
    },
    /// Some packets could not be decoded, or only with errors that the decoder concealed.
    #[error("{packets} packet(s) were corrupt")]
    CorruptPackets {
        /// Corrupt packets.
        packets: u64,
    },
}

/// What a container counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Packets of the stream.
    Packets,
    /// Bytes of the file.
    Bytes,
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
        })
    }
}
