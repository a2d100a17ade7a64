//! Where encoded bytes come from, and what they are if they are no video.

use std::fs::File;
use std::io::{Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::error::VideoError;
use super::ffmpeg as glue;
use super::ffmpeg::{MediaBytes, ReadSeek};
use super::limits::Limits;
use super::ranged::RangedReader;
use super::spool::{self, SpoolReader};
use super::waiting::WhileWaiting;

/// Where the encoded bytes are.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, read where decoding needs it.
    Path(PathBuf),
    /// A file that is open already; its own position does not matter.
    File(Arc<File>),
    /// The whole file in memory.
    Bytes(Bytes),
    /// An upload that may still be arriving. Frames come as soon as their bytes are there, but for an MP4 whose index
    /// comes last, which has to arrive first.
    Spool(SpoolReader),
    /// A file elsewhere, fetched where decoding needs it.
    Ranged(RangedReader),
    /// Another source, of which it is seen how far it is read.
    Watched(Box<Source>, ReadPosition),
}

/// How far a source is read: where the last bytes were taken, as somebody sees who does not take them.
#[derive(Debug, Clone, Default)]
pub struct ReadPosition(Arc<AtomicU64>);

impl ReadPosition {
    /// Bytes from the first on.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Source {
    /// The same bytes; `other` takes part in waiting for those that have not arrived.
    pub(super) fn with(self, other: Arc<dyn WhileWaiting>) -> Self {
        match self {
            Self::Spool(reader) => Self::Spool(reader.with(other)),
            Self::Ranged(reader) => Self::Ranged(reader.with(other)),
            Self::Watched(source, position) => Self::Watched(Box::new(source.with(other)), position),
            whole @ (Self::Path(_) | Self::File(_) | Self::Bytes(_)) => whole,
        }
    }

    /// The same bytes once all of them are here; `other` takes part in waiting for them.
    pub(super) fn whole(self, other: Arc<dyn WhileWaiting>) -> std::io::Result<Self> {
        match self {
            Self::Spool(reader) => {
                reader.clone().with(other).seek(SeekFrom::End(0))?;
                Ok(Self::Spool(reader))
            }
            Self::Ranged(reader) => reader.with(other).fetch_all().map(Self::Spool),
            Self::Watched(source, position) => Ok(Self::Watched(Box::new(source.whole(other)?), position)),
            whole @ (Self::Path(_) | Self::File(_) | Self::Bytes(_)) => Ok(whole),
        }
    }
}

/// What encoded bytes come from.
pub(super) trait Origin {
    /// Opens the bytes and checks their number, where that is known.
    fn open(&self, limits: &Limits) -> Result<MediaBytes, VideoError>;

    /// The first bytes, to tell what they are.
    fn head(&self) -> std::io::Result<Vec<u8>>;
}

/// How many bytes [`Origin::head`] gives.
pub(super) const HEAD: u64 = 64 << 10;

impl Origin for Source {
    fn open(&self, limits: &Limits) -> Result<MediaBytes, VideoError> {
        let (bytes, len) = match self {
            Self::Watched(source, position) => {
                let MediaBytes { bytes, in_order } = source.open(limits)?;
                let bytes = Box::new(WatchedBytes { bytes, position: position.clone() });
                return Ok(MediaBytes { bytes, in_order });
            }
            Self::Path(path) => {
                let file = File::open(path)?;
                let len = file.metadata()?.len();
                (MediaBytes::seekable(file), len)
            }
            Self::File(file) => (MediaBytes::seekable(SharedFile::new(file)), file.metadata()?.len()),
            Self::Ranged(reader) => (MediaBytes::seekable(reader.clone()), reader.len()),
            Self::Bytes(bytes) => (MediaBytes::seekable(Cursor::new(bytes.clone())), bytes.len() as u64),
            // Asking for more than the decoder needs next would make it wait for the whole upload.
            Self::Spool(reader) if !reader.is_complete() && spool::decodes_in_order(reader.clone())? => {
                return Ok(MediaBytes { in_order: true, ..MediaBytes::seekable(reader.clone()) });
            }
            Self::Spool(reader) => {
                let len = reader.clone().seek(SeekFrom::End(0))?;
                (MediaBytes::seekable(reader.clone()), len)
            }
        };
        match len {
            0 => Err(VideoError::Empty),
            _ if len > limits.max_bytes => Err(VideoError::TooLarge { actual: len, limit: limits.max_bytes }),
            _ => Ok(bytes),
        }
    }

    fn head(&self) -> std::io::Result<Vec<u8>> {
        let mut head = Vec::new();
        match self {
            Self::Watched(source, _) => return source.head(),
            Self::Path(path) => File::open(path)?.take(HEAD).read_to_end(&mut head)?,
            Self::File(file) => SharedFile::new(file).take(HEAD).read_to_end(&mut head)?,
            Self::Ranged(reader) => {
                let mut reader = reader.clone();
                reader.seek(SeekFrom::Start(0))?;
                reader.take(HEAD).read_to_end(&mut head)?
            }
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

/// Bytes whose reader lets others see where it is.
struct WatchedBytes {
    bytes: Box<dyn ReadSeek>,
    position: ReadPosition,
}

impl Read for WatchedBytes {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.bytes.read(out)?;
        self.position.0.store(self.bytes.stream_position()?, Ordering::Relaxed);
        Ok(n)
    }
}

impl Seek for WatchedBytes {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.bytes.seek(to)
    }
}

/// Reads an open file from a position of its own.
struct SharedFile {
    file: Arc<File>,
    position: u64,
}

impl SharedFile {
    fn new(file: &Arc<File>) -> Self {
        Self { file: Arc::clone(file), position: 0 }
    }
}

impl Read for SharedFile {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(out, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| std::io::Error::from(ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

/// Says what a file is that FFmpeg would not open.
pub(super) fn explain_refusal(source: &dyn Origin, error: ffmpeg_next::Error) -> VideoError {
    let head = match source.head() {
        Ok(head) => head,
        Err(error) => return error.into(),
    };
    if let ffmpeg_next::Error::Other { errno: ffmpeg_next::error::ENOMEM } = error {
        return VideoError::ffmpeg("open the container", error);
    }
    match glue::detect_format(&head) {
        None if head.is_empty() => VideoError::Empty,
        // A photograph with more than one picture behind it, or with a video, is none of FFmpeg's formats.
        None if head.starts_with(&[0xff, 0xd8, 0xff]) => VideoError::Image { format: "jpeg".to_string() },
        None => VideoError::NotAVideo { detail: "no container format was recognised".to_string() },
        Some(format) if format == "webp_pipe" && is_animated_webp(&head) => {
            VideoError::UnsupportedCodec { codec: "animated WebP".to_string() }
        }
        Some(format) if format.ends_with("_pipe") || format == "image2" => {
            VideoError::Image { format: format.trim_end_matches("_pipe").to_string() }
        }
        Some(format) if format.starts_with("mov") && image_brand(&head).is_some() => {
            VideoError::Image { format: image_brand(&head).unwrap_or_default().to_string() }
        }
        Some(format) if is_accepted(&format) => {
            VideoError::NotAVideo { detail: format!("the {format} header is missing, damaged or cut off ({error})") }
        }
        Some(format) => VideoError::Container { format, accepted: glue::ACCEPTED_CONTAINERS.to_string() },
    }
}

/// The image format that a file of ISO base media says it is: still images have none of the headers of videos.
fn image_brand(head: &[u8]) -> Option<&'static str> {
    if head.get(4..8)? == b"ftyp" { glue::image_brand(head.get(8..12)?) } else { None }
}

/// Whether a WebP says that it has frames (RFC 9649, section 2.7.1.1).
fn is_animated_webp(head: &[u8]) -> bool {
    const ANIMATION: u8 = 2;
    head.get(12..16) == Some(b"VP8X") && head.get(20).is_some_and(|flags| flags & ANIMATION != 0)
}

fn is_accepted(format: &str) -> bool {
    format.split(',').any(|name| glue::ACCEPTED_CONTAINERS.split(',').any(|accepted| accepted == name))
}
