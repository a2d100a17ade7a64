//! How fast who sends something has to be while it is waited for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// What is expected of a sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long nothing may come at all.
    pub idle_timeout: Duration,
    /// Bytes a second that have to come, in each [`Pace::idle_timeout`] on average; 0 asks for no more than any.
    pub min_rate: u64,
    /// How long one message may take.
    pub message_timeout: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle_timeout: Duration::from_secs(30), min_rate: 1 << 10, message_timeout: Duration::from_secs(600) }
    }
}

impl Pace {
    fn min_bytes(&self) -> u64 {
        (self.min_rate as f64 * self.idle_timeout.as_secs_f64()) as u64
    }
}

/// How a sender was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooSlow {
    /// Nothing came.
    #[error("nothing came for {limit:?}")]
    Silent { limit: Duration },
    /// Too little came.
    #[error("{bytes} bytes came in {within:?}; at least {min_bytes} have to")]
    Slow { bytes: u64, within: Duration, min_bytes: u64 },
    /// A message took too long.
    #[error("a message was not complete after {limit:?}")]
    Long { limit: Duration },
}

/// Holds a sender to its pace. Only times in which it is waited for count.
#[derive(Debug)]
pub(crate) struct PaceClock {
    pace: Pace,
    /// Since when it is waited for, and what wakes the one who waits.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Waited since the last byte.
    silence: Duration,
    /// Waited since the message began.
    message: Duration,
    /// Waited in the time over which the rate is taken, and what came in it.
    window: Duration,
    window_bytes: u64,
}

impl PaceClock {
    pub(crate) fn new(pace: Pace) -> Self {
        let zero = Duration::ZERO;
        Self { pace, waiting: None, silence: zero, message: zero, window: zero, window_bytes: 0 }
    }

    /// Bytes came. What is none of a message's bytes is no sign of life: 0.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.stop_waiting();
        if bytes > 0 {
            self.silence = Duration::ZERO;
            self.window_bytes += bytes as u64;
        }
    }

    /// A message begins.
    pub(crate) fn begin_message(&mut self) {
        self.message = Duration::ZERO;
    }

    /// Nothing is expected of the sender now.
    pub(crate) fn rest(&mut self) {
        *self = Self::new(self.pace);
    }

    /// Nothing is there yet; ready when that has lasted too long.
    pub(crate) fn poll_too_slow(&mut self, context: &mut Context<'_>) -> Poll<TooSlow> {
        loop {
            let left = self.left();
            let (_, sleep) = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
            ready!(sleep.as_mut().poll(context));
            self.stop_waiting();
            if let Some(too_slow) = self.too_slow() {
                return Poll::Ready(too_slow);
            }
        }
    }

    /// How long a wait may take until something has to be looked at.
    fn left(&self) -> Duration {
        let Pace { idle_timeout, message_timeout, .. } = self.pace;
        let silence = idle_timeout.saturating_sub(self.silence);
        silence.min(idle_timeout.saturating_sub(self.window)).min(message_timeout.saturating_sub(self.message))
    }

    fn stop_waiting(&mut self) {
        if let Some((since, _)) = self.waiting.take() {
            let waited = since.elapsed();
            for sum in [&mut self.silence, &mut self.message, &mut self.window] {
                *sum += waited;
            }
        }
    }

    fn too_slow(&mut self) -> Option<TooSlow> {
        let Pace { idle_timeout, message_timeout, .. } = self.pace;
        if self.silence >= idle_timeout {
            return Some(TooSlow::Silent { limit: idle_timeout });
        }
        if self.message >= message_timeout {
            return Some(TooSlow::Long { limit: message_timeout });
        }
        if self.window >= idle_timeout {
            let (bytes, min_bytes) = (self.window_bytes, self.pace.min_bytes());
            if bytes < min_bytes {
                return Some(TooSlow::Slow { bytes, within: idle_timeout, min_bytes });
            }
            (self.window, self.window_bytes) = (Duration::ZERO, 0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const PACE: Pace =
        Pace { idle_timeout: Duration::from_secs(1), min_rate: 1000, message_timeout: Duration::from_secs(3) };

    /// Sends `bytes` every 50 ms; tells after how long that was too slow, and how.
    async fn drip(bytes: usize) -> (Duration, TooSlow) {
        let mut clock = PaceClock::new(PACE);
        let begun = Instant::now();
        loop {
            let too_slow = poll_fn(|context| clock.poll_too_slow(context));
            match tokio::time::timeout(Duration::from_millis(50), too_slow).await {
                Ok(too_slow) => return (begun.elapsed(), too_slow),
                Err(_) => clock.received(bytes),
            }
        }
    }

    #[tokio::test]
    async fn silence_trickles_and_endless_messages_end() {
        let (silence, trickle, endless) = tokio::join!(drip(0), drip(1), drip(2000));
        let (after, how) = silence;
        assert!(after >= PACE.idle_timeout && matches!(how, TooSlow::Silent { .. }), "{after:?} {how:?}");
        let (after, how) = trickle;
        assert!(
            after >= PACE.idle_timeout && matches!(how, TooSlow::Slow { min_bytes: 1000, .. }),
            "{after:?} {how:?}"
        );
        let (after, how) = endless;
        assert!(after >= PACE.message_timeout && matches!(how, TooSlow::Long { .. }), "{after:?} {how:?}");
    }

    #[tokio::test]
    async fn silence_counts_from_the_last_byte_and_only_while_somebody_waits() {
        let mut clock = PaceClock::new(PACE);
        let waited = tokio::time::timeout(PACE.idle_timeout / 2, poll_fn(|context| clock.poll_too_slow(context))).await;
        assert!(waited.is_err());
        clock.received(1_000_000);
        tokio::time::sleep(2 * PACE.idle_timeout).await;
        let begun = Instant::now();
        let how = poll_fn(|context| clock.poll_too_slow(context)).await;
        assert!(begun.elapsed() >= PACE.idle_timeout, "{:?}", begun.elapsed());
        assert!(matches!(how, TooSlow::Silent { .. }), "{how:?}");
    }
}
