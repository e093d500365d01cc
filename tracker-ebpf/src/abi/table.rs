//! What is recorded of fd tables, slots and cgroups.

use super::audit::Sums;
use crate::Kind;

/// fds of one table that a program scans. A table with more room is marked [`TABLE_STALE`].
pub const MAX_SCANNED_FDS: u32 = 65_536;

/// Value of the map `TABLES`, whose key is the address of a `files_struct`: one fd table.
///
/// An entry is made when a table first has something to count, and goes with the table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Table {
    /// Slots per kind, now. Signed: the kprobe feeder's deltas may come before the audit that
    /// adopts the slots which they are taken from.
    pub n: [i64; Kind::COUNT],
    /// Moves with every change of `n`.
    pub seq: u64,
    /// Tells this table from an earlier one at the same address.
    pub generation: u64,
    /// Id (kernfs node) of the cgroup that the table is charged to.
    pub cgroup_id: u64,
    /// Thread group of a task that uses the table: the last that changed a slot, or that an audit
    /// saw.
    pub tgid: u32,
    /// The last audit pass that visited the table ([`Control::pass`](crate::Control::pass)).
    pub visited: u32,
    /// One more than the highest fd ever recorded.
    pub high_fd: u32,
    /// [`TABLE_STALE`], [`TABLE_URING`], [`TABLE_URING_CLOSES`].
    pub flags: u32,
    /// The sum of [`slot_sum`](crate::slot_sum) over what is recorded of its slots (tracepoint
    /// feeder).
    pub slots: u64,
    /// What the audit pass [`visited`](Self::visited) saw.
    pub sums: Sums,
}

impl Table {
    /// A table with nothing recorded.
    pub const EMPTY: Self = Self {
        n: [0; Kind::COUNT],
        seq: 0,
        generation: 0,
        cgroup_id: 0,
        tgid: 0,
        visited: 0,
        high_fd: 0,
        flags: 0,
        slots: 0,
        sums: Sums { task: 0, file: 0, slots: 0, kinds: 0, users: 0 },
    };
}

/// Flag of [`Table`]: a change could not be recorded; `n` is not exact until an audit repaired it.
pub const TABLE_STALE: u32 = 1;

/// Flag of [`Table`]: an io_uring of a user of the table has filled slots (tracepoint feeder).
pub const TABLE_URING: u32 = 2;

/// Flag of [`Table`]: an io_uring of a user of the table has emptied slots (tracepoint feeder).
pub const TABLE_URING_CLOSES: u32 = 4;

/// Key of the map `SLOTS`, whose value is a [`Tag`](crate::Tag): what the tracepoint feeder has
/// counted for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Slot {
    /// Address of the `files_struct`.
    pub files: u64,
    /// [`Table::generation`].
    pub generation: u64,
    /// The fd number.
    pub fd: u32,
    /// Always 0.
    pub pad: u32,
}

/// Value of the map `FLOWS`, whose key is a cgroup id: slots that came to hold a file of a kind,
/// and that ceased to, since the agent started. Inheritance by fork and loss by exec and exit are
/// included. What was open before the agent started isn't counted as filled, but as emptied when it
/// is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Flow {
    /// Slots filled, per kind.
    pub opened: [u64; Kind::COUNT],
    /// Slots emptied, per kind.
    pub closed: [u64; Kind::COUNT],
}
