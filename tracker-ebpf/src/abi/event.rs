//! Records of the ring `EVENTS`, and the codes of [`Header::event`].

use super::tag::Tag;
use crate::Kind;

/// Bytes in a task's `comm`, its terminating NUL included (kernel: `TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// [`SlotEvent`]: open, dup, receipt over a socket, …
pub const OPENED: u32 = 1;
/// [`SlotEvent`]: close, or another file took the slot.
pub const CLOSED: u32 = 2;
/// [`TableEvent`]: a child's table was born with these.
pub const FORKED: u32 = 3;
/// [`TableEvent`]: what close-on-exec left.
pub const EXECED: u32 = 4;
/// [`TableEvent`]: the table went with its last process.
pub const EXITED: u32 = 5;
/// [`TableEvent`]: `unshare` or `close_range` gave the task a table of its own.
pub const UNSHARED: u32 = 6;
/// [`TableEvent`]: a process was moved; `cgroup_id` is the new cgroup.
pub const MOVED: u32 = 7;
/// A [`TableEvent`], or its first word: an audit request. There may be a change that no probe can
/// see.
pub const AUDIT_REQUEST: u32 = 8;

/// The head of every record.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    /// The code of the event: one of this module's.
    pub event: u32,
    /// Thread group of the task that caused it, in the initial pid namespace.
    pub tgid: u32,
    /// Thread that caused it.
    pub pid: u32,
    /// The fd of a [`SlotEvent`], or [`NO_FD`]; 0 in a [`TableEvent`].
    pub fd: u32,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// Address of the `files_struct`.
    pub files: u64,
    /// [`Table::cgroup_id`](crate::Table::cgroup_id).
    pub cgroup_id: u64,
    /// Name of the thread group's task that caused it; empty when an audit found the change.
    pub comm: [u8; COMM_LEN],
}

/// [`Header::fd`] of a slot whose number isn't known: the hook of the kprobe feeder that sees a
/// slot emptied is given the file and the table only.
pub const NO_FD: u32 = u32::MAX;

/// One slot came to hold a file that is counted, or ceased to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SlotEvent {
    /// The head; `event` is [`OPENED`] or [`CLOSED`].
    pub header: Header,
    /// The file.
    pub tag: Tag,
}

/// Something happened to a whole table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TableEvent {
    /// The head.
    pub header: Header,
    /// Slots per kind: after a fork, an exec or an unshare those that the table has now, at an exit
    /// those that it had.
    pub n: [u32; Kind::COUNT],
}
