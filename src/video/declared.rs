//! What a header declares, and whether the file bears it out.
//!
//! Headers are wrong in good videos: lengths that are "unknown", counted from the beginning of a stream that was cut, or of
//! one of two recordings. So nothing is refused by a header alone, only by what lies all over the file.

use ffmpeg_next as ffmpeg;
use ffmpeg_next::format::context::Input;

use super::ending::{Element, SEGMENT};
use super::error::VideoError;
use super::ffmpeg as glue;
use super::ffmpeg::IndexEntry;
use super::limits::Limits;
use super::source::Origin;

/// No step between two places of a file counts for more seconds of its length: whoever jumps further errs.
const LONGEST_STEP: f64 = 20.0;

/// How many places of a file without an index are looked at.
const PLACES: u64 = 16;

/// Packets of other streams that are passed over at such a place.
const MAX_OTHER_PACKETS: usize = 2_000;

/// Whether the header declares more than the limits allow.
pub(super) fn is_too_much(input: &Input, index: usize, limits: &Limits) -> bool {
    let stream = input.stream(index).expect("the stream was chosen from this input");
    let length = stream.duration() as f64 * f64::from(stream.time_base());
    let whole = input.duration() as f64 / f64::from(ffmpeg::ffi::AV_TIME_BASE);
    let frames = u64::try_from(stream.frames()).unwrap_or(0);
    frames > limits.max_frames || length.max(whole) > limits.max_duration.as_secs_f64()
}

/// Refuses a video that the file itself shows to be beyond the limits. Without `can_seek` only by what is known already;
/// with it, reading goes on anywhere.
pub(super) fn refuse(input: &mut Input, index: usize, can_seek: bool, limits: &Limits) -> Result<(), VideoError> {
    let stream = input.stream(index).expect("the stream was chosen from this input");
    let (seconds_per_tick, frames) = (f64::from(stream.time_base()), stream.frames());
    let container = input.format().name().to_string();
    if container.starts_with("matroska") && can_seek {
        load_index(input, index);
    }
    let len = glue::byte_len(input).unwrap_or(u64::MAX);
    let inside = |entry: &IndexEntry| entry.end().is_some_and(|end| end <= len);
    let entries: Vec<IndexEntry> = glue::index_entries(input, index).into_iter().filter(inside).collect();
    // The index lists frames, not key frames only.
    let lists_frames = frames > 0 && (container.starts_with("mov") || container == "avi");
    let listed = entries.iter().filter(|entry| entry.size > 0).count() as u64;
    if lists_frames && listed > limits.max_frames {
        return Err(VideoError::TooManyFrames { limit: limits.max_frames });
    }
    let mut times: Vec<f64> = entries.iter().map(|entry| entry.ticks as f64 * seconds_per_tick).collect();
    if times.len() < PLACES as usize && can_seek && ["mpegts", "mpeg"].contains(&container.as_str()) {
        times = times_at_places(input, index, len).iter().map(|&ticks| ticks as f64 * seconds_per_tick).collect();
        // Of so few places, one step may be half an hour.
        return check_length(&times, f64::INFINITY, limits);
    }
    check_length(&times, LONGEST_STEP, limits)
}

/// Refuses by times all over the file, in its order, which have to grow step by step.
fn check_length(times: &[f64], longest_step: f64, limits: &Limits) -> Result<(), VideoError> {
    let steps = || times.windows(2).map(|pair| pair[1] - pair[0]);
    let whole: f64 = steps().sum();
    let grows = times.len() >= PLACES as usize / 2 && steps().all(|step| step >= 0.0 && step <= whole / 2.0);
    let length = steps().map(|step| step.min(longest_step)).sum::<f64>();
    if grows && length > limits.max_duration.as_secs_f64() {
        let actual = std::time::Duration::try_from_secs_f64(length).unwrap_or(limits.max_duration);
        return Err(VideoError::TooLong { actual, limit: limits.max_duration });
    }
    Ok(())
}

/// Timestamps of the stream at places all over the file.
fn times_at_places(input: &mut Input, index: usize, len: u64) -> Vec<i64> {
    let mut times = Vec::new();
    for place in 0..PLACES {
        if glue::seek_byte(input, len / PLACES * place).is_err() {
            return Vec::new();
        }
        for _ in 0..MAX_OTHER_PACKETS {
            let mut packet = ffmpeg::Packet::empty();
            match packet.read(input) {
                Ok(()) if packet.stream() != index => {}
                Ok(()) => {
                    if let Some(ticks) = packet.dts().or(packet.pts()) {
                        times.push(ticks);
                        break;
                    }
                }
                Err(_) => break,
            }
        }
    }
    times
}

/// Whether the container's index is certain to be of all that is in the file: no other recording follows, no timestamp
/// begins again. Reading goes on anywhere.
pub(super) fn is_one_recording(input: &mut Input, index: usize, source: &dyn Origin) -> bool {
    let container = input.format().name().to_string();
    if container.starts_with("mov") {
        // Without fragments all frames are in the index, one after the other.
        return input.stream(index).is_some_and(|stream| stream.frames() > 0);
    }
    let (Ok(head), Some(len)) = (source.head(), glue::byte_len(input)) else { return false };
    if segment_end(&head).is_none_or(|end| end < len) {
        return false;
    }
    load_index(input, index);
    let entries = glue::index_entries(input, index);
    entries.windows(2).all(|pair| pair[0].position < pair[1].position)
}

/// Matroska's index is read when something is looked for.
fn load_index(input: &mut Input, index: usize) {
    // Where nothing is found, nothing is listed.
    let _ = glue::seek(input, index, 0);
}

/// Where a Matroska file's first segment says that it ends.
fn segment_end(head: &[u8]) -> Option<u64> {
    let mut at = 0u64;
    loop {
        let Element { id, head, size } = Element::read(&mut head.get(usize::try_from(at).ok()?..)?)?;
        at = (at + head).checked_add(size?)?;
        if id == SEGMENT {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn refused(times: impl IntoIterator<Item = f64>, longest_step: f64) -> bool {
        let limits = Limits { max_duration: Duration::from_secs(1800), ..Limits::default() };
        check_length(&times.into_iter().collect::<Vec<_>>(), longest_step, &limits).is_err()
    }

    #[test]
    fn film_that_grows_step_by_step_is_refused() {
        assert!(refused((0..1080).map(|n| f64::from(n) * 10.0), LONGEST_STEP));
        assert!(refused((0..16).map(|n| f64::from(n) * 600.0), f64::INFINITY));
        assert!(!refused((0..100).map(|n| f64::from(n) * 10.0), LONGEST_STEP), "it is short");
    }

    #[test]
    fn jump_is_no_length() {
        let jump = |n: u32| f64::from(n) * 0.2 + if n > 5 { 90_000.0 } else { 0.0 };
        assert!(!refused((0..16).map(jump), f64::INFINITY));
        assert!(!refused((0..1000).map(jump), LONGEST_STEP));
        assert!(!refused((0..16).map(|n| 10_000.0 - f64::from(n) * 700.0), f64::INFINITY), "backward");
    }

    #[test]
    fn segment_tells_its_end_if_it_knows() {
        let header = [0x1a, 0x45, 0xdf, 0xa3, 0x82, 0, 0];
        let known = [&header[..], &[0x18, 0x53, 0x80, 0x67, 0x41, 0x2c]].concat();
        let unknown = [&header[..], &[0x18, 0x53, 0x80, 0x67, 0xff]].concat();
        assert_eq!((segment_end(&known), segment_end(&unknown), segment_end(&header)), (Some(313), None, None));
    }
}
