//! From encoded bytes to frames in display order, within limits.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use ffmpeg_next as ffmpeg;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::media::Type;
use tokio_util::sync::CancellationToken;

use super::error::{PartialReason, VideoError};
use super::ffmpeg as glue;
use super::ffmpeg::{MediaBytes, OpenError};
use super::limits::Limits;
use super::picture::Orientation;
use super::spool::{self, SpoolReader};

/// Where the encoded bytes are.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, read where decoding needs it.
    Path(PathBuf),
    /// The whole file in memory.
    Bytes(Bytes),
    /// An upload that may still be arriving. Frames come as soon as their bytes are there, but for an MP4 whose index
    /// comes last, which has to arrive first.
    Spool(SpoolReader),
}

impl Source {
    /// Opens the bytes and checks their number, where that is known.
    fn open(&self, limits: &Limits) -> Result<MediaBytes, VideoError> {
        let (bytes, len) = match self {
            Self::Path(path) => {
                let file = File::open(path)?;
                let len = file.metadata()?.len();
                (MediaBytes::Seekable(Box::new(file)), len)
            }
            Self::Bytes(bytes) => (MediaBytes::Seekable(Box::new(Cursor::new(bytes.clone()))), bytes.len() as u64),
            // Asking for more than the decoder needs next would make it wait for the whole upload.
            Self::Spool(reader) if !reader.is_complete() && spool::decodes_in_order(reader.clone())? => {
                return Ok(MediaBytes::InOrder(Box::new(reader.clone())));
            }
            Self::Spool(reader) => {
                let len = reader.clone().seek(SeekFrom::End(0))?;
                (MediaBytes::Seekable(Box::new(reader.clone())), len)
            }
        };
        match len {
            0 => Err(VideoError::Empty),
            _ if len > limits.max_bytes => Err(VideoError::TooLarge { actual: len, limit: limits.max_bytes }),
            _ => Ok(bytes),
        }
    }

    /// The first bytes, to tell what they are.
    fn head(&self) -> std::io::Result<Vec<u8>> {
        const HEAD: u64 = 64 << 10;
        let mut head = Vec::new();
        match self {
            Self::Path(path) => File::open(path)?.take(HEAD).read_to_end(&mut head)?,
            Self::Bytes(bytes) => bytes.as_ref().take(HEAD).read_to_end(&mut head)?,
            Self::Spool(reader) => {
                let mut reader = reader.clone();
                reader.seek(SeekFrom::Start(0))?;
                // What arrived before an upload broke off is enough to tell.
                let _ = reader.take(HEAD).read_to_end(&mut head);
                head.len()
            }
        };
        Ok(head)
    }
}

/// One decoded frame and where it belongs.
pub(super) struct TimedFrame<'a> {
    pub(super) frame: &'a ffmpeg::frame::Video,
    /// Presentation time from the start of the container's timeline; never less than the frame before.
    pub(super) start: Duration,
    /// When the frame's display ends, if no other frame ends it before.
    pub(super) end: Duration,
}

/// What is known of a video stream before it is decoded.
#[derive(Debug, Clone)]
pub(super) struct StreamInfo {
    pub(super) index: usize,
    pub(super) codec: &'static str,
    pub(super) container: String,
    pub(super) orientation: Orientation,
}

/// What was met on the way through a stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Decoded {
    pub(super) frames: u64,
    pub(super) corrupt_packets: u64,
    pub(super) partial: Option<PartialReason>,
}

/// A video stream, ready to be decoded from its start.
pub(super) struct VideoStream {
    input: Input,
    decoder: ffmpeg::decoder::Video,
    pub(super) info: StreamInfo,
    limits: Limits,
    cancel: CancellationToken,
    clock: Clock,
    packets: u64,
    decoded: Decoded,
    last_format: Option<(u32, u32, ffmpeg::format::Pixel)>,
    format_changes: u32,
    cpu_time_before: Duration,
}

/// Errors in a row after which nothing more is expected of a container or decoder.
const MAX_ERRORS_IN_A_ROW: u32 = 256;

impl VideoStream {
    /// Opens the container, chooses the stream and opens its decoder.
    pub(super) fn open(
        source: &Source,
        limits: &Limits,
        cancel: &CancellationToken,
        decoder_threads: usize,
    ) -> Result<Self, VideoError> {
        let cpu_time_before = glue::thread_cpu_time();
        let bytes = source.open(limits)?;
        let token = cancel.clone();
        let mut input = glue::open(bytes, limits, move || token.is_cancelled()).map_err(|error| match error {
            OpenError::Video(error) => error,
            OpenError::Ffmpeg(_) if cancel.is_cancelled() => VideoError::Cancelled,
            OpenError::Ffmpeg(error) => explain_refusal(source, error),
        })?;
        let container = input.format().name().to_string();
        let index = choose_stream(&input, &container)?;
        glue::keep_only(&mut input, index);
        let decoder = glue::open_decoder(&input, index, decoder_threads, limits)?;
        let clock = Clock::new(&input, index);
        clock.check_declared(&input, index, limits)?;
        let info =
            StreamInfo { index, codec: decoder.id().name(), container, orientation: glue::orientation(&input, index) };
        Ok(Self {
            input,
            decoder,
            info,
            limits: limits.clone(),
            cancel: cancel.clone(),
            clock,
            packets: 0,
            decoded: Decoded::default(),
            last_format: None,
            format_changes: 0,
            cpu_time_before,
        })
    }

    /// Decodes to the end and hands over each frame in display order. Corrupt packets are passed over and counted.
    pub(super) fn decode<E: From<VideoError>>(
        mut self,
        mut on_frame: impl FnMut(TimedFrame<'_>) -> Result<(), E>,
    ) -> Result<Decoded, E> {
        let mut packet = ffmpeg::Packet::empty();
        let mut errors_in_a_row = 0;
        let mut unreadable = None;
        loop {
            self.check_time()?;
            match packet.read(&mut self.input) {
                Ok(()) => errors_in_a_row = 0,
                Err(ffmpeg::Error::Eof) => break,
                Err(ffmpeg::Error::InvalidData) if errors_in_a_row < MAX_ERRORS_IN_A_ROW => {
                    errors_in_a_row += 1;
                    self.decoded.corrupt_packets += 1;
                    continue;
                }
                Err(_) if self.cancel.is_cancelled() => return Err(VideoError::Cancelled.into()),
                Err(error) => {
                    unreadable = Some(error.to_string());
                    break;
                }
            }
            if packet.stream() != self.info.index {
                continue;
            }
            self.packets += 1;
            if self.decoder.send_packet(&packet).is_err() || packet.is_corrupt() {
                self.decoded.corrupt_packets += 1;
            }
            self.receive_frames(&mut on_frame)?;
        }
        // A decoder that refuses to be drained has nothing more to give.
        if self.decoder.send_eof().is_ok() {
            self.receive_frames(&mut on_frame)?;
        }
        self.finish(unreadable).map_err(E::from)
    }

    fn receive_frames<E: From<VideoError>>(
        &mut self,
        on_frame: &mut impl FnMut(TimedFrame<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut frame = ffmpeg::frame::Video::empty();
        for _ in 0..MAX_ERRORS_IN_A_ROW {
            loop {
                match self.decoder.receive_frame(&mut frame) {
                    Ok(()) => {}
                    Err(ffmpeg::Error::Eof | ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => return Ok(()),
                    Err(_) => break,
                }
                self.check_time()?;
                self.check_frame(&frame)?;
                let (start, end) = self.clock.place(&frame, &self.limits)?;
                on_frame(TimedFrame { frame: &frame, start, end })?;
            }
            self.decoded.corrupt_packets += 1;
        }
        Ok(())
    }

    fn check_time(&self) -> Result<(), VideoError> {
        if self.cancel.is_cancelled() {
            return Err(VideoError::Cancelled);
        }
        let actual = glue::thread_cpu_time().saturating_sub(self.cpu_time_before);
        if actual > self.limits.max_cpu_time {
            return Err(VideoError::TooMuchCpuTime { actual, limit: self.limits.max_cpu_time });
        }
        Ok(())
    }

    fn check_frame(&mut self, frame: &ffmpeg::frame::Video) -> Result<(), VideoError> {
        glue::check_pixels(frame.width(), frame.height(), &self.limits)?;
        self.decoded.frames += 1;
        if self.decoded.frames > self.limits.max_frames {
            return Err(VideoError::TooManyFrames { limit: self.limits.max_frames });
        }
        if frame.is_corrupt() || frame.has_decode_errors() {
            self.decoded.corrupt_packets += 1;
        }
        let format = (frame.width(), frame.height(), frame.format());
        if self.last_format.replace(format).is_some_and(|last| last != format) {
            self.format_changes += 1;
            if self.format_changes > self.limits.max_format_changes {
                return Err(VideoError::TooManyFormatChanges { limit: self.limits.max_format_changes });
            }
        }
        Ok(())
    }

    fn finish(mut self, unreadable: Option<String>) -> Result<Decoded, VideoError> {
        let indexed = glue::indexed_packets(&self.input, self.info.index);
        let corrupt_packets = self.decoded.corrupt_packets;
        if self.decoded.frames == 0 {
            return Err(VideoError::NoFrames {
                codec: self.info.codec.to_string(),
                packets: self.packets,
                corrupt_packets,
            });
        }
        self.decoded.partial = if self.packets < indexed {
            Some(PartialReason::Truncated { expected: indexed, actual: self.packets })
        } else if let Some(detail) = unreadable {
            Some(PartialReason::Unreadable { packets: self.packets, detail })
        } else {
            (corrupt_packets > 0).then_some(PartialReason::CorruptPackets { packets: corrupt_packets })
        };
        Ok(self.decoded)
    }
}

/// Says what a file is that FFmpeg would not open.
fn explain_refusal(source: &Source, error: ffmpeg::Error) -> VideoError {
    let head = match source.head() {
        Ok(head) => head,
        Err(error) => return VideoError::Read(error),
    };
    if let ffmpeg::Error::Other { errno: ffmpeg::error::ENOMEM } = error {
        return VideoError::Ffmpeg { operation: "open the container", source: error };
    }
    match glue::detect_format(&head) {
        None if head.is_empty() => VideoError::Empty,
        None => VideoError::NotAVideo { detail: "no container format was recognised".to_string() },
        Some(format) if format.ends_with("_pipe") || format == "image2" || format == "apng" => {
            VideoError::Image { format: format.trim_end_matches("_pipe").to_string() }
        }
        Some(format) if is_accepted(&format) => {
            VideoError::NotAVideo { detail: format!("the {format} header is missing, damaged or cut off ({error})") }
        }
        Some(format) => VideoError::Container { format, accepted: glue::ACCEPTED_CONTAINERS },
    }
}

fn is_accepted(format: &str) -> bool {
    format.split(',').any(|name| glue::ACCEPTED_CONTAINERS.split(',').any(|accepted| accepted == name))
}

/// FFmpeg's best video stream that is not an attached picture.
fn choose_stream(input: &Input, container: &str) -> Result<usize, VideoError> {
    use ffmpeg::format::stream::Disposition;
    let attached = |stream: &ffmpeg::Stream<'_>| stream.disposition().contains(Disposition::ATTACHED_PIC);
    let mut videos = input.streams().filter(|stream| stream.parameters().medium() == Type::Video).peekable();
    if videos.peek().is_none() {
        let streams = input.nb_streams() as usize;
        return Err(VideoError::NoVideoStream { streams, container: container.to_string() });
    }
    if let Some(best) = input.streams().best(Type::Video)
        && !attached(&best)
    {
        return Ok(best.index());
    }
    videos
        .find(|stream| !attached(stream))
        .map(|stream| stream.index())
        .ok_or_else(|| VideoError::OnlyAttachedPicture { container: container.to_string() })
}

/// Turns FFmpeg's timestamps into times from the start of the container's timeline.
struct Clock {
    seconds_per_tick: f64,
    origin: Option<f64>,
    default_frame: f64,
    first: Option<f64>,
    last: Option<(f64, f64)>,
}

impl Clock {
    fn new(input: &Input, index: usize) -> Self {
        let stream = input.stream(index).expect("the stream was chosen from this input");
        let rate = f64::from(stream.avg_frame_rate());
        Self {
            seconds_per_tick: f64::from(stream.time_base()),
            origin: glue::start_time(input).map(|start| start as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE)),
            default_frame: if rate.is_finite() && rate > 0.0 { 1.0 / rate } else { 0.04 },
            first: None,
            last: None,
        }
    }

    /// Refuses by what the header says, before anything is decoded.
    fn check_declared(&self, input: &Input, index: usize, limits: &Limits) -> Result<(), VideoError> {
        let stream = input.stream(index).expect("the stream was chosen from this input");
        if u64::try_from(stream.frames()).is_ok_and(|frames| frames > limits.max_frames) {
            return Err(VideoError::TooManyFrames { limit: limits.max_frames });
        }
        check_duration(stream.duration() as f64 * self.seconds_per_tick, limits)
    }

    /// Start and end of the next frame in display order.
    fn place(&mut self, frame: &ffmpeg::frame::Video, limits: &Limits) -> Result<(Duration, Duration), VideoError> {
        let following = self.last.map_or(0.0, |(_, end)| end);
        let stamped = frame.timestamp().map(|ticks| ticks as f64 * self.seconds_per_tick);
        let origin = *self.origin.get_or_insert(stamped.unwrap_or(0.0));
        let earliest = self.last.map_or(0.0, |(start, _)| start);
        let start = stamped.map_or(following, |time| time - origin).max(earliest);
        let length = frame.packet().duration as f64 * self.seconds_per_tick;
        let end = start + if length > 0.0 { length } else { self.default_frame };
        self.last = Some((start, end));
        check_duration(end - *self.first.get_or_insert(start), limits)?;
        Ok((seconds(start), seconds(end)))
    }
}

fn check_duration(actual: f64, limits: &Limits) -> Result<(), VideoError> {
    if actual > limits.max_duration.as_secs_f64() {
        return Err(VideoError::TooLong { actual: seconds(actual), limit: limits.max_duration });
    }
    Ok(())
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(if value > 0.0 { Duration::MAX } else { Duration::ZERO })
}
