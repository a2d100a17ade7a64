//! The body of an answer, and how a call ends in the midst of it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};

use super::grpc::status;
use super::request::{End, RunningCall};
use crate::app::AppError;

/// How an answer that has begun tells an error.
#[derive(Clone)]
pub(super) enum ErrorForm {
    /// In trailers.
    Grpc,
    /// As the last part of a stream of events.
    Event(fn(&AppError) -> Bytes),
    /// Not at all: it breaks off.
    None,
}

/// How a stream of HTTP ended, which nothing in its bytes tells others. An extension of its response.
#[derive(Debug, Clone, Default)]
pub(super) struct StreamEnd(Arc<OnceLock<Code>>);

impl StreamEnd {
    pub(super) fn failed(&self, error: &AppError) {
        let _ = self.0.set(error.reason.category().into());
    }

    fn code(&self) -> Code {
        self.0.get().copied().unwrap_or(Code::Ok)
    }
}

/// The body of an answer, which ends when the call has to, or when its client takes nothing of it for too long. It is not
/// asked for more then, so somebody else has to look.
pub(super) struct CallBody {
    answer: Arc<Mutex<Answer>>,
    _watch: Option<AbortOnDropHandle<()>>,
}

struct Answer {
    body: Body,
    call: Option<RunningCall>,
    end: Option<End>,
    form: ErrorForm,
    stream_end: StreamEnd,
    /// What is left of a frame.
    rest: Bytes,
    /// Since when there was something to take and the client made no room for more.
    untaken: Option<tokio::time::Instant>,
    /// How the answer ends instead of as it would.
    replaced: Option<AppError>,
}

/// Frames are cut to this, so that a client that takes a large one slowly is seen to take it.
pub(super) const PIECE: usize = 16 << 10;

impl CallBody {
    pub(super) fn new(
        body: Body,
        call: Option<RunningCall>,
        end: Option<End>,
        (form, stream_end): (ErrorForm, StreamEnd),
        idle_timeout: Duration,
    ) -> Self {
        let is_over = call.is_none();
        let answer = Answer { body, call, end, form, stream_end, rest: Bytes::new(), untaken: None, replaced: None };
        let answer = Arc::new(Mutex::new(answer));
        let watch = (!is_over).then(|| give_up_if_untaken(Arc::clone(&answer), idle_timeout));
        Self { answer, _watch: watch.map(|watch| AbortOnDropHandle::new(tokio::spawn(watch))) }
    }
}

async fn give_up_if_untaken(answer: Arc<Mutex<Answer>>, timeout: Duration) {
    loop {
        let since = lock(&answer).untaken;
        let until = since.unwrap_or_else(tokio::time::Instant::now) + timeout;
        if since.is_some() && until <= tokio::time::Instant::now() {
            lock(&answer).replace(AppError::client_idle(timeout));
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

fn lock(answer: &Mutex<Answer>) -> MutexGuard<'_, Answer> {
    answer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answer {
    /// Whoever makes the answer stops: nobody takes it.
    fn replace(&mut self, error: AppError) {
        (self.body, self.rest) = (Body::empty(), Bytes::new());
        self.over(error.reason.category().into());
        self.replaced = Some(error);
    }

    /// The last frame of an answer that ends in an error.
    fn last_frame(&mut self, error: AppError) -> Result<Frame<Bytes>, Status> {
        match &self.form {
            ErrorForm::Grpc => trailers(error.into()),
            ErrorForm::Event(encode) => {
                let event = encode(&error);
                self.over(error.reason.category().into());
                Ok(Frame::data(event))
            }
            ErrorForm::None => Err(error.into()),
        }
    }

    fn over(&mut self, code: Code) {
        if let Some(call) = self.call.take() {
            call.end(code);
        }
        self.end = None;
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.untaken = None;
        let mut frame = if !self.rest.is_empty() {
            Some(Ok(Frame::data(std::mem::take(&mut self.rest))))
        } else if let Some(error) = self.replaced.take() {
            Some(self.last_frame(error))
        } else {
            match http_body::Body::poll_frame(Pin::new(&mut self.body), context) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let Some(end) = &mut self.end else { return Poll::Pending };
                    let error = ready!(end.as_mut().poll(context));
                    self.body = Body::empty();
                    Some(self.last_frame(error))
                }
            }
        };
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    status::blame_caller(trailers);
                    let code =
                        trailers.get("grpc-status").map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()));
                    self.over(code);
                }
                if let Some(data) = frame.data_mut() {
                    if data.len() > PIECE {
                        self.rest = data.split_off(PIECE);
                    }
                    self.untaken = Some(tokio::time::Instant::now());
                }
            }
            Some(Err(status)) => {
                let code = status.code();
                self.over(code);
            }
            None => self.over(self.stream_end.code()),
        }
        Poll::Ready(frame)
    }
}

fn trailers(status: Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    match status.add_header(&mut trailers) {
        Ok(()) => Ok(Frame::trailers(trailers)),
        Err(_) => Err(status),
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        lock(&self.answer).poll_frame(context)
    }

    /// Of a whole answer over HTTP it is known.
    fn size_hint(&self) -> http_body::SizeHint {
        let answer = lock(&self.answer);
        match answer.form {
            ErrorForm::None if answer.rest.is_empty() => answer.body.size_hint(),
            _ => http_body::SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        let answer = lock(&self.answer);
        answer.call.is_none() && answer.rest.is_empty() && answer.replaced.is_none() && answer.body.is_end_stream()
    }
}
