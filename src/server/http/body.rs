//! Bodies of requests: held to the pace of [`Pace`], and read as a whole or bit by bit.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::multipart::Field;
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tonic::codegen::http::header::EXPECT;
use tonic::codegen::http::{Request, Version};

use crate::app::{App, AppError, Chunk, Incoming, Reason, Room};
use crate::pace::{Pace, PaceClock};

/// How long the rest of a body that nobody wants is read. Clients of HTTP/1 often send all of it before they read the answer,
/// and never see that if the connection is closed on them.
const DISCARD_TIME: Duration = Duration::from_secs(10);

/// A body whose client has to go on sending while it is waited for.
pub(in crate::server) struct PacedBody {
    body: tonic::body::Body,
    clock: PaceClock,
    /// Whether the client sends what is not read.
    is_sent_anyway: bool,
    is_http1: bool,
}

impl PacedBody {
    pub(in crate::server) fn new(request: &Request<()>, body: tonic::body::Body, pace: Pace) -> Self {
        // An upload may take as long as it likes, as long as it goes on.
        let pace = Pace { message_timeout: Duration::MAX, ..pace };
        Self {
            body,
            clock: PaceClock::new(pace),
            is_sent_anyway: !request.headers().contains_key(EXPECT),
            is_http1: request.version() < Version::HTTP_2,
        }
    }
}

impl Drop for PacedBody {
    fn drop(&mut self) {
        let is_over = self.body.is_end_stream() || !self.is_sent_anyway || !self.is_http1;
        let Ok(runtime) = Handle::try_current() else { return };
        if !is_over {
            let mut body = std::mem::take(&mut self.body);
            runtime.spawn(async move {
                let rest = async { while let Some(Ok(_)) = body.frame().await {} };
                let _ = tokio::time::timeout(DISCARD_TIME, rest).await;
            });
        }
    }
}

impl http_body::Body for PacedBody {
    type Data = Bytes;
    type Error = AppError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AppError>>> {
        let this = &mut *self;
        // Now it is told to go on.
        this.is_sent_anyway = true;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if let Some(Ok(frame)) = &frame {
                this.clock.received(frame.data_ref().map_or(0, Bytes::len));
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| malformed(&error))));
        }
        let too_slow = ready!(this.clock.poll_too_slow(context));
        Poll::Ready(Some(Err(too_slow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

fn malformed(error: &dyn std::fmt::Display) -> AppError {
    AppError::new(Reason::MalformedRequest, format!("the request can't be read: {error}"))
}

/// Why a body can't be read: our own error, however deep it stands.
pub(super) fn why(error: &(dyn Error + 'static)) -> AppError {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let own = causes.filter_map(|error| error.downcast_ref::<AppError>()).next();
    own.cloned().unwrap_or_else(|| malformed(&error))
}

/// Reads a body of at most `limit` bytes, for which there has to be memory.
pub(in crate::server) async fn collect(app: &App, mut body: Body, limit: usize) -> Result<(Bytes, Room), AppError> {
    let hint = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if hint > limit {
        return Err(AppError::message_too_large(hint, limit));
    }
    let mut room = app.room(hint)?;
    let mut bytes = BytesMut::with_capacity(hint.min(1 << 20));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| why(&error))?.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(AppError::message_too_large(bytes.len() + data.len(), limit));
        }
        app.grow(&mut room, data.len())?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), room))
}

/// A body as an upload.
pub(super) struct BodyChunks(pub(super) Body);

impl Incoming for BodyChunks {
    type Item = Chunk;
    type Error = AppError;

    async fn next(&mut self) -> Result<Option<Chunk>, AppError> {
        let Some(frame) = self.0.frame().await else { return Ok(None) };
        let bytes = frame.map_err(|error| why(&error))?.into_data().unwrap_or_default();
        Ok(Some(Chunk { bytes, room: None }))
    }
}

/// A file of a form as an upload.
pub(super) struct FieldChunks<'a>(pub(super) Field<'a>);

impl Incoming for FieldChunks<'_> {
    type Item = Chunk;
    type Error = AppError;

    async fn next(&mut self) -> Result<Option<Chunk>, AppError> {
        let chunk = self.0.chunk().await.map_err(|error| why(&error))?;
        Ok(chunk.map(|bytes| Chunk { bytes, room: None }))
    }
}
