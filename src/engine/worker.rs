//! The thread that owns a device: takes what waits, runs it as one batch, answers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::mpsc;
use tracing::{debug, error};

use super::{EngineError, Executor, Job};

/// Runs until all senders of `jobs` are gone and the queue is empty.
///
/// A batch closes as soon as the device is idle: it holds what waits at that moment, up to `max_batch` clips.
pub(super) fn run(mut jobs: mpsc::Receiver<Job>, mut executor: Box<dyn Executor>, max_batch: usize) {
    let mut batch = Vec::with_capacity(max_batch);
    while let Some(job) = jobs.blocking_recv() {
        batch.push(job);
        while batch.len() < max_batch
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        // Nobody waits for the clips of a request that was cancelled.
        batch.retain(|job| !job.reply.is_closed());
        if !batch.is_empty() {
            run_batch(&mut batch, executor.as_mut());
        }
    }
}

fn run_batch(batch: &mut Vec<Job>, executor: &mut dyn Executor) {
    let clips: Vec<&[u8]> = batch.iter().map(|job| job.rgb.as_slice()).collect();
    // A panic in the numeric code fails this batch and not the server.
    let outcome = catch_unwind(AssertUnwindSafe(|| executor.logits(&clips)))
        .map_err(|panic| panic_message(panic.as_ref()).to_owned())
        .and_then(|result| result.map_err(|error| error.to_string()));
    debug!(clips = batch.len(), "batch done");
    match outcome {
        Ok(logits) => {
            let classes = logits.len() / batch.len();
            for (job, logits) in batch.drain(..).zip(logits.chunks_exact(classes)) {
                let _ = job.reply.send(Ok(logits.to_vec()));
            }
        }
        Err(message) => {
            error!(clips = batch.len(), %message, "batch failed");
            for job in batch.drain(..) {
                let _ = job.reply.send(Err(EngineError::Execution(message.clone())));
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("the worker panicked")
}

#[cfg(test)]
mod tests {
    use super::super::{Engine, EngineConfig, ExecutorError};
    use super::*;
    use crate::model::builtin;

    /// Answers each clip with its first pixel; panics at 13.
    struct FirstPixel;

    impl Executor for FirstPixel {
        fn logits(&mut self, clips: &[&[u8]]) -> Result<Vec<f32>, ExecutorError> {
            assert!(clips.iter().all(|clip| clip[0] != 13), "unlucky clip");
            Ok(clips.iter().map(|clip| f32::from(clip[0])).collect())
        }
    }

    fn engine(max_batch: usize) -> Engine {
        let config = EngineConfig { threads: 1, max_batch, queue_clips: 4 };
        Engine::with_executor(builtin::spec(), config, Box::new(FirstPixel))
    }

    fn clip(first: u8) -> Vec<u8> {
        let mut rgb = vec![0; builtin::spec().clip.rgb_len()];
        rgb[0] = first;
        rgb
    }

    #[tokio::test]
    async fn every_clip_gets_its_own_answer() {
        let engine = engine(3);
        let mut pending = Vec::new();
        for first in 0..10 {
            pending.push(engine.submit(clip(first)).await.unwrap());
        }
        for (first, logits) in pending.into_iter().enumerate() {
            assert_eq!(logits.wait().await.unwrap(), [first as f32]);
        }
    }

    #[tokio::test]
    async fn a_panic_fails_its_batch_and_the_next_one_runs() {
        let engine = engine(1);
        let unlucky = engine.submit(clip(13)).await.unwrap();
        let lucky = engine.submit(clip(7)).await.unwrap();
        let error = unlucky.wait().await.unwrap_err();
        assert!(matches!(&error, EngineError::Execution(message) if message.contains("unlucky")), "{error}");
        assert_eq!(lucky.wait().await.unwrap(), [7.0]);
    }

    #[tokio::test]
    async fn a_clip_of_another_size_is_refused() {
        let error = engine(1).submit(vec![0; 5]).await.unwrap_err();
        assert!(matches!(error, EngineError::ClipSize { actual: 5, .. }));
    }
}
