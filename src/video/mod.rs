//! From encoded bytes to clips of RGB pixels.
//!
//! [`decode_clips`] is the whole way: `decode` gives frames with times, [`sample`] says which frame goes into
//! which clip, [`transform`] makes pixels of the network's input size. It is synchronous and uses one thread; a
//! [`Decoder`] does the same in a process of its own, and a [`DecodePool`] for many videos in turns.

mod assembly;
mod chosen;
mod clock;
mod declared;
mod decode;
mod ending;
mod error;
mod ffmpeg;
mod frame;
mod frame_table;
mod isolation;
mod kernel;
mod limits;
mod open;
mod permits;
pub mod picture;
mod pool;
mod ranged;
pub mod sample;
mod simd;
mod source;
mod spool;
pub mod transform;
mod waiting;
mod weights;

use std::ops::ControlFlow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use chosen::{Choice, Count, Extent, count_frames, decode_chosen_clip, probe};
pub use decode::TimeRange;
pub use error::{PartialReason, Unit, VideoError};
pub use isolation::{Decoder, Isolation, WorkerOptions, run_worker};
pub use limits::Limits;
pub use pool::{DecodePool, Decoding, PoolOptions, PoolState};
pub use ranged::{FIRST_PIECE, Fetch, RangedReader};
pub use source::{ReadPosition, Source};
pub use spool::{SpoolError, SpoolOptions, SpoolReader, SpoolWriter, spool};
pub use transform::Crop;

use crate::model::spec::{ClipSpec, Preprocessing};
use assembly::{Assembly, ClipSink, Passed, Stop};
use decode::{Seeking, VideoStream};
use sample::SlidingWindow;
use source::Origin;
use transform::FrameTransform;

/// How to decode, beside what the model asks for.
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// What the video may cost.
    pub limits: Limits,
    /// Ends decoding with [`VideoError::Cancelled`]; looked at for each packet and frame.
    pub cancel: CancellationToken,
    /// Which part of the video is decoded; all of it. Clips are counted from the first frame within.
    pub range: TimeRange,
    /// Which part of each frame is used; the middle unless training.
    pub crop: Crop,
    /// Takes the first clip and every so many-th after it; 1, and 0 is taken for 1. The others are not transformed, and not
    /// even decoded where seeking past them is known to give the same frames: in whole MP4 and Matroska files.
    pub clip_stride: usize,
    /// Stops after so many clips, without error; all of them if `None`. The summary covers what was decoded until then.
    pub max_clips_wanted: Option<u64>,
    /// Threads of the decoder; 1. Many videos at a time, each on one thread, decode more frames a second in all.
    pub decoder_threads: usize,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            cancel: CancellationToken::new(),
            range: TimeRange::ALL,
            crop: Crop::Center,
            clip_stride: 1,
            max_clips_wanted: None,
            decoder_threads: 1,
        }
    }
}

impl DecodeOptions {
    /// Whether all of the video is asked for, so that its length says what it will cost.
    fn is_whole(&self) -> bool {
        self.range == TimeRange::ALL && self.clip_stride <= 1 && self.max_clips_wanted.is_none()
    }

    /// Whether so many frames are passed over at a time that looking for a way around them costs less than they do.
    fn should_jump(&self, window: &SlidingWindow) -> bool {
        /// Half the distance of key frames in most files: fewer frames are seldom got around.
        const LONG_WAY: u64 = 100;
        (self.clip_stride.max(1) as u64 - 1).saturating_mul(window.frames_per_clip()) >= LONG_WAY
    }
}

/// One clip, ready for the network but for normalisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clip {
    /// Place among all clips of the video (or of the decoded part of it), from 0: clips that
    /// [`DecodeOptions::clip_stride`] passes over count.
    pub index: usize,
    /// Different frames in it; less than [`ClipSpec::frames`] only where a short tail was looped.
    pub frames: usize,
    /// Presentation time of the first frame, from the start of the container's timeline.
    pub start: Duration,
    /// Presentation time of the first frame after the clip; of the end of the last frame for the last clip.
    pub end: Duration,
    /// Pixels `(t, h, w, 3)`, RGB, 0-255.
    pub rgb: Vec<u8>,
}

/// What was decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VideoSummary {
    /// Frames of the video, or of the part that was decoded; those passed over count.
    pub frames: u64,
    /// Clips handed over.
    pub clips: u64,
    /// From the first frame's start to the last frame's end.
    pub duration: Duration,
    /// Packets that could not be decoded, or only with errors that the decoder concealed.
    pub corrupt_packets: u64,
    /// Why this is not the whole video; `None` if it is.
    pub partial: Option<PartialReason>,
    /// Displayed width of the first frame in pixels, after rotation.
    pub width: u32,
    /// Displayed height of the first frame in pixels, after rotation.
    pub height: u32,
    /// FFmpeg's short name of the codec.
    pub codec: String,
    /// FFmpeg's short name of the container.
    pub container: String,
    /// The stream that was decoded, from 0 in the container's order.
    pub stream_index: usize,
}

/// Decodes `source` and hands over its clips as they are ready, in order. When `on_clip` breaks, decoding stops and
/// the summary covers what was decoded until then.
pub fn decode_clips(
    source: &Source,
    clip: &ClipSpec,
    preprocessing: &Preprocessing,
    options: &DecodeOptions,
    mut on_clip: impl FnMut(Clip) -> ControlFlow<()>,
) -> Result<VideoSummary, VideoError> {
    decode_origin(source, clip, preprocessing, options, |passed: Passed| passed.clip_to(&mut on_clip))
}

fn decode_origin(
    source: &dyn Origin,
    clip: &ClipSpec,
    preprocessing: &Preprocessing,
    options: &DecodeOptions,
    sink: impl ClipSink,
) -> Result<VideoSummary, VideoError> {
    let transform = FrameTransform::new(clip.size, preprocessing, options.crop)?;
    let jumps = options.should_jump(&SlidingWindow::new(clip));
    let stream = VideoStream::open(source, options, if jumps { Seeking::Anywhere } else { Seeking::ToStart })?;
    let mut info = stream.info.clone();
    let mut assembly = Assembly::new(&info, clip, preprocessing, options, transform, sink);
    let mut decoded = stream.decode(|frame| assembly.take(frame));
    if let Ok(None) = decoded {
        let stream = VideoStream::open(source, options, Seeking::Never)?;
        info = stream.info.clone();
        assembly.start_again(&info);
        decoded = stream.decode(|frame| assembly.take(frame));
    }
    let decoded = match decoded {
        Ok(decoded) => {
            // Whether the caller wants more no longer matters.
            let _ = assembly.hand_over(None);
            decoded.expect("without seeking there is no surprise")
        }
        Err(Stop::Asked) => return Ok(assembly.so_far()),
        Err(Stop::Failed(error)) => return Err(error),
    };
    let summary = assembly.so_far();
    let partial = ending::why_partial(source, &info, &decoded, &options.limits);
    let corrupt_packets = match partial {
        Some(PartialReason::CorruptPackets { packets }) => packets,
        _ => decoded.corrupt_packets,
    };
    Ok(VideoSummary {
        frames: decoded.frames,
        duration: decoded.end.map_or(summary.duration, |end| end.saturating_sub(assembly.start())),
        corrupt_packets,
        partial,
        ..summary
    })
}

/// Frames of a video and the CPU time this thread spends on them once the file is open: on decoding alone, or on
/// the way to clips if a clip and its preprocessing are given.
pub fn time_decoding(
    source: &Source,
    clips: Option<(&ClipSpec, &Preprocessing)>,
    options: &DecodeOptions,
) -> Result<(u64, Duration), VideoError> {
    let stream = VideoStream::open(source, options, Seeking::Never)?;
    let info = stream.info.clone();
    let before = ffmpeg::thread_cpu_time();
    let decoded = match clips {
        None => stream.decode(|_| Ok::<u64, Stop>(0)),
        Some((clip, preprocessing)) => {
            let transform = FrameTransform::new(clip.size, preprocessing, options.crop)?;
            let keep_going = |_: Passed| ControlFlow::Continue(());
            let mut assembly = Assembly::new(&info, clip, preprocessing, options, transform, keep_going);
            stream.decode(|frame| assembly.take(frame))
        }
    };
    match decoded {
        Ok(Some(decoded)) => Ok((decoded.frames, ffmpeg::thread_cpu_time() - before)),
        Err(Stop::Failed(error)) => Err(error),
        Ok(None) | Err(Stop::Asked) => unreachable!("nothing above jumps or asks to stop"),
    }
}
