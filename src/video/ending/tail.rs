//! Containers whose last bytes tell whether they are all.

use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;

use super::chunks::{is_zero, read_at};

/// Where the last packet ends. Packets have 188 bytes, behind a time stamp of 4 bytes on discs, before 16 bytes of
/// parity on the air (ISO/IEC 13818-1, section 2.4.3.2).
pub(super) fn transport(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
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

/// Where the last tag of an FLV ends. Behind each comes its length, so the last one is found from the end; where writers
/// leave that out or reckon it wrongly, tags are followed from the start (Adobe Flash Video File Format, annex E).
pub(super) fn flash(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    /// The length behind a tag.
    const BACK: u64 = 4;
    let last = read_at(bytes, len.checked_sub(BACK)?, BACK)?;
    let last = u64::from(u32::from_be_bytes(last.try_into().ok()?));
    if let Some(at) = (len - BACK).checked_sub(last)
        && flash_tag(bytes, at) == Some(last)
    {
        return None;
    }
    let header = read_at(bytes, 0, 9)?;
    let mut at = u64::from(u32::from_be_bytes(header.get(5..9)?.try_into().expect("four bytes"))) + BACK;
    while at < len {
        let Some(tag) = flash_tag(bytes, at) else {
            let is_cut = len - at < FLASH_TAG_HEADER && !is_zero(bytes, at)?;
            return is_cut.then_some(len + 1);
        };
        if at + tag > len {
            return Some(at + tag + BACK);
        }
        at += tag + BACK;
    }
    None
}

const FLASH_TAG_HEADER: u64 = 11;

/// The length of the tag at `at`, without what follows it; `None` if there is none.
fn flash_tag(bytes: &mut (impl Read + Seek), at: u64) -> Option<u64> {
    let header = read_at(bytes, at, FLASH_TAG_HEADER)?;
    let [kind, a, b, c, ..] = header[..] else { return None };
    let is_tag = header.len() as u64 == FLASH_TAG_HEADER && matches!(kind & 0x1f, 8 | 9 | 18);
    is_tag.then(|| FLASH_TAG_HEADER + u64::from(u32::from_be_bytes([0, a, b, c])))
}

/// At least one byte more if an Ogg file ends without the page that says so, or within a page (RFC 3533, section 6).
pub(super) fn ogg(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    const LONGEST_PAGE: u64 = 65_307;
    const LAST_OF_ITS_STREAM: u8 = 4;
    let from = len.saturating_sub(2 * LONGEST_PAGE);
    let tail = read_at(bytes, from, 2 * LONGEST_PAGE)?;
    let mut last = None;
    let mut at = 0;
    while let Some(found) = tail.get(at..).and_then(|rest| rest.windows(5).position(|five| five == b"OggS\0")) {
        let page = &tail[at + found..];
        let segments = page.get(26).and_then(|count| page.get(27..27 + usize::from(*count)));
        let Some(segments) = segments else { return Some(len + 1) };
        let size = 27 + segments.len() + segments.iter().map(|size| usize::from(*size)).sum::<usize>();
        if size > page.len() {
            return Some(from + (at + found + size) as u64);
        }
        last = Some(page[5]);
        at += found + size;
    }
    let is_cut_in_header = b"OggS\0".starts_with(tail.get(at..)?) && at < tail.len();
    (is_cut_in_header || last? & LAST_OF_ITS_STREAM == 0).then_some(len + 1)
}

/// At least one byte more if a NUT does not end with its index, which its last bytes lead to.
pub(super) fn nut(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    const INDEX: [u8; 8] = *b"NX\xdd\x67\x2f\x23\xe6\x4e";
    /// The length of the index, and a checksum.
    const END: u64 = 12;
    let end = read_at(bytes, len.checked_sub(END)?, 8)?;
    let index_len = u64::from_be_bytes(end.try_into().ok()?);
    let index = len.checked_sub(index_len).and_then(|at| read_at(bytes, at, 8));
    (index.as_deref() != Some(&INDEX)).then_some(len + 1)
}

/// At least one byte more if the blocks of a GIF do not lead to the one that ends it (GIF89a, appendix A), or lead to another
/// one than that at the end of the file.
pub(super) fn gif(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    const TRAILER: u8 = 0x3b;
    let ends_with_trailer = read_at(bytes, len.checked_sub(1)?, 1)? == [TRAILER];
    bytes.seek(SeekFrom::Start(0)).ok()?;
    let mut bytes = BufReader::new(bytes);
    let is_whole = match gif_blocks(&mut bytes) {
        Ok(last) => last == TRAILER && (!ends_with_trailer || bytes.stream_position().ok()? == len),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => false,
        Err(_) => return None,
    };
    (!is_whole).then_some(len + 1)
}

/// Goes over all blocks; gives the mark of the one that ends them, or of what is no block.
fn gif_blocks(bytes: &mut impl Read) -> io::Result<u8> {
    let skip = |bytes: &mut dyn Read, n: u64| {
        let skipped = io::copy(&mut bytes.take(n), &mut io::sink())?;
        if skipped < n { Err(io::Error::from(ErrorKind::UnexpectedEof)) } else { Ok(()) }
    };
    let byte = |bytes: &mut dyn Read| {
        let mut byte = [0];
        bytes.read_exact(&mut byte).map(|()| byte[0])
    };
    let colours = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    skip(bytes, 10)?;
    let flags = byte(bytes)?;
    skip(bytes, 2 + colours(flags))?;
    loop {
        match byte(bytes)? {
            // An extension, with its kind.
            0x21 => skip(bytes, 1)?,
            // An image.
            0x2c => {
                skip(bytes, 8)?;
                let flags = byte(bytes)?;
                skip(bytes, colours(flags) + 1)?;
            }
            other => return Ok(other),
        }
        loop {
            let part = byte(bytes)?;
            if part == 0 {
                break;
            }
            skip(bytes, part.into())?;
        }
    }
}

/// Where the last packet of an MPEG program stream ends (ISO/IEC 13818-1, section 2.5.3).
pub(super) fn program(bytes: &mut (impl Read + Seek), len: u64) -> Option<u64> {
    /// Packets have at most 64 KiB, packs a few of them.
    const TAIL: u64 = 256 << 10;
    const PACK: [u8; 4] = [0, 0, 1, 0xba];
    let from = len.saturating_sub(TAIL);
    let tail = read_at(bytes, from, TAIL)?;
    let mut at = tail.windows(4).position(|four| four == PACK)?;
    while at < tail.len() {
        let rest = &tail[at..];
        if rest.len() < 4 {
            return [0, 0, 1].starts_with(&rest[..rest.len().min(3)]).then_some(len + 1);
        }
        let size = match rest[..4] {
            [0, 0, 1, 0xb9] => Some(4),
            [0, 0, 1, 0xba] if rest.get(4).is_some_and(|byte| byte & 0xc0 == 0x40) => {
                rest.get(13).map(|byte| 14 + usize::from(byte & 7))
            }
            [0, 0, 1, 0xba] => Some(12),
            [0, 0, 1, 0xbb..=0xff] => {
                rest.get(4..6).map(|size| 6 + usize::from(u16::from_be_bytes([size[0], size[1]])))
            }
            // Zeros, or damage: from the next pack on, all is known again.
            _ => {
                at += rest.windows(4).position(|four| four == PACK)?;
                continue;
            }
        };
        let Some(size) = size else { return Some(len + 1) };
        at += size;
    }
    let end = from + at as u64;
    (end > len).then_some(end)
}

/// Where the last frame of DV ends: all are as long as the last one that was read (IEC 61834-2).
pub(super) fn equal_frames(_: &mut (impl Read + Seek), len: u64, last_packet: &Range<u64>) -> Option<u64> {
    let size = last_packet.end - last_packet.start;
    Some(len.div_ceil(size.max(1)) * size)
}

/// At least one byte more if another frame of raw video begins behind the last one that was read.
pub(super) fn raw_frames(bytes: &mut (impl Read + Seek), len: u64, last_packet: &Range<u64>) -> Option<u64> {
    const HEADER: &[u8] = b"FRAME";
    let rest = read_at(bytes, last_packet.end, HEADER.len() as u64)?;
    (!rest.is_empty() && HEADER.starts_with(&rest)).then_some(len + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn transport_packets_are_whole_or_cut() {
        for (packet, sync) in [(188, 0), (192, 4), (204, 0)] {
            let mut file = vec![0; packet * 10];
            file.iter_mut().skip(sync).step_by(packet).for_each(|byte| *byte = 0x47);
            let end = |len: usize| transport(&mut Cursor::new(&file[..len]), len as u64);
            assert_eq!(end(packet * 10), None);
            assert_eq!(end(packet * 8 + 100), Some(packet as u64 * 9));
        }
    }

    #[test]
    fn last_tag_of_flv_is_whole_or_cut() {
        let tag = |size: u8| {
            [&[9, 0, 0, size, 0, 0, 0, 0, 0, 0, 0][..], &vec![7; usize::from(size)], &[0, 0, 0, size + 11]].concat()
        };
        let file = [&b"FLV\x01\x01\0\0\0\x09\0\0\0\0"[..], &tag(40), &tag(60)].concat();
        let end = |len: usize| flash(&mut Cursor::new(&file[..len]), len as u64);
        assert_eq!((end(143), end(139)), (None, None), "its length behind it is no loss");
        assert_eq!((end(100), end(70)), (Some(143), Some(71)));
        let padded = [&file[..], &[0; 50]].concat();
        assert_eq!(flash(&mut Cursor::new(&padded), padded.len() as u64), None);
    }

    #[test]
    fn ogg_ends_with_a_page_that_says_so() {
        let page = |kind: u8| [&b"OggS\0"[..], &[kind], &[0; 20], &[2, 255, 10], &[9; 265]].concat();
        let file = [page(2), page(0), page(4)].concat();
        let end = |len: usize| ogg(&mut Cursor::new(&file[..len]), len as u64);
        let one = file.len() / 3;
        assert_eq!((end(3 * one), end(2 * one)), (None, Some(2 * one as u64 + 1)));
        assert_eq!((end(2 * one + 100), end(2 * one + 2)), (Some(3 * one as u64), Some(2 * one as u64 + 3)));
    }

    #[test]
    fn blocks_of_gif_lead_to_its_trailer() {
        let image =
            [&[0x21, 0xf9, 4, 0, 0, 0, 0, 0, 0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 3][..], &[0x3b; 3], &[0]].concat();
        let file = [&b"GIF89a\x01\0\x01\0\x80\0\0"[..], &[0; 6], &image, &image, &[0x3b]].concat();
        let end = |bytes: &[u8]| gif(&mut Cursor::new(bytes), bytes.len() as u64);
        assert_eq!(end(&file), None);
        assert_eq!(end(&[&file[..], b"\0\0more"].concat()), None, "what comes behind it is no loss");
        assert_eq!(end(&file[..file.len() - 1]), Some(file.len() as u64));
        assert_eq!(end(&file[..file.len() - 12]), Some(file.len() as u64 - 11));
    }

    #[test]
    fn packets_of_program_streams_are_whole_or_cut() {
        let pack = [&[0, 0, 1, 0xba, 0x44][..], &[0; 8], &[0xf8]].concat();
        let packet = [&[0, 0, 1, 0xe0, 0, 100][..], &[1; 100]].concat();
        let file = [&pack[..], &packet, &packet, &[0, 0, 1, 0xb9]].concat();
        let end = |len: usize| program(&mut Cursor::new(&file[..len]), len as u64);
        assert_eq!((end(file.len()), end(file.len() - 4)), (None, None));
        assert_eq!((end(file.len() - 10), end(122)), (Some(226), Some(123)));
    }
}
