//! Audits: what user space tells the programs, and what they answer.

use super::tag::Tag;

/// What an iterator saw of a table, in sums: if they are those of what is recorded, so are the
/// slots, but for a chance of one in 2⁶⁴.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Sums {
    /// Address of the first task that has the table: the slots of others are the same ones.
    pub task: u64,
    /// Address of the last file.
    pub file: u64,
    /// The sum of [`slot_sum`] over its slots.
    pub slots: u64,
    /// The sum of [`kind_sum`] over its slots.
    pub kinds: u64,
    /// [`SEEN_IN_CGROUP`] and [`SEEN_IN_TGID`].
    pub users: u64,
}

/// Bit of [`Sums::users`]: a task that has the table is in the cgroup that this is charged to.
pub const SEEN_IN_CGROUP: u64 = 1;

/// Bit of [`Sums::users`]: a task that has the table is in the thread group that this is listed
/// under.
pub const SEEN_IN_TGID: u64 = 2;

/// Stands for a slot and what it holds, in a sum.
#[must_use]
#[inline]
pub const fn slot_sum(fd: u32, tag: Tag) -> u64 {
    if tag.0 == Tag::EMPTY.0 { 0 } else { mix(fd as u64, tag.0) }
}

/// Stands for a kind, in a sum.
#[must_use]
#[inline]
pub const fn kind_sum(index: u64) -> u64 {
    mix(index, 1)
}

/// Makes one number of two. Other numbers give another one, and so do the same two the other way
/// round.
#[inline]
const fn mix(a: u64, b: u64) -> u64 {
    let mut hash = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b;
    hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ hash >> 32
}

/// Value of the map `CONTROL`, which has one entry: what user space tells the programs while they
/// run.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Control {
    /// Number of the audit pass under way.
    pub pass: u32,
    /// 1 once what was open before the feeder was attached has been counted: a table without an
    /// entry has nothing to count.
    pub adopted: u32,
    /// What the iterator is to do: a [`walk`] code.
    pub walk: u32,
    /// Always 0.
    pub pad: u32,
    /// The table of which the iterator wrote the last record.
    pub last: u64,
}

/// Codes of [`Control::walk`].
pub mod walk {
    /// Add up the slots of tables that have an entry ([`Sums`](crate::Sums)), and write those of
    /// others.
    pub const SUMS: u32 = 0;
    /// Write one slot of each table, and all that no program's scan reaches.
    pub const TABLES: u32 = 1;
    /// Write every slot.
    pub const SLOTS: u32 = 2;
}

/// What the iterator writes for a slot that holds a file that is counted.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileRecord {
    /// Address of the `files_struct`.
    pub files: u64,
    /// Address of the `task_struct`.
    pub task: u64,
    /// Address of the `struct file`. Not a [`Tag`]: to the verifier of an iterator it is a pointer,
    /// with which it allows no arithmetic.
    pub file: u64,
    /// Id of the task's cgroup.
    pub cgroup_id: u64,
    /// Index of the file's kind.
    pub kind: u64,
    /// Thread group, in the initial pid namespace.
    pub tgid: u32,
    /// The fd number.
    pub fd: u32,
}

/// Index into the array `REMOVALS`: removals from `TABLES` that have begun. A walk of the map
/// during which none begins, and none was under way, sees every entry that was there all the time.
pub const REMOVALS_BEGUN: u32 = 0;

/// Index into the array `REMOVALS`: those that are done.
pub const REMOVALS_DONE: u32 = 1;

/// Bits of the `mode` in which slots are read again.
pub mod mode {
    /// Emit no [`SlotEvent`](crate::SlotEvent): one [`TableEvent`](crate::TableEvent) stands for
    /// the whole table.
    pub const QUIET: u32 = 1;
    /// Leave [`Flow`](crate::Flow) alone: the slot was filled before the agent came.
    pub const ADOPT: u32 = 2;
    /// The agent runs the program on behalf of another task: `current` is not the table's user.
    pub const REMOTE: u32 = 4;
    /// Count the table anew: its numbers don't agree with the slots that are recorded.
    pub const RECOUNT: u32 = 8;
    /// The auditor asks: it looks after fds above [`MAX_SCANNED_FDS`](crate::MAX_SCANNED_FDS) by
    /// itself.
    pub const AUDIT: u32 = 16;
    /// Count into the map `MEASURED`, and change nothing.
    pub const MEASURE: u32 = 32;
    /// What is added to the table isn't exact, because the table didn't keep still: mark it stale.
    pub const INEXACT: u32 = 64;
}

/// Operations of the program `resync`, its first argument.
pub mod resync {
    /// Reads every slot of a table again. Further arguments: files, the generation that the table
    /// had (0: it isn't recorded), [`mode`](crate::mode), the address of a task that has it, the
    /// cgroup id and the tgid that are recorded and that none of its users has (0: one has), and an
    /// fd. Returns how many slots changed, or [`REFUSED`] if the table is another by now.
    pub const SCAN: u64 = 1;
    /// Forgets a table that is no more. Further arguments: files, generation, seq. Returns 1, or 0
    /// if it moved.
    pub const FORGET: u64 = 2;
    /// Reads the fd's slot again. Else as [`SCAN`].
    pub const SLOT: u64 = 3;
    /// Leaves in the map `MEASURED` what a table's slots hold, less what is counted. Argument:
    /// files. Returns 1, or 0 if the table moved meanwhile.
    pub const MEASURE: u64 = 4;
    /// Adds what is in the map `MEASURED` to a table, which is exact then. Arguments as for
    /// [`SCAN`]. Returns 1, or [`REFUSED`].
    pub const ADJUST: u64 = 5;
    /// Forgets a slot of a table that is no more. Further arguments: files, generation, fd.
    pub const FORGET_SLOT: u64 = 6;
    /// Forgets what a cgroup counted. Further argument: its id.
    pub const FORGET_FLOW: u64 = 7;
    /// Compares a slot with what is recorded of it. Arguments: files, fd. Returns 0 if they are the
    /// same.
    pub const COMPARE_SLOT: u64 = 8;

    /// For the generation: any.
    pub const ANY: u64 = u64::MAX;

    /// The table is another than it was, or its last task has begun to exit.
    pub const REFUSED: u32 = u32::MAX;
}
