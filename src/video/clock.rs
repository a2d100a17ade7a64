//! From FFmpeg's timestamps to times.

use std::time::Duration;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::format::context::Input;

use super::error::VideoError;
use super::ffmpeg as glue;
use super::limits::Limits;

/// Turns FFmpeg's timestamps into times from the start of the container's timeline.
pub(super) struct Clock {
    seconds_per_tick: f64,
    origin: Option<f64>,
    /// Seconds; for frames that do not say how long they are shown.
    default_length: f64,
    /// Start and end of the last frame.
    last: Option<(f64, f64)>,
}

impl Clock {
    pub(super) fn new(input: &Input, index: usize) -> Self {
        let stream = input.stream(index).expect("the stream was chosen from this input");
        let rate = f64::from(stream.avg_frame_rate());
        Self {
            seconds_per_tick: f64::from(stream.time_base()),
            origin: glue::start_time(input).map(|start| start as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE)),
            default_length: if rate.is_finite() && rate > 0.0 { 1.0 / rate } else { 0.04 },
            last: None,
        }
    }

    /// Whether the container says where its timeline begins.
    pub(super) fn has_origin(&self) -> bool {
        self.origin.is_some()
    }

    /// Whether any frame was placed.
    pub(super) fn has_seen_frames(&self) -> bool {
        self.last.is_some()
    }

    /// Forgets the frames placed so far.
    pub(super) fn restart(&mut self) {
        self.last = None;
    }

    /// The last timestamp at or before `time`, in seconds.
    pub(super) fn ticks(&self, time: f64) -> i64 {
        ((time + self.origin.unwrap_or(0.0)) / self.seconds_per_tick).floor() as i64
    }

    /// A stretch of `ticks`.
    pub(super) fn length_of(&self, ticks: i64) -> Duration {
        seconds(ticks as f64 * self.seconds_per_tick)
    }

    /// When a frame is shown, if it says so.
    pub(super) fn start_of(&self, frame: &ffmpeg::frame::Video) -> Option<Duration> {
        frame.timestamp().map(|ticks| self.time_of(ticks))
    }

    /// When a frame with timestamp `ticks` is shown.
    pub(super) fn time_of(&self, ticks: i64) -> Duration {
        let stamp = ticks as f64 * self.seconds_per_tick;
        seconds(stamp - self.origin.unwrap_or(stamp))
    }

    /// When such a frame's display ends, if no other frame ends it before. It is shown for `duration` ticks; 0 if that is
    /// not said.
    pub(super) fn end_of(&self, ticks: i64, duration: i64) -> Duration {
        let stamp = ticks as f64 * self.seconds_per_tick;
        seconds((stamp - self.origin.unwrap_or(stamp)).max(0.0) + self.length(duration))
    }

    /// Seconds for which a frame of `duration` ticks is shown.
    fn length(&self, duration: i64) -> f64 {
        let length = duration as f64 * self.seconds_per_tick;
        if length > 0.0 { length } else { self.default_length }
    }

    fn stamp_of(&self, frame: &ffmpeg::frame::Video) -> Option<f64> {
        frame.timestamp().map(|ticks| ticks as f64 * self.seconds_per_tick)
    }

    /// Start and end of the next frame in display order. A frame without a timestamp follows the one before; none
    /// starts before the one before.
    pub(super) fn place(&mut self, frame: &ffmpeg::frame::Video) -> (Duration, Duration) {
        let stamp = self.stamp_of(frame);
        let origin = *self.origin.get_or_insert(stamp.unwrap_or(0.0));
        let (earliest, following) = self.last.unwrap_or((0.0, 0.0));
        let start = stamp.map_or(following, |stamp| stamp - origin).max(earliest);
        let end = start + self.length(frame.packet().duration);
        self.last = Some((start, end));
        (seconds(start), seconds(end))
    }
}

/// Refuses what lasts longer than the limit.
pub(super) fn check_duration(actual: Duration, limits: &Limits) -> Result<(), VideoError> {
    if actual > limits.max_duration {
        return Err(VideoError::TooLong { actual, limit: limits.max_duration });
    }
    Ok(())
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(if value > 0.0 { Duration::MAX } else { Duration::ZERO })
}
