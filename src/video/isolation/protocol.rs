//! What a decoder process and its owner say to each other.
//!
//! Messages are JSON behind a length, over a socket; they are few. Bytes and pixels go through shared memory.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::spec::{ClipSpec, Preprocessing};
use crate::video::{Crop, Limits, TimeRange, VideoError, VideoSummary};

/// Clips on their way at a time: one is taken while the next is decoded.
pub(super) const SLOTS: usize = 2;

/// Bytes of the window for encoded bytes.
pub(super) const WINDOW: usize = 256 << 10;

/// No message is longer; a process that sends one is broken.
const MAX_MESSAGE: usize = 64 << 10;

/// From the owner to its decoder process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToWorker {
    /// The first message: lock yourself in.
    Setup {
        /// Bytes of address space allowed.
        max_memory: u64,
    },
    /// Decode a video.
    Decode(Box<Job>),
    /// So many bytes are in the window; none at the end.
    Bytes { len: usize },
    /// The length of the video.
    Length { bytes: u64 },
    /// The bytes asked for cannot be had.
    ReadFailed { detail: String },
    /// The clip was taken; whether more are wanted.
    Taken { slot: usize, more: bool },
}

/// What to decode.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) clip: ClipSpec,
    pub(super) preprocessing: Preprocessing,
    pub(super) limits: Limits,
    pub(super) range: TimeRange,
    pub(super) crop: Crop,
    pub(super) clip_stride: usize,
    pub(super) max_clips_wanted: Option<u64>,
    /// See [`crate::video::ffmpeg::MediaBytes`].
    pub(super) in_order: bool,
}

/// From a decoder process to its owner.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromWorker {
    /// Locked in, but for what this kernel does not have.
    Ready { missing: Vec<String> },
    /// Put bytes into the window, please.
    Read { offset: u64, len: usize },
    /// How long is the video?
    AskLength,
    /// A clip is in its slot.
    Clip { slot: usize, index: usize, frames: usize, start: Duration, end: Duration, so_far: Box<VideoSummary> },
    /// A clip that is not wanted was decoded; it takes up a slot, so that the process gets no further ahead.
    Unwanted { slot: usize },
    /// The video is decoded.
    Done(Box<VideoSummary>),
    /// It could not be.
    Failed(VideoError),
}

/// One end of the socket.
pub(super) struct Link {
    socket: UnixStream,
    received: Vec<u8>,
}

impl Link {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, received: Vec::new() }
    }

    /// How long [`Link::receive`] waits before it gives [`ErrorKind::WouldBlock`].
    pub(super) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(patience))
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let mut framed = (body.len() as u32).to_le_bytes().to_vec();
        framed.extend(body);
        self.socket.write_all(&framed)
    }

    /// The next message. After an error of kind `WouldBlock` it can be called again.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        loop {
            if let Some((len, rest)) = self.received.split_first_chunk::<4>() {
                let len = u32::from_le_bytes(*len) as usize;
                if len > MAX_MESSAGE {
                    return Err(io::Error::new(ErrorKind::InvalidData, format!("a message of {len} bytes")));
                }
                if let Some(body) = rest.get(..len) {
                    let message = serde_json::from_slice(body)?;
                    self.received.drain(..4 + len);
                    return Ok(message);
                }
            }
            let mut part = [0; 4096];
            match self.socket.read(&mut part) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.received.extend_from_slice(&part[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
