//! The server's CPU time by what it was spent on, from the kernel's accounts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use procfs::process::{Process, Stat};
use procfs::{ProcResult, ticks_per_second};

/// Names of the threads that run models: a worker, and the other members of its team in `candle-conv3d`.
const MODEL_THREADS: [&str; 2] = ["model-", "conv3d-"];

/// CPU time since the start of the server. Every part only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CpuTime {
    /// Decoder processes, and threads that decode in this process.
    pub(super) decode: Duration,
    /// Threads that run models.
    pub(super) model: Duration,
    /// Receiving, answering, logging, and reading and compiling models.
    pub(super) rest: Duration,
}

/// Reads [`CpuTime`].
#[derive(Debug, Default)]
pub(super) struct CpuMeter {
    /// Ticks of each model thread when it was last seen, so that one that ended stays counted.
    model_threads: Mutex<HashMap<i32, u64>>,
}

impl CpuMeter {
    /// The CPU time until now, given that of decoding threads that ended; one that runs still belongs to the rest.
    pub(super) fn read(&self, decode_threads: Duration) -> ProcResult<CpuTime> {
        let process = Process::myself()?;
        let own = process.stat()?;
        let mut children = own.cutime.max(0) as u64 + own.cstime.max(0) as u64;
        let mut model_threads = self.model_threads.lock().unwrap_or_else(PoisonError::into_inner);
        for task in process.tasks()?.flatten() {
            let Ok(stat) = task.stat() else { continue };
            if MODEL_THREADS.iter().any(|name| stat.comm.starts_with(name)) {
                model_threads.insert(task.tid, ticks(&stat));
            }
            // One that ends in between is among those of `own` the next time.
            let running = task.children()?.into_iter().filter_map(|pid| Process::new(pid as i32).ok()?.stat().ok());
            children += running.map(|stat| ticks(&stat)).sum::<u64>();
        }
        let model = time(model_threads.values().sum());
        Ok(CpuTime {
            decode: time(children) + decode_threads,
            model,
            rest: time(ticks(&own)).saturating_sub(model + decode_threads),
        })
    }
}

fn ticks(stat: &Stat) -> u64 {
    stat.utime + stat.stime
}

fn time(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::TryRecvError;
    use std::time::Instant;

    use super::*;

    #[test]
    fn time_is_counted_where_it_was_spent() {
        let meter = CpuMeter::default();
        let read = || meter.read(Duration::ZERO).unwrap();
        let before = read();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let spin = move || while stopped.try_recv() == Err(TryRecvError::Empty) {};
        let thread = std::thread::Builder::new().name("model-test-0".into()).spawn(spin).unwrap();
        let begun = Instant::now();
        while read().model == before.model {
            assert!(begun.elapsed() < Duration::from_secs(60), "a thread that computes is seen");
        }
        let running = read();
        drop(stop);
        thread.join().unwrap();
        let work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", work]).status().unwrap().success());
        let after = read();
        assert!(after.model >= running.model, "a thread that ended stays counted");
        assert!(after.decode > before.decode, "a process that ended is counted");
    }
}
