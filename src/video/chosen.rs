//! One clip of a video, at a frame of the caller's choice: what training decodes.

use super::assembly::{Assembly, Passed, Stop};
use super::decode::{Decoded, Seeking, TimedFrame, VideoStream};
use super::ending;
use super::error::{PartialReason, VideoError};
use super::transform::{Crop, FrameTransform};
use super::{Clip, DecodeOptions, Source};
use crate::model::spec::{ClipSpec, Preprocessing};
use std::ops::ControlFlow;

/// What there is to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Frames of the video, or of [`DecodeOptions::range`]; at least 1.
    pub frames: u64,
    /// Displayed width in pixels.
    pub width: u32,
    /// Displayed height in pixels.
    pub height: u32,
}

/// Which clip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its first frame, in display order from 0 at the start of the range; the last one is taken for what is beyond.
    pub first_frame: u64,
    /// Which part of each frame.
    pub crop: Crop,
}

/// Decodes the clip of consecutive frames ([`ClipSpec::temporal_stride`] apart) that `choose` wants, looped where the video
/// ends before. Of [`DecodeOptions`], clip stride, crop and number of clips mean nothing here.
///
/// In whole MP4 and Matroska files the frames are counted by their packets, and only those since the last key frame before
/// the clip are decoded. Other files are decoded twice: to count, and to the end of the clip.
pub fn decode_chosen_clip(
    source: &Source,
    clip: &ClipSpec,
    preprocessing: &Preprocessing,
    options: &DecodeOptions,
    choose: impl Fn(Extent) -> Choice,
) -> Result<Clip, VideoError> {
    let options = DecodeOptions { clip_stride: 1, max_clips_wanted: Some(1), ..options.clone() };
    let decode_from = |stream: VideoStream, Choice { first_frame, crop }: Choice| {
        let transform = FrameTransform::new(clip.size, preprocessing, crop)?;
        let (info, mut taken) = (stream.info.clone(), None);
        let sink = |passed: Passed| {
            passed.clip_to(&mut |clip| {
                taken = Some(clip);
                ControlFlow::Break(())
            })
        };
        let mut assembly = Assembly::new(&info, clip, preprocessing, &options, transform, sink);
        let decoded = stream.decode(|frame| match frame.number.checked_sub(first_frame) {
            Some(number) => Ok(first_frame.saturating_add(assembly.take(TimedFrame { number, ..frame })?)),
            None => Ok(first_frame),
        });
        match decoded {
            Ok(Some(_)) => {
                // The clip ends with the video; whether more is wanted no longer matters.
                let _ = assembly.hand_over(None);
            }
            Ok(None) => return Ok(None),
            Err(Stop::Asked) => {}
            Err(Stop::Failed(error)) => return Err(error),
        }
        drop(assembly);
        Ok(taken)
    };

    if let Some(mut stream) = VideoStream::open_listed(source, &options)?
        && let Some(frames) = stream.listed_frames()
    {
        let choice = within(frames, choose(extent(frames, &stream)));
        if stream.jump_to(choice.first_frame)?
            && let Some(clip) = decode_from(stream, choice)?
        {
            return Ok(clip);
        }
    }
    let stream = VideoStream::open(source, &options, Seeking::Never)?;
    let (width, height) = stream.size();
    let frames = decode_all(stream)?.frames;
    let stream = VideoStream::open(source, &options, Seeking::Never)?;
    let choice = within(frames, choose(Extent { frames, width, height }));
    let codec = stream.info.codec.to_string();
    decode_from(stream, choice)?.ok_or(VideoError::NoFrames { codec, packets: 0, corrupt_packets: 0 })
}

/// Opens a video as far as that goes without decoding it: container, stream and decoder are known then, and the extent
/// where the packets tell it. Takes time for reading the file, hardly any for computing.
pub fn probe(source: &Source, options: &DecodeOptions) -> Result<Option<Extent>, VideoError> {
    let stream = VideoStream::open_listed(source, options)?;
    Ok(stream.and_then(|stream| Some(extent(stream.listed_frames()?, &stream))))
}

/// What decoding a whole video gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Frames that came out.
    pub decoded: u64,
    /// Frames that the container says there are, where it says so frame by frame.
    pub listed: Option<u64>,
    /// Why this is not the whole video; `None` if it is.
    pub partial: Option<PartialReason>,
}

impl Count {
    /// Whether all that the container promises was decoded without an error.
    pub fn is_whole(&self) -> bool {
        self.partial.is_none() && self.listed.is_none_or(|listed| self.decoded >= listed)
    }
}

/// Counts the frames of a video, or of [`DecodeOptions::range`], by decoding them all.
pub fn count_frames(source: &Source, options: &DecodeOptions) -> Result<Count, VideoError> {
    let listed = probe(source, options)?.map(|extent| extent.frames);
    let stream = VideoStream::open(source, options, Seeking::Never)?;
    let info = stream.info.clone();
    let decoded = decode_all(stream)?;
    let partial = ending::why_partial(source, &info, &decoded, &options.limits);
    Ok(Count { decoded: decoded.frames, listed, partial })
}

fn extent(frames: u64, stream: &VideoStream) -> Extent {
    let (width, height) = stream.size();
    Extent { frames, width, height }
}

fn within(frames: u64, choice: Choice) -> Choice {
    Choice { first_frame: choice.first_frame.min(frames.saturating_sub(1)), ..choice }
}

/// Decodes the range, of which nobody wants a frame.
fn decode_all(stream: VideoStream) -> Result<Decoded, VideoError> {
    match stream.decode(|_| Ok::<u64, Stop>(u64::MAX)) {
        Ok(decoded) => Ok(decoded.unwrap_or_default()),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Asked) => unreachable!("nothing asks to stop"),
    }
}
