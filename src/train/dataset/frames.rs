//! Videos as folders of pictures, one a frame, as the authors' scripts and many datasets keep them.
//!
//! ```text
//! DIR/{class}/{video}/image_00001.jpg, image_00002.jpg, ...
//! ```
//!
//! The pictures that are wanted become an AVI file of Motion JPEG (or PNG) in memory, and go the way of all videos from there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::folders::name_of;
use crate::video::{Extent, VideoError};

/// Frames a second, which folders don't tell.
pub(in crate::train) const FRAME_RATE: u32 = 25;

/// How pictures are encoded, by their file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Jpeg,
    Png,
}

impl Codec {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_string_lossy().to_ascii_lowercase().as_str() {
            "jpg" | "jpeg" => Some(Self::Jpeg),
            "png" => Some(Self::Png),
            _ => None,
        }
    }

    /// As AVI names it.
    fn four_letters(self) -> &'static [u8; 4] {
        match self {
            Self::Jpeg => b"MJPG",
            Self::Png => b"MPNG",
        }
    }
}

/// Whether a file has a name as pictures have.
pub(super) fn is_picture(path: &Path) -> bool {
    Codec::of(path).is_some()
}

/// The video that the pictures in `folder` are the frames of.
pub fn frames_as_video(folder: &Path) -> Result<Bytes, VideoError> {
    let frames = FrameFolder::open(folder)?;
    frames.range(0..frames.files.len() as u64)
}

/// The frames of one video.
#[derive(Debug, Clone)]
pub(in crate::train) struct FrameFolder {
    codec: Codec,
    /// In their order.
    files: Vec<PathBuf>,
}

impl FrameFolder {
    /// Lists the pictures in `folder`. Of several series, such as those of optical flow beside the frames, the one whose names
    /// begin like `image`, `img`, `frame` or `rgb` is taken, or else the longest.
    pub(in crate::train) fn open(folder: &Path) -> Result<Self, VideoError> {
        let mut series: BTreeMap<String, Vec<(u64, PathBuf)>> = BTreeMap::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = name_of(&path);
            if let Some(codec) = Codec::of(&path)
                && !name.starts_with('.')
            {
                let (prefix, number) = numbered(&path);
                series.entry(format!("{prefix}.{codec:?}")).or_default().push((number, path));
            }
        }
        let is_rgb = |prefix: &str| {
            let prefix = prefix.to_ascii_lowercase();
            ["image", "img", "frame", "rgb"].iter().any(|usual| prefix.starts_with(usual))
        };
        let best = series.into_iter().max_by_key(|(prefix, files)| (is_rgb(prefix), files.len()));
        let (_, mut files) = best.ok_or(VideoError::Empty)?;
        files.sort();
        let files: Vec<PathBuf> = files.into_iter().map(|(_, path)| path).collect();
        let codec = Codec::of(&files[0]).expect("only pictures were listed");
        Ok(Self { codec, files })
    }

    /// Frames, and their size by the header of the first one.
    pub(in crate::train) fn extent(&self) -> Result<Extent, VideoError> {
        let mut head = Vec::new();
        // Metadata such as a thumbnail may come before the size.
        fs::File::open(&self.files[0])?.take(256 << 10).read_to_end(&mut head)?;
        let size = match self.codec {
            Codec::Jpeg => jpeg_size(&head),
            Codec::Png => png_size(&head),
        };
        let not_a_picture =
            || VideoError::NotAVideo { detail: format!("{} is no {:?} picture", self.files[0].display(), self.codec) };
        let (width, height) = size.ok_or_else(not_a_picture)?;
        Ok(Extent { frames: self.files.len() as u64, width, height })
    }

    /// The frames of `range`, as far as there are such, as a video.
    pub(in crate::train) fn range(&self, range: Range<u64>) -> Result<Bytes, VideoError> {
        let end = range.end.min(self.files.len() as u64) as usize;
        let files = &self.files[(range.start as usize).min(end)..end];
        let pictures = files.iter().map(fs::read).collect::<io::Result<Vec<_>>>()?;
        let Extent { width, height, .. } = self.extent()?;
        avi(self.codec, width, height, &pictures)
    }
}

/// A name without its last number, and that number.
fn numbered(path: &Path) -> (String, u64) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    (prefix.to_owned(), stem[prefix.len()..].parse().unwrap_or(0))
}

/// Width and height in the frame header of a JPEG (ITU-T T.81, B.2.2).
fn jpeg_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        let [0xff, marker, ..] = *rest else { return None };
        rest = &rest[2..];
        match marker {
            // Padding.
            0xff => rest = &bytes[bytes.len() - rest.len() - 1..],
            0xd0..=0xd9 | 0x01 => {}
            _ => {
                let length = usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?));
                if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
                    let number =
                        |at: usize| Some(u32::from(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?)));
                    return Some((number(5)?, number(3)?));
                }
                rest = rest.get(length..)?;
            }
        }
    }
}

/// Width and height in the first chunk of a PNG.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let header = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let number = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    (header.get(4..8)? == b"IHDR").then_some((number(8)?, number(12)?))
}

/// An AVI file (RIFF, one stream, index at the end) whose packets are `pictures`.
fn avi(codec: Codec, width: u32, height: u32, pictures: &[Vec<u8>]) -> Result<Bytes, VideoError> {
    let chunk = |id: &[u8; 4], data: &[u8]| {
        let mut chunk = id.to_vec();
        chunk.extend((data.len() as u32).to_le_bytes());
        chunk.extend(data);
        chunk.resize(chunk.len().next_multiple_of(2), 0);
        chunk
    };
    let list = |id: &[u8; 4], data: &[u8]| chunk(b"LIST", &[id, data].concat());
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();

    let largest = pictures.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let (count, four_letters) = (pictures.len() as u32, codec.four_letters());
    const HAS_INDEX: u32 = 0x10;
    let main = [1_000_000 / FRAME_RATE, 0, 0, HAS_INDEX, count, 0, 1, largest, width, height, 0, 0, 0, 0];
    let stream = [0, 0, 0, 1, FRAME_RATE, 0, count, largest, u32::MAX, 0, 0, 0];
    let bits_and_planes = 24 << 16 | 1;
    let format = [40, width, height, bits_and_planes, u32::from_le_bytes(*four_letters), 0, 0, 0, 0, 0];
    let stream = [b"vids".as_slice(), four_letters, &words(&stream)].concat();
    let stream = list(b"strl", &[chunk(b"strh", &stream), chunk(b"strf", &words(&format))].concat());
    let header = list(b"hdrl", &[chunk(b"avih", &words(&main)), stream].concat());

    const KEY_FRAME: u32 = 0x10;
    let (mut packets, mut index) = (Vec::new(), Vec::new());
    for picture in pictures {
        // From the four letters of the list on.
        let offset = packets.len() as u64 + 4;
        let too_large = || io::Error::new(ErrorKind::FileTooLarge, "the frames of one video have more than 4 GB");
        let offset = u32::try_from(offset + picture.len() as u64).map_err(|_| too_large())? - picture.len() as u32;
        index.extend(b"00dc");
        index.extend(words(&[KEY_FRAME, offset, picture.len() as u32]));
        packets.extend(chunk(b"00dc", picture));
    }
    let body = [b"AVI ".to_vec(), header, list(b"movi", &packets), chunk(b"idx1", &index)].concat();
    Ok(chunk(b"RIFF", &body).into())
}
