//! The bytes of a video that was named: a file, which can be read from any place, or what comes once, such as a pipe.

use std::fs::File;
use std::future::Future;
use std::io::{self, ErrorKind, IsTerminal, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use super::videos::STDIN;
use crate::train::dataset::frames_as_video;
use crate::video::{SpoolError, SpoolOptions, SpoolReader, SpoolWriter, spool};

/// How far what comes once is read ahead of who wants it. More would only fill the disk.
const READ_AHEAD: u64 = 8 << 20;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;

/// A video's bytes.
pub(super) enum Input {
    /// A regular file of so many bytes.
    File(Arc<File>, u64),
    /// The video that a folder's pictures are the frames of.
    Frames(Bytes),
    /// What comes once. It is kept, so that it can be read from any place, and comes as long as a reader is there.
    Stream(SpoolReader, Coming),
}

impl Input {
    /// Opens a file, or begins to read what comes once. May wait for a disk.
    pub(super) fn open(name: &Path, options: SpoolOptions) -> io::Result<Self> {
        let (metadata, stdin) = if name == Path::new(STDIN) {
            let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
            if stdin.is_terminal() {
                return Err(io::Error::other("standard input is a terminal; send a video through a pipe"));
            }
            (stdin.metadata()?, Some(stdin))
        } else {
            (std::fs::metadata(name)?, None)
        };
        if metadata.is_dir() {
            if let Ok(bytes) = frames_as_video(name) {
                return Ok(Self::Frames(bytes));
            }
            return Err(io::Error::other("this is a directory; --recursive takes the videos in it"));
        }
        if let Some(stdin) = stdin {
            // Redirected from a file, of which nothing has been read yet.
            if metadata.is_file() && (&stdin).stream_position()? == 0 {
                return Ok(Self::File(Arc::new(stdin), metadata.len()));
            }
            return Coming::start(move || Ok(stdin), options);
        }
        if metadata.is_file() {
            return Ok(Self::File(Arc::new(File::open(name)?), metadata.len()));
        }
        let name = PathBuf::from(name);
        // To open a FIFO waits for its writer.
        Coming::start(move || File::open(name), options)
    }
}

/// What comes once, while it comes. Dropping it ends the waits for it.
pub(super) struct Coming {
    failed: oneshot::Receiver<anyhow::Error>,
    _cancel: DropGuard,
}

impl Coming {
    /// Reads what `open` opens on a thread of its own: a read may wait for ever, and nothing waits for the thread.
    fn start(open: impl FnOnce() -> io::Result<File> + Send + 'static, options: SpoolOptions) -> io::Result<Input> {
        let cancel = CancellationToken::new();
        let (mut writer, reader) = spool(options, cancel.clone());
        let (sender, failed) = oneshot::channel();
        let run = move || {
            let fed = open().context("it can't be opened").and_then(|from| feed(from, &mut writer));
            match fed {
                Ok(Fed::ToTheEnd) => writer.finish(),
                Ok(Fed::Enough) => {}
                // Before the readers learn that no more comes.
                Err(error) => drop(sender.send(error)),
            }
        };
        thread::Builder::new().name("input".into()).spawn(run)?;
        Ok(Input::Stream(reader, Self { failed, _cancel: cancel.drop_guard() }))
    }

    /// Does `work` with the bytes, or tells why they can't come.
    pub(super) async fn or_failure<T>(self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let failure = async {
            match self.failed.await {
                Ok(error) => error,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            error = failure => Err(error),
            result = work => result,
        }
    }
}

enum Fed {
    ToTheEnd,
    /// Nobody reads any more.
    Enough,
}

fn feed(mut from: File, writer: &mut SpoolWriter) -> anyhow::Result<Fed> {
    let mut chunk = vec![0; CHUNK];
    while writer.wait_until_wanted(READ_AHEAD) {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(Fed::ToTheEnd),
            Ok(n) => match writer.write(&chunk[..n]) {
                Ok(()) => {}
                Err(SpoolError::Unwanted) => break,
                Err(error) => return Err(error.into()),
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("it can't be read"),
        }
    }
    Ok(Fed::Enough)
}

/// The bytes of a file from the first on, whoever else reads it.
pub(super) fn bytes_of(file: &Arc<File>) -> impl FnMut(&mut [u8]) -> io::Result<usize> + Send + use<> {
    let (file, mut position) = (Arc::clone(file), 0);
    move |out| {
        let n = file.read_at(out, position)?;
        position += n as u64;
        Ok(n)
    }
}

/// What `read` gives, as it is wanted. What can't be read to its end is cut off there, which whoever decodes it notices.
pub(super) fn chunks(
    mut read: impl FnMut(&mut [u8]) -> io::Result<usize> + Send + 'static,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let (sender, chunks) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            match read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => {
                    chunk.truncate(n);
                    if sender.blocking_send(Bytes::from(chunk)).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    // Whoever has enough ends the reads that wait.
                    if !sender.is_closed() {
                        warn!(%error, "the video can't be read to its end");
                    }
                    break;
                }
            }
        }
    });
    ReceiverStream::new(chunks)
}
