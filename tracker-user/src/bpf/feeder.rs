//! Feeders: the sets of probes that keep counts current.

use std::{fmt, path::Path};

use aya::{
    Ebpf,
    programs::{RawTracePoint, TracePoint},
};

use super::{BpfError, attach_error, program};
use crate::host::KernelVersion;

/// A set of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feeder {
    /// No probes: counts are of the last audit.
    None,
    /// Exits of syscalls, and fork, exec and exit: needs neither kprobes nor BPF trampolines.
    Tracepoint,
}

impl fmt::Display for Feeder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Tracepoint => "tracepoint",
        })
    }
}

/// Which program follows the exit of which syscalls. What a kernel doesn't have (`memfd_secret` before 5.14, say) is left out.
///
/// A syscall is here if it can fill a slot with a file of a kind that is counted, or copy, replace or empty such a slot.
const SYSCALLS: &[(&str, &[&str])] = &[
    (
        "returns_fd",
        &[
            "accept",
            "accept4",
            "bpf",
            "creat",
            "dup",
            "dup2",
            "dup3",
            "epoll_create",
            "epoll_create1",
            "eventfd",
            "eventfd2",
            "fanotify_init",
            "fsopen",
            "fspick",
            "inotify_init",
            "inotify_init1",
            "io_uring_setup",
            "landlock_create_ruleset",
            "memfd_secret",
            "mq_open",
            "open",
            "open_by_handle_at",
            "openat",
            "openat2",
            "perf_event_open",
            "pidfd_getfd",
            "pidfd_open",
            "seccomp",
            "signalfd",
            "signalfd4",
            "socket",
            "timerfd_create",
            "userfaultfd",
        ],
    ),
    ("fcntl", &["fcntl"]),
    ("ioctl", &["ioctl"]),
    ("close", &["close"]),
    ("close_range", &["close_range"]),
    ("unshare", &["unshare"]),
    ("fork", &["fork", "vfork"]),
    ("clone", &["clone"]),
    ("clone3", &["clone3"]),
    ("getsockopt", &["getsockopt"]),
    ("recvmsg", &["recvmsg"]),
    ("recvmmsg", &["recvmmsg"]),
];

/// How much of a feeder to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Each program once: enough to know that the kernel takes it. The kernel needs some 80 ms to detach from each syscall.
    Sample,
}

/// Loads and attaches the tracepoint feeder.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    kernel: KernelVersion,
    tracefs: &Path,
    extent: Extent,
) -> Result<(), BpfError> {
    // What ends tables before what begins them: a table that is met by an open is then followed to its end.
    let mut raw = vec!["cgroup_attach_task"];
    // Linux 7.0 made raw tracepoints preemptible (kernel: __DECLARE_TRACE), which this program can't be.
    if !kernel.at_least(7, 0) {
        raw.push("sched_process_fork");
    }
    for name in raw {
        let probe: &mut RawTracePoint = program(ebpf, name)?;
        probe.load().map_err(|e| attach_error(name, e))?;
        probe.attach(name).map_err(|e| attach_error(name, e))?;
    }
    for name in ["sched_process_exit", "sched_process_exec"] {
        let probe: &mut TracePoint = program(ebpf, name)?;
        probe.load().map_err(|e| attach_error(name, e))?;
        probe.attach("sched", name).map_err(|e| attach_error(name, e))?;
    }
    for (name, syscalls) in SYSCALLS.iter().rev() {
        let probe: &mut TracePoint = program(ebpf, name)?;
        probe.load().map_err(|e| attach_error(name, e))?;
        for syscall in *syscalls {
            let event = format!("sys_exit_{syscall}");
            if !tracefs.join("events/syscalls").join(&event).exists() {
                tracing::debug!(syscall, "this kernel has no such syscall");
                continue;
            }
            probe.attach("syscalls", &event).map_err(|e| attach_error(name, e))?;
            if extent == Extent::Sample {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_syscall_is_followed_twice() {
        let all: Vec<_> = SYSCALLS.iter().flat_map(|(_, syscalls)| syscalls.iter()).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
