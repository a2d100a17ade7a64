//! How much the server takes on: places for requests, and memory for their messages, reserved before they are read.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::PollSemaphore;
use tonic::Status;

use super::status;
use crate::metrics::Metrics;

/// Length of what gRPC puts before each message: a flag for compression and the length.
const PREFIX_LEN: usize = 5;

/// How a call's client sends, by which is decided what it may be made to wait for and what is waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// One message, which is refused if there is no room for it.
    One,
    /// Parts of one video, without a pause. They wait for room.
    Parts,
    /// Messages of their own, with pauses between them. They wait for room.
    Many,
}

/// Memory for the messages of all requests together.
#[derive(Debug, Clone)]
pub(super) struct MessageMemory {
    bytes: Arc<Semaphore>,
    /// What streams may have of it. They wait, so that they would end up with all of it, and others are refused.
    streams: Arc<Semaphore>,
    capacity: usize,
    max_message: usize,
    /// How long a client may take for the next bytes of a message.
    idle_timeout: Duration,
    metrics: Arc<Metrics>,
}

impl MessageMemory {
    /// Holds messages of up to `max_message` bytes, and `capacity` bytes of them, or one if that is less.
    pub(super) fn new(capacity: usize, max_message: usize, idle_timeout: Duration, metrics: Arc<Metrics>) -> Self {
        let max_message = max_message.min(u32::MAX as usize);
        let capacity = capacity.clamp(max_message, Semaphore::MAX_PERMITS);
        let streams = (capacity - capacity / 4).max(max_message);
        let [bytes, streams] = [capacity, streams].map(|bytes| Arc::new(Semaphore::new(bytes)));
        Self { bytes, streams, capacity, max_message, idle_timeout, metrics }
    }

    /// Bytes of messages that are held.
    pub(super) fn held(&self) -> usize {
        self.capacity - self.bytes.available_permits().min(self.capacity)
    }

    /// Reserves room for the messages of a request body. When there is none, the body of a stream is read no further, so
    /// that the client's sending stops; another one ends with RESOURCE_EXHAUSTED.
    pub(super) fn meter(&self, body: tonic::body::Body, sending: Sending) -> (MeteredBody, Reservations) {
        let reservations = Reservations::default();
        let body = MeteredBody {
            body,
            memory: self.clone(),
            sending,
            turn: Turn::new(self),
            reservations: reservations.clone(),
            prefix: [0; PREFIX_LEN],
            prefix_len: 0,
            message_left: 0,
            unread: Bytes::new(),
            silence: None,
        };
        (body, reservations)
    }
}

/// Room for a message.
#[derive(Debug)]
pub(super) struct Room {
    _bytes: OwnedSemaphorePermit,
    _of_streams: Option<OwnedSemaphorePermit>,
}

/// A stream's wait for room: first for its part of what streams may have, so that those that wait for the rest never hold
/// more than that together.
#[derive(Debug)]
struct Turn {
    streams: PollSemaphore,
    bytes: PollSemaphore,
    of_streams: Option<OwnedSemaphorePermit>,
}

impl Turn {
    fn new(memory: &MessageMemory) -> Self {
        let [streams, bytes] = [&memory.streams, &memory.bytes].map(|bytes| PollSemaphore::new(Arc::clone(bytes)));
        Self { streams, bytes, of_streams: None }
    }

    /// `None` never comes: the semaphores are not closed.
    fn poll_room(&mut self, context: &mut Context<'_>, length: u32) -> Poll<Option<Room>> {
        if self.of_streams.is_none() {
            self.of_streams = ready!(self.streams.poll_acquire_many(context, length));
        }
        let bytes = ready!(self.bytes.poll_acquire_many(context, length));
        Poll::Ready(bytes.map(|bytes| Room { _bytes: bytes, _of_streams: self.of_streams.take() }))
    }
}

/// Room for the messages of a call, the oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Reservations(Arc<Mutex<VecDeque<Room>>>);

impl Reservations {
    /// The room of the next message, to be dropped with it.
    pub(super) fn take(&self) -> Option<Room> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Room>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request body whose messages have room before they are read.
#[derive(Debug)]
pub(super) struct MeteredBody {
    body: tonic::body::Body,
    memory: MessageMemory,
    sending: Sending,
    turn: Turn,
    reservations: Reservations,
    prefix: [u8; PREFIX_LEN],
    prefix_len: usize,
    /// Bytes of the current message that are still to come.
    message_left: usize,
    /// What came and was not handed on yet.
    unread: Bytes,
    /// Runs while bytes are missing.
    silence: Option<Pin<Box<Sleep>>>,
}

impl MeteredBody {
    /// The next frame, or an error if the client leaves us waiting for it in the midst of what it sends. Waiting for room
    /// is not its fault and does not count.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.silence = None;
            return Poll::Ready(frame);
        }
        if self.sending == Sending::Many && self.message_left == 0 && self.prefix_len == 0 {
            return Poll::Pending;
        }
        let timeout = self.memory.idle_timeout;
        let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(silence.as_mut().poll(context));
        Poll::Ready(Some(Err(status::client_idle(timeout))))
    }

    /// Bytes at the start of `unread` that can be handed on, after reserving room for the message that begins there.
    fn poll_admit(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, Status>> {
        let mut admitted = 0;
        while admitted < self.unread.len() {
            if self.message_left > 0 {
                let n = self.message_left.min(self.unread.len() - admitted);
                self.message_left -= n;
                admitted += n;
                continue;
            }
            let missing = PREFIX_LEN - self.prefix_len;
            let prefix = &self.unread[admitted..][..missing.min(self.unread.len() - admitted)];
            if prefix.len() < missing {
                self.prefix[self.prefix_len..][..prefix.len()].copy_from_slice(prefix);
                self.prefix_len += prefix.len();
                return Poll::Ready(Ok(self.unread.len()));
            }
            self.prefix[self.prefix_len..].copy_from_slice(prefix);
            let [_, length @ ..] = self.prefix;
            let length = u32::from_be_bytes(length) as usize;
            match self.poll_reserve(context, length) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // What belongs to the message before is handed on, or two calls could wait for each other's rest.
                Poll::Pending if admitted > 0 => return Poll::Ready(Ok(admitted)),
                Poll::Pending => return Poll::Pending,
            }
            (self.prefix_len, self.message_left) = (0, length);
            admitted += missing;
        }
        Poll::Ready(Ok(admitted))
    }

    fn poll_reserve(&mut self, context: &mut Context<'_>, length: usize) -> Poll<Result<(), Status>> {
        if length > self.memory.max_message {
            return Poll::Ready(Err(status::message_too_large(length, self.memory.max_message)));
        }
        let room = match self.sending {
            Sending::Parts | Sending::Many => ready!(self.turn.poll_room(context, length as u32)),
            Sending::One => {
                let bytes = Arc::clone(&self.memory.bytes).try_acquire_many_owned(length as u32).ok();
                bytes.map(|bytes| Room { _bytes: bytes, _of_streams: None })
            }
        };
        Poll::Ready(match room {
            Some(room) => {
                self.reservations.lock().push_back(room);
                Ok(())
            }
            None => {
                self.memory.metrics.rejected("message_memory");
                Err(status::no_memory(self.memory.capacity))
            }
        })
    }
}

impl Body for MeteredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        while this.unread.is_empty() {
            match ready!(this.poll_receive(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.unread = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
            }
        }
        let admitted = ready!(this.poll_admit(context))?;
        Poll::Ready(Some(Ok(Frame::data(this.unread.split_to(admitted)))))
    }

    fn is_end_stream(&self) -> bool {
        self.unread.is_empty() && self.body.is_end_stream()
    }
}
