//! What a person sees of a training, and how they stop it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::train::report::{EpochRecord, Progress, clock};
use crate::train::trainer::{Observer, Pass};

/// Interrupts and terminations: the first one asks to stop, the second one stops at once.
pub(in crate::cli) struct Signals {
    token: CancellationToken,
    number: Arc<AtomicU8>,
}

const INTERRUPT: u8 = 2;
const TERMINATE: u8 = 15;

impl Signals {
    /// `on_first` is what the first signal brings about, for the person who sent it.
    pub(in crate::cli) fn listen(on_first: &'static str) -> anyhow::Result<Self> {
        let signals = Self { token: CancellationToken::new(), number: Arc::new(AtomicU8::new(INTERRUPT)) };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't wait for signals")?;
        let (mut interrupt, mut terminate) = {
            let _context = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let (token, number) = (signals.token.clone(), Arc::clone(&signals.number));
        let wait = async move {
            loop {
                let received = tokio::select! {
                    _ = interrupt.recv() => INTERRUPT,
                    _ = terminate.recv() => TERMINATE,
                };
                if token.is_cancelled() {
                    std::process::exit(i32::from(128 + received));
                }
                number.store(received, Ordering::Relaxed);
                eprintln!("kinetoscope: {on_first}; once more stops at once");
                token.cancel();
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait))?;
        Ok(signals)
    }

    pub(in crate::cli) fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The status by which shells tell which signal ended a program.
    pub(in crate::cli) fn exit_code(&self) -> ExitCode {
        ExitCode::from(128 + self.number.load(Ordering::Relaxed))
    }
}

/// What a training comes to in clips of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) epochs: u64,
    /// Of an epoch.
    pub(super) train_clips: u64,
    /// Of an epoch.
    pub(super) validation_clips: u64,
}

/// Progress bars on a terminal, lines in the log elsewhere, and a table of the epochs.
pub(super) struct Terminal {
    /// Other processes of a distributed training print nothing.
    speaks: bool,
    work: Work,
    bar: Option<Progress>,
    has_header: bool,
    pass: Pass,
    done: u64,
    clock: RunClock,
    said: Instant,
}

/// Time between lines in the log.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

impl Terminal {
    pub(super) fn new(speaks: bool, work: Work) -> Self {
        let pass = Pass::Training { epoch: 1 };
        let (clock, said) = (RunClock::default(), Instant::now());
        Self { speaks, work, bar: None, has_header: false, pass, done: 0, clock, said }
    }

    fn clips_of_pass(&self) -> u64 {
        match self.pass {
            Pass::Training { .. } => self.work.train_clips,
            Pass::Validation { .. } => self.work.validation_clips,
        }
    }
}

impl Observer for Terminal {
    fn begin(&mut self, pass: Pass, clips: u64, done: u64) {
        (self.pass, self.done) = (pass, done);
        self.clock.begin(Instant::now());
        let title = match pass {
            Pass::Training { epoch } => format!("epoch {epoch} of {}", self.work.epochs),
            Pass::Validation { epoch } => format!("validation {epoch} of {}", self.work.epochs),
        };
        // The old bar is cleared before the new one is drawn.
        self.bar = None;
        if self.speaks {
            self.bar = Some(Progress::new(&title, clips - done.min(clips)));
        }
    }

    fn batch(&mut self, clips: u64, loss: f64) {
        self.done += clips;
        self.clock.note(self.pass, clips, Instant::now());
        let left = self.clock.left(self.pass, self.done, self.work);
        if let Some(bar) = &mut self.bar {
            bar.advance(clips, loss, left);
        }
        if self.speaks && self.said.elapsed() >= LINE_INTERVAL && !std::io::IsTerminal::is_terminal(&std::io::stderr())
        {
            self.said = Instant::now();
            let (done, of, epochs) = (self.done, self.clips_of_pass(), self.work.epochs);
            let left = left.map(clock);
            match self.pass {
                Pass::Training { epoch } => tracing::info!(epoch, epochs, done, of, loss, left, "training"),
                Pass::Validation { epoch } => tracing::info!(epoch, epochs, done, of, loss, left, "validation"),
            }
        }
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.bar = None;
        if self.speaks {
            if !std::mem::replace(&mut self.has_header, true) {
                println!("{}", record.table_header());
            }
            println!("{record}");
        }
    }
}

/// How long a training still takes, by how long its passes took so far.
#[derive(Debug, Default)]
struct RunClock {
    train: Pace,
    validation: Pace,
    since: Option<Instant>,
}

/// Clips, and the time that they took.
#[derive(Debug, Default)]
struct Pace {
    clips: u64,
    time: Duration,
}

impl Pace {
    fn time_of(&self, clips: u64) -> Option<Duration> {
        (self.clips > 0).then(|| self.time.mul_f64(clips as f64 / self.clips as f64))
    }
}

impl RunClock {
    fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// A batch of `clips` is over.
    fn note(&mut self, pass: Pass, clips: u64, now: Instant) {
        let time = self.since.replace(now).map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let pace = match pass {
            Pass::Training { .. } => &mut self.train,
            Pass::Validation { .. } => &mut self.validation,
        };
        pace.clips += clips;
        pace.time += time;
    }

    /// For all that is left of the training when `done` clips of a pass are. `None` if nothing is known yet.
    fn left(&self, pass: Pass, done: u64, work: Work) -> Option<Duration> {
        /// A pass forwards takes about a third of a step. Until the first validation nothing better is known.
        const VALIDATION_PART: u32 = 3;
        let (Pass::Training { epoch } | Pass::Validation { epoch }) = pass;
        let epochs = work.epochs.saturating_sub(epoch);
        let (train, validation) = match pass {
            Pass::Training { .. } => (work.train_clips.saturating_sub(done), work.validation_clips),
            Pass::Validation { .. } => (0, work.validation_clips.saturating_sub(done)),
        };
        let (train, validation) = (train + epochs * work.train_clips, validation + epochs * work.validation_clips);
        let train_time = self.train.time_of(train).or((train == 0).then_some(Duration::ZERO))?;
        let guessed = || Some(self.train.time_of(validation)? / VALIDATION_PART);
        let validation_time = self.validation.time_of(validation).or_else(guessed).unwrap_or_default();
        Some(train_time + validation_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_that_of_all_epochs() {
        let work = Work { epochs: 3, train_clips: 100, validation_clips: 30 };
        let mut clock = RunClock::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let left = |clock: &RunClock, pass, done| clock.left(pass, done, work).map(|left| left.as_secs());
        assert_eq!(left(&clock, Pass::Training { epoch: 1 }, 0), None);

        clock.begin(at(0));
        clock.note(Pass::Training { epoch: 1 }, 50, at(50));
        // 250 clips at a second each, and 90 of validation at a guessed third of it.
        assert_eq!(left(&clock, Pass::Training { epoch: 1 }, 50), Some(250 + 30));
        clock.note(Pass::Training { epoch: 1 }, 50, at(100));
        // What lies between the passes, such as writing files, belongs to neither.
        clock.begin(at(500));
        clock.note(Pass::Validation { epoch: 1 }, 30, at(560));
        assert_eq!(left(&clock, Pass::Validation { epoch: 1 }, 30), Some(200 + 120));
        assert_eq!(left(&clock, Pass::Validation { epoch: 3 }, 30), Some(0));
    }
}
