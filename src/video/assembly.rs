//! Frames become clips.

use std::ops::{ControlFlow, DerefMut};
use std::time::Duration;

use super::decode::{StreamInfo, TimedFrame};
use super::error::VideoError;
use super::frame::FrameView;
use super::sample::{Place, SlidingWindow, loop_to_full_length};
use super::transform::FrameTransform;
use super::{Clip, DecodeOptions, VideoSummary};
use crate::model::spec::{ClipSpec, ColorMatrix, Preprocessing};

/// What decoding has come past.
pub(super) enum Passed {
    /// A clip that is wanted, and what was decoded so far.
    Clip(Clip, Box<VideoSummary>),
    /// A clip that is not, but had to be decoded.
    Unwanted,
}

impl Passed {
    /// Hands a clip to `on_clip`, to which others mean nothing.
    pub(super) fn clip_to(self, on_clip: &mut impl FnMut(Clip) -> ControlFlow<()>) -> ControlFlow<()> {
        match self {
            Self::Clip(clip, _) => on_clip(clip),
            Self::Unwanted => ControlFlow::Continue(()),
        }
    }
}

/// Where clips go. Breaking asks for no more.
pub(super) trait ClipSink {
    /// Memory for the pixels of a clip.
    type Pixels: DerefMut<Target = [u8]>;

    /// Memory for `len` bytes of pixels, whatever they are now; `None` if no more clips are wanted.
    fn room(&mut self, len: usize) -> Option<Self::Pixels>;

    /// Takes a clip, and what was decoded so far.
    fn pass(&mut self, clip: OpenClip<Self::Pixels>, so_far: VideoSummary) -> ControlFlow<()>;

    /// Learns that a clip that is not wanted had to be decoded.
    fn pass_unwanted(&mut self) -> ControlFlow<()>;
}

/// As [`Clip`], in memory of any kind.
pub(super) struct OpenClip<P> {
    pub(super) index: usize,
    pub(super) frames: usize,
    pub(super) start: Duration,
    pub(super) end: Duration,
    pub(super) rgb: P,
}

impl<F: FnMut(Passed) -> ControlFlow<()>> ClipSink for F {
    type Pixels = Vec<u8>;

    fn room(&mut self, len: usize) -> Option<Vec<u8>> {
        Some(vec![0; len])
    }

    fn pass(&mut self, clip: OpenClip<Vec<u8>>, so_far: VideoSummary) -> ControlFlow<()> {
        let OpenClip { index, frames, start, end, rgb } = clip;
        self(Passed::Clip(Clip { index, frames, start, end, rgb }, Box::new(so_far)))
    }

    fn pass_unwanted(&mut self) -> ControlFlow<()> {
        self(Passed::Unwanted)
    }
}

/// Why decoding ended before the end.
pub(super) enum Stop {
    Asked,
    Failed(VideoError),
}

impl From<VideoError> for Stop {
    fn from(error: VideoError) -> Self {
        Self::Failed(error)
    }
}

/// Puts frames into clips.
pub(super) struct Assembly<S: ClipSink> {
    clip: ClipSpec,
    clip_stride: usize,
    max_clips: u64,
    max_clips_wanted: u64,
    info: StreamInfo,
    matrix_from_tags: bool,
    transform: FrameTransform,
    view: FrameView,
    window: SlidingWindow,
    open: Option<OpenClip<S::Pixels>>,
    sink: S,
    /// Start of the first frame and end of the last.
    span: Option<(Duration, Duration)>,
    /// Displayed width and height of the first frame.
    size: (u32, u32),
    frames: u64,
    /// Clips handed over.
    clips: u64,
    /// Clips before this were handed over already.
    next_clip: usize,
}

impl<S: ClipSink> Assembly<S> {
    pub(super) fn new(
        info: &StreamInfo,
        clip: &ClipSpec,
        preprocessing: &Preprocessing,
        options: &DecodeOptions,
        transform: FrameTransform,
        sink: S,
    ) -> Self {
        Self {
            clip: *clip,
            clip_stride: options.clip_stride.max(1),
            max_clips: options.limits.max_clips,
            max_clips_wanted: options.max_clips_wanted.unwrap_or(u64::MAX),
            info: info.clone(),
            matrix_from_tags: preprocessing.color_matrix == ColorMatrix::Tagged,
            transform,
            view: FrameView::default(),
            window: SlidingWindow::new(clip),
            open: None,
            sink,
            span: None,
            size: (0, 0),
            frames: 0,
            clips: 0,
            next_clip: 0,
        }
    }

    /// Prepares for the same frames from the first on, of a stream that was opened anew. Clips that were handed over are not
    /// handed over again.
    pub(super) fn start_again(&mut self, info: &StreamInfo) {
        self.info = info.clone();
        (self.open, self.span, self.frames) = (None, None, 0);
    }

    /// What was decoded until now, without a word on what may be wrong with it.
    pub(super) fn so_far(&self) -> VideoSummary {
        let (start, end) = self.span.unwrap_or_default();
        VideoSummary {
            frames: self.frames,
            clips: self.clips,
            duration: end.saturating_sub(start),
            corrupt_packets: 0,
            partial: None,
            width: self.size.0,
            height: self.size.1,
            codec: self.info.codec.to_string(),
            container: self.info.container.clone(),
            stream_index: self.info.index,
        }
    }

    /// Start of the first frame.
    pub(super) fn start(&self) -> Duration {
        self.span.unwrap_or_default().0
    }

    /// Takes the next frame; answers with the next that is wanted.
    pub(super) fn take(&mut self, frame: TimedFrame<'_>) -> Result<u64, Stop> {
        if self.frames == 0 {
            let (width, height) = (frame.frame.width(), frame.frame.height());
            self.size = if frame.orientation.transpose { (height, width) } else { (width, height) };
        }
        self.frames = frame.number + 1;
        self.span.get_or_insert((frame.start, frame.end)).1 = frame.end;
        // A clip is handed over when the first frame after it comes: only then is its end known.
        let Some(Place { clip, slot }) = self.window.place(frame.number) else { return Ok(self.frames) };
        if slot == 0 {
            self.hand_over(Some(frame.start))?;
            if !clip.is_multiple_of(self.clip_stride) {
                go_on(self.sink.pass_unwanted())?;
            } else if clip >= self.next_clip {
                self.begin(clip, &frame)?;
            }
        }
        let Some(open) = &mut self.open else {
            let next = clip.checked_next_multiple_of(self.clip_stride).unwrap_or(usize::MAX);
            return Ok(self.window.first_frame(next.max(self.next_clip)));
        };
        let picture = self
            .view
            .picture(frame.frame, frame.orientation, self.matrix_from_tags)
            .map_err(|error| VideoError::ffmpeg("convert a frame to RGB", error))?;
        let frame_len = self.clip.size * self.clip.size * 3;
        self.transform.apply(&picture, &mut open.rgb[slot * frame_len..][..frame_len]);
        open.frames = slot + 1;
        Ok(self.frames)
    }

    fn begin(&mut self, clip: usize, first: &TimedFrame<'_>) -> Result<(), Stop> {
        if self.clips >= self.max_clips {
            return Err(VideoError::TooManyClips { limit: self.max_clips }.into());
        }
        let Some(rgb) = self.sink.room(self.clip.rgb_len()) else { return Err(Stop::Asked) };
        self.open = Some(OpenClip { index: clip, frames: 0, start: first.start, end: first.end, rgb });
        Ok(())
    }

    /// Hands over the clip that is being filled, if there is one. `next` is the time of the frame after it.
    pub(super) fn hand_over(&mut self, next: Option<Duration>) -> Result<(), Stop> {
        let Some(mut clip) = self.open.take() else { return Ok(()) };
        clip.end = next.or(self.span.map(|(_, end)| end)).unwrap_or(clip.end);
        loop_to_full_length(&mut clip.rgb, self.clip.size * self.clip.size * 3, clip.frames);
        self.clips += 1;
        self.next_clip = clip.index.saturating_add(self.clip_stride);
        let so_far = self.so_far();
        go_on(self.sink.pass(clip, so_far))?;
        if self.clips >= self.max_clips_wanted { Err(Stop::Asked) } else { Ok(()) }
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<(), Stop> {
    if flow.is_break() { Err(Stop::Asked) } else { Ok(()) }
}
