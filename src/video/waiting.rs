//! Waits of a decoder's thread for bytes that are not there yet.

use std::io;
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// What else happens while a reader waits for bytes that have not arrived.
pub(super) trait WhileWaiting: Send + Sync {
    /// The wait begins.
    fn begin(&self) {}

    /// Asked every [`CANCELLATION_PERIOD`]; an error ends the wait.
    fn check(&self) -> io::Result<()>;

    /// The wait is over; the reader goes on when this returns.
    fn end(&self) {}
}

/// How soon a waiting reader notices its cancellation.
const CANCELLATION_PERIOD: Duration = Duration::from_millis(20);

/// How a reader waits: until it is cancelled, and with the others that take part.
#[derive(Clone)]
pub(super) struct Waiting {
    cancel: CancellationToken,
    others: Vec<Arc<dyn WhileWaiting>>,
    /// What is waited for, in words.
    what: &'static str,
}

impl Waiting {
    pub(super) fn new(cancel: CancellationToken, what: &'static str) -> Self {
        Self { cancel, others: Vec::new(), what }
    }

    /// Lets `other` take part.
    pub(super) fn push(&mut self, other: Arc<dyn WhileWaiting>) {
        self.others.push(other);
    }

    /// Waits until `settled` says so of the state that `lock` locks. Changes of it have to notify `changed`.
    pub(super) fn until<'a, T>(
        &self,
        lock: impl Fn() -> MutexGuard<'a, T>,
        changed: &Condvar,
        settled: impl Fn(&T) -> Option<io::Result<()>>,
    ) -> io::Result<MutexGuard<'a, T>> {
        let settled = |state: &T| {
            if self.cancel.is_cancelled() {
                return Some(Err(io::Error::other(format!("cancelled while waiting for {}", self.what))));
            }
            settled(state)
        };
        let state = lock();
        if let Some(result) = settled(&state) {
            return result.map(|()| state);
        }
        self.others.iter().for_each(|other| other.begin());
        let result = self.sleep_until(state, changed, settled);
        // These may wait in turn, which whoever brings the bytes must not have to.
        self.others.iter().for_each(|other| other.end());
        result.map(|()| lock())
    }

    fn sleep_until<T>(
        &self,
        mut state: MutexGuard<'_, T>,
        changed: &Condvar,
        settled: impl Fn(&T) -> Option<io::Result<()>>,
    ) -> io::Result<()> {
        loop {
            let waited = changed.wait_timeout(state, CANCELLATION_PERIOD);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            if let Some(result) = settled(&state) {
                return result;
            }
            self.others.iter().try_for_each(|other| other.check())?;
        }
    }
}
