//! The process as the kernel sees it: files that it may open, and what it uses.

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, page_size, ticks_per_second};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

use crate::metrics::ProcessGauges;

/// Files that a process has open whatever it serves: libraries and models, the log, sockets of its runtime, the HTTP port's
/// connections.
const FILES_OF_PROCESS: usize = 192;

/// How many of `wanted` connections can be open beside `files` files of videos and decoders. Lets the process open as many
/// files as it may at most.
pub fn connections(wanted: usize, files: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        info!(%error, "the limit of open files can't be raised");
    }
    let open_files = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    let connections = fitting(wanted, files + FILES_OF_PROCESS, open_files);
    if connections < wanted {
        warn!(
            connections,
            wanted, open_files, "fewer connections are taken than wanted: the process may not open more files"
        );
    }
    connections
}

/// At least an eighth of all files are for connections.
fn fitting(wanted: usize, files: usize, open_files: usize) -> usize {
    wanted.min(open_files.saturating_sub(files).max(open_files / 8)).max(1)
}

/// What the process uses now.
pub(super) fn read() -> ProcResult<ProcessGauges> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let seconds = |ticks: u64| ticks as f64 / ticks_per_second() as f64;
    let max_files = match process.limits()?.max_open_files.soft_limit {
        LimitValue::Unlimited => None,
        LimitValue::Value(limit) => Some(limit),
    };
    Ok(ProcessGauges {
        cpu_seconds: seconds(stat.utime + stat.stime),
        open_files: process.fd_count()?,
        max_files,
        resident_bytes: stat.rss * page_size(),
        virtual_bytes: stat.vsize,
        start_seconds: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn connections_leave_files_to_videos_but_never_all() {
        assert_eq!(fitting(1024, 500, 1_000_000), 1024);
        assert_eq!(fitting(1024, 500, 1024), 524);
        assert_eq!(fitting(1024, 500, 256), 32);
        assert_eq!(fitting(1024, 500, 4), 1);
    }

    #[test]
    fn what_the_process_uses_is_read() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let used = read().unwrap();
        assert!(used.open_files >= 3 && used.max_files.is_none_or(|max| max as usize >= used.open_files), "{used:?}");
        assert!(used.resident_bytes > 1 << 20 && used.virtual_bytes >= used.resident_bytes, "{used:?}");
        assert!(used.start_seconds > 1e9 && used.start_seconds < now + 2.0, "{used:?}");
    }
}
