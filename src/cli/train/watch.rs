//! What a person sees of a training, and how they stop it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::train::report::{EpochRecord, Progress};
use crate::train::trainer::{Observer, Pass};

/// Interrupts and terminations: the first one asks to stop, the second one stops at once.
pub(super) struct Signals {
    token: CancellationToken,
    number: Arc<AtomicU8>,
}

const INTERRUPT: u8 = 2;
const TERMINATE: u8 = 15;

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
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
                eprintln!("kinetoscope: saving after this step; once more stops at once");
                token.cancel();
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(wait))?;
        Ok(signals)
    }

    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// The status by which shells tell which signal ended a program.
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(128 + self.number.load(Ordering::Relaxed))
    }
}

/// Progress bars on a terminal, lines in the log elsewhere, and a table of the epochs.
pub(super) struct Terminal {
    /// Other processes of a distributed training print nothing.
    speaks: bool,
    epochs: u64,
    bar: Option<Progress>,
    has_header: bool,
    pass: Pass,
    clips: u64,
    done: u64,
    said: Instant,
}

/// Time between lines in the log.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

impl Terminal {
    pub(super) fn new(speaks: bool, epochs: u64) -> Self {
        let pass = Pass::Training { epoch: 0 };
        Self { speaks, epochs, bar: None, has_header: false, pass, clips: 0, done: 0, said: Instant::now() }
    }
}

impl Observer for Terminal {
    fn begin(&mut self, pass: Pass, clips: u64, done: u64) {
        (self.pass, self.clips, self.done) = (pass, clips, done);
        let title = match pass {
            Pass::Training { epoch } => format!("epoch {epoch} of {}", self.epochs),
            Pass::Validation { .. } => "validation".to_owned(),
        };
        // The old bar is cleared before the new one is drawn.
        self.bar = None;
        if self.speaks {
            self.bar = Some(Progress::new(&title, clips - done.min(clips)));
        }
    }

    fn batch(&mut self, clips: u64, loss: f64) {
        self.done += clips;
        if let Some(bar) = &mut self.bar {
            bar.advance(clips, loss);
        }
        if self.speaks && self.said.elapsed() >= LINE_INTERVAL && !std::io::IsTerminal::is_terminal(&std::io::stderr())
        {
            self.said = Instant::now();
            let (pass, done, of) = (self.pass, self.done, self.clips);
            tracing::info!(?pass, done, of, loss, "training");
        }
    }

    fn epoch(&mut self, record: &EpochRecord) {
        self.bar = None;
        if self.speaks {
            if !std::mem::replace(&mut self.has_header, true) {
                println!("{}", EpochRecord::TABLE_HEADER);
            }
            println!("{record}");
        }
    }
}
