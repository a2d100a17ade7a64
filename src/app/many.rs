//! Calls that bring many messages over one stream, each with an answer of its own.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{App, AppError, Incoming, Room, send};

/// A message of a stream.
#[derive(Debug)]
pub(crate) struct Item<M> {
    pub(crate) message: M,
    /// Its memory, which is held until its answer is on its way.
    pub(crate) room: Option<Room>,
    /// Why it can't be taken.
    pub(crate) refused: Option<AppError>,
}

impl App {
    /// Answers each message of a call with what `answer` makes of it, or of the refusal of it, in the order in which that
    /// ends. When the server stops, it reads no more of them, answers those that it has, and ends with UNAVAILABLE.
    pub(crate) async fn answer_each<I, M, A, F>(
        &self,
        _permit: OwnedSemaphorePermit,
        mut messages: I,
        answers: mpsc::Sender<Result<A, I::Error>>,
        answer: impl Fn(Self, M, Option<AppError>) -> F,
    ) -> Result<(), I::Error>
    where
        I: Incoming<Item = Item<M>>,
        I::Error: 'static,
        A: Send + 'static,
        F: Future<Output = A> + Send + 'static,
    {
        let idle_timeout = self.options.pace.idle_timeout;
        let mut draining = self.draining.clone();
        // A message keeps its share until its answer is on its way, so a client that takes no answers is read no further.
        let shares = Arc::new(Semaphore::new(self.options.videos_per_stream.max(1)));
        // Ends the work when the call ends.
        let mut work = JoinSet::new();
        let stops = loop {
            let next = async {
                let share = Arc::clone(&shares).acquire_owned().await.expect("never closed");
                Ok::<_, I::Error>((share, messages.next().await?))
            };
            let (share, item) = tokio::select! {
                next = next => next?,
                Some(ended) = work.join_next() => {
                    flatten(ended)?;
                    continue;
                }
                _ = draining.wait_for(|draining| *draining) => break true,
            };
            let Some(Item { message, room, refused }) = item else { break false };
            let answer = answer(self.clone(), message, refused);
            let (app, answers) = (self.clone(), answers.clone());
            let one = async move {
                let answer = {
                    let _permits = app.batch_permit().await;
                    answer.await
                };
                drop(room);
                let sent = send(&answers, answer, idle_timeout).await;
                drop(share);
                // If nobody is there to take the answer, the call ends anyway.
                sent.map(drop)
            };
            work.spawn(one.in_current_span());
        };
        while let Some(ended) = work.join_next().await {
            flatten(ended)?;
        }
        match stops {
            true => Err(AppError::stopping("the server is stopping: send what has no answer to another one").into()),
            false => Ok(()),
        }
    }
}

fn flatten(ended: Result<Result<(), AppError>, tokio::task::JoinError>) -> Result<(), AppError> {
    ended.map_err(|error| AppError::internal(&error))?
}
