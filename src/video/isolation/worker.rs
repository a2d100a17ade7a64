//! The decoder process: gets jobs over its standard input, a socket, and answers there; its standard output is the
//! memory file.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use super::protocol::{FromWorker, Job, Link, SLOTS, SharedMemory, ToWorker, WINDOW};
use super::sandbox;
use crate::video::ffmpeg::{MediaBytes, thread_cpu_time};
use crate::video::source::{HEAD, Origin};
use crate::video::{Clip, DecodeOptions, Limits, Passed, VideoError, decode_origin};

/// Runs as a decoder process until its owner hangs up. The binary's hidden subcommand is nothing but this.
pub fn run_worker() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kinetoscope decode-worker: {error} (the server starts this by itself)");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let memory = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut link = Link::new(socket);
    let ToWorker::Setup { max_memory } = link.receive()? else {
        return Err(io::Error::new(ErrorKind::InvalidData, "the first message is no setup"));
    };
    let slot_len = (memory.metadata()?.len() as usize).saturating_sub(WINDOW) / SLOTS;
    // Where the kernel's clock is gets looked up in a file, once; so before files are out of reach.
    thread_cpu_time();
    let missing = sandbox::enter(max_memory);
    link.send(&FromWorker::Ready { missing })?;
    let owner = Arc::new(Mutex::new(Owner {
        link,
        memory: SharedMemory::new(memory, slot_len),
        free: [true; SLOTS],
        passed: 0,
        stop: false,
    }));
    loop {
        let message = lock(&owner).link.receive();
        match message {
            Ok(ToWorker::Decode(job)) => {
                let answer = match decode(&owner, &job) {
                    Ok(summary) => FromWorker::Done(Box::new(summary)),
                    Err(error) => FromWorker::Failed(error),
                };
                lock(&owner).link.send(&answer)?;
            }
            // Answers to the last clips of a job may come after its end.
            Ok(ToWorker::Taken { .. }) => {}
            Ok(_) => return Err(io::Error::new(ErrorKind::InvalidData, "an answer to no question")),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn decode(owner: &Arc<Mutex<Owner>>, job: &Job) -> Result<crate::video::VideoSummary, VideoError> {
    {
        let mut owner = lock(owner);
        (owner.free, owner.passed, owner.stop) = ([true; SLOTS], 0, false);
    }
    let options = DecodeOptions {
        limits: job.limits.clone(),
        // The owner cancels by ending this process.
        cancel: CancellationToken::new(),
        range: job.range,
        crop: job.crop,
        clip_stride: job.clip_stride,
        max_clips_wanted: job.max_clips_wanted,
        decoder_threads: 1,
    };
    let origin = Remote { owner: Arc::clone(owner), in_order: job.in_order };
    let mut lost = None;
    let summary = decode_origin(&origin, &job.clip, &job.preprocessing, &options, |passed| {
        lock(owner).pass(&passed).unwrap_or_else(|error| {
            lost = Some(error);
            ControlFlow::Break(())
        })
    })?;
    match lost {
        None => Ok(summary),
        Some(error) => Err(error.into()),
    }
}

fn lock(owner: &Mutex<Owner>) -> std::sync::MutexGuard<'_, Owner> {
    // There is one thread.
    owner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The other end of the socket.
struct Owner {
    link: Link,
    memory: SharedMemory,
    free: [bool; SLOTS],
    /// Clips that took up a slot.
    passed: usize,
    stop: bool,
}

impl Owner {
    /// Sends a clip, as soon as there is room for it.
    fn pass(&mut self, passed: &Passed) -> io::Result<ControlFlow<()>> {
        let slot = self.passed % SLOTS;
        while !self.free[slot] {
            match self.link.receive()? {
                ToWorker::Taken { slot, more } => self.taken(slot, more),
                _ => return Err(io::Error::new(ErrorKind::InvalidData, "an answer to no question")),
            }
        }
        if self.stop {
            return Ok(ControlFlow::Break(()));
        }
        self.free[slot] = false;
        self.passed += 1;
        match passed {
            Passed::Clip(clip) => {
                self.memory.write_slot(slot, &clip.rgb)?;
                let Clip { index, frames, start, end, .. } = *clip;
                self.link.send(&FromWorker::Clip { slot, index, frames, start, end })?;
            }
            Passed::Unwanted => self.link.send(&FromWorker::Unwanted { slot })?,
        }
        Ok(ControlFlow::Continue(()))
    }

    fn taken(&mut self, slot: usize, more: bool) {
        if let Some(free) = self.free.get_mut(slot) {
            *free = true;
        }
        self.stop |= !more;
    }

    fn ask(&mut self, question: &FromWorker) -> io::Result<ToWorker> {
        self.link.send(question)?;
        loop {
            match self.link.receive()? {
                ToWorker::Taken { slot, more } => self.taken(slot, more),
                ToWorker::ReadFailed { detail } => return Err(io::Error::other(detail)),
                answer => return Ok(answer),
            }
        }
    }
}

/// The video's bytes, which the owner has.
struct Remote {
    owner: Arc<Mutex<Owner>>,
    in_order: bool,
}

impl Remote {
    fn reader(&self) -> RemoteBytes {
        RemoteBytes { owner: Arc::clone(&self.owner), position: 0, held: Vec::new(), held_from: 0 }
    }
}

impl Origin for Remote {
    fn open(&self, _: &Limits) -> Result<MediaBytes, VideoError> {
        Ok(MediaBytes { in_order: self.in_order, ..MediaBytes::seekable(self.reader()) })
    }

    fn head(&self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        // What arrived before an upload broke off is enough to tell.
        let _ = self.reader().take(HEAD).read_to_end(&mut head);
        Ok(head)
    }
}

struct RemoteBytes {
    owner: Arc<Mutex<Owner>>,
    position: u64,
    /// The bytes that came last, and where they belong.
    held: Vec<u8>,
    held_from: u64,
}

impl Read for RemoteBytes {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let held = |bytes: &Self| {
            let skip = usize::try_from(bytes.position.checked_sub(bytes.held_from)?).ok()?;
            bytes.held.get(skip..).filter(|rest| !rest.is_empty()).map(|_| skip)
        };
        let skip = match held(self) {
            Some(skip) => skip,
            None => {
                let mut owner = lock(&self.owner);
                let ToWorker::Bytes { len } = owner.ask(&FromWorker::Read { offset: self.position, len: WINDOW })?
                else {
                    return Err(io::Error::new(ErrorKind::InvalidData, "no bytes in the answer"));
                };
                self.held.resize(len.min(WINDOW), 0);
                owner.memory.read_window(&mut self.held)?;
                self.held_from = self.position;
                0
            }
        };
        let n = (self.held.len() - skip).min(out.len());
        out[..n].copy_from_slice(&self.held[skip..][..n]);
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for RemoteBytes {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => match lock(&self.owner).ask(&FromWorker::AskLength)? {
                ToWorker::Length { bytes } => bytes.checked_add_signed(by),
                _ => return Err(io::Error::new(ErrorKind::InvalidData, "no length in the answer")),
            },
        };
        self.position = position.ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
