//! What a call's messages are held to before they are decoded: there is memory for them, they come fast enough, and one
//! that can't be taken ends no stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use tonic::Status;

use super::key::KeyFinder;
use crate::app::{AppError, MessageMemory, Reason, Room};
use crate::metrics::Metrics;
use crate::pace::{Pace, PaceClock};

/// Length of what gRPC puts before each message: a flag for compression and the length.
const PREFIX_LEN: usize = 5;

/// How a call's client sends, by which is decided what it may be made to wait for and what is waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sending {
    /// One message, which is refused if there is no memory for it.
    One,
    /// Parts of one video, without a pause. They wait for memory.
    Parts,
    /// Messages of their own, with pauses between them. They wait for memory. One that can't be taken is answered under
    /// its key, if they have keys: text in the field of this number.
    Many { key: Option<u32> },
}

/// What all calls share.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    pub(crate) memory: MessageMemory,
    pub(crate) pace: Pace,
    pub(crate) metrics: Arc<Metrics>,
}

impl Admission {
    /// Takes memory for the messages of a request body as they come. When there is none, the body of a stream is read no
    /// further, so that the client's sending stops; another one ends with RESOURCE_EXHAUSTED.
    pub(crate) fn meter(&self, body: tonic::body::Body, sending: Sending) -> (MeteredBody, Arrivals) {
        let arrivals = Arrivals::default();
        let body = MeteredBody {
            body,
            clock: PaceClock::new(self.pace),
            admission: self.clone(),
            sending,
            arrivals: arrivals.clone(),
            prefix: BytesMut::with_capacity(PREFIX_LEN),
            message: None,
            unread: Bytes::new(),
        };
        (body, arrivals)
    }
}

/// A message that came as a whole.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// Its memory, to be dropped with it.
    pub(crate) room: Option<Room>,
    /// Why it can't be taken. It was replaced by one that has its key only.
    pub(crate) refused: Option<AppError>,
}

/// The messages of a call that came, the oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals(Arc<Mutex<VecDeque<Arrived>>>);

impl Arrivals {
    /// What belongs to the next message that is decoded.
    pub(crate) fn take(&self) -> Option<Arrived> {
        self.lock().pop_front()
    }

    fn push(&self, arrived: Arrived) {
        self.lock().push_back(arrived);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arrived>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request body that hands on what [`Admission`] admits.
#[derive(Debug)]
pub(crate) struct MeteredBody {
    body: tonic::body::Body,
    clock: PaceClock,
    admission: Admission,
    sending: Sending,
    arrivals: Arrivals,
    /// What came of the prefix of the next message.
    prefix: BytesMut,
    /// The message that is coming.
    message: Option<Incoming>,
    /// What came and was not looked at yet.
    unread: Bytes,
}

/// A message that is coming.
#[derive(Debug)]
struct Incoming {
    length: usize,
    /// Bytes that are still to come.
    left: usize,
    /// `None` if the message is skipped.
    room: Option<Room>,
    key: Option<KeyFinder>,
}

impl MeteredBody {
    /// The next frame, or an error if the client leaves us waiting for it in the midst of what it sends. Waiting for memory
    /// is not its fault and does not count.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            // A sign of life are the bytes of messages only.
            self.clock.received(0);
            return Poll::Ready(frame);
        }
        if matches!(self.sending, Sending::Many { .. }) && self.message.is_none() && self.prefix.is_empty() {
            self.clock.rest();
            return Poll::Pending;
        }
        let too_slow = ready!(self.clock.poll_too_slow(context));
        Poll::Ready(Some(Err(AppError::from(too_slow).into())))
    }

    /// Takes some of the unread bytes, and gives those that go on now.
    fn poll_admit(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        let Some(message) = &mut self.message else {
            let missing = PREFIX_LEN - self.prefix.len();
            self.prefix.put(self.unread.split_to(missing.min(self.unread.len())));
            return Poll::Ready(if self.prefix.len() == PREFIX_LEN { self.begin_message() } else { Ok(Bytes::new()) });
        };
        let bytes = message.left.min(self.unread.len());
        if let Some(room) = &mut message.room
            && !ready!(room.poll_grow(context, bytes))
        {
            return Poll::Ready(Err(self.no_memory().into()));
        }
        self.clock.received(bytes);
        let bytes = self.unread.split_to(bytes);
        message.left -= bytes.len();
        let is_last = message.left == 0;
        let passed = match (&message.room, &mut message.key) {
            (Some(_), Some(key)) => key.filter(bytes, is_last),
            (Some(_), None) => bytes,
            (None, key) => {
                key.iter_mut().for_each(|key| key.skip(&bytes));
                Bytes::new()
            }
        };
        Poll::Ready(Ok(if is_last { self.end_message(passed) } else { passed }))
    }

    /// Begins the message whose prefix is here. Gives what goes on of it.
    fn begin_message(&mut self) -> Result<Bytes, Status> {
        let prefix = self.prefix.split().freeze();
        let is_compressed = prefix[0] != 0;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let key = match self.sending {
            // What is compressed can't be looked at.
            Sending::Many { key } if !is_compressed => key.map(KeyFinder::new),
            _ => None,
        };
        let memory = &self.admission.memory;
        let room = match self.sending {
            _ if length > memory.max_message() && key.is_some() => None,
            _ if length > memory.max_message() => {
                return Err(AppError::message_too_large(length, memory.max_message()).into());
            }
            Sending::Parts | Sending::Many { .. } => Some(memory.room_that_waits(length)),
            Sending::One => Some(memory.room_at_once(length).ok_or_else(|| self.no_memory())?),
        };
        self.clock.begin_message();
        let passed = if room.is_some() { prefix } else { Bytes::new() };
        self.message = Some(Incoming { length, left: length, room, key });
        Ok(if length == 0 { self.end_message(passed) } else { passed })
    }

    /// Notes down the message that came as a whole, before its last bytes go on.
    fn end_message(&mut self, passed: Bytes) -> Bytes {
        let Some(Incoming { length, room, key, .. }) = self.message.take() else { return passed };
        if room.is_none() {
            let refused = Some(AppError::message_too_large(length, self.admission.memory.max_message()));
            self.arrivals.push(Arrived { room, refused });
            let message = key.map_or_else(Bytes::new, KeyFinder::into_message);
            let mut framed = BytesMut::with_capacity(PREFIX_LEN + message.len());
            framed.put_u8(0);
            framed.put_u32(message.len() as u32);
            framed.put(message);
            return framed.freeze();
        }
        let refused = key.as_ref().and_then(KeyFinder::not_text).map(|key| {
            let message = format!("the key is not UTF-8: \"{}\"", key[..key.len().min(100)].escape_ascii());
            AppError::new(Reason::KeyNotText, message)
        });
        self.arrivals.push(Arrived { room, refused });
        passed
    }

    fn no_memory(&self) -> AppError {
        self.admission.metrics.rejected("message_memory");
        AppError::no_memory(self.admission.memory.capacity())
    }
}

impl Body for MeteredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            while this.unread.is_empty() {
                match ready!(this.poll_receive(context)) {
                    // Whoever decodes has to see that a message was cut off.
                    None if !this.prefix.is_empty() => {
                        return Poll::Ready(Some(Ok(Frame::data(this.prefix.split().freeze()))));
                    }
                    None => return Poll::Ready(None),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => this.unread = data,
                        Err(other) => return Poll::Ready(Some(Ok(other))),
                    },
                }
            }
            let passed = ready!(this.poll_admit(context))?;
            if !passed.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(passed))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.unread.is_empty() && self.prefix.is_empty() && self.body.is_end_stream()
    }
}
