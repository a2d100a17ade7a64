//! Locks a decoder process in: no network, no files, no other processes, little memory.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Gives up every right that decoding does not need. What the kernel lacks is named in the answer, and the rest is done.
/// `closed` is what [`close_inherited_files`] came to.
pub(super) fn enter(max_memory: u64, closed: Result<(), String>) -> Vec<String> {
    let mut missing = Vec::new();
    let mut note = |what: &str, result: Result<(), String>| {
        if let Err(error) = result {
            missing.push(format!("{what} ({error})"));
        }
    };
    note("closing of inherited files", closed);
    note("resource limits", limit_resources(max_memory));
    note("death with the parent", die_with_parent());
    note("landlock", restrict_files_and_network());
    // The last, as it also forbids the calls that the others need.
    note("seccomp", restrict_system_calls());
    missing
}

/// Closes what the owner had open when it started this process, but for standard input, output and error: not everything
/// in a large program marks its files to be closed. To be called before this process opens anything. Here and not between
/// fork and exec, for which the kernel would have to copy the tables of all the owner's memory; until now, this process has
/// read nothing that a stranger wrote.
#[allow(unsafe_code)]
pub(super) fn close_inherited_files() -> Result<(), String> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: nothing in this process owns a descriptor yet, as the caller promises, so nothing uses one that is closed here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().to_string()) }
}

fn limit_resources(max_memory: u64) -> Result<(), String> {
    let limits = [
        (Resource::As, max_memory),
        // Standard input, output, error and a copy of the first two; FFmpeg opens nothing.
        (Resource::Nofile, 16),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(resource, limit).map_err(|error| format!("{resource:?}: {error}"))?;
    }
    Ok(())
}

fn die_with_parent() -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| error.to_string())?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| error.to_string())
}

fn restrict_files_and_network() -> Result<(), String> {
    const NEWEST: ABI = ABI::V6;
    let RestrictionStatus { ruleset, landlock, .. } = (|| {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .restrict_self()
    })()
    .map_err(|error| error.to_string())?;
    match (ruleset, landlock) {
        (RulesetStatus::FullyEnforced, _) => Ok(()),
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
            Err(missing_of_landlock(effective_abi))
        }
        _ => Err("not in this kernel".to_string()),
    }
}

/// What a kernel with an older Landlock does not forbid. The filter of system calls forbids all of it too.
fn missing_of_landlock(kernel: ABI) -> String {
    let parts = [
        (ABI::V2, "moving files between directories"),
        (ABI::V3, "truncating files"),
        (ABI::V4, "TCP"),
        (ABI::V5, "control of devices"),
        (ABI::V6, "signals and abstract sockets of other processes"),
    ];
    let missing: Vec<_> = parts.iter().filter(|(since, _)| kernel < *since).map(|(_, what)| *what).collect();
    format!("this kernel's does not cover {}", missing.join(", "))
}

/// What decoding in one thread, talking over the socket and the memory file, and ending need. Everything else fails
/// with EPERM: no file, socket, process or thread can be made.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Allowed for memory that is not executable.
const ALLOWED_WITHOUT_EXECUTION: &[i64] = &[libc::SYS_mmap, libc::SYS_mprotect];

fn restrict_system_calls() -> Result<(), String> {
    let program = system_call_filter().map_err(|error| error.to_string())?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| error.to_string())
}

fn system_call_filter() -> Result<BpfProgram, Box<dyn std::error::Error>> {
    let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    let not_executable = SeccompCondition::new(2, SeccompCmpArgLen::Dword, executable, 0)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    for &call in ALLOWED_WITHOUT_EXECUTION {
        rules.insert(call, vec![SeccompRule::new(vec![not_executable.clone()])?]);
    }
    // A process that aborts sends itself a signal. It may not send any to others, such as its owner.
    let own = u64::from(std::process::id());
    let to_itself = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![to_itself])?]);
    let otherwise = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};
    use std::thread;

    /// A process that waits until it is dropped.
    struct Other(Child);

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Asks whether a signal could be sent; sends none.
    fn can_signal(process: i32, thread: i32) -> Result<(), Option<i32>> {
        // SAFETY: signal 0 does nothing to anybody.
        let result = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error()) }
    }

    #[test]
    fn signals_reach_the_process_itself_and_no_other() {
        let other = Other(Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat is everywhere"));
        let pid = other.0.id() as i32;
        assert_eq!(can_signal(pid, pid), Ok(()), "without a filter");
        // The filter holds for the thread that applies it only.
        let locked_in = thread::spawn(move || {
            seccompiler::apply_filter(&system_call_filter().expect("a filter")).expect("applied");
            // SAFETY: a number that the kernel always has.
            let own_thread = unsafe { libc::gettid() };
            (can_signal(std::process::id() as i32, own_thread), can_signal(pid, pid))
        });
        assert_eq!(locked_in.join().expect("no panic"), (Ok(()), Err(Some(libc::EPERM))));
    }

    #[test]
    fn older_landlock_is_named_with_what_it_does_not_cover() {
        assert_eq!(
            missing_of_landlock(ABI::V5),
            "this kernel's does not cover signals and abstract sockets of other processes"
        );
        assert!(missing_of_landlock(ABI::V1).contains("TCP"));
    }
}
