//! Whether a file ends before it says it does, where FFmpeg takes any end for the end.

use std::io::{BufReader, Read, Seek, SeekFrom};

use super::error::{PartialReason, Unit};
use super::limits::Limits;
use super::source::Origin;

/// What is missing of a file, if that is certain.
pub(super) fn missing_bytes(source: &dyn Origin, container: &str, limits: &Limits) -> Option<PartialReason> {
    let expected_end = match container {
        "matroska,webm" => matroska_end,
        "avi" => riff_end,
        "mpegts" => transport_end,
        _ => return None,
    };
    let mut bytes = BufReader::new(source.open(limits).ok()?.bytes);
    let actual = bytes.seek(SeekFrom::End(0)).ok()?;
    let expected = expected_end(&mut bytes, actual)?;
    (expected > actual).then_some(PartialReason::Truncated { expected, actual, unit: Unit::Bytes })
}

/// More elements than a file of any sensible length has at its top.
const MAX_ELEMENTS: usize = 100_000;

/// Where the segment ends; or the last of its elements that says how long it is, if the segment does not, as those that
/// were written for streaming (RFC 8794, section 6; RFC 9559, section 5).
fn matroska_end(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    const SEGMENT: u64 = 0x1853_8067;
    let mut at = 0;
    for _ in 0..MAX_ELEMENTS {
        if at == len {
            return None;
        }
        bytes.seek(SeekFrom::Start(at)).ok()?;
        // At least one byte is missing of a header that is cut.
        let Some((id, id_len)) = variable_length(bytes, false) else { return Some(len + 1) };
        let Some((size, size_len)) = variable_length(bytes, true) else { return Some(len + 1) };
        let body = at + id_len + size_len;
        let unknown = size == (1 << (7 * size_len)) - 1;
        match (id, unknown) {
            (SEGMENT, true) => at = body,
            (_, true) => return None,
            (SEGMENT, false) => return body.checked_add(size),
            (_, false) => at = body.checked_add(size)?,
        }
        if at > len {
            return Some(at);
        }
    }
    None
}

/// An EBML number and its length in bytes, which the zeros before its first one tell; without that one in a size.
pub(super) fn variable_length(bytes: &mut impl Read, is_size: bool) -> Option<(u64, u64)> {
    let mut first = [0];
    bytes.read_exact(&mut first).ok()?;
    let more = first[0].leading_zeros();
    if more > 7 {
        return None;
    }
    let mut value = u64::from(if is_size { first[0] & (0x7f >> more) } else { first[0] });
    for _ in 0..more {
        let mut next = [0];
        bytes.read_exact(&mut next).ok()?;
        value = value << 8 | u64::from(next[0]);
    }
    Some((value, u64::from(more) + 1))
}

/// Where the last RIFF chunk ends; a long AVI is a row of them.
fn riff_end(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    let mut at = 0;
    for _ in 0..MAX_ELEMENTS {
        bytes.seek(SeekFrom::Start(at)).ok()?;
        let mut header = [0; 8];
        bytes.read_exact(&mut header).ok()?;
        let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        // Writers that can't go back leave one of these.
        if &header[..4] != b"RIFF" || size == 0 || size == u32::MAX {
            return None;
        }
        at += 8 + u64::from(size);
        if at > len {
            return Some(at);
        }
        at += at % 2;
    }
    None
}

/// Where the last packet ends. Packets have 188 bytes, behind a time stamp of 4 bytes on discs, before 16 bytes of
/// parity on the air (ISO/IEC 13818-1, section 2.4.3.2).
fn transport_end(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    const SYNC: u8 = 0x47;
    let mut is_sync = |at: u64| {
        let mut byte = [0];
        bytes.seek(SeekFrom::Start(at)).is_ok() && bytes.read_exact(&mut byte).is_ok() && byte[0] == SYNC
    };
    let kinds = [(188, 0), (192, 4), (204, 0)];
    let (packet, sync) = kinds.into_iter().find(|(packet, sync)| (0..5).all(|n| is_sync(n * packet + sync)))?;
    let last = len / packet * packet;
    // What follows the last whole packet may be anything, but for the beginning of another.
    is_sync(last + sync).then_some(last + packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn segment_of_known_length_tells_its_end() {
        // An EBML header of two bytes, then a segment of 300.
        let file = [&[0x1a, 0x45, 0xdf, 0xa3, 0x82, 0, 0, 0x18, 0x53, 0x80, 0x67, 0x41, 0x2c][..], &[0; 300]].concat();
        let end = |len: usize| matroska_end(&mut Cursor::new(&file[..len]), len as u64);
        assert_eq!((end(313), end(200)), (Some(313), Some(313)));
        assert_eq!(end(9), Some(10), "a header is cut");
    }

    #[test]
    fn last_cluster_tells_the_end_of_a_segment_of_unknown_length() {
        let cluster = [&[0x1f, 0x43, 0xb6, 0x75, 0x85][..], &[0; 5]].concat();
        let segment = [0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let file = [&segment[..], &cluster, &cluster].concat();
        let end = |len: usize| matroska_end(&mut Cursor::new(&file[..len]), len as u64);
        assert_eq!((end(32), end(22)), (None, None), "nothing is missing, as far as can be known");
        assert_eq!((end(28), end(25)), (Some(32), Some(26)));
    }

    #[test]
    fn endless_cluster_tells_nothing() {
        let file = [0x18, 0x53, 0x80, 0x67, 0xff, 0x1f, 0x43, 0xb6, 0x75, 0xff, 1, 2, 3];
        assert_eq!(matroska_end(&mut Cursor::new(file), file.len() as u64), None);
    }

    #[test]
    fn transport_packets_are_whole_or_cut() {
        for (packet, sync) in [(188, 0), (192, 4), (204, 0)] {
            let mut file = vec![0; packet * 10];
            file.iter_mut().skip(sync).step_by(packet).for_each(|byte| *byte = 0x47);
            let end = |len: usize| transport_end(&mut Cursor::new(&file[..len]), len as u64);
            assert_eq!(end(packet * 10), None);
            assert_eq!(end(packet * 8 + 100), Some(packet as u64 * 9));
        }
    }
}
