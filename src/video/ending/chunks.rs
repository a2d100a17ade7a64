//! Containers made of pieces that say how long they are.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

/// More elements than a file of any sensible length has at its top.
const MAX_ELEMENTS: usize = 100_000;

/// Identifier of the element that holds all of a Matroska file but its header.
pub(in crate::video) const SEGMENT: u64 = 0x1853_8067;

/// The head of an element (RFC 8794, section 6).
pub(in crate::video) struct Element {
    pub(in crate::video) id: u64,
    /// Bytes of the head.
    pub(in crate::video) head: u64,
    /// Bytes that follow; `None` if it was written before that was known.
    pub(in crate::video) size: Option<u64>,
}

impl Element {
    /// Reads a head; `None` if there is none, or a part only.
    pub(in crate::video) fn read(bytes: &mut impl Read) -> Option<Self> {
        let (id, id_len) = variable_length(bytes, false)?;
        let (size, size_len) = variable_length(bytes, true)?;
        let is_unknown = size == (1 << (7 * size_len)) - 1;
        Some(Self { id, head: id_len + size_len, size: (!is_unknown).then_some(size) })
    }
}

/// Where the segment ends; or the last of its elements that says how long it is, if the segment does not, as those that
/// were written for streaming (RFC 9559, section 5).
pub(super) fn matroska(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    let mut at = 0;
    for _ in 0..MAX_ELEMENTS {
        if at == len {
            return None;
        }
        bytes.seek(SeekFrom::Start(at)).ok()?;
        let Some(Element { id, head, size }) = Element::read(bytes) else {
            // At least one byte is missing of a header that is cut. Another may be no header at all.
            const LONGEST_HEADER: u64 = 16;
            let is_cut = len - at < LONGEST_HEADER && !is_zero(bytes, at)?;
            return is_cut.then_some(len + 1);
        };
        let body = at + head;
        match (id, size) {
            (SEGMENT, None) => at = body,
            (_, None) => return None,
            (SEGMENT, Some(size)) => return body.checked_add(size),
            (_, Some(size)) => at = body.checked_add(size)?,
        }
        if at > len {
            return Some(at);
        }
    }
    None
}

/// An EBML number and its length in bytes, which the zeros before its first one tell; without that one in a size.
fn variable_length(bytes: &mut impl Read, is_size: bool) -> Option<(u64, u64)> {
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

/// Whether nothing but zeros comes from `at` on.
pub(super) fn is_zero(bytes: &mut (impl Read + Seek), at: u64) -> Option<bool> {
    bytes.seek(SeekFrom::Start(at)).ok()?;
    let mut part = [0; 4096];
    loop {
        match bytes.read(&mut part).ok()? {
            0 => return Some(true),
            n if part[..n].iter().any(|byte| *byte != 0) => return Some(false),
            _ => {}
        }
    }
}

/// Where the last RIFF chunk ends; a long AVI is a row of them.
pub(super) fn riff(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    let mut at = 0;
    for _ in 0..MAX_ELEMENTS {
        let header = read_at(bytes, at, 8)?;
        let size = u32::from_le_bytes(header.get(4..8)?.try_into().expect("four bytes"));
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

/// How many pictures of stream `stream` the index lists with which an AVI ends, if it does. Writers that reckon the lengths
/// of chunks wrongly have that right.
pub(super) fn listed_by_riff(bytes: &mut (impl Read + Seek), len: u64, stream: usize) -> Option<u64> {
    /// Hours of pictures and sound.
    const LONGEST_INDEX: u64 = 4 << 20;
    const ENTRY: usize = 16;
    let tail = read_at(bytes, len.saturating_sub(LONGEST_INDEX), LONGEST_INDEX)?;
    let names = tail.windows(4).enumerate().rev().filter(|(_, name)| name == b"idx1");
    let mut entries = names.filter_map(|(at, _)| {
        let (size, entries) = tail[at + 4..].split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        (entries.len().saturating_sub(size) < 2).then(|| entries.get(..size))?
    });
    let name = format!("{stream:02}");
    let is_picture = |entry: &&[u8]| entry.starts_with(name.as_bytes()) && entry[12..] != [0; 4];
    Some(entries.next()?.chunks_exact(ENTRY).filter(is_picture).count() as u64)
}

/// Up to `len` bytes from `at` on.
pub(super) fn read_at(bytes: &mut (impl Read + Seek), at: u64, len: u64) -> Option<Vec<u8>> {
    bytes.seek(SeekFrom::Start(at)).ok()?;
    let mut out = Vec::new();
    bytes.by_ref().take(len).read_to_end(&mut out).ok()?;
    Some(out)
}

/// Where the last box of a fragmented MP4 ends (ISO/IEC 14496-12, section 4.2). The boxes are followed from the fragment
/// of the last packet on, which was read. Files that are not fragmented have an index, which tells more.
pub(super) fn fragments(bytes: &mut (impl Read + Seek), len: u64, last_packet: &Range<u64>) -> Option<u64> {
    /// Larger fragments are rare.
    const LOOK_BACK: u64 = 8 << 20;
    let from = last_packet.start.saturating_sub(LOOK_BACK);
    let before = read_at(bytes, from, last_packet.start - from)?;
    let names = before.windows(4).enumerate().rev().filter(|(_, name)| name == b"moof");
    for (name, _) in names.take(16) {
        let Some(fragment) = (from + name as u64).checked_sub(4) else { continue };
        // Samples may hold the same letters: from a fragment, boxes lead to the one with the packet.
        let mut is_reached = false;
        let mut at = fragment;
        for _ in 0..MAX_ELEMENTS {
            let header = read_at(bytes, at, 16)?;
            let size = match header[..] {
                [] => return None,
                [a, b, c, d, ..] if header.len() >= 8 => u64::from(u32::from_be_bytes([a, b, c, d])),
                _ => return is_reached.then_some(len + 1),
            };
            let size = if size == 1 && header.len() == 16 {
                u64::from_be_bytes(header[8..16].try_into().expect("eight bytes"))
            } else {
                size
            };
            if size < 8 || !header[4..8].iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
                break;
            }
            let end = at.checked_add(size)?;
            is_reached |= &header[4..8] == b"mdat" && (at..end).contains(&last_packet.start);
            if is_reached && end > len {
                return Some(end);
            }
            at = end;
        }
        if is_reached {
            return None;
        }
    }
    None
}

/// Where an ASF's last packet ends, by its number of packets, if its length in bytes says no less (Advanced Systems Format
/// specification, section 3.2).
pub(super) fn asf(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    const FILE_PROPERTIES: [u8; 16] = *b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65";
    /// Of the data object, before its packets.
    const DATA_HEADER: u64 = 50;
    let header = read_at(bytes, 0, 30)?;
    let data = u64::from_le_bytes(header.get(16..24)?.try_into().expect("eight bytes"));
    let mut at = 30;
    while at < data {
        let object = read_at(bytes, at, 104)?;
        let number =
            |from: usize| Some(u64::from_le_bytes(object.get(from..from + 8)?.try_into().expect("eight bytes")));
        let short = |from: usize| Some(u32::from_le_bytes(object.get(from..from + 4)?.try_into().expect("four bytes")));
        if object.get(..16)? == FILE_PROPERTIES {
            let (file, packets) = (number(40)?, number(56)?);
            let (flags, shortest, longest) = (short(88)?, short(92)?, short(96)?);
            let is_broadcast = flags & 1 == 1;
            let end = data.checked_add(DATA_HEADER)?.checked_add(packets.checked_mul(u64::from(longest))?)?;
            return (!is_broadcast && shortest == longest && file > len).then_some(end);
        }
        at = at.checked_add(number(16)?.max(24))?;
    }
    None
}

/// Where the chunk of a RealMedia file ends that holds its packets, give or take its header, which some writers count
/// twice.
pub(super) fn real(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    const HEADER: u64 = 18;
    let mut at = 0u64;
    for _ in 0..MAX_ELEMENTS {
        let header = read_at(bytes, at, 8)?;
        let size = u64::from(u32::from_be_bytes(header.get(4..8)?.try_into().expect("four bytes")));
        let end = at + size;
        match &header[..4] {
            b"DATA" => return (end > len + HEADER).then_some(end),
            _ if size < 8 => return None,
            _ => at = end,
        }
    }
    None
}

/// Where the last element of an MXF ends, from the last packet's on (SMPTE ST 377-1, section 6.3).
pub(super) fn mxf(bytes: &mut (impl Read + Seek), len: u64, last_packet: &Range<u64>) -> Option<u64> {
    let mut at = last_packet.start;
    for _ in 0..MAX_ELEMENTS {
        let header = read_at(bytes, at, 25)?;
        if header.is_empty() {
            return None;
        }
        if !header.starts_with(&[0x06, 0x0e, 0x2b, 0x34]) {
            // Part of a key may be what is left.
            return [0x06, 0x0e, 0x2b, 0x34].starts_with(&header).then_some(len + 1);
        }
        let Some(first) = header.get(16).copied() else { return Some(len + 1) };
        let (size, size_len) = match first {
            0..=0x7f => (u64::from(first), 1),
            0x81..=0x88 => {
                let more = usize::from(first & 0x7f);
                let Some(number) = header.get(17..17 + more) else { return Some(len + 1) };
                (number.iter().fold(0, |size, byte| size << 8 | u64::from(*byte)), 1 + more as u64)
            }
            _ => return None,
        };
        at = at.checked_add(16 + size_len)?.checked_add(size)?;
        if at > len {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn segment_of_known_length_tells_its_end() {
        // An EBML header of two bytes, then a segment of 300.
        let file = [&[0x1a, 0x45, 0xdf, 0xa3, 0x82, 0, 0, 0x18, 0x53, 0x80, 0x67, 0x41, 0x2c][..], &[0; 300]].concat();
        let end = |len: usize| matroska(&mut Cursor::new(&file[..len]), len as u64);
        assert_eq!((end(313), end(200)), (Some(313), Some(313)));
        assert_eq!(end(9), Some(10), "a header is cut");
    }

    #[test]
    fn last_cluster_tells_the_end_of_a_segment_of_unknown_length() {
        let cluster = [&[0x1f, 0x43, 0xb6, 0x75, 0x85][..], &[0; 5]].concat();
        let segment = [0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let file = [&segment[..], &cluster, &cluster].concat();
        let end = |len: usize| matroska(&mut Cursor::new(&file[..len]), len as u64);
        assert_eq!((end(32), end(22)), (None, None), "nothing is missing, as far as can be known");
        assert_eq!((end(28), end(25)), (Some(32), Some(26)));
    }

    #[test]
    fn endless_cluster_tells_nothing() {
        let file = [0x18, 0x53, 0x80, 0x67, 0xff, 0x1f, 0x43, 0xb6, 0x75, 0xff, 1, 2, 3];
        assert_eq!(matroska(&mut Cursor::new(file), file.len() as u64), None);
    }
}
