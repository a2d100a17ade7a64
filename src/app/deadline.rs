//! When a call has to be answered.

use std::time::{Duration, Instant};

use super::AppError;

/// What an answer takes from the last clip to the client: an answer that may be partial is made this much earlier.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// When a call has to be answered.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// `timeout` after `begun`.
    pub fn new(begun: Instant, timeout: Duration) -> Self {
        // A time that no clock reaches is as good as none.
        let at = begun.checked_add(timeout).unwrap_or_else(|| begun + Duration::from_secs(u32::MAX.into()));
        Self { at, timeout }
    }

    /// What is left of it.
    pub(super) fn rest(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// When to answer with what is known by then.
    pub(super) fn answer_by(&self) -> Instant {
        self.at.checked_sub(ANSWER_TIME).unwrap_or_else(Instant::now)
    }

    /// Resolves a little before the deadline, so that the answer is there in time. Otherwise clients would end the call by
    /// themselves and never learn why.
    pub(crate) async fn passed(self) -> AppError {
        let answer_time = (self.timeout / 20).clamp(Duration::from_millis(3), Duration::from_millis(50));
        let at = self.at.checked_sub(answer_time).unwrap_or_else(Instant::now);
        tokio::time::sleep_until(at.into()).await;
        AppError::deadline_exceeded(self.timeout)
    }
}
