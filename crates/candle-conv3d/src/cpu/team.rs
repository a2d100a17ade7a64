//! The threads of one plan.
//!
//! A team walks a whole network as one job: the members meet at barriers between layers and claim pieces of work from
//! one counter. Workers sleep between jobs.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Polls of a barrier before the thread lets others run: about 20 microseconds. With a busy neighbour a thread that
/// never yields keeps the one it waits for off the processor.
const SPINS_BEFORE_YIELD: usize = 400;

/// A fixed number of threads that run jobs together; the caller of [`Team::run`] is one of them.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    threads: usize,
    state: Mutex<State>,
    start: Condvar,
    finished: Condvar,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    next_item: AtomicUsize,
    panicked: AtomicBool,
}

struct State {
    epoch: usize,
    job: Option<Job>,
    running: usize,
    stop: bool,
    panic: Option<Box<dyn Any + Send>>,
}

type Job = &'static (dyn Fn(&Member) + Sync);

/// One thread's view of the job it takes part in.
pub(crate) struct Member<'a> {
    shared: &'a Shared,
    index: usize,
    /// The item claimed but not yet due: items are numbered through the whole job, and the last claim of a phase
    /// always belongs to a later one.
    held: Cell<Option<usize>>,
    phase_begin: Cell<usize>,
}

impl Team {
    /// Starts `threads - 1` workers.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            threads: threads.max(1),
            state: Mutex::new(State { epoch: 0, job: None, running: 0, stop: false, panic: None }),
            start: Condvar::new(),
            finished: Condvar::new(),
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            next_item: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        let mut team = Self { shared, workers: Vec::new() };
        for index in 1..team.shared.threads {
            let shared = Arc::clone(&team.shared);
            let worker = std::thread::Builder::new().name(format!("conv3d-{index}"));
            team.workers.push(worker.spawn(move || shared.work(index))?);
        }
        Ok(team)
    }

    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `job` once on every thread and returns when all have finished. A panic in any of them is passed on.
    pub(crate) fn run(&mut self, job: &(dyn Fn(&Member) + Sync)) {
        let shared = &*self.shared;
        shared.next_item.store(0, Ordering::Relaxed);
        shared.arrived.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        // SAFETY: only the lifetime changes. The job is dropped from the state below, after every worker has reported
        // that it no longer uses it, and nothing between here and there returns or unwinds.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(&Member) + Sync), Job>(job) };
        {
            let mut state = shared.lock();
            state.epoch += 1;
            state.job = Some(job);
            state.running = shared.threads - 1;
            state.panic = None;
        }
        shared.start.notify_all();
        shared.take_part(0, job);
        let mut state = shared.lock();
        while state.running > 0 {
            state = shared.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.job = None;
        let panic = state.panic.take();
        drop(state);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.start.notify_all();
        for worker in self.workers.drain(..) {
            // A worker only ends by `stop`: its panics were caught and passed on by `run`.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let job = {
                let mut state = self.lock();
                loop {
                    if state.stop {
                        return;
                    }
                    match state.job {
                        Some(job) if state.epoch != seen => {
                            seen = state.epoch;
                            break job;
                        }
                        _ => state = self.start.wait(state).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            self.take_part(index, job);
            let mut state = self.lock();
            state.running -= 1;
            if state.running == 0 {
                self.finished.notify_one();
            }
        }
    }

    fn take_part(&self, index: usize, job: Job) {
        let member = Member { shared: self, index, held: Cell::new(None), phase_begin: Cell::new(0) };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(&member))) {
            // The others give up after they were told, so the panic that comes first is the cause.
            self.lock().panic.get_or_insert(panic);
            self.panicked.store(true, Ordering::Release);
        }
    }
}

impl Member<'_> {
    /// Number of this thread, `0..threads`.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Calls `work(item)` for those of the items `0..count` that this thread claims; over the whole team each item is
    /// claimed once. Every member must make the same calls in the same order. Does not wait for the others.
    #[inline(always)]
    pub(crate) fn share(&self, count: usize, mut work: impl FnMut(usize)) {
        let begin = self.phase_begin.get();
        let end = begin + count;
        loop {
            let item = self.held.take().unwrap_or_else(|| self.shared.next_item.fetch_add(1, Ordering::Relaxed));
            if item >= end {
                self.held.set(Some(item));
                break;
            }
            work(item - begin);
        }
        self.phase_begin.set(end);
    }

    /// Waits until every member is here; what the others wrote before is visible after.
    pub(crate) fn barrier(&self) {
        let shared = self.shared;
        if shared.threads == 1 {
            return;
        }
        let generation = shared.generation.load(Ordering::Acquire);
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.threads {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.generation.fetch_add(1, Ordering::Release);
            return;
        }
        let mut polls = 0;
        while shared.generation.load(Ordering::Acquire) == generation {
            assert!(!shared.panicked.load(Ordering::Acquire), "another thread of the team panicked");
            polls += 1;
            if polls < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_claimed_once_in_every_phase() {
        let mut team = Team::new(3).unwrap();
        let counts: Vec<AtomicUsize> = (0..50).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..20 {
            team.run(&|member| {
                for phase in [50, 0, 7, 1] {
                    member.share(phase, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    member.barrier();
                }
            });
        }
        let total: Vec<usize> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        assert_eq!(total[0], 60);
        assert!(total[1..7].iter().all(|&c| c == 40));
        assert!(total[7..].iter().all(|&c| c == 20));
    }

    #[test]
    fn writes_before_a_barrier_are_seen_after_it() {
        let mut team = Team::new(2).unwrap();
        let cells: Vec<AtomicUsize> = (0..2).map(|_| AtomicUsize::new(0)).collect();
        team.run(&|member| {
            for round in 1..200 {
                cells[member.index()].store(round, Ordering::Relaxed);
                member.barrier();
                assert_eq!(cells[1 - member.index()].load(Ordering::Relaxed), round);
                member.barrier();
            }
        });
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller_and_the_team_still_works() {
        let mut team = Team::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            team.run(&|member| {
                assert!(member.index() != 1, "worker fails");
                member.barrier();
            });
        }));
        // Not that of the other thread, which gave up at the barrier.
        assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"worker fails"));
        let runs = AtomicUsize::new(0);
        team.run(&|member| {
            member.barrier();
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.into_inner(), 2);
    }
}
