//! Events of an upload for another request: browsers show no answer before they have sent the whole body.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::Stream;

use crate::app::{Answers, App, AppError, Reason, UploadEvent, send};

/// Events that wait for a slow listener. One that is slower is given up.
const EVENTS_AHEAD: usize = 1024;

type Event = Result<UploadEvent, AppError>;

/// A token's name, and a key of its bearer's own.
type Key = (Option<Arc<str>>, String);

/// Who waits for the events of which upload. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers(Arc<Mutex<Waits>>);

#[derive(Debug, Default)]
struct Waits {
    next: u64,
    all: HashMap<Key, (u64, mpsc::Sender<Event>)>,
}

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, Waits> {
        // Nothing that can panic runs while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events of the upload that will have this key.
    pub(super) fn listen(
        &self,
        app: &App,
        permit: OwnedSemaphorePermit,
        key: Key,
    ) -> Result<Answers<UploadEvent, AppError>, AppError> {
        let (sender, received) = mpsc::channel(EVENTS_AHEAD);
        let mut waits = self.lock();
        let id = waits.next;
        waits.next += 1;
        match waits.all.entry(key.clone()) {
            Entry::Occupied(_) => {
                return Err(AppError::new(Reason::KeyInUse, "another request listens to the events of this key"));
            }
            Entry::Vacant(entry) => entry.insert((id, sender)),
        };
        drop(waits);
        let waiting = Waiting { watchers: self.clone(), key, id };
        let idle_timeout = app.options.pace.idle_timeout;
        Ok(Answers::of(|answers| forward(permit, waiting, received, answers, idle_timeout)))
    }

    /// Who listens to the events of an upload that begins, if anybody.
    pub(super) fn take(&self, key: &Key) -> Option<Listener> {
        self.lock().all.remove(key).map(|(_, events)| Listener { events: Some(events) })
    }
}

/// An entry that is removed if no upload comes for it.
struct Waiting {
    watchers: Watchers,
    key: Key,
    id: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waits = self.watchers.lock();
        // An upload may have taken it, and another request its place.
        if waits.all.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            waits.all.remove(&self.key);
        }
    }
}

async fn forward(
    _permit: OwnedSemaphorePermit,
    _waiting: Waiting,
    mut received: mpsc::Receiver<Event>,
    answers: mpsc::Sender<Event>,
    idle_timeout: Duration,
) -> Result<(), AppError> {
    let first = tokio::time::timeout(idle_timeout, received.recv()).await;
    let mut next = first.map_err(|_| AppError::client_idle(idle_timeout))?;
    loop {
        let event = next.ok_or_else(|| AppError::new(Reason::Cancelled, "the upload ended early"))??;
        let is_last = matches!(event, UploadEvent::Classification(_));
        if !send(&answers, event, idle_timeout).await? || is_last {
            return Ok(());
        }
        next = received.recv().await;
    }
}

/// Who listens to an upload.
#[derive(Debug)]
pub(super) struct Listener {
    events: Option<mpsc::Sender<Event>>,
}

/// Events that somebody else listens to as well.
pub(super) struct Overheard<S> {
    events: S,
    listener: Option<Listener>,
}

impl<S> Overheard<S> {
    pub(super) fn new(events: S, listener: Option<Listener>) -> Self {
        Self { events, listener }
    }
}

impl<S: Stream<Item = Event> + Unpin> Stream for Overheard<S> {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let next = Pin::new(&mut self.events).poll_next(context);
        if let (Poll::Ready(Some(event)), Some(listener)) = (&next, &mut self.listener)
            && let Some(events) = &listener.events
            && events.try_send(event.clone()).is_err()
        {
            // It has gone, or takes nothing.
            listener.events = None;
        }
        next
    }
}
