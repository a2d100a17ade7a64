//! Decoding in processes of their own, so that a video that breaks the decoder breaks nothing else.
//!
//! A [`Decoder`] keeps processes of the same binary, which can do nothing but decode: `sandbox` says what is taken from
//! them. One that dies is replaced and its video tried once more.

mod process;
mod protocol;
mod sandbox;
mod shared;
mod worker;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use procfs::Current;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use worker::run_worker;

use super::assembly::Passed;
use super::{Clip, DecodeOptions, Limits, Source, VideoError, VideoSummary, decode_origin};
use crate::model::spec::{ClipSpec, Preprocessing};
use process::{CPU_TIME_SLACK, JobError, Worker};

/// Where decoding happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Isolation {
    /// In this process: a video that exploits a decoder gets all that this process has.
    None,
    /// In processes of their own.
    Processes(WorkerOptions),
}

/// What decoder processes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerOptions {
    /// The program; it has to call [`run_worker`] when given `arguments`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Bytes of address space, libraries included; 2 GiB, which is enough for frames of the usual largest size.
    pub max_memory: u64,
    /// Videos after which a process is replaced, so that what one does to the process meets few others; 64.
    pub max_videos: u32,
}

impl WorkerOptions {
    /// Processes for videos within `limits`: those that may have larger frames than usual may take as much more memory, up
    /// to what the machine has.
    pub fn for_limits(limits: &Limits) -> Self {
        let usual = Self::default();
        let frames =
            u128::from(usual.max_memory) * u128::from(limits.max_pixels) / u128::from(Limits::default().max_pixels);
        let frames = u64::try_from(frames).unwrap_or(u64::MAX);
        let machine = procfs::Meminfo::current().map_or(usual.max_memory, |memory| memory.mem_total);
        Self { max_memory: frames.min(machine).max(usual.max_memory), ..usual }
    }
}

impl Default for WorkerOptions {
    /// This very binary, even if the file was replaced since it started.
    fn default() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec!["decode-worker".to_string()],
            max_memory: 2 << 30,
            max_videos: 64,
        }
    }
}

/// Decodes videos, isolated or not. Shared by all who decode: as many processes run as videos are decoded at a time,
/// which the caller bounds, and idle ones wait for the next.
#[derive(Debug)]
pub struct Decoder {
    isolation: Isolation,
    idle: Mutex<Vec<Worker>>,
    lost: AtomicU64,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("videos", &self.videos).finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder; it starts no process before the first video.
    pub fn new(isolation: Isolation) -> Self {
        Self { isolation, idle: Mutex::new(Vec::new()), lost: AtomicU64::new(0) }
    }

    /// Processes that died, or had to be ended, over their videos.
    pub fn lost_processes(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The process numbers of the processes that wait for videos.
    pub fn idle_processes(&self) -> Vec<u32> {
        self.living_idle().iter().map(Worker::pid).collect()
    }

    /// As [`decode_clips`](super::decode_clips), which it is without isolation. With it, decoders have one thread each.
    pub fn decode_clips(
        &self,
        source: &Source,
        clip: &ClipSpec,
        preprocessing: &Preprocessing,
        options: &DecodeOptions,
        mut on_clip: impl FnMut(Clip) -> ControlFlow<()>,
    ) -> Result<VideoSummary, VideoError> {
        self.decode(source, clip, preprocessing, options, |passed: Passed| passed.clip_to(&mut on_clip))
    }

    pub(super) fn decode(
        &self,
        source: &Source,
        clip: &ClipSpec,
        preprocessing: &Preprocessing,
        options: &DecodeOptions,
        mut on_passed: impl FnMut(Passed) -> ControlFlow<()>,
    ) -> Result<VideoSummary, VideoError> {
        let Isolation::Processes(workers) = &self.isolation else {
            return decode_origin(source, clip, preprocessing, options, on_passed);
        };
        if options.cancel.is_cancelled() {
            return Err(VideoError::Cancelled);
        }
        let mut handed_over = 0;
        let mut died_before = false;
        loop {
            let mut worker = self.take(workers, clip.rgb_len(), died_before, &options.cancel)?;
            let result = worker.decode(source, clip, preprocessing, options, handed_over, |passed| {
                if let Passed::Clip(clip, _) = &passed {
                    handed_over = clip.index + 1;
                }
                on_passed(passed)
            });
            // Memory may be short because of what the process did before; in a fresh one it is the video's fault.
            let result = result.map_err(|error| match error {
                JobError::Video(error @ VideoError::OutOfMemory { .. }) if !died_before => {
                    JobError::Lost(error.to_string())
                }
                error => error,
            });
            match result {
                Ok(summary) => {
                    self.put_back(worker, workers);
                    return Ok(summary);
                }
                // A cancelled process is still at work, so it is not kept.
                Err(JobError::Video(VideoError::Cancelled)) => return Err(VideoError::Cancelled),
                Err(JobError::Video(error)) => {
                    self.put_back(worker, workers);
                    return Err(error);
                }
                Err(JobError::OutOfCpuTime) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    let limit = options.limits.max_cpu_time;
                    return Err(VideoError::TooMuchCpuTime { actual: limit.saturating_add(CPU_TIME_SLACK), limit });
                }
                Err(JobError::Lost(detail)) if died_before => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    return Err(VideoError::DecoderCrashed { detail });
                }
                Err(JobError::Lost(detail)) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    warn!(detail, "decoder process lost, trying its video once more");
                    died_before = true;
                }
            }
        }
    }

    fn take(
        &self,
        options: &WorkerOptions,
        clip_len: usize,
        fresh: bool,
        cancel: &CancellationToken,
    ) -> Result<Worker, VideoError> {
        if !fresh {
            let mut idle = self.living_idle();
            if let Some(place) = idle.iter().rposition(|worker| worker.fits(clip_len)) {
                return Ok(idle.swap_remove(place));
            }
            // The new one takes the place of one that may never fit again.
            let too_small = idle.pop();
            drop(idle);
            drop(too_small);
        }
        let (worker, missing) = Worker::start(options, clip_len, cancel).map_err(|error| match error {
            _ if cancel.is_cancelled() => VideoError::Cancelled,
            error => VideoError::NoDecoder(error.to_string()),
        })?;
        debug!("decoder process started");
        static WARNED: Once = Once::new();
        if !missing.is_empty() {
            WARNED
                .call_once(|| warn!(?missing, "decoder processes run without some protections that this kernel lacks"));
        }
        Ok(worker)
    }

    fn put_back(&self, worker: Worker, options: &WorkerOptions) {
        if worker.videos < options.max_videos {
            self.living_idle().push(worker);
        }
    }

    /// The idle processes, without those that died meanwhile.
    fn living_idle(&self) -> MutexGuard<'_, Vec<Worker>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|worker| !worker.is_dead());
        idle
    }
}
