//! A decoder process as its owner sees it. Nothing that comes from it is trusted.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use tokio_util::sync::CancellationToken;

use super::WorkerOptions;
use super::protocol::{FromWorker, Job, Link, SLOTS, ToWorker, WINDOW};
use super::shared::SharedMemory;
use crate::model::spec::{ClipSpec, Preprocessing};
use crate::video::assembly::Passed;
use crate::video::ffmpeg::MediaBytes;
use crate::video::source::Origin;
use crate::video::waiting::WhileWaiting;
use crate::video::{Clip, DecodeOptions, Source, VideoError, VideoSummary};

/// How soon a cancellation is noticed.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long a process may take to start.
const START_TIME: Duration = Duration::from_secs(20);

/// A process checks its CPU time between packets; one that spends so much more hangs in the midst of one. In whole seconds,
/// as the kernel counts.
pub(super) const CPU_TIME_SLACK: Duration = Duration::from_secs(3);

/// One decoder process. Dropping it ends the process.
pub(super) struct Worker {
    child: Arc<Mutex<Child>>,
    link: Link,
    memory: SharedMemory,
    window: Vec<u8>,
    started: Instant,
    /// Videos it has decoded.
    pub(super) videos: u32,
}

/// Ends the wait for an upload when the process that wants its bytes has died.
struct DeathWatch(Arc<Mutex<Child>>);

impl WhileWaiting for DeathWatch {
    fn check(&self) -> io::Result<()> {
        match lock(&self.0).try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(words_for(status))),
        }
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

fn loss(status: ExitStatus) -> JobError {
    if status.signal() == Some(Signal::XCPU.as_raw()) {
        return JobError::OutOfCpuTime;
    }
    JobError::Lost(words_for(status))
}

fn words_for(status: ExitStatus) -> String {
    status.signal().map_or(format!("it ended with {status}"), |signal| format!("it was killed by signal {signal}"))
}

/// Why a job has no summary.
pub(super) enum JobError {
    /// The video, or the caller.
    Video(VideoError),
    /// The process; it is of no more use.
    Lost(String),
    /// The process, which the kernel ended for its CPU time.
    OutOfCpuTime,
}

impl From<VideoError> for JobError {
    fn from(error: VideoError) -> Self {
        Self::Video(error)
    }
}

impl Worker {
    /// Starts a process whose clips have at most `slot_len` bytes. Also gives what of its sandbox this kernel lacks.
    pub(super) fn start(
        options: &WorkerOptions,
        slot_len: usize,
        cancel: &CancellationToken,
    ) -> io::Result<(Self, Vec<String>)> {
        let memory = SharedMemory::new(slot_len)?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&options.program);
        command.args(&options.arguments).env_clear().current_dir("/");
        // Where FFmpeg is not in the system's own directories, the process must find it as we did.
        if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", path);
        }
        // An interrupt from the terminal is for its owner, which may want to let it finish.
        command.process_group(0);
        command.stdin(OwnedFd::from(theirs)).stdout(memory.file()?).stderr(Stdio::null());
        let child = spawn_from_lasting_thread(command)?;
        let mut worker = Self {
            child: Arc::new(Mutex::new(child)),
            link: Link::new(ours),
            memory,
            window: Vec::new(),
            started: Instant::now(),
            videos: 0,
        };
        worker.link.set_patience(PATIENCE)?;
        worker.link.send(&ToWorker::Setup { max_memory: options.max_memory })?;
        let begin = Instant::now();
        loop {
            match worker.link.receive() {
                Ok(FromWorker::Ready { missing }) => return Ok((worker, missing)),
                Ok(_) => {
                    let detail = "the decoder process does not say that it is ready";
                    return Err(io::Error::new(ErrorKind::InvalidData, detail));
                }
                Err(error) if is_impatience(&error) && !cancel.is_cancelled() && begin.elapsed() < START_TIME => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Its process number.
    pub(super) fn pid(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Whether the process has died; if so, the kernel forgets it.
    pub(super) fn is_dead(&self) -> bool {
        self.died().is_some()
    }

    /// How the process died, if it did.
    fn died(&self) -> Option<JobError> {
        let status = lock(&self.child).try_wait().ok().flatten()?;
        Some(loss(status))
    }

    /// Whether it has room for clips of `len` bytes.
    pub(super) fn fits(&self, len: usize) -> bool {
        len <= self.memory.slot_len()
    }

    /// Decodes one video. Clips before number `skip` are not handed over.
    pub(super) fn decode(
        &mut self,
        source: &Source,
        clip: &ClipSpec,
        preprocessing: &Preprocessing,
        options: &DecodeOptions,
        skip: usize,
        mut on_passed: impl FnMut(Passed) -> ControlFlow<()>,
    ) -> Result<VideoSummary, JobError> {
        self.videos += 1;
        let source = source.clone().with(Arc::new(DeathWatch(Arc::clone(&self.child))));
        let mut bytes = match source.open(&options.limits) {
            Ok(bytes) => bytes,
            Err(_) if options.cancel.is_cancelled() => return Err(VideoError::Cancelled.into()),
            Err(error) => return Err(self.died().unwrap_or(error.into())),
        };
        let lost = |error: io::Error| JobError::Lost(error.to_string());
        self.limit_cpu_time(options.limits.max_cpu_time).map_err(lost)?;
        self.send(&ToWorker::Decode(Box::new(Job {
            clip: *clip,
            preprocessing: *preprocessing,
            limits: options.limits.clone(),
            range: options.range,
            crop: options.crop,
            clip_stride: options.clip_stride,
            max_clips_wanted: options.max_clips_wanted,
            in_order: bytes.in_order,
        })))?;
        let mut next_clip = 0usize;
        // Clips that the caller has, those of an earlier try included, and whether it wants more.
        let (mut handed_over, mut more) = (0, true);
        let mut sent = 0;
        let mut waited = Duration::ZERO;
        loop {
            match self.receive(options, &mut waited)? {
                FromWorker::Read { offset, len } => {
                    let answer = self.read(&mut bytes, offset, len);
                    self.answer(&answer, options)?;
                }
                FromWorker::AskLength => {
                    let answer = match bytes.bytes.seek(SeekFrom::End(0)) {
                        Ok(bytes) => ToWorker::Length { bytes },
                        Err(error) => ToWorker::ReadFailed { detail: error.to_string() },
                    };
                    self.answer(&answer, options)?;
                }
                FromWorker::Clip { slot, index, frames, start, end, so_far } => {
                    if slot >= SLOTS || index != next_clip || !(1..=clip.frames).contains(&frames) {
                        return Err(JobError::Lost("it sent a clip that cannot be".to_string()));
                    }
                    next_clip = next_clip.saturating_add(options.clip_stride.max(1));
                    sent += 1;
                    handed_over += u64::from(more);
                    // The next clip was on its way when the caller had enough.
                    if more && index >= skip {
                        let rgb = self.memory.read_slot(slot, clip.rgb_len()).map_err(lost)?;
                        let clip = Clip { index, frames, start, end, rgb };
                        more = on_passed(Passed::Clip(clip, so_far)).is_continue();
                    }
                    self.answer(&ToWorker::Taken { slot, more }, options)?;
                }
                FromWorker::Unwanted { slot } => {
                    more = more && on_passed(Passed::Unwanted).is_continue();
                    self.answer(&ToWorker::Taken { slot, more }, options)?;
                }
                FromWorker::Done(summary) if !more => return Ok(VideoSummary { clips: handed_over, ..*summary }),
                FromWorker::Done(summary) if summary.clips == sent => return Ok(*summary),
                FromWorker::Failed(error) => return Err(error.into()),
                FromWorker::Done(_) | FromWorker::Ready { .. } => {
                    return Err(JobError::Lost("it answers what nobody asked".to_string()));
                }
            }
        }
    }

    /// The next message. `waited` sums up the time that the process took for all of them.
    fn receive(&mut self, options: &DecodeOptions, waited: &mut Duration) -> Result<FromWorker, JobError> {
        let begin = Instant::now();
        // CPU time is limited by the process itself; this catches one that does not, and leaves room for a busy machine.
        let limit = options.limits.max_cpu_time.saturating_mul(4).saturating_add(START_TIME);
        loop {
            match self.link.receive() {
                Ok(message) => {
                    *waited += begin.elapsed();
                    return Ok(message);
                }
                Err(error) if is_impatience(&error) => {}
                Err(error) => return Err(self.obituary(&error)),
            }
            if options.cancel.is_cancelled() {
                return Err(VideoError::Cancelled.into());
            }
            if *waited + begin.elapsed() > limit {
                return Err(JobError::Lost(format!("it did not answer within {limit:?}")));
            }
        }
    }

    fn read(&mut self, bytes: &mut MediaBytes, offset: u64, len: usize) -> ToWorker {
        self.window.resize(len.min(WINDOW), 0);
        let read = bytes.bytes.seek(SeekFrom::Start(offset)).and_then(|_| bytes.bytes.read(&mut self.window));
        match read.and_then(|n| self.memory.write_window(&self.window[..n]).map(|()| n)) {
            Ok(len) => ToWorker::Bytes { len },
            Err(error) => ToWorker::ReadFailed { detail: error.to_string() },
        }
    }

    /// Sends what may have taken long to come by.
    fn answer(&mut self, message: &ToWorker, options: &DecodeOptions) -> Result<(), JobError> {
        if let ToWorker::ReadFailed { .. } = message
            && let Some(died) = self.died()
        {
            return Err(died);
        }
        if options.cancel.is_cancelled() {
            return Err(VideoError::Cancelled.into());
        }
        self.send(message)
    }

    fn send(&mut self, message: &ToWorker) -> Result<(), JobError> {
        self.link.send(message).map_err(|error| self.obituary(&error))
    }

    /// How the process died, or else what is wrong with it.
    fn obituary(&mut self, error: &io::Error) -> JobError {
        use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        if !matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) {
            return JobError::Lost(error.to_string());
        }
        // A process that is dying closes its socket first; one that only closed it is not waited for.
        for _ in 0..10 {
            if let Some(died) = self.died() {
                return died;
            }
            thread::sleep(PATIENCE);
        }
        JobError::Lost("it hung up".to_string())
    }

    /// Lets the kernel end the process when it has spent `limit` on its next job, and some time in which it should have
    /// noticed by itself. Set anew for each job, and from here, as the process may not.
    fn limit_cpu_time(&self, limit: Duration) -> io::Result<()> {
        let pid = self.pid();
        let allowed = self.cpu_time(pid).saturating_add(limit).saturating_add(CPU_TIME_SLACK).as_secs();
        let Rlimit { maximum, .. } = getrlimit(Resource::Cpu);
        let current = Some(maximum.map_or(allowed, |maximum| allowed.min(maximum)));
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        prlimit(pid, Resource::Cpu, Rlimit { current, maximum })?;
        Ok(())
    }

    /// CPU time the process has spent; where that can't be seen, an upper bound: it has one thread.
    fn cpu_time(&self, pid: u32) -> Duration {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Fields 14 and 15 (proc(5)), in hundredths of a second; the second, in brackets, may hold anything.
        let mut fields = status.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11);
        let mut next = || fields.next()?.parse::<u64>().ok();
        match (next(), next()) {
            (Some(user), Some(system)) => Duration::from_millis(user.saturating_add(system).saturating_mul(10)),
            _ => self.started.elapsed(),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only if it is gone and reaped already.
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn is_impatience(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Starts a process from a thread that stays as long as this process does: the kernel takes the end of the thread that
/// started a process for the death of its parent (prctl(2), PR_SET_PDEATHSIG).
fn spawn_from_lasting_thread(mut command: Command) -> io::Result<Child> {
    type Start = Box<dyn FnOnce() + Send>;
    static STARTS: LazyLock<mpsc::Sender<Start>> = LazyLock::new(|| {
        let (sender, starts) = mpsc::channel::<Start>();
        // Without the thread the sends fail, which is reported there.
        let _ =
            thread::Builder::new().name("decoder-start".into()).spawn(|| starts.into_iter().for_each(|start| start()));
        sender
    });
    let (sender, started) = mpsc::channel();
    let start = Box::new(move || sender.send(command.spawn()).unwrap_or_default());
    let no_thread = || io::Error::other("there is no thread to start decoder processes from");
    STARTS.send(start).map_err(|_| no_thread())?;
    started.recv().map_err(|_| no_thread())?
}
