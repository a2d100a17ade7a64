//! Sends damaged videos through a [`Decoder`] and looks at what is left of them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::video::{
    DecodeOptions, Decoder, Isolation, Limits, Source, SpoolOptions, VideoError, VideoSummary, WorkerOptions, spool,
};
use tokio_util::sync::CancellationToken;

use crate::mutate::{Random, mutate};

/// What is drilled.
pub(crate) struct Drill {
    /// Names and bytes of whole videos.
    pub(crate) videos: Vec<(String, Vec<u8>)>,
    /// Damaged videos to decode.
    pub(crate) count: u64,
    pub(crate) seed: u64,
    /// Videos at a time.
    pub(crate) threads: usize,
    pub(crate) workers: WorkerOptions,
    /// Where damaged videos are kept that killed a decoder, if anywhere.
    pub(crate) keep: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Kinds of answers, and how often each was given for a file and for an upload.
    pub(crate) answers: BTreeMap<String, [u64; 2]>,
    /// What was done to the videos, and how often.
    pub(crate) mutations: BTreeMap<&'static str, u64>,
    /// Cases whose decoder process died twice, with what was said.
    pub(crate) crashes: Vec<String>,
    /// What should never be.
    pub(crate) faults: Vec<String>,
    pub(crate) clips: u64,
    pub(crate) slowest: Duration,
    /// Most memory that any decoder process had, as seen by looking now and then, in bytes.
    pub(crate) worker_peak: u64,
    /// This process's memory after a tenth of the cases and at the end, in bytes.
    pub(crate) memory: [u64; 2],
}

/// No video may take longer: the limit of CPU time is 20 s, and machines are busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// What this process may grow by after the first tenth of the cases, which fill allocators and caches. A clip has
/// 602,112 bytes: a leak of one in ten would be found among 2,000 cases.
const MAX_GROWTH: u64 = 96 << 20;

impl Drill {
    pub(crate) fn run(&self) -> Outcome {
        assert!(!self.videos.is_empty(), "there are no videos");
        let spools = tempfile::tempdir().expect("a temporary directory");
        let descriptors = open_descriptors();
        let decoder = Decoder::new(Isolation::Processes(self.workers.clone()));
        let outcome = Mutex::new(Outcome::default());
        let (next, finished) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let watching = scope.spawn(|| watch_workers(&finished));
            let drilling = || {
                loop {
                    let case = next.fetch_add(1, Ordering::Relaxed);
                    if case >= self.count {
                        break;
                    }
                    if case == self.count / 10 {
                        lock(&outcome).memory[0] = resident_bytes("self");
                    }
                    self.drill(case, &decoder, spools.path(), &outcome);
                }
            };
            let drilling: Vec<_> = (0..self.threads.max(1)).map(|_| scope.spawn(drilling)).collect();
            for thread in drilling {
                thread.join().expect("panics of decoding are caught");
            }
            finished.store(true, Ordering::Relaxed);
            lock(&outcome).worker_peak = watching.join().expect("looking does not panic");
        });
        drop(decoder);

        let mut outcome = outcome.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        outcome.memory[1] = resident_bytes("self");
        let mut fault = |wrong: bool, what: String| {
            if wrong {
                outcome.faults.push(what);
            }
        };
        let left = children();
        fault(!left.is_empty(), format!("processes are left: {left:?}"));
        let after = open_descriptors();
        fault(after != descriptors, format!("open descriptors before: {descriptors:?}, after: {after:?}"));
        let files = fs::read_dir(spools.path()).expect("it was made above").count();
        fault(files > 0, format!("{files} files of uploads are left"));
        let [warm, end] = outcome.memory;
        fault(end.saturating_sub(warm) > MAX_GROWTH, format!("memory grew from {warm} to {end} bytes"));
        let slowest = outcome.slowest;
        fault(slowest > PATIENCE, format!("a video took {slowest:?}"));
        outcome
    }

    fn drill(&self, case: u64, decoder: &Decoder, spools: &std::path::Path, outcome: &Mutex<Outcome>) {
        let mut random = Random::new(self.seed, case);
        let (name, video) = &self.videos[random.below(self.videos.len())];
        let (_, other) = &self.videos[random.below(self.videos.len())];
        let (bytes, mutations) = mutate(video, other, &mut random);
        let upload = case % 2 == 1;
        let wanted = 1 + random.below(8);
        // Some callers go away in the middle.
        let patience = (random.below(16) == 0).then(|| Duration::from_millis(random.below(60) as u64));
        let part_len = 1 << (8 + random.below(10));
        let breaks_off = random.below(8) == 0;
        let clip_stride = [1, 1, 1, 5][random.below(4)];
        let begin = Instant::now();
        let mut clips = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let cancel = CancellationToken::new();
            let limits = Limits { max_cpu_time: Duration::from_secs(20), ..Limits::default() };
            let options = DecodeOptions { limits, cancel: cancel.clone(), clip_stride, ..Default::default() };
            let mut decode = |source: &Source| {
                decoder.decode_clips(source, &ClipSpec::default(), &Preprocessing::AUTHORS_2018, &options, |_| {
                    clips += 1;
                    if clips < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })
            };
            let ended = AtomicBool::new(false);
            thread::scope(|scope| {
                if let Some(patience) = patience {
                    let (ended, cancel) = (&ended, cancel.clone());
                    scope.spawn(move || {
                        while begin.elapsed() < patience && !ended.load(Ordering::Relaxed) {
                            thread::sleep(Duration::from_millis(1));
                        }
                        cancel.cancel();
                    });
                }
                let result = if upload {
                    let options =
                        SpoolOptions { max_memory: 64 << 10, directory: Some(spools.into()), ..Default::default() };
                    let (writer, reader) = spool(options, cancel);
                    let bytes = bytes.as_slice();
                    scope.spawn(move || send(writer, bytes, part_len, breaks_off));
                    decode(&Source::Spool(reader))
                } else {
                    decode(&Source::Bytes(bytes.clone().into()))
                };
                ended.store(true, Ordering::Relaxed);
                result
            })
        }));
        let took = begin.elapsed();

        let mut outcome = lock(outcome);
        outcome.slowest = outcome.slowest.max(took);
        outcome.clips += clips as u64;
        for mutation in &mutations {
            *outcome.mutations.entry(mutation).or_default() += 1;
        }
        let case =
            format!("case {case} ({name}, {}, {})", mutations.join(", "), if upload { "upload" } else { "file" });
        let answer = match &result {
            Ok(result) => describe(result),
            Err(_) => "PANIC".to_string(),
        };
        match &result {
            Err(_) => outcome.faults.push(format!("{case}: decoding panicked")),
            Ok(Err(error @ VideoError::DecoderCrashed { .. })) => {
                outcome.crashes.push(format!("{case}: {error}"));
                self.keep(&case, &bytes);
            }
            Ok(Err(error))
                if !error.is_input_fault() && !matches!(error, VideoError::Cancelled | VideoError::Read(_)) =>
            {
                outcome.faults.push(format!("{case}: {error}"));
                self.keep(&case, &bytes);
            }
            Ok(_) => {}
        }
        outcome.answers.entry(answer).or_default()[usize::from(upload)] += 1;
    }

    fn keep(&self, case: &str, bytes: &[u8]) {
        let Some(directory) = &self.keep else { return };
        let name: String = case.chars().map(|c| if c.is_alphanumeric() || c == '.' { c } else { '-' }).collect();
        fs::write(directory.join(name), bytes).expect("--keep names a directory to write to");
    }
}

/// Uploads `bytes` in parts, for as long as somebody wants them.
fn send(mut writer: kinetoscope::video::SpoolWriter, bytes: &[u8], part: usize, breaks_off: bool) {
    let end = if breaks_off { bytes.len() * 3 / 4 } else { bytes.len() };
    for part in bytes[..end].chunks(part) {
        if writer.write(part).is_err() {
            return;
        }
    }
    if !breaks_off {
        writer.finish();
    }
}

/// The kind of answer, without what is this video's own.
fn describe(result: &Result<VideoSummary, VideoError>) -> String {
    let name = |debug: String| debug.chars().take_while(|c| c.is_alphanumeric()).collect::<String>();
    match result {
        Ok(VideoSummary { partial: None, .. }) => "clips".to_string(),
        Ok(VideoSummary { partial: Some(reason), .. }) => format!("clips, partial: {}", name(format!("{reason:?}"))),
        Err(error) => name(format!("{error:?}")),
    }
}

fn lock(outcome: &Mutex<Outcome>) -> std::sync::MutexGuard<'_, Outcome> {
    outcome.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The most memory that any decoder process has had, until `finished`.
fn watch_workers(finished: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !finished.load(Ordering::Relaxed) {
        let peaks = children().into_iter().map(|pid| status_bytes(&pid, "VmHWM:"));
        peak = peaks.fold(peak, u64::max);
        thread::sleep(Duration::from_millis(25));
    }
    peak
}

fn resident_bytes(process: &str) -> u64 {
    status_bytes(process, "VmRSS:")
}

/// A field of a process's status; 0 if the process is gone.
fn status_bytes(process: &str, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix("kB"));
    kibibytes.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Process numbers of this process's children, alive or waiting to be reaped.
fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").expect("Linux");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    pids.filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // After the name, which may hold anything: state, parent.
            stat.rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(1))
                .is_some_and(|parent| parent == own)
        })
        .collect()
}

/// What each open descriptor of this process is, but for the one that lists them.
fn open_descriptors() -> Vec<String> {
    let list = || fs::read_dir("/proc/self/fd").expect("Linux");
    let targets = list().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let mut targets: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    targets.retain(|target| !target.starts_with("/proc/"));
    targets.sort();
    targets
}
