//! This process: what others on the machine can get of it.

/// To be called first of all, by every program that holds keys or log lines in clear.
///
/// Nothing of its memory is left behind should it crash: no core dump is written, and none is piped to a
/// handler either (core(5): a piped `core_pattern` does not heed the limit, but a process that is not dumpable is
/// not dumped at all). Other processes of the same user can then not read its memory or attach to it. What it makes
/// is for its owner alone: who wants another mode sets it. And where the limit of locked memory is
/// unlimited (`LimitMEMLOCK=infinity`), none of its memory is written to swap.
pub fn close_to_others() {
    #[cfg(unix)]
    {
        use rustix::fs::Mode;
        use rustix::process::{Resource, Rlimit, setrlimit, umask};
        umask(Mode::RWXG | Mode::RWXO);
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        if let Err(error) = setrlimit(Resource::Core, none) {
            tracing::warn!(%error, "core dumps cannot be refused");
        }
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "the memory of this process cannot be closed to others of the same user");
        }
        lock_memory();
    }
}

/// Keeps all memory out of swap, where that cannot make an allocation fail later: a limit that is not unlimited
/// would be reached in the middle of the work, and then memory is refused. Pages are locked when they
/// are first used, so it costs no memory.
#[cfg(target_os = "linux")]
fn lock_memory() {
    use rustix::mm::{MlockAllFlags, mlockall};
    use rustix::process::{Resource, getrlimit};
    if getrlimit(Resource::Memlock).current.is_some() {
        tracing::debug!("memory may be swapped: the limit of locked memory is not unlimited");
        return;
    }
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(all) {
        tracing::debug!(%error, "memory may be swapped: it cannot be locked");
    }
}

/// Lets this process open as many files at once as it ever may: the soft limit is often 1,024, for programs that
/// use `select`.
pub fn raise_descriptors() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if limit.current != limit.maximum
            && let Err(error) = setrlimit(Resource::Nofile, raised)
        {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
}

/// How many files this process may have open at once; `None` when nothing limits it.
#[must_use]
pub fn descriptors_max() -> Option<u64> {
    #[cfg(unix)]
    return rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(unix))]
    None
}

/// Signals that end a process which says nothing of them, and mean nothing to ours: who sends one to all of a
/// group, or takes us for another program, must not end the collection (signal(7)). Both programs handle them.
#[cfg(unix)]
pub const HARMLESS_SIGNALS: [i32; 5] = {
    use rustix::process::Signal;
    [
        Signal::USR1.as_raw(),
        Signal::USR2.as_raw(),
        Signal::PIPE.as_raw(),
        Signal::ALARM.as_raw(),
        Signal::WINCH.as_raw(),
    ]
};
/// How many files this process has open; `None` where the system does not say.
#[must_use]
pub fn descriptors_used() -> Option<u64> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?;
    // The look is one of them.
    u64::try_from(open.count().saturating_sub(1)).ok()
}

/// Whether something failed because this process, or the system, has no file descriptor left: that says nothing
/// of the file.
#[must_use]
pub fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let code = error.raw_os_error();
        code == Some(Errno::MFILE.raw_os_error()) || code == Some(Errno::NFILE.raw_os_error())
    }
    #[cfg(not(unix))]
    {
        let _other = error;
        false
    }
}
