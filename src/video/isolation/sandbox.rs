//! Locks a decoder process in: no network, no files, no other processes, little memory.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, setrlimit};
use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

/// Gives up every right that decoding does not need. What the kernel lacks is named in the answer, and the rest is done.
pub(super) fn enter(max_memory: u64) -> Vec<String> {
    let mut missing = Vec::new();
    let mut note = |what: &str, result: Result<(), String>| {
        if let Err(error) = result {
            missing.push(format!("{what} ({error})"));
        }
    };
    note("resource limits", limit_resources(max_memory));
    note("death with the parent", die_with_parent());
    note("landlock", restrict_files_and_network());
    // The last, as it also forbids the calls that the others need.
    note("seccomp", restrict_system_calls());
    missing
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
    let status = (|| {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .restrict_self()
    })()
    .map_err(|error| error.to_string())?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("not in this kernel".to_string()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
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
    libc::SYS_tgkill,
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
    (|| -> Result<(), Box<dyn std::error::Error>> {
        let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        let not_executable = SeccompCondition::new(2, SeccompCmpArgLen::Dword, executable, 0)?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
        for &call in ALLOWED_WITHOUT_EXECUTION {
            rules.insert(call, vec![SeccompRule::new(vec![not_executable.clone()])?]);
        }
        let otherwise = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
        let program: seccompiler::BpfProgram = filter.try_into()?;
        seccompiler::apply_filter_all_threads(&program)?;
        Ok(())
    })()
    .map_err(|error| error.to_string())
}
