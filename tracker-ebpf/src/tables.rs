//! The entries of `TABLES` and `FLOWS`: how they are made, and how a change is written into them.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns};
use tracker_ebpf::{Loss, REMOVALS_BEGUN, REMOVALS_DONE, TABLE_STALE, Tag, event, mode, slot_sum};

use crate::{
    kernel::{Ptr, cgroup_id, counts_deltas, current, current_tgid, layout::Task},
    loss::lose,
    maps::{FLOWS, LOCKS, LockKey, REMOVALS, SCRATCH, TABLES},
    notify,
    value::{Find as _, FlowRef, TableRef},
};

/// The error of a helper: the key is in the map already.
pub(crate) const EEXIST: i32 = -17;

impl TableRef {
    /// The entry of a table; a new one if it has something to count for the first time. `None` if
    /// there is no room.
    #[inline(always)]
    pub(crate) fn find_or_make(files: u64, mode: u32) -> Option<Self> {
        TABLES.find(files).or_else(|| new_table(files, mode))
    }

    /// Sets a flag.
    #[inline(always)]
    pub(crate) fn mark(self, flag: u32) {
        self.flags().set(self.flags().get() | flag);
    }

    /// Clears [`TABLE_STALE`].
    #[inline(always)]
    pub(crate) fn unmark_stale(self) {
        self.flags().set(self.flags().get() & !TABLE_STALE);
    }

    /// Whether [`TABLE_STALE`] is set.
    #[inline(always)]
    pub(crate) fn is_stale(self) -> bool {
        self.flags().get() & TABLE_STALE != 0
    }

    /// Marks the table stale, and requests an audit.
    #[inline(always)]
    pub(crate) fn request_audit(self) {
        self.mark(TABLE_STALE);
        notify::request_audit();
    }

    /// Slots of a kind.
    #[inline(always)]
    pub(crate) fn count(self, kind: usize) -> i64 {
        self.n().element(kind).map_or(0, |n| n.get())
    }
}

/// Makes the entry of a table that has something to count for the first time.
#[inline(always)]
pub(crate) fn new_table(files: u64, mode: u32) -> Option<TableRef> {
    let scratch = SCRATCH.find(0)?;
    // `n` stays 0.
    let table = scratch.table();
    table.seq().set(0);
    // SAFETY: the helper has no precondition.
    table.generation().set(unsafe { bpf_ktime_get_ns() });
    table.visited().set(0);
    table.high_fd().set(0);
    table.flags().set(0);
    table.slots().set(0);
    let task = if mode & mode::REMOTE == 0 {
        table.tgid().set(current_tgid());
        table.cgroup_id().set(cgroup_id(current()));
        current()
    } else {
        table.tgid().set(scratch.remote_tgid().get());
        table.cgroup_id().set(scratch.remote_cgroup_id().get());
        Ptr::new(scratch.remote_task().get())
    };
    match table.insert_into(&TABLES, files, u64::from(BPF_NOEXIST)) {
        Ok(()) => follow_move(TABLES.find(files)?, task, table.cgroup_id().get()),
        Err(EEXIST) => {}
        Err(_) => lose(Loss::Tables),
    }
    TABLES.find(files)
}

/// Charges an entry to its task's cgroup, if that isn't any more what it was when it was read for
/// the entry: whoever moved the task meanwhile found no entry to charge, or was overwritten. A
/// second move in that moment is left to the next audit.
#[inline(always)]
pub(crate) fn follow_move(table: TableRef, task: Ptr<Task>, was: u64) {
    if task.is_null() {
        return;
    }
    let cgroup = cgroup_id(task);
    if cgroup != was {
        table.cgroup_id().set(cgroup);
    }
}

/// Removes the entry of a table. Whoever walks the map meanwhile may miss others, and is told by
/// `REMOVALS`.
#[inline(always)]
pub(crate) fn remove_table(files: u64) {
    let count = |at: u32| {
        if let Some(n) = REMOVALS.find(at) {
            n.add(1);
        }
    };
    count(REMOVALS_BEGUN);
    let _ = TABLES.remove(files);
    count(REMOVALS_DONE);
}

/// Locks a table's entry against removal by others that lock it first. Returns whether it is
/// locked: a program can't wait for long. If it isn't, that is counted as a loss, and an audit
/// repairs what comes of it.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn lock_table(files: u64) -> bool {
    /// Each takes as long as a lookup in a map, and what is done under the lock as long as some
    /// dozens.
    const TRIES: u32 = 256;
    let lock = LockKey { files, fd: LockKey::TABLE };
    for _ in 0..TRIES {
        match LOCKS.insert(&lock, 0, u64::from(BPF_NOEXIST)) {
            Ok(()) => return true,
            Err(EEXIST) => {}
            Err(_) => break,
        }
    }
    lose(Loss::Contended);
    false
}

/// Ends what [`lock_table`] began.
#[inline(always)]
pub(crate) fn unlock_table(files: u64) {
    let _ = LOCKS.remove(&LockKey { files, fd: LockKey::TABLE });
}

/// The counters of a cgroup.
#[inline(always)]
pub(crate) fn flow_of(cgroup: u64) -> Option<FlowRef> {
    if let Some(flow) = FLOWS.find(cgroup) {
        return Some(flow);
    }
    match SCRATCH.find(0)?.flow().insert_into(&FLOWS, cgroup, u64::from(BPF_NOEXIST)) {
        Ok(()) | Err(EEXIST) => FLOWS.find(cgroup),
        Err(_) => {
            lose(Loss::Flows);
            None
        }
    }
}

/// Writes into a table that a slot holds `now` instead of `was`, and tells user space.
#[inline(always)]
pub(crate) fn record(table: TableRef, files: u64, fd: u32, was: Tag, now: Tag, mode: u32) {
    if let Some(n) = table.n().element(was.kind_index()) {
        n.add(-1);
    }
    if let Some(n) = table.n().element(now.kind_index()) {
        n.add(1);
    }
    table.seq().add(1);
    if !counts_deltas() {
        table.slots().add(slot_sum(fd, now).wrapping_sub(slot_sum(fd, was)));
    }
    if mode & mode::ADOPT == 0 {
        record_flow(table.cgroup_id().get(), was, now);
    }
    if mode & mode::QUIET == 0 {
        if was != Tag::EMPTY {
            notify::slot(event::CLOSED, files, fd, was, table, mode);
        }
        if now != Tag::EMPTY {
            notify::slot(event::OPENED, files, fd, now, table, mode);
        }
    }
}

#[inline(always)]
fn record_flow(cgroup: u64, was: Tag, now: Tag) {
    let Some(flow) = flow_of(cgroup) else { return };
    if let Some(n) = flow.closed().element(was.kind_index()) {
        n.add(1);
    }
    if let Some(n) = flow.opened().element(now.kind_index()) {
        n.add(1);
    }
}

/// Says whose the entry is that is made next in the mode [`REMOTE`](mode::REMOTE): a process's, and
/// charged to a cgroup, which is that of a task unless that is null. The program can't be
/// preempted.
#[inline(always)]
pub(crate) fn on_behalf_of(tgid: u32, cgroup_id: u64, task: Ptr<Task>) {
    if let Some(scratch) = SCRATCH.find(0) {
        scratch.remote_tgid().set(tgid);
        scratch.remote_cgroup_id().set(cgroup_id);
        scratch.remote_task().set(task.address());
    }
}

/// Marks a table stale, if it has an entry.
#[inline(always)]
pub(crate) fn mark_stale(files: u64) {
    if let Some(table) = TABLES.find(files) {
        table.mark(TABLE_STALE);
    }
}
