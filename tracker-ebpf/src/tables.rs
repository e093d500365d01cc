//! The entries of `TABLES` and `FLOWS`: how they are made, and how a change is written into them.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns};
use tracker_ebpf::{
    Flow, Loss, REMOVALS_BEGUN, REMOVALS_DONE, TABLE_STALE, Table, Tag, event, mode, slot_sum,
};

use crate::{
    kernel::{Probe, cgroup_id, counts_edges, current, current_tgid},
    maps::{FLOWS, LOCKS, LockKey, REMOVALS, SCRATCH, TABLES, add, lose},
    notify,
};

pub(crate) const EEXIST: i32 = -17;

/// Makes the entry of a table that has something to count for the first time.
#[inline(always)]
pub(crate) fn new_table(files: u64, mode: u32) -> Option<*mut Table> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer comes from the map; the program can't be preempted, so nobody else is using it. `n` stays 0.
    unsafe {
        let table = &raw mut (*scratch).table;
        (*table).seq = 0;
        (*table).generation = bpf_ktime_get_ns();
        (*table).visited = 0;
        (*table).high_fd = 0;
        (*table).flags = 0;
        (*table).slots = 0;
        let task = if mode & mode::REMOTE == 0 {
            (*table).tgid = current_tgid();
            (*table).cgroup_id = cgroup_id::<Probe>(current());
            current()
        } else {
            (*table).tgid = (*scratch).remote_tgid;
            (*table).cgroup_id = (*scratch).remote_cgroup_id;
            (*scratch).remote_task as *const u8
        };
        match TABLES.insert(files, &*table, u64::from(BPF_NOEXIST)) {
            Ok(()) => follow_move(TABLES.get_ptr_mut(files)?, task, (*table).cgroup_id),
            Err(EEXIST) => {}
            Err(_) => lose(Loss::Tables),
        }
    }
    TABLES.get_ptr_mut(files)
}

/// Charges an entry to its task's cgroup, if that isn't any more what it was when it was read for the entry: whoever moved the task
/// meanwhile found no entry to charge, or was overwritten. What moves twice in that moment is left to the next audit.
///
/// # Safety
/// `table` comes from the map.
#[inline(always)]
pub(crate) unsafe fn follow_move(table: *mut Table, task: *const u8, was: u64) {
    if task.is_null() {
        return;
    }
    let cgroup = cgroup_id::<Probe>(task);
    if cgroup != was {
        // SAFETY: the verifier checks the access.
        unsafe { (*table).cgroup_id = cgroup };
    }
}

/// Removes the entry of a table. Whoever walks the map meanwhile may miss others, and is told by `REMOVALS`.
#[inline(always)]
pub(crate) fn remove_table(files: u64) {
    let count = |at: u32| {
        if let Some(n) = REMOVALS.get_ptr_mut(at) {
            add(n, 1);
        }
    };
    count(REMOVALS_BEGUN);
    let _ = TABLES.remove(files);
    count(REMOVALS_DONE);
}

/// Keeps a table's entry from being removed by others that hold it first. Returns whether it is held: another may hold it for longer than
/// a program can wait, which is counted as a loss, and an audit puts right what comes of it.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn hold(files: u64) -> bool {
    /// Each takes as long as a look into the map, and what is done under the lock as long as some dozens.
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

/// The end of [`hold`].
#[inline(always)]
pub(crate) fn release(files: u64) {
    let _ = LOCKS.remove(&LockKey { files, fd: LockKey::TABLE });
}

/// The counters of a cgroup.
#[inline(always)]
pub(crate) fn flow_of(cgroup: u64) -> Option<*mut Flow> {
    if let Some(flow) = FLOWS.get_ptr_mut(cgroup) {
        return Some(flow);
    }
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer comes from the map; the value is never written.
    match unsafe { FLOWS.insert(cgroup, &(*scratch).flow, u64::from(BPF_NOEXIST)) } {
        Ok(()) | Err(EEXIST) => FLOWS.get_ptr_mut(cgroup),
        Err(_) => {
            lose(Loss::Flows);
            None
        }
    }
}

/// Writes into a table that a slot holds `now` instead of `was`, and tells user space.
///
/// # Safety
/// `table` comes from the map.
#[inline(always)]
pub(crate) unsafe fn record(table: *mut Table, files: u64, fd: u32, was: Tag, now: Tag, mode: u32) {
    // SAFETY: the verifier checks every access.
    unsafe {
        if let Some(n) = (*table).n.get_mut(was.kind_index()) {
            add((&raw mut *n).cast(), u64::MAX);
        }
        if let Some(n) = (*table).n.get_mut(now.kind_index()) {
            add((&raw mut *n).cast(), 1);
        }
        add(&raw mut (*table).seq, 1);
        if !counts_edges() {
            add(&raw mut (*table).slots, slot_sum(fd, now).wrapping_sub(slot_sum(fd, was)));
        }
        if mode & mode::ADOPT == 0 {
            flow((*table).cgroup_id, was, now);
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
}

#[inline(always)]
fn flow(cgroup: u64, was: Tag, now: Tag) {
    let Some(flow) = flow_of(cgroup) else { return };
    // SAFETY: the pointer comes from the map, and the verifier checks every access.
    unsafe {
        if let Some(n) = (*flow).closed.get_mut(was.kind_index()) {
            add(n, 1);
        }
        if let Some(n) = (*flow).opened.get_mut(now.kind_index()) {
            add(n, 1);
        }
    }
}

/// Marks a table stale, and has an audit look at it now.
#[inline(always)]
pub(crate) fn doubt(table: *mut Table) {
    // SAFETY: every caller passes a pointer into the map, which the verifier checks.
    unsafe { (*table).flags |= TABLE_STALE };
    notify::uncertain();
}

/// An entry that is made next, in the mode [`REMOTE`](mode::REMOTE), is this process's, and charged to a cgroup, which is that of a task
/// unless there is none. The program can't be preempted.
#[inline(always)]
pub(crate) fn on_behalf_of(tgid: u32, cgroup_id: u64, task: *const u8) {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: the pointer comes from the map.
        unsafe {
            (*scratch).remote_tgid = tgid;
            (*scratch).remote_cgroup_id = cgroup_id;
            (*scratch).remote_task = task as u64;
        }
    }
}

#[inline(always)]
pub(crate) fn mark_stale(files: u64) {
    if let Some(table) = TABLES.get_ptr_mut(files) {
        // SAFETY: the pointer comes from the map.
        unsafe { (*table).flags |= TABLE_STALE }
    }
}
