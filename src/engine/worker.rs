//! The threads of an engine: a worker owns a device, takes what waits, runs it as one batch and answers; the watchdog
//! replaces workers that are stuck.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tracing::{debug, error, info, warn};

use super::{ClipInput, ClipOutput, EngineError, Executor, ExecutorError, Job, Outputs, Shared, WorkerState};
use crate::model::spec::ModelSpec;

/// First pause before a worker whose executor can't be built tries again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Runs the largest batch once, so that no request pays for what is only made on first use.
pub(super) fn warm_up(executor: &mut dyn Executor, spec: &ModelSpec, max_batch: usize) -> Result<(), ExecutorError> {
    let clip = vec![0; spec.clip.rgb_len()];
    executor.run(&vec![clip.as_slice(); max_batch]).map(|_| ())
}

/// Starts a worker. Without an executor it builds one first.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    spec: &Arc<ModelSpec>,
    index: usize,
    generation: u64,
    executor: Option<Box<dyn Executor>>,
) -> JoinHandle<()> {
    let thread = Thread { shared: Arc::clone(shared), spec: Arc::clone(spec), index, generation };
    std::thread::Builder::new()
        .name(format!("model-{}-{index}", spec.name))
        .spawn(move || thread.run(executor))
        .expect("the system can start a thread")
}

/// What a worker's thread knows of itself.
struct Thread {
    shared: Arc<Shared>,
    spec: Arc<ModelSpec>,
    index: usize,
    generation: u64,
}

impl Thread {
    fn run(&self, mut executor: Option<Box<dyn Executor>>) {
        loop {
            let Some(device) = executor.take().or_else(|| self.build()) else { return };
            executor = Some(device);
            let device = executor.as_mut().expect("just put there");
            let Some(clips) = self.next_batch() else { return };
            // A panic in the numeric code fails this batch and not the server.
            let outcome = catch_unwind(AssertUnwindSafe(|| run_batch(device.as_mut(), &clips)))
                .map_err(|panic| panic_message(panic.as_ref()).to_owned())
                .and_then(|result| result.map_err(|error| error.to_string()));
            if outcome.is_err() {
                // Nobody knows what state it is in.
                executor = None;
            }
            if !self.finish(outcome) {
                return;
            }
        }
    }

    /// An executor, however long it takes; `None` if this thread is no longer wanted.
    fn build(&self) -> Option<Box<dyn Executor>> {
        let mut pause = FIRST_PAUSE;
        loop {
            let built = catch_unwind(AssertUnwindSafe(|| {
                let mut executor = (self.shared.build)()?;
                warm_up(executor.as_mut(), &self.spec, self.shared.config.max_batch)?;
                Ok::<_, ExecutorError>(executor)
            }))
            .map_err(|panic| panic_message(panic.as_ref()).to_owned())
            .and_then(|result| result.map_err(|error| error.to_string()));
            let mut state = self.shared.lock();
            if state.stopping || state.workers[self.index].generation != self.generation {
                return None;
            }
            match built {
                Ok(executor) => {
                    state.workers[self.index].state = WorkerState::Idle;
                    info!(model = %self.shared.name, worker = self.index, "worker ready");
                    return Some(executor);
                }
                Err(error) => {
                    state.workers[self.index].state = WorkerState::Failed;
                    // Whoever waits can try elsewhere; clips that come from now on are refused.
                    let hopeless = if state.has_no_worker() { state.batcher.drain() } else { Vec::new() };
                    for job in hopeless {
                        let _ = job.reply.send(Err(EngineError::NoWorker));
                    }
                    error!(model = %self.shared.name, worker = self.index, %error, retry_in = ?pause, "worker can't start");
                    let wait = self.shared.stopping.wait_timeout_while(state, pause, |state| !state.stopping);
                    if wait.is_ok_and(|(state, _)| state.stopping) {
                        return None;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Waits for a batch and makes it this worker's; `None` if the engine stops or the worker was replaced.
    fn next_batch(&self) -> Option<Vec<ClipInput>> {
        let mut guard = self.shared.lock();
        loop {
            let now = Instant::now();
            let state = &mut *guard;
            let worker = &mut state.workers[self.index];
            if worker.generation != self.generation {
                return None;
            }
            if let Some(mut batch) = state.batcher.take(now) {
                // Nobody waits for the clips of a request that was cancelled.
                batch.retain(|job| !job.reply.is_closed());
                if batch.is_empty() {
                    continue;
                }
                for job in &mut batch {
                    job.place = None;
                    state.statistics.queued += now - job.queued;
                    self.shared.metrics.batch_wait.observe((now - job.queued).as_secs_f64());
                }
                let clips = batch.iter().map(|job| job.input.clone()).collect();
                (worker.state, worker.since, worker.ran) = (WorkerState::Busy, now, Duration::ZERO);
                worker.batch = batch;
                return Some(clips);
            }
            if state.stopping {
                return None;
            }
            worker.state = WorkerState::Idle;
            guard = match state.batcher.ready_at(now) {
                Some(at) => {
                    let waited = self.shared.changed.wait_timeout(guard, at - now);
                    waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
                }
                None => self.shared.changed.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner()),
            };
        }
    }

    /// Answers the batch that this worker ran, unless it was taken away. Says whether the worker goes on.
    fn finish(&self, outcome: Result<Vec<ClipOutput>, String>) -> bool {
        let mut guard = self.shared.lock();
        let worker = &mut guard.workers[self.index];
        if worker.generation != self.generation {
            return false;
        }
        let batch = std::mem::take(&mut worker.batch);
        let elapsed = worker.since.elapsed();
        match outcome {
            Ok(outputs) => {
                worker.state = WorkerState::Idle;
                let statistics = &mut guard.statistics;
                statistics.clips += batch.len() as u64;
                statistics.batches += 1;
                statistics.computed += elapsed * batch.len() as u32;
                statistics.last = Some(SystemTime::now());
                drop(guard);
                self.answer(batch, outputs, elapsed);
            }
            Err(error) => {
                worker.state = WorkerState::Starting;
                fail(&self.shared, &mut guard.batcher, batch, &error);
                drop(guard);
                self.shared.changed.notify_all();
            }
        }
        true
    }

    fn answer(&self, batch: Vec<Job>, outputs: Vec<ClipOutput>, elapsed: Duration) {
        let metrics = &self.shared.metrics;
        metrics.batch_clips.observe(batch.len() as f64);
        metrics.compute.observe(elapsed.as_secs_f64());
        metrics.compute_seconds.inc_by(elapsed.as_secs_f64());
        metrics.clips.inc_by(batch.len() as u64);
        debug!(model = %self.shared.name, clips = batch.len(), ?elapsed, "batch done");
        for (job, output) in batch.into_iter().zip(outputs) {
            let _ = job.reply.send(Ok(output));
        }
    }
}

/// Runs the clips of one form together, then those of the other.
fn run_batch(executor: &mut dyn Executor, clips: &[ClipInput]) -> Result<Vec<ClipOutput>, ExecutorError> {
    let (mut rgb, mut normalised) = (Vec::new(), Vec::new());
    for clip in clips {
        match clip {
            ClipInput::Rgb(clip) => rgb.push(clip.as_ref()),
            ClipInput::Normalised(clip) => normalised.push(clip.as_ref()),
        }
    }
    let (rgb_clips, normalised_clips) = (rgb.len(), normalised.len());
    let of_rgb = if rgb.is_empty() { Outputs::default() } else { executor.run(&rgb)? };
    let of_normalised =
        if normalised.is_empty() { Outputs::default() } else { executor.run_normalised(&normalised)? };
    let (mut of_rgb, mut of_normalised) = (of_rgb.rows(rgb_clips), of_normalised.rows(normalised_clips));
    let rows = clips.iter().map(|clip| match clip {
        ClipInput::Rgb(_) => of_rgb.next(),
        ClipInput::Normalised(_) => of_normalised.next(),
    });
    Ok(rows.map(|row| row.expect("a row for each clip")).collect())
}

/// Queues the clips of a failed batch once more, and fails those that failed before.
fn fail(shared: &Shared, batcher: &mut super::Batcher<Job>, batch: Vec<Job>, error: &str) {
    shared.metrics.failed_batches.inc();
    shared.metrics.worker_restarts.inc();
    error!(model = %shared.name, clips = batch.len(), error, "batch failed, its worker starts anew");
    for mut job in batch {
        if job.failed_before {
            let _ = job.reply.send(Err(EngineError::Execution(error.to_owned())));
        } else {
            job.failed_before = true;
            batcher.push_retry(job);
        }
    }
}

/// Starts the thread that replaces workers whose batch takes too long. It ends with the engine.
pub(super) fn spawn_watchdog(shared: &Arc<Shared>, spec: &Arc<ModelSpec>) -> JoinHandle<()> {
    let (shared, spec) = (Arc::clone(shared), Arc::clone(spec));
    std::thread::Builder::new()
        .name(format!("watchdog-{}", spec.name))
        .spawn(move || watch(&shared, &spec))
        .expect("the system can start a thread")
}

fn watch(shared: &Arc<Shared>, spec: &Arc<ModelSpec>) {
    let stuck_after = shared.config.stuck_after;
    let period = (stuck_after / 4).clamp(Duration::from_millis(5), Duration::from_secs(5));
    let mut guard = shared.lock();
    while !guard.stopping {
        let before = Instant::now();
        let waited = shared.stopping.wait_timeout_while(guard, period, |state| !state.stopping);
        guard = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        let state = &mut *guard;
        let passed = time_passed(before.elapsed(), period);
        let mut any = false;
        for (index, worker) in state.workers.iter_mut().enumerate() {
            if worker.state != WorkerState::Busy {
                continue;
            }
            worker.ran += passed.min(worker.since.elapsed());
            if worker.ran < stuck_after {
                continue;
            }
            any = true;
            warn!(model = %shared.name, worker = index, limit = ?stuck_after, "worker is stuck, another takes its place");
            worker.generation += 1;
            worker.state = WorkerState::Starting;
            let batch = std::mem::take(&mut worker.batch);
            fail(shared, &mut state.batcher, batch, &format!("a batch took longer than {stuck_after:?}"));
            // The stuck thread ends by itself if it ever comes back; nobody can end it.
            drop(spawn(shared, spec, index, worker.generation, None));
        }
        if any {
            // Workers that are idle take its clips.
            shared.changed.notify_all();
        }
    }
}

/// What a wait of `period` that took `elapsed` adds to the running time of a batch. A process that is stopped for a while
/// (paused, frozen, under a debugger) wakes late, and in that time no batch ran.
fn time_passed(elapsed: Duration, period: Duration) -> Duration {
    elapsed.min(2 * period)
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
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::{self, Receiver};

    use super::super::batcher::Priority;
    use super::super::{Engine, EngineConfig, PendingClip, VideoQueue};
    use super::*;
    use crate::metrics::Metrics;
    use crate::model::builtin;

    /// Answers each clip with its first pixel. Panics at 13, and at 14 the first time only; sleeps at 15.
    struct FirstPixel {
        fourteens: Arc<AtomicUsize>,
    }

    impl Executor for FirstPixel {
        fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
            assert!(clips.iter().all(|clip| clip[0] != 13), "unlucky clip");
            if clips.iter().any(|clip| clip[0] == 14) && self.fourteens.fetch_add(1, Ordering::Relaxed) == 0 {
                panic!("a passing weakness");
            }
            if clips.iter().any(|clip| clip[0] == 15) {
                std::thread::sleep(Duration::from_millis(400));
            }
            Ok(Outputs { logits: clips.iter().map(|clip| f32::from(clip[0])).collect(), embeddings: Vec::new() })
        }

        fn run_normalised(&mut self, clips: &[&[f32]]) -> Result<Outputs, ExecutorError> {
            Ok(Outputs { logits: clips.iter().map(|clip| -clip[0]).collect(), embeddings: Vec::new() })
        }
    }

    fn engine(config: EngineConfig) -> Engine {
        let fourteens = Arc::new(AtomicUsize::new(0));
        let build = move || -> Result<Box<dyn Executor>, ExecutorError> {
            Ok(Box::new(FirstPixel { fourteens: Arc::clone(&fourteens) }))
        };
        Engine::with_workers(builtin::spec(), config, 1, Box::new(build), &Metrics::default()).unwrap()
    }

    async fn submit(video: &VideoQueue, first: u8) -> PendingClip {
        let mut rgb = vec![0; builtin::spec().clip.rgb_len()];
        rgb[0] = first;
        video.submit(ClipInput::Rgb(rgb.into())).await.unwrap()
    }

    #[tokio::test]
    async fn every_clip_gets_its_own_answer() {
        let engine = engine(EngineConfig { queue_clips: 2, ..EngineConfig::new(1, 8) });
        let video = engine.video(Priority::Normal);
        let mut pending = Vec::new();
        for first in 0..12 {
            pending.push(submit(&video, first).await);
        }
        for (first, clip) in pending.into_iter().enumerate() {
            assert_eq!(clip.await.unwrap().logits, [first as f32]);
        }
    }

    #[tokio::test]
    async fn clips_of_both_forms_share_a_batch() {
        let engine = engine(EngineConfig::new(1, 8));
        let video = engine.video(Priority::Normal);
        // Keeps the worker busy, so that the others become one batch.
        let mut pending = vec![submit(&video, 15).await];
        for first in 1..6 {
            let normalised = vec![first as f32; builtin::spec().clip.rgb_len()];
            pending.push(submit(&video, first).await);
            pending.push(video.submit(ClipInput::Normalised(normalised.into())).await.unwrap());
        }
        let mut logits = Vec::new();
        for clip in pending {
            logits.extend(clip.await.unwrap().logits);
        }
        assert_eq!(logits, [15.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0, 5.0, -5.0]);
        assert!(engine.statistics().batches < 5 && engine.statistics().clips == 11);
    }

    #[tokio::test]
    async fn a_failure_that_passes_is_not_seen() {
        let engine = engine(EngineConfig::new(1, 2));
        let video = engine.video(Priority::Normal);
        assert_eq!(submit(&video, 14).await.await.unwrap().logits, [14.0]);
    }

    /// A device that is lost with its first batch of a clip that begins with 16, and can't be opened again.
    struct Fragile {
        lost: Arc<AtomicUsize>,
    }

    impl Executor for Fragile {
        fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
            if clips.iter().any(|clip| clip[0] == 16) && self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(ExecutorError::Reload("the device is lost".to_owned()));
            }
            Ok(Outputs { logits: clips.iter().map(|clip| f32::from(clip[0])).collect(), embeddings: Vec::new() })
        }

        fn run_normalised(&mut self, _: &[&[f32]]) -> Result<Outputs, ExecutorError> {
            unreachable!("the test sends bytes")
        }
    }

    #[tokio::test]
    async fn a_device_that_is_lost_is_taken_out_and_its_batch_runs_on_another() {
        let lost = Arc::new(AtomicUsize::new(0));
        let build = move || -> Result<Box<dyn Executor>, ExecutorError> {
            if lost.load(Ordering::Relaxed) > 0 {
                return Err(ExecutorError::Reload("the device is lost".to_owned()));
            }
            Ok(Box::new(Fragile { lost: Arc::clone(&lost) }))
        };
        let config = EngineConfig::new(1, 4);
        let engine = Engine::with_workers(builtin::spec(), config, 2, Box::new(build), &Metrics::default()).unwrap();
        let workers = |state| engine.state().workers.iter().filter(|worker| **worker == state).count();
        while workers(WorkerState::Idle) < 2 {
            tokio::task::yield_now().await;
        }
        let video = engine.video(Priority::Normal);
        let pending = [submit(&video, 16).await, submit(&video, 3).await];
        for (clip, expected) in pending.into_iter().zip([16.0, 3.0]) {
            assert_eq!(clip.await.unwrap().logits, [expected]);
        }
        while workers(WorkerState::Failed) < 1 {
            tokio::task::yield_now().await;
        }
        assert!(engine.state().is_serving());
        assert_eq!(submit(&video, 5).await.await.unwrap().logits, [5.0]);
    }

    #[tokio::test]
    async fn clips_are_refused_at_once_while_no_worker_can_be_started() {
        let lost = Arc::new(AtomicUsize::new(0));
        let build = move || -> Result<Box<dyn Executor>, ExecutorError> {
            if lost.load(Ordering::Relaxed) > 0 {
                return Err(ExecutorError::Reload("the device is lost".to_owned()));
            }
            Ok(Box::new(Fragile { lost: Arc::clone(&lost) }))
        };
        let config = EngineConfig { queue_clips: 1, ..EngineConfig::new(1, 1) };
        let engine = Engine::with_workers(builtin::spec(), config, 1, Box::new(build), &Metrics::default()).unwrap();
        let video = engine.video(Priority::Normal);
        assert!(matches!(submit(&video, 16).await.await, Err(EngineError::NoWorker)), "it is not tried for ever");
        let clip = ClipInput::Rgb(vec![0; builtin::spec().clip.rgb_len()].into());
        assert!(matches!(video.submit(clip).await, Err(EngineError::NoWorker)));
        assert!(!engine.state().is_serving());
    }

    /// Is stuck with its first clip that begins with 17, until it is let go.
    struct StuckOnce {
        stuck: Arc<Mutex<Option<Receiver<()>>>>,
    }

    impl Executor for StuckOnce {
        fn run(&mut self, clips: &[&[u8]]) -> Result<Outputs, ExecutorError> {
            if clips.iter().any(|clip| clip[0] == 17) {
                let stuck = self.stuck.lock().unwrap().take();
                stuck.map(|let_go| let_go.recv());
            }
            Ok(Outputs { logits: clips.iter().map(|clip| f32::from(clip[0])).collect(), embeddings: Vec::new() })
        }

        fn run_normalised(&mut self, _: &[&[f32]]) -> Result<Outputs, ExecutorError> {
            unreachable!("the test sends bytes")
        }
    }

    #[tokio::test]
    async fn the_clips_of_a_stuck_worker_run_on_an_idle_one_though_no_new_one_can_be_built() {
        let (let_go, stuck) = mpsc::channel();
        let stuck = Arc::new(Mutex::new(Some(stuck)));
        let built = AtomicUsize::new(0);
        let build = move || -> Result<Box<dyn Executor>, ExecutorError> {
            match built.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Ok(Box::new(StuckOnce { stuck: Arc::clone(&stuck) })),
                _ => Err(ExecutorError::Reload("the device hangs".to_owned())),
            }
        };
        let config = EngineConfig { stuck_after: Duration::from_millis(50), ..EngineConfig::new(1, 1) };
        let engine = Engine::with_workers(builtin::spec(), config, 2, Box::new(build), &Metrics::default()).unwrap();
        while !engine.state().workers.iter().all(|worker| *worker == WorkerState::Idle) {
            tokio::task::yield_now().await;
        }
        let video = engine.video(Priority::Normal);
        let clip = submit(&video, 17).await;
        let answer = tokio::time::timeout(Duration::from_secs(20), clip).await.expect("the idle worker is told");
        assert_eq!(answer.unwrap().logits, [17.0]);
        let_go.send(()).unwrap();
    }

    #[test]
    fn a_stop_of_the_whole_process_is_no_time_of_a_batch() {
        let period = Duration::from_secs(5);
        assert_eq!(time_passed(Duration::from_millis(5010), period), Duration::from_millis(5010));
        assert_eq!(time_passed(Duration::from_secs(3600), period), 2 * period);
    }

    #[tokio::test]
    async fn a_queue_full_of_one_priority_holds_up_no_other() {
        let engine = engine(EngineConfig { queue_clips: 1, ..EngineConfig::new(1, 1) });
        let low = engine.video(Priority::Low);
        // Runs, so that the next one waits.
        let running = submit(&low, 15).await;
        while engine.state().queued_clips > 0 {
            tokio::task::yield_now().await;
        }
        let waiting = submit(&low, 1).await;
        let high = engine.video(Priority::High);
        let urgent = tokio::time::timeout(Duration::from_millis(200), submit(&high, 2)).await.expect("a place");
        assert_eq!(urgent.await.unwrap().logits, [2.0]);
        running.await.unwrap();
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn a_clip_that_fails_twice_fails_alone() {
        let engine = engine(EngineConfig::new(1, 4));
        let video = engine.video(Priority::Normal);
        let mut pending = Vec::new();
        // Keeps the worker busy, so that the others become one batch.
        pending.push(submit(&video, 15).await);
        for first in [1, 13, 2] {
            pending.push(submit(&video, first).await);
        }
        let unlucky = pending.remove(2).await.unwrap_err();
        assert!(matches!(&unlucky, EngineError::Execution(message) if message.contains("unlucky")), "{unlucky}");
        for (clip, expected) in pending.into_iter().zip([15.0, 1.0, 2.0]) {
            assert_eq!(clip.await.unwrap().logits, [expected]);
        }
        assert!(engine.state().is_serving());
    }

    #[tokio::test]
    async fn a_stuck_worker_is_replaced() {
        let engine = engine(EngineConfig { stuck_after: Duration::from_millis(50), ..EngineConfig::new(1, 1) });
        let video = engine.video(Priority::Normal);
        let stuck = submit(&video, 15).await;
        assert!(matches!(stuck.await, Err(EngineError::Execution(message)) if message.contains("longer than")));
        assert_eq!(submit(&video, 7).await.await.unwrap().logits, [7.0]);
    }

    #[tokio::test]
    async fn a_dropped_video_frees_its_places_at_once() {
        let engine = engine(EngineConfig { queue_clips: 1, ..EngineConfig::new(1, 1) });
        let busy = engine.video(Priority::Normal);
        let running = submit(&busy, 15).await;
        let dropped = engine.video(Priority::Normal);
        while engine.state().queued_clips > 0 {
            tokio::task::yield_now().await;
        }
        let _waiting = submit(&dropped, 1).await;
        assert_eq!(engine.state().queued_clips, 1);
        drop(dropped);
        assert_eq!(engine.state().queued_clips, 0);
        let next = engine.video(Priority::Normal);
        let clip = tokio::time::timeout(Duration::from_millis(200), submit(&next, 3)).await.expect("a free place");
        assert_eq!(clip.await.unwrap().logits, [3.0]);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn clips_that_wait_are_run_before_the_engine_stops() {
        let engine = engine(EngineConfig::new(1, 4));
        let video = engine.video(Priority::Normal);
        let pending = [submit(&video, 1).await, submit(&video, 2).await];
        tokio::task::spawn_blocking(move || drop(engine)).await.unwrap();
        for (clip, expected) in pending.into_iter().zip([1.0, 2.0]) {
            assert_eq!(clip.await.unwrap().logits, [expected]);
        }
        assert!(matches!(
            video.submit(ClipInput::Rgb(vec![0; builtin::spec().clip.rgb_len()].into())).await,
            Err(EngineError::Stopped)
        ));
    }

    #[tokio::test]
    async fn a_clip_of_another_size_is_refused() {
        let error = engine(EngineConfig::new(1, 1))
            .video(Priority::Normal)
            .submit(ClipInput::Rgb(vec![0; 5].into()))
            .await
            .unwrap_err();
        assert!(matches!(error, EngineError::ClipSize { actual: 5, .. }));
    }
}
