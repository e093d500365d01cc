//! Feeders: the sets of probes that keep counts current.

use std::{fmt, fs, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf,
    programs::{KProbe, ProgramError, RawTracePoint, TracePoint},
};

use super::{
    BpfError, attach_error,
    prerequisites::{syscall_events, tracefs},
    program,
    returns::ReturnProbe,
};
use crate::host::KernelVersion;

/// A set of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feeder {
    /// No probes: counts are of the last audit.
    None,
    /// Exits of syscalls, and fork, exec and exit: needs neither kprobes nor BPF trampolines.
    Tracepoint,
    /// The functions through which every slot is filled, copied and emptied: nothing is paid by any
    /// other system call.
    Kprobe(CloseHook),
}

/// The function in which the kprobe feeder sees a slot emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseHook {
    /// Linux 6.6 and newer, where `close` doesn't go through `filp_close`.
    FilpFlush,
    /// Older kernels.
    FilpClose,
}

impl CloseHook {
    /// The function's name.
    #[must_use]
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::FilpFlush => "filp_flush",
            Self::FilpClose => "filp_close",
        }
    }
}

impl Feeder {
    /// All that there are, the best first.
    pub(super) const ALL: [Self; 4] = [
        Self::Kprobe(CloseHook::FilpFlush),
        Self::Kprobe(CloseHook::FilpClose),
        Self::Tracepoint,
        Self::None,
    ];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tracepoint => "tracepoint",
            Self::Kprobe(_) => "kprobe",
        }
    }

    /// Whether counts are current at every moment.
    #[must_use]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether the programs count deltas and record no slots.
    pub(super) const fn counts_deltas(self) -> bool {
        matches!(self, Self::Kprobe(_))
    }
}

impl fmt::Display for Feeder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which program follows the exit of which syscalls. What a kernel doesn't have (`memfd_secret`
/// before 5.14, say) is left out.
///
/// A syscall is here if it can fill a slot with a file of a kind that is counted, or copy, replace
/// or empty such a slot.
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
    ("socketpair", &["socketpair"]),
];

/// A program, and where it is attached.
pub(super) struct Probe {
    pub(super) program: &'static str,
    points: Vec<Point>,
}

enum Point {
    /// A raw tracepoint.
    Raw(&'static str),
    /// A perf-style tracepoint: category and event.
    Event(&'static str, String),
    /// A function.
    Function(&'static str),
    /// The return of a function.
    Return(&'static str),
}

impl Probe {
    fn raw(name: &'static str) -> Self {
        Self { program: name, points: vec![Point::Raw(name)] }
    }

    fn event(program: &'static str, category: &'static str, event: &str) -> Self {
        Self { program, points: vec![Point::Event(category, event.to_owned())] }
    }

    fn function(program: &'static str, function: &'static str) -> Self {
        Self { program, points: vec![Point::Function(function)] }
    }

    /// Attaches the program, which is loaded. What is put into `returns` keeps it attached, too.
    pub(super) fn attach(&self, ebpf: &mut Ebpf, returns: &mut Vec<ReturnProbe>) -> Result<(), BpfError> {
        let name = self.program;
        for point in &self.points {
            let attached = match point {
                Point::Raw(event) => program::<RawTracePoint>(ebpf, name)?.attach(event).map(drop),
                Point::Event(category, event) => {
                    program::<TracePoint>(ebpf, name)?.attach(category, event).map(drop)
                }
                Point::Function(function) => program::<KProbe>(ebpf, name)?.attach(function, 0).map(drop),
                Point::Return(function) => attach_return(program(ebpf, name)?, function, returns),
            };
            attached.map_err(|e| attach_error(name, e))?;
        }
        Ok(())
    }
}

/// Attaches a program to all returns of a function; or, where tracefs can't be written, to as many
/// as the kernel follows by itself.
fn attach_return(
    program: &mut KProbe,
    function: &'static str,
    returns: &mut Vec<ReturnProbe>,
) -> Result<(), ProgramError> {
    match ReturnProbe::attach(program.fd()?.as_fd(), function) {
        Ok(probe) => {
            returns.push(probe);
            Ok(())
        }
        Err(error) => {
            tracing::warn!(function, %error, "tracefs takes no event of this agent's: a busy machine may skip some of this function's returns, for audits to find");
            program.attach(function, 0).map(drop)
        }
    }
}

/// What a feeder consists of, in the order in which it is attached: first what ends tables, then
/// what begins them, so that a table which is recorded at an open is followed to its end.
pub(super) fn probes(feeder: Feeder, kernel: KernelVersion) -> Result<Vec<Probe>, BpfError> {
    let mut probes = Vec::new();
    match feeder {
        Feeder::None => {}
        Feeder::Tracepoint => {
            let events = syscall_events()?;
            probes.push(Probe::raw("cgroup_attach_task"));
            // Linux 7.0 made raw tracepoints preemptible (kernel: __DECLARE_TRACE), which this
            // program can't be.
            if !kernel.at_least(7, 0) {
                probes.push(Probe::raw("sched_process_fork"));
            }
            probes.extend(LIFECYCLE.map(|name| Probe::event(name, "sched", name)));
            probes.extend(io_uring()?);
            probes.extend(syscalls(&events));
        }
        Feeder::Kprobe(close) => {
            tracefs()?;
            probes.push(Probe::raw("cgroup_attach_task"));
            probes.extend(LIFECYCLE.map(|name| Probe::event(name, "sched", name)));
            probes.push(Probe::function("filp_close", close.symbol()));
            // A table is born before anything is put into it.
            probes.push(Probe::function("wake_up_new_task", "wake_up_new_task"));
            probes.push(Probe { program: "dup_fd", points: vec![Point::Return("dup_fd")] });
            probes.extend(["do_dup2", "fd_install"].map(|name| Probe::function(name, name)));
        }
    }
    Ok(probes)
}

/// What both feeders need: the ends of processes, and their execs.
const LIFECYCLE: [&str; 2] = ["sched_process_exit", "sched_process_exec"];

/// The two events of io_uring that matter, where the kernel has io_uring.
fn io_uring() -> Result<impl Iterator<Item = Probe>, BpfError> {
    let events = tracefs()?.join("events").join(IO_URING);
    let pairs = [("io_uring_complete", "io_uring_complete"), ("io_uring_submit", io_uring_submit(&events))];
    let here = pairs.into_iter().filter(move |(_, event)| events.join(event).exists());
    Ok(here.map(|(program, event)| Probe::event(program, IO_URING, event)))
}

fn syscalls(events: &Path) -> impl Iterator<Item = Probe> {
    SYSCALLS.iter().rev().map(|(program, syscalls)| {
        let here = syscalls.iter().map(|syscall| format!("sys_exit_{syscall}")).filter(|event| {
            let here = events.join(event).exists();
            if !here {
                tracing::debug!(event, "this kernel has no such syscall");
            }
            here
        });
        Probe { program, points: here.map(|event| Point::Event("syscalls", event)).collect() }
    })
}

const IO_URING: &str = "io_uring";

/// The event of a submission, which Linux 6.4 renamed.
fn io_uring_submit(events: &Path) -> &'static str {
    let new = "io_uring_submit_req";
    if events.join(new).exists() { new } else { "io_uring_submit_sqe" }
}

/// Where the opcode is in a submission's record, and the result in a completion's; 0 where there is
/// none.
pub(super) fn io_uring_offsets() -> (u64, u64) {
    let Ok(tracefs) = tracefs() else { return (0, 0) };
    let events = tracefs.join("events").join(IO_URING);
    let offset = |event: &str, field| {
        let format = fs::read_to_string(events.join(event).join("format")).unwrap_or_default();
        field_offset(&format, field).unwrap_or(0)
    };
    (offset(io_uring_submit(&events), "opcode"), offset("io_uring_complete", "res"))
}

/// Where a field is in an event's record: `field:int res; offset:32; size:4; signed:1;`.
fn field_offset(format: &str, field: &str) -> Option<u64> {
    let line = format.lines().find(|line| {
        let declaration = line.trim().strip_prefix("field:").and_then(|rest| rest.split(';').next());
        declaration.is_some_and(|text| text.rsplit(' ').next() == Some(field))
    })?;
    line.split("offset:").nth(1)?.split(';').next()?.parse().ok()
}

/// Attaches what follows fanotify's reads: only once somebody uses it, because every other `read`
/// pays for it.
pub(super) fn attach_read(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    let probe: &mut TracePoint = program(ebpf, "read")?;
    probe.load().map_err(|e| attach_error("read", e))?;
    probe.attach("syscalls", "sys_exit_read").map_err(|e| attach_error("read", e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn fields_are_found_in_a_format() {
        let format = "format:\n\tfield:void * ctx;\toffset:8;\tsize:8;\tsigned:0;\n\tfield:int res;\toffset:32;\tsize:4;\tsigned:1;\n";
        assert_eq!(field_offset(format, "res"), Some(32));
        assert_eq!(field_offset(format, "ctx"), Some(8));
        assert_eq!(field_offset(format, "opcode"), None);
    }

    #[test]
    fn no_syscall_is_followed_twice() {
        let all: Vec<_> = SYSCALLS.iter().flat_map(|(_, syscalls)| syscalls.iter()).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
