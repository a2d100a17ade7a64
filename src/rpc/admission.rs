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

/// Length of what gRPC puts before each message: a flag for compression and the length.
const PREFIX_LEN: usize = 5;

/// Memory for the messages of all requests together.
#[derive(Debug, Clone)]
pub(super) struct MessageMemory {
    bytes: Arc<Semaphore>,
    capacity: usize,
    max_message: usize,
    /// How long a client may take for the next bytes of a message.
    idle_timeout: Duration,
}

impl MessageMemory {
    /// Holds messages of up to `max_message` bytes, and `capacity` bytes of them, or one if that is less.
    pub(super) fn new(capacity: usize, max_message: usize, idle_timeout: Duration) -> Self {
        let max_message = max_message.min(u32::MAX as usize);
        let capacity = capacity.clamp(max_message, Semaphore::MAX_PERMITS);
        Self { bytes: Arc::new(Semaphore::new(capacity)), capacity, max_message, idle_timeout }
    }

    /// Bytes of messages that are held.
    pub(super) fn held(&self) -> usize {
        self.capacity - self.bytes.available_permits().min(self.capacity)
    }

    /// Reserves room for the messages of a request body. When there is none, a body that can `wait` is read no further,
    /// so that the client's sending stops; another one ends with RESOURCE_EXHAUSTED.
    pub(super) fn meter(&self, body: tonic::body::Body, wait: bool) -> (MeteredBody, Reservations) {
        let reservations = Reservations::default();
        let body = MeteredBody {
            body,
            memory: self.clone(),
            turn: wait.then(|| PollSemaphore::new(Arc::clone(&self.bytes))),
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

/// Room for the messages of a call, the oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Reservations(Arc<Mutex<VecDeque<OwnedSemaphorePermit>>>);

impl Reservations {
    /// The room of the next message, to be dropped with it.
    pub(super) fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<OwnedSemaphorePermit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request body whose messages have room before they are read.
#[derive(Debug)]
pub(super) struct MeteredBody {
    body: tonic::body::Body,
    memory: MessageMemory,
    /// For a body that can wait.
    turn: Option<PollSemaphore>,
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
    /// The next frame, or an error if the client leaves us waiting for it in the midst of a message. Between the messages
    /// of a stream it may take its time.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.silence = None;
            return Poll::Ready(frame);
        }
        let is_stream = self.turn.is_some();
        if is_stream && self.message_left == 0 && self.prefix_len == 0 {
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
        let permit = match &mut self.turn {
            Some(turn) => ready!(turn.poll_acquire_many(context, length as u32)),
            None => Arc::clone(&self.memory.bytes).try_acquire_many_owned(length as u32).ok(),
        };
        Poll::Ready(match permit {
            Some(permit) => {
                self.reservations.lock().push_back(permit);
                Ok(())
            }
            None => Err(status::no_memory(self.memory.capacity)),
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
