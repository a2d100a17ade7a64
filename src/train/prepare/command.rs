//! One run of the `ffmpeg` command, which ends with this process.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, getppid, kill_process_group, set_parent_process_death_signal};
use tokio_util::sync::CancellationToken;

/// How a command ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// The first lines of what it complained of.
    pub(super) words: String,
}

/// Runs `command` until it ends or `stop` is cancelled, which kills it. It holds `lock` as long as it lives.
///
/// It is in a process group of its own, so that an interrupt from a terminal reaches this process alone. The kernel kills it when
/// the thread that runs this function ends, which is never before the function does, but for the end of the process.
pub(super) fn run(mut command: Command, lock: File, stop: &CancellationToken) -> io::Result<Ended> {
    /// Time between two looks at the command, short beside the time for a video.
    const GLANCE: Duration = Duration::from_millis(10);

    let parent = getpid();
    let die_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before it was asked to tell.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: between fork and exec this makes two system calls (prctl, getppid) and allocates nothing.
    unsafe { command.pre_exec(die_with_parent) };
    // With -nostdin, FFmpeg doesn't look at its standard input: there the lock's file is out of the way.
    let mut child = command.process_group(0).stdin(lock).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let stderr = child.stderr.take().expect("it is piped");
    std::thread::scope(|scope| {
        let words = scope.spawn(|| first_lines(stderr));
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if stop.is_cancelled() {
                break end(&mut child)?;
            }
            std::thread::sleep(GLANCE);
        };
        Ok(Ended { status, words: words.join().expect("reading does not panic") })
    })
}

/// Kills a command and what it started itself, as scripts around FFmpeg do.
fn end(child: &mut Child) -> io::Result<ExitStatus> {
    kill_process_group(Pid::from_child(child), Signal::KILL)?;
    child.wait()
}

/// The first of FFmpeg's words; a damaged file makes it say thousands, which are read so that it does not wait.
fn first_lines(mut stderr: impl Read) -> String {
    const KEPT: usize = 64 << 10;
    let mut words = Vec::new();
    // What can't be read was not said.
    let _ = stderr.by_ref().take(KEPT as u64).read_to_end(&mut words);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&words).trim().lines().take(3).collect::<Vec<_>>().join("; ")
}
