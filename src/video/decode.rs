//! From encoded bytes to frames in display order, within limits.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::time::Duration;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::format::context::Input;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::DecodeOptions;
use super::clock::{Clock, Stamp, ticks_of};
use super::declared;
use super::error::{PartialReason, Unit, VideoError};
use super::ffmpeg as glue;
use super::ffmpeg::Complaints;
use super::frame_table::{FrameTable, KeyFrame, ListedFrame};
use super::limits::Limits;
use super::open::open_input;
use super::picture::Orientation;
use super::source::Origin;

/// Part of a video by presentation time, from the start of the container's timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct TimeRange {
    /// Frames shown from here on.
    pub start: Duration,
    /// Frames shown before this; to the end if `None`.
    pub end: Option<Duration>,
}

impl TimeRange {
    /// The whole video.
    pub const ALL: Self = Self { start: Duration::ZERO, end: None };
}

/// One decoded frame and where it belongs.
pub(super) struct TimedFrame<'a> {
    pub(super) frame: &'a ffmpeg::frame::Video,
    /// Presentation time from the start of the container's timeline; never less than the frame before.
    pub(super) start: Duration,
    /// When the frame's display ends, if no other frame ends it before.
    pub(super) end: Duration,
    /// Place among the frames of the range, from 0.
    pub(super) number: u64,
    /// How it is to be turned for display.
    pub(super) orientation: Orientation,
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
    /// Frames of the range, those passed over included.
    pub(super) frames: u64,
    /// End of the last frame, where that was not decoded.
    pub(super) end: Option<Duration>,
    /// Nothing of the file comes after these frames.
    pub(super) to_the_end: bool,
    pub(super) corrupt_packets: u64,
    /// What the container's reader complained of after the last packet: damage, or what comes after the video's end.
    pub(super) after_last_packet: Complaints,
    /// Where the last packet is in the file, if that is known.
    pub(super) last_packet: Option<Range<u64>>,
    /// Packets of the stream up to there.
    pub(super) packets: u64,
    /// Frames of the stream by its header, if that says.
    pub(super) promised_frames: Option<u64>,
    pub(super) partial: Option<PartialReason>,
}

/// A video stream, ready to be decoded.
pub(super) struct VideoStream {
    input: Input,
    decoder: ffmpeg::decoder::Video,
    pub(super) info: StreamInfo,
    limits: Limits,
    cancel: CancellationToken,
    range: TimeRange,
    clock: Clock,
    /// Frames, first to last, that have no time yet: what comes after them decides.
    held: VecDeque<(ffmpeg::frame::Video, Stamp)>,
    /// Number and start of the last frame that was wanted, and the number from which frames are wanted.
    last_wanted: Option<(u64, Duration)>,
    wanted: u64,
    /// From each wanted frame to the next.
    wanted_time: Duration,
    /// Frames of the range that were decoded.
    decoded_frames: u64,
    /// The frame that seeking decoded to see where it landed.
    landed_on: Option<ffmpeg::frame::Video>,
    /// All frames, where some are to be passed over without decoding them.
    table: Option<FrameTable>,
    /// Frames shown before this, in ticks, only lead to a frame that is wanted.
    wanted_from: i64,
    /// Packets of the stream before the place where reading began, as far as the container's index knows.
    packets_before: u64,
    packets: u64,
    /// Whether the last packet can be expected to give a picture.
    holds_picture: bool,
    /// Decoding time of the last packet, if it is not known yet whether it lacks anything; see
    /// [`VideoStream::settle_splice`].
    before_splice: Option<Option<i64>>,
    decoded: Decoded,
    cpu_time_before: Duration,
}

/// Whether frames may be left out without decoding them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seeking {
    /// All that come before are decoded.
    Never,
    /// Those before the range.
    ToStart,
    /// Also those within it that nobody wants.
    Anywhere,
}

/// Errors in a row after which nothing more is expected of a container or decoder.
const MAX_ERRORS_IN_A_ROW: u32 = 256;

/// How far before the wanted time to look for a place to begin, in seconds, one after the other. The index of a
/// container leads to the right place the first time, but for streams whose marked key frames are none.
const SEEK_BACK: [f64; 3] = [0.0, 2.0, 20.0];

/// More frames are not listed: their times would take too much memory.
const MAX_LISTED: usize = 2_000_000;

/// Fewer frames in a row are decoded rather than jumped over: a jump costs the decoder what it has under way.
const JUMP_PAYS_FROM: u64 = 8;

/// What reading a packet came to.
enum Reading {
    Packet,
    End,
    Unreadable(String),
}

impl VideoStream {
    /// Opens the container, chooses the stream, opens its decoder and goes to the start of the range, by seeking where that
    /// is allowed and known to lead to the same frames and times.
    pub(super) fn open(source: &dyn Origin, options: &DecodeOptions, seeking: Seeking) -> Result<Self, VideoError> {
        let cpu_time_before = glue::thread_cpu_time();
        let reopen = || Self::at_start(source, options, cpu_time_before);
        let (mut stream, can_seek) = reopen()?;
        let start = options.range.start;
        if !can_seek || seeking == Seeking::Never || (seeking == Seeking::ToStart && start.is_zero()) {
            return Ok(stream);
        }
        // Where the index may be of another recording, the packets tell.
        let trusts_index =
            seeking == Seeking::ToStart && declared::is_one_recording(&mut stream.input, stream.info.index, source);
        if !trusts_index {
            if seeking == Seeking::ToStart {
                stream = reopen()?.0;
            }
            stream.table = stream.list_frames()?;
            if stream.table.is_some() && stream.jump_to(0)? {
                return Ok(stream);
            }
            return Ok(reopen()?.0);
        }
        for back in SEEK_BACK {
            if stream.seek(start.as_secs_f64() - back)? {
                return Ok(stream);
            }
        }
        // Decoding from the start always gives the right frames.
        Ok(reopen()?.0)
    }

    /// Opens a video of which all frames are known by its packets; `None` if they are not, or if seeking does not lead to
    /// them. [`VideoStream::jump_to`] says where decoding begins.
    pub(super) fn open_listed(source: &dyn Origin, options: &DecodeOptions) -> Result<Option<Self>, VideoError> {
        let (mut stream, can_seek) = Self::at_start(source, options, glue::thread_cpu_time())?;
        if can_seek {
            stream.table = stream.list_frames()?;
        }
        Ok(stream.table.is_some().then_some(stream))
    }

    /// Frames of the range, where they are known before they are decoded.
    pub(super) fn listed_frames(&self) -> Option<u64> {
        self.table.as_ref().map(FrameTable::len)
    }

    /// Displayed width and height in pixels, by the headers.
    pub(super) fn size(&self) -> (u32, u32) {
        let (width, height) = (self.decoder.width(), self.decoder.height());
        if self.info.orientation.transpose { (height, width) } else { (width, height) }
    }

    /// Also tells whether seeking finds frames by the same times as decoding does. That needs timestamps in the
    /// container for every frame, and an index.
    fn at_start(
        source: &dyn Origin,
        options: &DecodeOptions,
        cpu_time_before: Duration,
    ) -> Result<(Self, bool), VideoError> {
        let DecodeOptions { limits, cancel, range, .. } = options;
        let (mut input, mut complaints, index, seekable) = open_input(source, options)?;
        if options.is_whole() && declared::is_too_much(&input, index, limits) {
            declared::refuse(&mut input, index, seekable, limits)?;
            // Looking has moved it.
            (input, complaints, ..) = open_input(source, options)?;
        }
        let container = input.format().name().to_string();
        let decoder = glue::open_decoder(&input, index, options.decoder_threads, limits)?;
        let clock = Clock::new(&input, index);
        let can_seek =
            seekable && clock.has_origin() && ["mov", "matroska"].iter().any(|name| container.starts_with(name));
        let orientation = glue::orientation(&input, index);
        let stream = Self {
            input,
            info: StreamInfo { index, codec: decoder.id().name(), container, orientation },
            decoder,
            limits: limits.clone(),
            cancel: cancel.clone(),
            range: *range,
            clock,
            held: VecDeque::new(),
            last_wanted: None,
            wanted: 0,
            wanted_time: Duration::ZERO,
            decoded_frames: 0,
            landed_on: None,
            table: None,
            wanted_from: i64::MIN,
            packets_before: 0,
            packets: 0,
            holds_picture: true,
            before_splice: None,
            decoded: Decoded { after_last_packet: complaints, ..Default::default() },
            cpu_time_before,
        };
        Ok((stream, can_seek))
    }

    /// Goes to the last key frame shown at `time` (in seconds) or before. Tells whether the first frame that comes
    /// out is in fact at or before the start of the range, so that no frame of it is missed.
    fn seek(&mut self, time: f64) -> Result<bool, VideoError> {
        self.decoder.flush();
        self.clock.restart();
        (self.packets, self.packets_before, self.decoded) = (0, 0, Decoded::default());
        if time <= 0.0 || glue::seek(&mut self.input, self.info.index, self.clock.ticks(time)).is_err() {
            return Ok(false);
        }
        let mut frame = ffmpeg::frame::Video::empty();
        loop {
            let mut packet = ffmpeg::Packet::empty();
            let Reading::Packet = self.read(&mut packet)? else { return Ok(false) };
            if self.packets == 1 {
                let dts = packet.dts().or(packet.pts()).unwrap_or(0);
                self.packets_before = glue::packets_before(&self.input, self.info.index, dts);
            }
            if packet.size() == 0 {
                continue;
            }
            if self.decoder.send_packet(&packet).is_err() {
                return Ok(false);
            }
            match self.decoder.receive_frame(&mut frame) {
                Ok(()) => break,
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => {}
                Err(_) => return Ok(false),
            }
        }
        let landed = self.clock.start_of(&frame).is_some_and(|start| start <= self.range.start);
        self.landed_on = Some(frame);
        Ok(landed)
    }

    /// Reads the whole file without decoding it. `None` if anything about it is in doubt, such as damage, of which only
    /// decoding would tell how many frames it costs, or timestamps that break, which only decoding puts in order.
    fn list_frames(&mut self) -> Result<Option<FrameTable>, VideoError> {
        let (mut frames, mut keys) = (Vec::new(), Vec::new());
        let mut last_dts = i64::MIN;
        loop {
            let mut packet = ffmpeg::Packet::empty();
            match self.read(&mut packet)? {
                Reading::Packet => {}
                Reading::End => break,
                Reading::Unreadable(_) => return Ok(None),
            }
            let Some(pts) = packet.pts() else { return Ok(None) };
            if packet.is_key() {
                keys.push(KeyFrame { pts, dts: packet.dts() });
            }
            if !glue::is_discarded(&packet) {
                frames.push(ListedFrame { pts, duration: packet.duration() });
            }
            let dts = packet.dts().unwrap_or(last_dts);
            if packet.is_corrupt() || dts < last_dts || frames.len() > MAX_LISTED {
                return Ok(None);
            }
            last_dts = dts;
        }
        let complaints = self.decoded.after_last_packet.count;
        if self.decoded.corrupt_packets + complaints > 0 || self.missing_packets().is_some() {
            return Ok(None);
        }
        let table = FrameTable::new(frames, keys);
        if !self.clock.is_continuous(table.frames().map(|frame| (frame.pts, frame.duration))) {
            return Ok(None);
        }
        let table = table.within(|frame| {
            let start = self.clock.time_of(frame.pts);
            start >= self.range.start && self.range.end.is_none_or(|end| start < end)
        });
        Ok((table.len() > 0).then_some(table))
    }

    /// Goes on with the last key frame that frame `number` needs. Tells whether reading in fact goes on there, or with
    /// another key frame before.
    pub(super) fn jump_to(&mut self, number: u64) -> Result<bool, VideoError> {
        let Some(table) = &self.table else { return Ok(false) };
        let Some(wanted) = table.frame(number) else { return Ok(false) };
        let Some(key) = table.key_before(wanted.pts) else { return Ok(false) };
        // MP4 is indexed by decoding time, Matroska by presentation time.
        let ticks = if self.info.container.starts_with("mov") { key.dts.unwrap_or(key.pts) } else { key.pts };
        self.decoder.flush();
        if glue::seek(&mut self.input, self.info.index, ticks).is_err() {
            return Ok(false);
        }
        let mut packet = ffmpeg::Packet::empty();
        let Reading::Packet = self.read(&mut packet)? else { return Ok(false) };
        let landed = packet.is_key() && packet.pts().is_some_and(|pts| pts <= key.pts && self.has_key_at(pts));
        self.clock.restart();
        (self.wanted_from, self.decoded.frames) = (wanted.pts, number);
        Ok(landed && self.decoder.send_packet(&packet).is_ok())
    }

    fn has_key_at(&self, pts: i64) -> bool {
        self.table.as_ref().is_some_and(|table| table.has_key_at(pts))
    }

    /// Decodes to the end of the range and hands over each frame of it in display order. Corrupt packets are passed
    /// over and counted. `on_frame` answers with the number of the next frame it wants; others it may get or not.
    ///
    /// `None` if frames were to be passed over and the packets promised others than came: all that was handed over is to
    /// be forgotten, and the video to be decoded without jumps.
    pub(super) fn decode<E: From<VideoError>>(
        mut self,
        mut on_frame: impl FnMut(TimedFrame<'_>) -> Result<u64, E>,
    ) -> Result<Option<Decoded>, E> {
        let mut unreadable = None;
        let mut progress = match self.landed_on.take() {
            Some(mut frame) => self.arrive(&mut frame, &mut on_frame)?,
            None => Progress::Going,
        };
        if progress == Progress::Going {
            progress = self.receive_frames(&mut on_frame)?;
        }
        while progress == Progress::Going {
            let mut packet = ffmpeg::Packet::empty();
            match self.read(&mut packet)? {
                Reading::Packet => {}
                Reading::End => break,
                Reading::Unreadable(detail) => {
                    unreadable = Some(detail);
                    break;
                }
            }
            // To a decoder, this would be the end.
            if packet.size() == 0 {
                continue;
            }
            self.holds_picture = glue::holds_picture(&packet, &self.decoder);
            let (sent, complained) = glue::send(&mut self.decoder, &packet);
            self.settle_splice(packet.dts());
            if self.holds_picture && (sent.is_err() || complained) {
                self.decoded.corrupt_packets += 1;
            } else if packet.is_corrupt() {
                self.before_splice = Some(packet.dts());
            }
            progress = self.receive_frames(&mut on_frame)?;
        }
        self.settle_splice(None);
        // A decoder that refuses to be drained has nothing more to give.
        if progress == Progress::Going && self.decoder.send_eof().is_ok() {
            progress = self.receive_frames(&mut on_frame)?;
        }
        if progress == Progress::Going {
            progress = self.release(true, &mut on_frame)?;
        }
        let promised = self.table.as_ref().map(FrameTable::len);
        if progress == Progress::Surprised || promised.is_some_and(|frames| frames != self.decoded.frames) {
            return Ok(None);
        }
        Ok(Some(self.finish(unreadable, progress)?))
    }

    /// Reads the next packet of the stream into `packet`, which must be empty.
    fn read(&mut self, packet: &mut ffmpeg::Packet) -> Result<Reading, VideoError> {
        let mut errors_in_a_row = 0;
        loop {
            self.check_time()?;
            let (read, complaints) = glue::read(&mut self.input, packet);
            self.decoded.after_last_packet.add(complaints);
            match read {
                Ok(()) if packet.stream() == self.info.index => {
                    self.packets += 1;
                    self.decoded.corrupt_packets += mem::take(&mut self.decoded.after_last_packet).count;
                    let position = u64::try_from(packet.position()).ok();
                    self.decoded.last_packet = position.map(|position| position..position + packet.size() as u64);
                    return Ok(Reading::Packet);
                }
                // Reading does not release what the packet held before.
                Ok(()) => *packet = ffmpeg::Packet::empty(),
                Err(ffmpeg::Error::Eof) => return Ok(Reading::End),
                // The reader of GXF has no other word for the end.
                Err(ffmpeg::Error::Other { errno: ffmpeg::error::EPERM }) if glue::is_at_end(&self.input) => {
                    return Ok(Reading::End);
                }
                Err(ffmpeg::Error::InvalidData) if errors_in_a_row < MAX_ERRORS_IN_A_ROW => errors_in_a_row += 1,
                Err(_) if self.cancel.is_cancelled() => return Err(VideoError::Cancelled),
                Err(error) => return Ok(Reading::Unreadable(error.to_string())),
            }
        }
    }

    /// Decides whether the last packet lacks anything, of which the container's reader thought so and the decoder did not.
    /// `next` is the decoding time of the one after it. Where two recordings were joined, packets seem to be missing in
    /// between, but their times tell.
    fn settle_splice(&mut self, next: Option<i64>) {
        /// In seconds.
        const LEAP: f64 = 1.0;
        let Some(last) = self.before_splice.take() else { return };
        let tick = self.input.stream(self.info.index).map_or(0.0, |stream| f64::from(stream.time_base()));
        let is_splice =
            last.zip(next).is_some_and(|(last, next)| next < last || next.abs_diff(last) as f64 * tick > LEAP);
        self.decoded.corrupt_packets += u64::from(!is_splice);
    }

    fn receive_frames<E: From<VideoError>>(
        &mut self,
        on_frame: &mut impl FnMut(TimedFrame<'_>) -> Result<u64, E>,
    ) -> Result<Progress, E> {
        let mut frame = ffmpeg::frame::Video::empty();
        for _ in 0..MAX_ERRORS_IN_A_ROW {
            loop {
                let (received, complained) = glue::receive(&mut self.decoder, &mut frame);
                self.decoded.corrupt_packets += u64::from(complained && self.holds_picture);
                match received {
                    Ok(()) => {}
                    Err(ffmpeg::Error::Eof | ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => {
                        return Ok(Progress::Going);
                    }
                    Err(_) => break,
                }
                let progress = self.arrive(&mut frame, on_frame)?;
                if progress != Progress::Going {
                    return Ok(progress);
                }
            }
            self.decoded.corrupt_packets += u64::from(self.holds_picture);
        }
        Ok(Progress::Going)
    }

    /// Takes the next frame that comes out of the decoder.
    fn arrive<E: From<VideoError>>(
        &mut self,
        frame: &mut ffmpeg::frame::Video,
        on_frame: &mut impl FnMut(TimedFrame<'_>) -> Result<u64, E>,
    ) -> Result<Progress, E> {
        self.check_time()?;
        if self.table.is_some() && ticks_of(frame).is_some_and(|pts| pts < self.wanted_from) {
            return Ok(Progress::Going);
        }
        glue::check_pixels(frame.width(), frame.height(), &self.limits)?;
        let stamp = self.clock.read(frame);
        if self.held.is_empty() {
            // Timestamps of a table are known to be in order.
            if let Some(time) = self.clock.place(&[stamp], self.table.is_some()) {
                return self.hand_over(frame, time, on_frame);
            }
        }
        self.held.push_back((mem::replace(frame, ffmpeg::frame::Video::empty()), stamp));
        self.release(false, on_frame)
    }

    /// Hands over the frames that are held back, as far as their times are known.
    fn release<E: From<VideoError>>(
        &mut self,
        is_end: bool,
        on_frame: &mut impl FnMut(TimedFrame<'_>) -> Result<u64, E>,
    ) -> Result<Progress, E> {
        while !self.held.is_empty() {
            let stamps: Vec<Stamp> = self.held.iter().map(|(_, stamp)| *stamp).collect();
            let Some(time) = self.clock.place(&stamps, is_end) else { break };
            let Some((frame, _)) = self.held.pop_front() else { break };
            let progress = self.hand_over(&frame, time, on_frame)?;
            if progress != Progress::Going {
                return Ok(progress);
            }
        }
        Ok(Progress::Going)
    }

    fn hand_over<E: From<VideoError>>(
        &mut self,
        frame: &ffmpeg::frame::Video,
        (start, end): (Duration, Duration),
        on_frame: &mut impl FnMut(TimedFrame<'_>) -> Result<u64, E>,
    ) -> Result<Progress, E> {
        if start < self.range.start {
            return Ok(Progress::Going);
        }
        if self.range.end.is_some_and(|range_end| start >= range_end) {
            return Ok(Progress::PastRange);
        }
        let number = self.decoded.frames;
        if let Some(table) = &self.table
            && table.frame(number).map(|listed| listed.pts) != ticks_of(frame)
        {
            return Ok(Progress::Surprised);
        }
        self.decoded.frames += 1;
        if frame.is_corrupt() || frame.has_decode_errors() {
            self.decoded.corrupt_packets += 1;
        }
        self.check_work(number, start)?;
        let orientation = glue::frame_orientation(frame).unwrap_or(self.info.orientation);
        self.wanted = on_frame(TimedFrame { frame, start, end, number, orientation })?;
        self.pass_over(number + 1, self.wanted).map_err(E::from)
    }

    /// Limits hold for what is decoded: frames that were jumped over cost nothing, and frames that nobody wants make a
    /// video no longer.
    fn check_work(&mut self, number: u64, start: Duration) -> Result<(), VideoError> {
        self.decoded_frames += 1;
        if self.decoded_frames > self.limits.max_frames {
            return Err(VideoError::TooManyFrames { limit: self.limits.max_frames });
        }
        if number < self.wanted {
            return Ok(());
        }
        if let Some((last, last_start)) = self.last_wanted.replace((number, start))
            && last + 1 == number
        {
            self.wanted_time = self.wanted_time.saturating_add(start.saturating_sub(last_start));
        }
        if self.wanted_time > self.limits.max_duration {
            return Err(VideoError::TooLong { actual: self.wanted_time, limit: self.limits.max_duration });
        }
        Ok(())
    }

    /// Leaves out the frames from `next` to before `wanted`, as far as that saves any work.
    fn pass_over(&mut self, next: u64, wanted: u64) -> Result<Progress, VideoError> {
        let Some(table) = &self.table else { return Ok(Progress::Going) };
        let Some(frame) = table.frame(wanted) else {
            let end = table.last().map(|last| self.clock.end_of(last.pts, last.duration)).unwrap_or_default();
            (self.decoded.frames, self.decoded.end) = (table.len(), Some(end));
            return Ok(Progress::Enough);
        };
        let lands_on = table.key_before(frame.pts).map_or(0, |key| table.frames_before(key.pts));
        if lands_on < next + JUMP_PAYS_FROM {
            return Ok(Progress::Going);
        }
        Ok(if self.jump_to(wanted)? { Progress::Going } else { Progress::Surprised })
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

    /// How many packets the container's index lists, if more than were read.
    fn missing_packets(&self) -> Option<u64> {
        // That of GXF lists fields.
        if self.info.container == "gxf" {
            return None;
        }
        let expected = glue::indexed_packets(&self.input, self.info.index).saturating_sub(self.packets_before);
        (self.packets < expected).then_some(expected)
    }

    fn finish(mut self, unreadable: Option<String>, progress: Progress) -> Result<Decoded, VideoError> {
        let corrupt_packets = self.decoded.corrupt_packets;
        if self.decoded.frames == 0 && self.range != TimeRange::ALL && self.clock.has_seen_frames() {
            return Err(VideoError::NoFramesInRange { start: self.range.start, end: self.range.end });
        }
        if self.decoded.frames == 0 {
            return Err(VideoError::NoFrames {
                codec: self.info.codec.to_string(),
                packets: self.packets,
                corrupt_packets: corrupt_packets + self.decoded.after_last_packet.count,
            });
        }
        self.decoded.to_the_end = progress != Progress::PastRange;
        let frames = self.input.stream(self.info.index).map_or(0, |stream| stream.frames());
        self.decoded.promised_frames = u64::try_from(frames).ok().filter(|frames| *frames > 0);
        self.decoded.packets = self.packets_before + self.packets;
        // A table is made of whole files only, and where frames are passed over, packets are too.
        let missing = self.missing_packets().filter(|_| progress == Progress::Going && self.table.is_none());
        self.decoded.partial = if let Some(expected) = missing {
            Some(PartialReason::Truncated { expected, actual: self.packets, unit: Unit::Packets })
        } else if let Some(detail) = unreadable {
            Some(PartialReason::Unreadable { packets: self.packets, detail })
        } else {
            (corrupt_packets > 0).then_some(PartialReason::CorruptPackets { packets: corrupt_packets })
        };
        Ok(self.decoded)
    }
}

/// Whether more frames of the range may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Going,
    PastRange,
    /// No more is wanted.
    Enough,
    /// The frames are not those that the packets promised.
    Surprised,
}
