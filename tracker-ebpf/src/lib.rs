//! The contract between the BPF programs and user space: kinds, map keys and values, events.
//!
//! Both sides compile this file, so a layout can't drift apart. It is `no_std`, has no dependency, and
//! does nothing: the programs are in the bin target (`main.rs`), their loader in `tracker-user/src/bpf`.
//!
//! The truth that users read is [`Table::n`], in the map `TABLES`. Events are notifications: a full ring loses
//! events, never counts.
#![no_std]

pub mod classify;
mod kind;

pub use kind::{ANON_INODES, Kind};

/// Bytes in a task's `comm`, its terminating NUL included (kernel: `TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// Bytes of an anonymous inode's name that are compared.
pub const ANON_NAME_LEN: usize = 24;

/// fds of one table that a scan looks at. A table with more room is marked [`TABLE_STALE`].
pub const MAX_SCANNED_FDS: u32 = 65_536;

/// Which file fills a slot, and its [`Kind`]: the kind's index + 1 in the top byte, the address of the
/// `struct file` in the rest (the top byte of a kernel address is constant). 0 is a slot with nothing to count.
///
/// One word, so that what is recorded of a slot changes as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Tag(pub u64);

impl Tag {
    /// A slot that holds nothing to count.
    pub const EMPTY: Self = Self(0);

    const FILE_BITS: u32 = 56;

    /// The tag of the file at this address, whose kind has this index.
    #[must_use]
    #[inline]
    pub const fn new(kind_index: u64, file: u64) -> Self {
        Self((kind_index + 1) << Self::FILE_BITS | file & ((1 << Self::FILE_BITS) - 1))
    }

    /// The file's identity for as long as it is open: its address without the top byte.
    #[must_use]
    #[inline]
    pub const fn file(self) -> u64 {
        self.0 & ((1 << Self::FILE_BITS) - 1)
    }

    /// The index of the file's kind. Out of range (`usize::MAX`) for an empty slot.
    #[must_use]
    #[inline]
    pub const fn kind_index(self) -> usize {
        ((self.0 >> Self::FILE_BITS) as usize).wrapping_sub(1)
    }

    /// The file's kind; `None` for an empty slot.
    #[must_use]
    pub fn kind(self) -> Option<Kind> {
        Kind::from_index(self.kind_index())
    }
}

/// Value of the map `TABLES`, whose key is the address of a `files_struct`: one fd table.
///
/// An entry is made when a table first has something to count, and goes with the table.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Table {
    /// Slots per kind, now. Signed: the kprobe feeder's edges may arrive before the base that they add to.
    pub n: [i64; Kind::COUNT],
    /// Moves with every change of `n`.
    pub seq: u64,
    /// Tells this table from an earlier one at the same address.
    pub generation: u64,
    /// Id (kernfs node) of the cgroup that the table is charged to.
    pub cgroup_id: u64,
    /// Thread group of a task that uses the table: the last that changed a slot, or that an audit met.
    pub tgid: u32,
    /// The last audit pass that met the table ([`Control::pass`]).
    pub visited: u32,
    /// One more than the highest fd ever recorded.
    pub high_fd: u32,
    /// [`TABLE_STALE`].
    pub flags: u32,
    /// The sum of [`slot_sum`] over what is recorded of its slots (tracepoint feeder).
    pub slots: u64,
    /// What the audit pass [`visited`](Self::visited) met.
    pub met: Met,
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
        met: Met { task: 0, file: 0, slots: 0, kinds: 0, users: 0 },
    };
}

/// A table as an iterator met it, in sums: if they are those of what is recorded, so are, but for a chance of one in 2⁶⁴, the slots.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Met {
    /// Address of the first task that has the table: of others its slots aren't met again.
    pub task: u64,
    /// Address of the last file.
    pub file: u64,
    /// The sum of [`slot_sum`] over its slots.
    pub slots: u64,
    /// The sum of [`kind_sum`] over its slots.
    pub kinds: u64,
    /// [`MET_CGROUP`] and [`MET_TGID`].
    pub users: u64,
}

/// Bit of [`Met::users`]: a task that has the table is in the cgroup that this is charged to.
pub const MET_CGROUP: u64 = 1;

/// Bit of [`Met::users`]: a task that has the table is in the thread group that this is listed under.
pub const MET_TGID: u64 = 2;

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

/// Two numbers as one: other ones, even if they are the same the other way round, give another one.
#[inline]
const fn mix(a: u64, b: u64) -> u64 {
    let mut hash = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b;
    hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash = (hash ^ hash >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ hash >> 32
}

/// Flag of [`Table`]: a change could not be recorded; `n` is not exact until an audit repaired it.
pub const TABLE_STALE: u32 = 1;

/// Flag of [`Table`]: an io_uring of a user of the table has filled slots (tracepoint feeder).
pub const TABLE_URING: u32 = 2;

/// Flag of [`Table`]: an io_uring of a user of the table has emptied slots (tracepoint feeder).
pub const TABLE_URING_CLOSES: u32 = 4;

/// Key of the map `SLOTS`, whose value is a [`Tag`]: what the tracepoint feeder has counted for a slot.
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

/// Value of the map `FLOWS`, whose key is a cgroup id: slots that came to hold a file of a kind, and that
/// ceased to, since the agent started. Inheritance by fork and loss by exec and exit are included. What was open
/// before the agent started isn't counted as filled, but as emptied when it is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Flow {
    /// Slots filled, per kind.
    pub opened: [u64; Kind::COUNT],
    /// Slots emptied, per kind.
    pub closed: [u64; Kind::COUNT],
}

/// Value of the map `FOPS`, whose key is the address of a `file_operations`: what an anonymous inode is,
/// learnt from its name.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Fop {
    /// Index of the kind.
    pub kind: u64,
    /// The inode's name, cut to [`ANON_NAME_LEN`] and filled with NUL.
    pub name: [u8; ANON_NAME_LEN],
}

/// Value of the map `CONTROL`, which has one entry: what user space tells the programs while they run.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Control {
    /// Number of the audit pass under way.
    pub pass: u32,
    /// 1 once what was open before the feeder was attached has been counted: a table without an entry has nothing to count.
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
    /// Add up the slots of tables that have an entry ([`Met`](crate::Met)), and write those of others.
    pub const SUMS: u32 = 0;
    /// Write one slot of each table, and all that no program's scan reaches.
    pub const TABLES: u32 = 1;
    /// Write every slot.
    pub const SLOTS: u32 = 2;
}

/// Index into the array `REMOVALS`: removals from `TABLES` that have begun. A walk of the map during which none begins, and none was
/// under way, sees every entry that was there all the time.
pub const REMOVALS_BEGUN: u32 = 0;

/// Index into the array `REMOVALS`: those that are done.
pub const REMOVALS_DONE: u32 = 1;

/// A loss that the kernel side counts: index into the array `LOSSES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Loss {
    /// No room in the ring for an event.
    Ring,
    /// No room in `TABLES`: a table isn't counted.
    Tables,
    /// No room in `SLOTS`: a slot isn't counted.
    Slots,
    /// No room in `FLOWS`: opened and closed aren't counted for a cgroup.
    Flows,
    /// A slot moved faster than a probe could follow.
    Contended,
    /// A table has more room than [`MAX_SCANNED_FDS`], or a message carried more fds than are looked at.
    Truncated,
}

impl Loss {
    /// Every loss, in the order of the discriminants.
    pub const ALL: [Self; 6] =
        [Self::Ring, Self::Tables, Self::Slots, Self::Flows, Self::Contended, Self::Truncated];

    /// The stable name: the `stage` label of `fdtracker_events_lost_total`.
    #[must_use]
    pub const fn stage(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Tables => "tables_full",
            Self::Slots => "slots_full",
            Self::Flows => "flows_full",
            Self::Contended => "contended",
            Self::Truncated => "truncated",
        }
    }
}

/// The head of every record in the ring `EVENTS`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Header {
    /// An [`event`] code.
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
    /// [`Table::cgroup_id`].
    pub cgroup_id: u64,
    /// Name of the thread group's task that caused it; empty when an audit found the change.
    pub comm: [u8; COMM_LEN],
}

/// [`Header::fd`] of a slot whose number isn't known: the hook of the kprobe feeder that sees a slot emptied is given the file
/// and the table only.
pub const NO_FD: u32 = u32::MAX;

/// One slot came to hold a file that is counted, or ceased to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SlotEvent {
    /// The head; `event` is [`event::OPENED`] or [`event::CLOSED`].
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
    /// Slots per kind: after a fork, an exec or an unshare those that the table has now, at an exit those that it had.
    pub n: [u32; Kind::COUNT],
}

/// Codes of [`Header::event`].
pub mod event {
    /// [`SlotEvent`](crate::SlotEvent): open, dup, receipt over a socket, …
    pub const OPENED: u32 = 1;
    /// [`SlotEvent`](crate::SlotEvent): close, or another file took the slot.
    pub const CLOSED: u32 = 2;
    /// [`TableEvent`](crate::TableEvent): a child's table was born with these.
    pub const FORKED: u32 = 3;
    /// [`TableEvent`](crate::TableEvent): what close-on-exec left.
    pub const EXECED: u32 = 4;
    /// [`TableEvent`](crate::TableEvent): the table went with its last process.
    pub const EXITED: u32 = 5;
    /// [`TableEvent`](crate::TableEvent): `unshare` or `close_range` gave the task a table of its own.
    pub const UNSHARED: u32 = 6;
    /// [`TableEvent`](crate::TableEvent): a process was moved; `cgroup_id` is the new cgroup.
    pub const MOVED: u32 = 7;
    /// A [`TableEvent`](crate::TableEvent), or its first word: there may be a change that no probe can see; an audit must look.
    pub const UNCERTAIN: u32 = 8;
}

/// What the iterator writes for a slot that holds a file that is counted.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FileRecord {
    /// Address of the `files_struct`.
    pub files: u64,
    /// Address of the `task_struct`.
    pub task: u64,
    /// Address of the `struct file`. Not a [`Tag`]: to the verifier of an iterator it is a pointer, with which it
    /// allows no arithmetic.
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

/// What the looks for hidden files write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sighting {
    /// A [`sighting`] code.
    pub what: u64,
    /// What holds the file, by its address: an `mm_struct` that maps it, the ring that it is registered with, the socket in
    /// whose queue it is; else 0.
    pub holder: u64,
    /// Address of the `struct file`; 0 where `n` stands for several.
    pub file: u64,
    /// Index of the file's kind.
    pub kind: u64,
    /// Id of the task's cgroup.
    pub cgroup_id: u64,
    /// How many files of this kind.
    pub n: u64,
    /// Thread group, in the initial pid namespace.
    pub tgid: u64,
}

/// Codes of [`Sighting::what`].
pub mod sighting {
    /// A slot holds the file.
    pub const OPEN: u64 = 1;
    /// The file is mapped.
    pub const MAPPED: u64 = 2;
    /// A thread has registered the ring with itself.
    pub const REGISTERED: u64 = 3;
    /// Files are registered with a ring.
    pub const DIRECT: u64 = 4;
    /// Files are in a socket's queue.
    pub const IN_FLIGHT: u64 = 5;
}

/// Bits of the `mode` of a slot's synchronisation.
pub mod mode {
    /// Emit no [`SlotEvent`](crate::SlotEvent): one [`TableEvent`](crate::TableEvent) stands for the whole table.
    pub const QUIET: u32 = 1;
    /// Leave [`Flow`](crate::Flow) alone: the slot was filled before the agent looked.
    pub const ADOPT: u32 = 2;
    /// The agent runs the program on behalf of another task: `current` is not the table's user.
    pub const REMOTE: u32 = 4;
    /// Count the table anew: its numbers don't agree with the slots that are recorded.
    pub const RECOUNT: u32 = 8;
    /// The auditor asks: it looks after fds above [`MAX_SCANNED_FDS`](crate::MAX_SCANNED_FDS) by itself.
    pub const AUDIT: u32 = 16;
    /// Count into the map `MEASURED`, and change nothing.
    pub const MEASURE: u32 = 32;
    /// What is added to the table isn't exact, because the table didn't keep still: mark it stale.
    pub const DOUBT: u32 = 64;
}

/// Operations of the program `resync`, its first argument.
pub mod resync {
    /// Re-reads every slot of a table. Further arguments: files, the generation that the table had (0: it isn't recorded),
    /// [`mode`](crate::mode), the address of a task that has it, the cgroup id and the tgid that are recorded and that none of its
    /// users has (0: one has), and an fd. Returns how many slots changed, or [`REFUSED`] if the table is another by now.
    pub const SCAN: u64 = 1;
    /// Forgets a table that is no more. Further arguments: files, generation, seq. Returns 1, or 0 if it moved.
    pub const FORGET: u64 = 2;
    /// Re-reads the fd's slot. Else as [`SCAN`].
    pub const SLOT: u64 = 3;
    /// Leaves in the map `MEASURED` what a table's slots hold, less what is counted. Argument: files. Returns 1, or 0 if the table
    /// moved meanwhile.
    pub const MEASURE: u64 = 4;
    /// Adds what is in the map `MEASURED` to a table, which is exact then. Arguments as for [`SCAN`]. Returns 1, or [`REFUSED`].
    pub const ADJUST: u64 = 5;
    /// Forgets a slot of a table that is no more. Further arguments: files, generation, fd.
    pub const FORGET_SLOT: u64 = 6;
    /// Forgets what a cgroup counted. Further argument: its id.
    pub const FORGET_FLOW: u64 = 7;
    /// Whether a slot holds what is recorded of it. Arguments: files, fd. Returns 0 if it does.
    pub const PEEK: u64 = 8;

    /// For the generation: whichever.
    pub const ANY: u64 = u64::MAX;

    /// The table is another than it was, or its last task has begun to exit.
    pub const REFUSED: u32 = u32::MAX;
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    /// A pad byte would reach the verifier as uninitialised stack, and user space as garbage.
    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Table>(), 8 * Kind::COUNT + 3 * 8 + 4 * 4 + 6 * 8);
        assert_eq!(size_of::<Slot>(), 24);
        assert_eq!(size_of::<Flow>(), 2 * 8 * Kind::COUNT);
        assert_eq!(size_of::<Fop>(), 8 + ANON_NAME_LEN);
        assert_eq!(size_of::<Header>(), 4 * 4 + 3 * 8 + COMM_LEN);
        assert_eq!(size_of::<SlotEvent>(), size_of::<Header>() + 8);
        assert_eq!(size_of::<TableEvent>(), size_of::<Header>() + 4 * Kind::COUNT);
        assert_eq!(size_of::<FileRecord>(), 48);
        assert_eq!(size_of::<Sighting>(), 7 * 8);
    }

    #[test]
    fn a_table_event_has_whole_words() {
        assert_eq!(Kind::COUNT % 2, 0, "an odd number of kinds pads TableEvent");
    }

    #[test]
    fn kinds_round_trip() {
        for (index, kind) in Kind::ALL.iter().copied().enumerate() {
            assert_eq!(kind.index(), index);
            assert_eq!(Kind::from_index(index), Some(kind));
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(Kind::from_index(Kind::COUNT), None);
        assert_eq!(Kind::from_name("pidfds"), None);
    }

    #[test]
    fn hidden_kinds_are_the_last() {
        let hidden: std::vec::Vec<_> = Kind::ALL.iter().filter(|kind| kind.is_hidden()).collect();
        assert_eq!(hidden.len(), 8);
        assert!(ANON_INODES.iter().all(|(_, kind)| !kind.is_hidden()));
        assert!(Kind::ALL.iter().all(|kind| kind.mapped().is_hidden()));
    }

    #[test]
    fn kind_names_are_distinct_and_safe_in_labels() {
        let names: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::COUNT);
        let safe = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        assert!(names.iter().all(|name| name.bytes().all(safe)));
    }

    #[test]
    fn anon_inode_names_fit_and_are_distinct() {
        let names: BTreeSet<_> = ANON_INODES.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), ANON_INODES.len());
        assert!(ANON_INODES.iter().all(|(name, _)| name.len() < ANON_NAME_LEN));
    }

    #[test]
    fn sums_tell_slots_apart() {
        let tag = |file| Tag::new(Kind::Pidfd.index() as u64, file);
        let sum = |slots: &[(u32, u64)]| {
            slots.iter().fold(0_u64, |sum, (fd, file)| sum.wrapping_add(slot_sum(*fd, tag(*file))))
        };
        assert_eq!(sum(&[(3, 0x1000), (4, 0x2000)]), sum(&[(4, 0x2000), (3, 0x1000)]));
        assert_ne!(sum(&[(3, 0x1000), (4, 0x2000)]), sum(&[(3, 0x2000), (4, 0x1000)]));
        assert_ne!(sum(&[(3, 0x1000)]), sum(&[(4, 0x1000)]));
        assert_eq!(slot_sum(3, Tag::EMPTY), 0);
        let kinds: BTreeSet<u64> = (0..Kind::COUNT as u64).map(kind_sum).collect();
        assert_eq!(kinds.len(), Kind::COUNT);
    }

    #[test]
    fn a_tag_keeps_kind_and_file() {
        let file = 0xffff_8881_0a2b_3c40;
        let tag = Tag::new(Kind::Pidfd.index() as u64, file);
        assert_eq!(tag.kind(), Some(Kind::Pidfd));
        assert_eq!(tag.file(), file & 0x00ff_ffff_ffff_ffff);
        assert_eq!(Tag::EMPTY.kind(), None);
    }

    #[test]
    fn losses_index_their_array() {
        for (index, loss) in Loss::ALL.iter().enumerate() {
            assert_eq!(*loss as usize, index);
        }
    }
}
