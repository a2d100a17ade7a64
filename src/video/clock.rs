//! From FFmpeg's timestamps to times that go on.
//!
//! Timestamps begin again, jump or stray where recordings were joined, a counter wrapped or a writer erred. A
//! [`Timeline`] puts frames in order all the same: where the stamps break, time goes on from the last frame.

use std::time::Duration;

use ffmpeg_next as ffmpeg;
use ffmpeg_next::format::context::Input;

use super::ffmpeg as glue;

/// Turns FFmpeg's timestamps into times from the start of the container's timeline.
pub(super) struct Clock {
    seconds_per_tick: f64,
    /// Seconds; for frames that do not say how long they are shown.
    default_length: f64,
    timeline: Timeline,
    /// The last frame's own presentation timestamp.
    last_pts: Option<i64>,
    /// Frames whose timestamps are a little before those of the frames before them.
    disordered: u32,
}

/// A frame's own word on when it is shown, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stamp {
    /// When, on the container's clock; `None` if that is not said.
    at: Option<f64>,
    /// For how long.
    length: f64,
}

/// After so many frames with disordered timestamps, FFmpeg's guess is better than what they say.
const MAX_DISORDERED: u32 = 2;

impl Clock {
    pub(super) fn new(input: &Input, index: usize) -> Self {
        let stream = input.stream(index).expect("the stream was chosen from this input");
        let rate = f64::from(stream.avg_frame_rate());
        let is_free_running = FREE_RUNNING.contains(&input.format().name());
        let origin = glue::start_time(input).map(|start| start as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE));
        let default_length = if rate.is_finite() && rate > 0.0 { (1.0 / rate).min(LONGEST_LAST) } else { 0.04 };
        let timeline = Timeline {
            believed_gap: if is_free_running { SECOND } else { 10.0 * SECOND },
            declared: declared_length(input, index),
            ..Timeline::new(origin)
        };
        Self {
            seconds_per_tick: f64::from(stream.time_base()),
            default_length,
            timeline,
            last_pts: None,
            disordered: 0,
        }
    }

    /// Whether the container says where its timeline begins.
    pub(super) fn has_origin(&self) -> bool {
        self.timeline.origin.is_some()
    }

    /// Whether any frame was placed.
    pub(super) fn has_seen_frames(&self) -> bool {
        self.timeline.last.is_some()
    }

    /// Forgets the frames placed so far.
    pub(super) fn restart(&mut self) {
        (self.last_pts, self.disordered) = (None, 0);
        self.timeline.restart();
    }

    /// The last timestamp at or before `time`, in seconds.
    pub(super) fn ticks(&self, time: f64) -> i64 {
        ((time + self.timeline.origin.unwrap_or(0.0)) / self.seconds_per_tick).floor() as i64
    }

    /// When a frame is shown by its timestamp alone, if it has one.
    pub(super) fn start_of(&self, frame: &ffmpeg::frame::Video) -> Option<Duration> {
        ticks_of(frame).map(|ticks| self.time_of(ticks))
    }

    /// When a frame with timestamp `ticks` is shown, by that alone.
    pub(super) fn time_of(&self, ticks: i64) -> Duration {
        let at = ticks as f64 * self.seconds_per_tick;
        seconds(at - self.timeline.origin.unwrap_or(at))
    }

    /// When such a frame's display ends, if no other frame ends it before. It is shown for `duration` ticks; 0 if that is
    /// not said.
    pub(super) fn end_of(&self, ticks: i64, duration: i64) -> Duration {
        self.time_of(ticks) + seconds(self.length(duration).min(LONGEST_LAST))
    }

    /// What the next frame in display order says of itself.
    pub(super) fn read(&mut self, frame: &ffmpeg::frame::Video) -> Stamp {
        if let (Some(pts), Some(last)) = (frame.pts(), self.last_pts)
            && pts <= last
            && last.saturating_sub(pts) as f64 * self.seconds_per_tick < SECOND
        {
            self.disordered += 1;
        }
        self.last_pts = frame.pts().or(self.last_pts);
        let ticks = if self.disordered > MAX_DISORDERED { frame.timestamp() } else { ticks_of(frame) };
        Stamp {
            at: ticks.map(|ticks| ticks as f64 * self.seconds_per_tick),
            length: self.length(frame.packet().duration),
        }
    }

    /// Start and end of the first of `stamps`, as [`Timeline::place`].
    pub(super) fn place(&mut self, stamps: &[Stamp], is_end: bool) -> Option<(Duration, Duration)> {
        let (start, end) = self.timeline.place(stamps, is_end)?;
        Some((seconds(start), seconds(end)))
    }

    /// Whether frames with these timestamps and durations in ticks, in display order, are shown when their timestamps
    /// say. Then they can be found by them.
    pub(super) fn is_continuous(&self, mut frames: impl Iterator<Item = (i64, i64)>) -> bool {
        let mut timeline = Timeline { last: None, ..self.timeline.clone() };
        frames.all(|(pts, duration): (i64, i64)| {
            let at = Some(pts as f64 * self.seconds_per_tick);
            timeline.place(&[Stamp { at, length: self.length(duration) }], true);
            timeline.shift == 0.0
        })
    }

    /// Seconds for which a frame of `duration` ticks is shown.
    fn length(&self, duration: i64) -> f64 {
        let length = duration as f64 * self.seconds_per_tick;
        if length > 0.0 { length } else { self.default_length }
    }
}

/// A frame's presentation timestamp; FFmpeg's guess if it has none.
pub(super) fn ticks_of(frame: &ffmpeg::frame::Video) -> Option<i64> {
    frame.pts().or(frame.timestamp())
}

/// Containers whose timestamps are those of a clock that ran while they were sent, and no index goes with them: a gap is
/// a loss or another recording.
const FREE_RUNNING: [&str; 2] = ["mpegts", "mpeg"];

const SECOND: f64 = 1.0;

/// How many frames in a row may have stray timestamps without an effect on those after them.
pub(super) const LOOK_AHEAD: usize = 2;

/// The longest, in seconds, that the last frame is taken to be shown if no frame before it was shown longer.
const LONGEST_LAST: f64 = 60.0;

/// Where frames are on a timeline that goes on, all in seconds.
#[derive(Debug, Clone)]
struct Timeline {
    /// The timestamp of time 0.
    origin: Option<f64>,
    /// A gap up to this is believed; a longer one if the container accounts for it.
    believed_gap: f64,
    /// How long the video is by an index or header that knows.
    declared: Option<f64>,
    /// What the timestamps are ahead of the timeline, because of what they jumped.
    shift: f64,
    /// `shift` before the last jump.
    shift_before: Option<f64>,
    last: Option<Placed>,
    longest_step: f64,
}

#[derive(Debug, Clone, Copy)]
struct Placed {
    start: f64,
    /// By its own length.
    end: f64,
}

impl Timeline {
    fn new(origin: Option<f64>) -> Self {
        Self {
            origin,
            believed_gap: SECOND,
            declared: None,
            shift: 0.0,
            shift_before: None,
            last: None,
            longest_step: 0.0,
        }
    }

    fn restart(&mut self) {
        *self = Self { shift: 0.0, shift_before: None, last: None, longest_step: 0.0, ..self.clone() };
    }

    /// Start and end of the first of `stamps`, those of the next frames in display order. None starts before the one
    /// before. `None` if more of the frames after it, up to [`LOOK_AHEAD`], have to be known, unless this `is_end`.
    ///
    /// * A frame without a timestamp follows the one before.
    /// * Of a jump forward that is taken back within [`LOOK_AHEAD`] frames, nothing remains.
    /// * After any other jump, backward or forward by more than can be believed, time goes on from the last frame, until the
    ///   timestamps follow on from those before the jump.
    fn place(&mut self, stamps: &[Stamp], is_end: bool) -> Option<(f64, f64)> {
        let (first, next) = stamps.split_first().expect("a frame to place");
        let knows_next = is_end || next.len() >= LOOK_AHEAD;
        let start = match (first.at, self.last) {
            (None, last) => last.map_or(0.0, |last| last.end),
            (Some(at), None) => {
                let start = at - *self.origin.get_or_insert(at);
                if start > SECOND && !knows_next {
                    return None;
                }
                // What comes before the first frame says nothing of it, so it goes before the one that does.
                let times = self.times(next).take(LOOK_AHEAD).enumerate();
                let mut sane =
                    times.filter_map(|(between, time)| Some((between, time.filter(|time| time + SECOND < start)?)));
                sane.next().map_or(start, |(between, time)| time - (between + 1) as f64 * first.length).max(0.0)
            }
            (Some(at), Some(last)) => {
                let at = at - self.origin.unwrap_or(at);
                let start = at - self.shift;
                let follows = |start: f64| start > last.start && start <= last.end + SECOND;
                let step = (last.end - last.start).max(first.length);
                if let Some(shift) = self.shift_before.filter(|shift| follows(at - shift)) {
                    (self.shift, self.shift_before) = (shift, None);
                    at - shift
                } else if start <= last.start {
                    // A single one that is only a little too early, or has the same timestamp, leaves room for the next.
                    let slightly = self.shift_before.is_none() && last.start - start < step;
                    self.go_on(at, if slightly { last.start + step / 2.0 } else { last.end })
                } else if start <= last.end + 2.0 * step.min(SECOND) {
                    start
                } else if !knows_next {
                    return None;
                } else if let Some(start) = self.before_strays(start, last.start, next) {
                    start
                } else if self.believes(start - last.end, at, next.len() >= LOOK_AHEAD) {
                    start
                } else {
                    self.go_on(at, last.end)
                }
            }
        };
        if let Some(last) = self.last {
            self.longest_step = self.longest_step.max(start - last.start);
        }
        self.last = Some(Placed { start, end: start + first.length });
        Some((start, start + first.length.min(self.longest_step.max(LONGEST_LAST))))
    }

    /// Lets the frame with timestamp `at`, counted from the origin, be shown at `end`.
    fn go_on(&mut self, at: f64, end: f64) -> f64 {
        self.shift_before = Some(self.shift);
        self.shift = at - end;
        end
    }

    /// Whether `gap` seconds may be without a frame before that with timestamp `at`, counted from the origin. Of the last
    /// frames no other confirms the timestamp, which may be a stray that the declared length was taken from.
    fn believes(&self, gap: f64, at: f64, is_confirmed: bool) -> bool {
        let is_declared = self.declared.is_some_and(|end| at <= end + SECOND);
        gap <= self.believed_gap || (is_declared && (is_confirmed || gap <= LONGEST_LAST))
    }

    /// When frames are shown by their timestamps and the present shift.
    fn times(&self, stamps: &[Stamp]) -> impl Iterator<Item = Option<f64>> {
        stamps.iter().map(|stamp| Some(stamp.at? - self.origin? - self.shift))
    }

    /// Where a frame that would be shown at `start` belongs if one of the `next` is shown before it by its timestamp, but
    /// not before the `earliest`.
    fn before_strays(&self, start: f64, earliest: f64, next: &[Stamp]) -> Option<f64> {
        self.times(next).take(LOOK_AHEAD).enumerate().find_map(|(between, time)| {
            let time = time.filter(|&time| time >= earliest && time < start)?;
            Some(earliest + (time - earliest) / (between + 2) as f64)
        })
    }
}

/// How long the video is by something that lists its frames or was written when they were known. Not by timestamps, which
/// FFmpeg takes where there is nothing better, nor by a header that was written before.
fn declared_length(input: &Input, index: usize) -> Option<f64> {
    let stream = input.stream(index).expect("the stream was chosen from this input");
    let ticks = stream.duration() as f64 * f64::from(stream.time_base());
    let length = match input.format().name() {
        name if name.starts_with("mov") => (stream.frames() > 0).then_some(ticks),
        "mpegts" | "mpeg" => None,
        _ if !glue::has_declared_duration(input) => None,
        _ => Some(input.duration() as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE)),
    };
    length.filter(|&length| length > 0.0)
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(if value > 0.0 { Duration::MAX } else { Duration::ZERO })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: f64 = 0.04;

    /// Starts of frames, in frames, that say they start at `frames` times 40 ms and last as long.
    fn place(timeline: &mut Timeline, frames: &[i64]) -> Vec<i64> {
        let stamps: Vec<Stamp> =
            frames.iter().map(|&frame| Stamp { at: Some(frame as f64 * FRAME), length: FRAME }).collect();
        let mut starts = Vec::new();
        let (mut first, mut known) = (0, 0);
        while first < stamps.len() {
            known = (known + 1).min(stamps.len());
            while first < known
                && let Some((start, end)) = timeline.place(&stamps[first..known], known == stamps.len())
            {
                assert!((end - start - FRAME).abs() < 1e-9);
                starts.push((start / FRAME).round() as i64);
                first += 1;
            }
        }
        starts
    }

    fn starts(frames: &[i64]) -> Vec<i64> {
        place(&mut Timeline::new(Some(0.0)), frames)
    }

    #[test]
    fn frames_are_shown_when_they_say() {
        assert_eq!(starts(&[0, 1, 2, 3, 5, 8, 20, 30]), [0, 1, 2, 3, 5, 8, 20, 30]);
        assert_eq!(starts(&[100, 101, 102, 103]), [100, 101, 102, 103], "the sound began before");
    }

    #[test]
    fn time_goes_on_where_timestamps_begin_again() {
        assert_eq!(starts(&[0, 1, 2, 0, 1, 2, 0, 1, 2]), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(starts(&[9_000, 9_001, 9_002, 0, 1, 2]), [9_000, 9_001, 9_002, 9_003, 9_004, 9_005]);
    }

    #[test]
    fn time_goes_on_where_timestamps_jump_ahead() {
        assert_eq!(starts(&[0, 1, 2, 90_000, 90_001, 90_002, 90_003]), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(starts(&[0, 1, 90_000, 90_001, 90_002, 5, 6]), [0, 1, 2, 3, 4, 5, 6], "and back");
    }

    #[test]
    fn time_does_not_stand_still() {
        let mut timeline = Timeline::new(Some(0.0));
        let placed = [0.0, 0.04, 0.04, 0.12, 0.12, 0.12, 0.12].map(|at| {
            let (start, _) = timeline.place(&[Stamp { at: Some(at), length: FRAME }], true).expect("the end is known");
            (start * 1000.0).round() as u64
        });
        assert_eq!(placed, [0, 40, 60, 120, 140, 180, 220]);
    }

    #[test]
    fn strays_are_bridged() {
        assert_eq!(starts(&[0, 1, 90_000, 3, 4]), [0, 1, 2, 3, 4]);
        assert_eq!(starts(&[0, 1, 90_000, 90_001, 4, 5]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(starts(&[0, 1, 2, 90_000]), [0, 1, 2, 3]);
        assert_eq!(starts(&[90_000, 90_001, 2, 3]), [0, 1, 2, 3], "at the start");
        assert_eq!(starts(&[0, 1, 2, 0, 4, 5]), [0, 1, 2, 3, 4, 5], "backward");
        assert_eq!(starts(&[0, 1, 2, 20, 4, 5]), [0, 1, 2, 3, 4, 5], "by less than a second");
    }

    #[test]
    fn gap_is_believed_if_the_container_accounts_for_it() {
        let frames = [0, 1, 100, 101, 102];
        let go_on = [0, 1, 2, 3, 4];
        assert_eq!(starts(&frames), go_on);
        let with = |declared, believed_gap| {
            place(&mut Timeline { declared, believed_gap, ..Timeline::new(Some(0.0)) }, &frames)
        };
        assert_eq!(with(Some(5.0), SECOND), frames);
        assert_eq!(with(Some(1.0), SECOND), go_on);
        assert_eq!(with(None, 10.0), frames);
    }

    #[test]
    fn last_frame_is_not_hours_after_the_others() {
        let mut timeline = Timeline { declared: Some(4_000.0), ..Timeline::new(Some(0.0)) };
        assert_eq!(place(&mut timeline, &[0, 1, 1_000, 90_000]), [0, 1, 1_000, 1_001]);
    }

    #[test]
    fn gap_is_believed_if_the_frame_before_is_shown_so_long() {
        let mut timeline = Timeline::new(Some(0.0));
        let slides = [0.0, 5.0, 10.0].map(|at| Stamp { at: Some(at), length: 5.0 });
        let placed = slides.map(|slide| timeline.place(&[slide], true));
        assert_eq!(placed, [Some((0.0, 5.0)), Some((5.0, 10.0)), Some((10.0, 15.0))]);
    }

    #[test]
    fn last_frame_is_not_shown_for_hours() {
        let mut timeline = Timeline::new(Some(0.0));
        let end = timeline.place(&[Stamp { at: Some(0.0), length: 50_000.0 }], true);
        assert_eq!(end, Some((0.0, LONGEST_LAST)));
    }

    #[test]
    fn frame_without_a_timestamp_follows_the_one_before() {
        let mut timeline = Timeline::new(None);
        let stamps = [Some(7.0), None, Some(7.08)].map(|at| Stamp { at, length: FRAME });
        let placed = stamps.map(|stamp| timeline.place(&[stamp], true).map(|(start, _)| (start / FRAME).round()));
        assert_eq!(placed, [Some(0.0), Some(1.0), Some(2.0)]);
    }
}
