//! The calls that are open: how many there may be, and which of them a stopping server waits for.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connections::{ConnectionHandle, OpenCall};
use crate::app::AppError;

/// The calls that are open, on all connections. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    max: usize,
    all: Arc<Semaphore>,
    /// Those of them that are about the server itself. Who asks for its health needs no token, so they leave most to others.
    about_server: Arc<Semaphore>,
    /// The others, which a stopping server waits for: their connections stay.
    requests: TaskTracker,
    /// Cancelled when the server stops, and all who watch it were told.
    stopping: CancellationToken,
}

impl Calls {
    pub(super) fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            max,
            all: Arc::new(Semaphore::new(max)),
            about_server: Arc::new(Semaphore::new((max / 4).max(1))),
            requests: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Ends the calls that are about the server itself.
    pub(super) fn end_those_about_server(&self) {
        self.stopping.cancel();
    }

    /// Cancelled when calls about the server have to end.
    pub(super) fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Requests that are being worked on.
    pub(super) fn requests(&self) -> usize {
        self.requests.len()
    }

    /// A call that begins, or a refusal.
    pub(super) fn admit(
        &self,
        is_about_server: bool,
        connection: Option<&ConnectionHandle>,
    ) -> Result<Admitted, AppError> {
        let acquire = |permits: &Arc<Semaphore>| {
            Arc::clone(permits).try_acquire_owned().map_err(|_| AppError::too_many_calls(self.max))
        };
        let about_server = if is_about_server { Some(acquire(&self.about_server)?) } else { None };
        let permit = acquire(&self.all)?;
        Ok(Admitted {
            _permits: (permit, about_server),
            // A connection that is only watched over gives way to one with requests, and holds up no stop.
            _connection: connection.filter(|_| !is_about_server).map(ConnectionHandle::begin_call),
            _request: (!is_about_server).then(|| self.requests.token()),
        })
    }
}

/// What a call holds while it is open.
#[derive(Debug)]
pub(super) struct Admitted {
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    _connection: Option<OpenCall>,
    _request: Option<TaskTrackerToken>,
}
