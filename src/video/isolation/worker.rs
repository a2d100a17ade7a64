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

use super::protocol::{FromWorker, Job, Link, SLOTS, ToWorker, WINDOW};
use super::sandbox;
use super::shared::{MappedMemory, Slot};
use crate::video::assembly::{ClipSink, OpenClip};
use crate::video::ffmpeg::{MediaBytes, thread_cpu_time};
use crate::video::source::{HEAD, Origin};
use crate::video::{DecodeOptions, Limits, VideoError, VideoSummary, decode_origin};

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
    let closed = sandbox::close_inherited_files();
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let memory = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut link = Link::new(socket);
    let ToWorker::Setup { max_memory } = link.receive()? else {
        return Err(io::Error::new(ErrorKind::InvalidData, "the first message is no setup"));
    };
    let memory = MappedMemory::new(memory)?;
    // Where the kernel's clock is gets looked up in a file, once; so before files are out of reach.
    thread_cpu_time();
    let missing = sandbox::enter(max_memory, closed);
    link.send(&FromWorker::Ready { missing })?;
    let owner = Arc::new(Mutex::new(Owner { link, memory, free: [true; SLOTS], passed: 0, stop: false }));
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

fn decode(owner: &Arc<Mutex<Owner>>, job: &Job) -> Result<VideoSummary, VideoError> {
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
    let mut sink = ToOwner { owner, lost: None };
    let summary = decode_origin(&origin, &job.clip, &job.preprocessing, &options, &mut sink)?;
    match sink.lost {
        None => Ok(summary),
        Some(error) => Err(error.into()),
    }
}

fn lock(owner: &Mutex<Owner>) -> std::sync::MutexGuard<'_, Owner> {
    // There is one thread.
    owner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Takes clips to the owner.
struct ToOwner<'a> {
    owner: &'a Mutex<Owner>,
    /// Why the owner can't be reached any more.
    lost: Option<io::Error>,
}

impl ToOwner<'_> {
    fn try_to<T>(&mut self, act: impl FnOnce(&mut Owner) -> io::Result<Option<T>>) -> Option<T> {
        let result = act(&mut lock(self.owner));
        result.unwrap_or_else(|error| {
            self.lost = Some(error);
            None
        })
    }
}

impl ClipSink for &mut ToOwner<'_> {
    type Pixels = Slot;

    fn room(&mut self, len: usize) -> Option<Slot> {
        self.try_to(|owner| {
            let Some(slot) = owner.next_slot()? else { return Ok(None) };
            let room = owner.memory.lend(slot, len);
            room.map(Some).ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the clip is too large for its slot"))
        })
    }

    fn pass(&mut self, clip: OpenClip<Slot>, so_far: VideoSummary) -> ControlFlow<()> {
        let OpenClip { index, frames, start, end, .. } = clip;
        let so_far = Box::new(so_far);
        let message = |slot| FromWorker::Clip { slot, index, frames, start, end, so_far };
        let sent = self.try_to(|owner| owner.take_up(message).map(Some));
        if sent.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn pass_unwanted(&mut self) -> ControlFlow<()> {
        let sent = self.try_to(|owner| match owner.next_slot()? {
            Some(_) => owner.take_up(|slot| FromWorker::Unwanted { slot }).map(Some),
            None => Ok(None),
        });
        if sent.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// The other end of the socket.
struct Owner {
    link: Link,
    memory: MappedMemory,
    free: [bool; SLOTS],
    /// Clips that took up a slot.
    passed: usize,
    stop: bool,
}

impl Owner {
    /// Waits for the next slot; `None` if no more clips are wanted.
    fn next_slot(&mut self) -> io::Result<Option<usize>> {
        let slot = self.passed % SLOTS;
        while !self.free[slot] {
            match self.link.receive()? {
                ToWorker::Taken { slot, more } => self.taken(slot, more),
                _ => return Err(io::Error::new(ErrorKind::InvalidData, "an answer to no question")),
            }
        }
        Ok((!self.stop).then_some(slot))
    }

    /// Says that the next slot is taken up.
    fn take_up(&mut self, message: impl FnOnce(usize) -> FromWorker) -> io::Result<()> {
        let slot = self.passed % SLOTS;
        self.free[slot] = false;
        self.passed += 1;
        self.link.send(&message(slot))
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
