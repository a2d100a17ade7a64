//! Finds the key of a message of a stream while its bytes pass by, so that one that can't be taken is answered under it.

use bytes::{Buf, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint};

/// Bytes that are kept of the key of a message that is skipped.
const LONGEST_KEPT: usize = 64 << 10;

/// Reads a message of protobuf as it comes, down to its fields.
#[derive(Debug)]
pub(super) struct KeyFinder {
    /// Number of the field, which is a string.
    field: u32,
    at: At,
    /// The last key that came.
    key: Vec<u8>,
    /// Whether the message can't be read any further.
    is_broken: bool,
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum At {
    Tag(Varint),
    /// A number that is passed over.
    Number,
    Length {
        is_key: bool,
        length: Varint,
    },
    /// Bytes of a field that is passed over.
    Other(u64),
    Key(u64),
}

/// A varint of which some bytes came.
#[derive(Debug, Clone, Copy, Default)]
struct Varint {
    value: u64,
    bits: u32,
}

impl Varint {
    /// The whole, if this byte is its last; an error if it is too long.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, ()> {
        if self.bits > 63 {
            return Err(());
        }
        self.value |= u64::from(byte & 0x7f) << self.bits;
        self.bits += 7;
        Ok((byte < 0x80).then_some(self.value))
    }
}

impl KeyFinder {
    pub(super) fn new(field: u32) -> Self {
        Self { field, at: At::Tag(Varint::default()), key: Vec::new(), is_broken: false }
    }

    /// Takes the next bytes of the message and gives those that go on. The bytes of a key are kept back until all of them
    /// are here; if it is not text, what is none in it is replaced by question marks.
    pub(super) fn filter(&mut self, mut bytes: Bytes, is_last: bool) -> Bytes {
        let mut passed: Option<BytesMut> = None;
        let mut begin = 0;
        while let Some(run) = self.next_run(&bytes[begin..]) {
            match run {
                Run::Other(length) => begin += length,
                Run::Key { length, is_complete } => {
                    let out = passed.get_or_insert_default();
                    out.extend_from_slice(&bytes.split_to(begin));
                    bytes.advance(length);
                    begin = 0;
                    if is_complete || (is_last && bytes.is_empty()) {
                        out.extend_from_slice(&as_text(&self.key));
                    }
                }
            }
        }
        match passed {
            None => bytes,
            Some(mut passed) => {
                passed.extend_from_slice(&bytes);
                passed.freeze()
            }
        }
    }

    /// Takes the next bytes of a message that nobody gets.
    pub(super) fn skip(&mut self, bytes: &[u8]) {
        let mut begin = 0;
        while let Some(Run::Other(length) | Run::Key { length, .. }) = self.next_run(&bytes[begin..]) {
            self.key.truncate(LONGEST_KEPT);
            begin += length;
        }
    }

    /// The key as it came, if it is not text.
    pub(super) fn not_text(&self) -> Option<&[u8]> {
        std::str::from_utf8(&self.key).is_err().then_some(&self.key)
    }

    /// A message that has the key only.
    pub(super) fn into_message(self) -> Bytes {
        let mut text = as_text(&self.key);
        // Where a long key was cut.
        text.truncate(LONGEST_KEPT);
        let mut message = BytesMut::new();
        encode_key(self.field, WireType::LengthDelimited, &mut message);
        encode_varint(text.len() as u64, &mut message);
        message.extend_from_slice(&text);
        message.freeze()
    }

    /// The bytes at the start that belong together; `None` without bytes.
    fn next_run(&mut self, bytes: &[u8]) -> Option<Run> {
        if bytes.is_empty() {
            return None;
        }
        if self.is_broken {
            return Some(Run::Other(bytes.len()));
        }
        let up_to = |length: u64| length.min(bytes.len() as u64) as usize;
        match &mut self.at {
            At::Other(left) => {
                let length = up_to(*left);
                *left -= length as u64;
                if *left == 0 {
                    self.at = At::Tag(Varint::default());
                }
                Some(Run::Other(length))
            }
            At::Key(left) => {
                let length = up_to(*left);
                *left -= length as u64;
                self.key.extend_from_slice(&bytes[..length]);
                let is_complete = *left == 0;
                if is_complete {
                    self.at = At::Tag(Varint::default());
                }
                Some(Run::Key { length, is_complete })
            }
            _ => {
                if self.step(bytes[0]).is_err() {
                    self.is_broken = true;
                }
                Some(Run::Other(1))
            }
        }
    }

    /// Takes a byte of a tag, a number or a length.
    fn step(&mut self, byte: u8) -> Result<(), ()> {
        self.at = match self.at {
            At::Tag(mut tag) => match tag.push(byte)? {
                None => At::Tag(tag),
                Some(tag) => {
                    let is_key = tag >> 3 == u64::from(self.field);
                    match tag & 7 {
                        0 => At::Number,
                        1 => At::Other(8),
                        2 => At::Length { is_key, length: Varint::default() },
                        5 => At::Other(4),
                        // Groups, which nobody makes any more.
                        _ => return Err(()),
                    }
                }
            },
            At::Number if byte < 0x80 => At::Tag(Varint::default()),
            At::Number => At::Number,
            At::Length { is_key, mut length } => match length.push(byte)? {
                None => At::Length { is_key, length },
                Some(length) => {
                    if is_key {
                        self.key.clear();
                    }
                    match length {
                        0 => At::Tag(Varint::default()),
                        length if is_key => At::Key(length),
                        length => At::Other(length),
                    }
                }
            },
            At::Other(_) | At::Key(_) => unreachable!("bytes of fields are taken in runs"),
        };
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Run {
    Other(usize),
    Key { length: usize, is_complete: bool },
}

/// Bytes of the same number, which are text.
fn as_text(key: &[u8]) -> Vec<u8> {
    let mut text = key.to_vec();
    let mut begin = 0;
    while let Err(error) = std::str::from_utf8(&text[begin..]) {
        begin += error.valid_up_to();
        let wrong = error.error_len().unwrap_or(text.len() - begin);
        text[begin..begin + wrong].fill(b'?');
        begin += wrong;
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::{ClassificationOptions, ClassifyVideosRequest, Video, video};

    fn message(key: &str, content: usize) -> Vec<u8> {
        let video = Video { source: Some(video::Source::Content(vec![7; content].into())) };
        let options = ClassificationOptions { max_clips: 300, score_threshold: 0.5, ..Default::default() };
        ClassifyVideosRequest { key: key.to_owned(), video: Some(video), options: Some(options) }.encode_to_vec()
    }

    /// What goes on of a message that comes in parts.
    fn filtered(message: &[u8], part: usize) -> (Vec<u8>, KeyFinder) {
        let mut finder = KeyFinder::new(1);
        let mut passed = Vec::new();
        for (index, bytes) in message.chunks(part).enumerate() {
            let is_last = (index + 1) * part >= message.len();
            passed.extend(finder.filter(Bytes::copy_from_slice(bytes), is_last));
        }
        (passed, finder)
    }

    #[test]
    fn a_key_that_is_not_text_becomes_text_of_the_same_length_wherever_it_stands() {
        let good = message("a-b-c-\u{fc}", 1000);
        let mut bad = good.clone();
        (bad[3], bad[5], bad[9]) = (0xff, 0xc3, 0xc3);
        // Its key comes last.
        let turned = [&bad[10..], &bad[..10]].concat();
        for message in [bad, turned] {
            for part in [1, 2, 7, 100_000] {
                let (passed, finder) = filtered(&message, part);
                let decoded = ClassifyVideosRequest::decode(&passed[..]).unwrap();
                assert_eq!((decoded.key.as_str(), passed.len()), ("a?b?c-??", message.len()), "parts of {part}");
                assert_eq!(finder.not_text(), Some(&b"a\xffb\xc3c-\xc3\xc3"[..]));
            }
        }
    }

    #[test]
    fn a_message_that_is_skipped_leaves_its_key() {
        let message = message("clip 7", 200_000);
        let turned = [&message[8..], &message[..8]].concat();
        for message in [message, turned] {
            for part in [1, 1000] {
                let mut finder = KeyFinder::new(1);
                message.chunks(part).for_each(|part| finder.skip(part));
                let left = ClassifyVideosRequest::decode(finder.into_message()).unwrap();
                assert_eq!(left, ClassifyVideosRequest { key: "clip 7".to_owned(), ..Default::default() });
            }
        }
    }

    proptest! {
        #[test]
        fn text_goes_on_as_it_came_and_noise_at_its_length(
            key in ".{0,20}", noise in prop::collection::vec(any::<u8>(), 0..200), part in 1..50usize,
        ) {
            let good = message(&key, 300);
            let (passed, finder) = filtered(&good, part);
            prop_assert!(passed == good && finder.not_text().is_none());
            let (passed, finder) = filtered(&noise, part);
            prop_assert_eq!(passed.len(), noise.len());
            let mut skipped = KeyFinder::new(1);
            noise.chunks(part).for_each(|part| skipped.skip(part));
            prop_assert_eq!(skipped.key, finder.key);
        }
    }
}
