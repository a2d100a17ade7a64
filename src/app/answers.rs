//! Streams of requests and of answers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::AppError;

/// Answers that wait for the client to take them.
const ANSWERS_AHEAD: usize = 16;

/// What a client sends bit by bit. The errors are the transport's own, and go back through it as they are.
pub(crate) trait Incoming: Send {
    type Item: Send;
    type Error: From<AppError> + Send;

    /// The next one; `None` at the end. May be dropped and called again.
    fn next(&mut self) -> impl Future<Output = Result<Option<Self::Item>, Self::Error>> + Send;
}

/// The answers of a call, made by a task of its own. Dropping them ends the task.
#[derive(Debug)]
pub(crate) struct Answers<T, E> {
    answers: mpsc::Receiver<Result<T, E>>,
    _task: AbortOnDropHandle<()>,
}

impl<T: Send + 'static, E: Send + 'static> Answers<T, E> {
    /// Runs `work`, which sends answers; an error of it is the last.
    pub(crate) fn of<F>(work: impl FnOnce(mpsc::Sender<Result<T, E>>) -> F) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        let (sender, answers) = mpsc::channel(ANSWERS_AHEAD);
        let work = work(sender.clone());
        let task = async move {
            if let Err(error) = work.await {
                let _ = sender.send(Err(error)).await;
            }
        };
        let task = tokio::spawn(task.in_current_span());
        Self { answers, _task: AbortOnDropHandle::new(task) }
    }
}

impl<T, E> Stream for Answers<T, E> {
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_recv(context)
    }
}

/// Says whether anybody is there to take the answer; an error if it is not taken within `idle_timeout`.
pub(crate) async fn send<T, E>(
    answers: &mpsc::Sender<Result<T, E>>,
    answer: T,
    idle_timeout: Duration,
) -> Result<bool, AppError> {
    let sent = timeout(idle_timeout, answers.send(Ok(answer))).await;
    sent.map(|sent| sent.is_ok()).map_err(|_| AppError::client_idle(idle_timeout))
}
