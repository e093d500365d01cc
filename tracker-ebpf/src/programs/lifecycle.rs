//! Birth, exec, move and death of whole tables.

use aya_ebpf::{
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use tracker_ebpf::{Kind, Table, event, mode};

use crate::{
    kernel::{
        OFF_TASK_FILES, OFF_TASK_LEADER, OFF_TASK_TGID, Probe, Read as _, another_process_has, cgroup_id,
        counts_edges, current, current_files, current_tgid, live_threads, sharers, threads_of,
    },
    maps::{TABLES, add},
    notify::{self, Who},
    scan::scan,
    slots::forget_slots,
    tables::{doubt, flow_of, hold, on_behalf_of, release, remove_table},
};

/// `sched_process_fork(parent, child)`: the child's table is final, nobody else has it, and the child doesn't run yet.
///
/// raw_tp, because the perf-style form gives no task. From Linux 7.0 on such a program can be preempted, which its use of
/// per-CPU scratch space doesn't allow, so there it isn't attached, and [`forked`] does it all.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    let child: *const u8 = ctx.arg(1);
    // SAFETY: integers are plain data.
    let (files, tgid): (u64, u32) =
        unsafe { (Probe::read(child, &OFF_TASK_FILES), Probe::read(child, &OFF_TASK_TGID)) };
    on_behalf_of(tgid, cgroup_id::<Probe>(child), child);
    born(files, tgid, event::FORKED, Who::Child);
    0
}

/// A new process runs for the first time.
#[inline(always)]
pub(crate) fn forked() {
    let (files, tgid) = (current_files(), current_tgid());
    // Else it was counted when it was forked.
    if !is_listed(files, tgid) {
        born(files, tgid, event::FORKED, Who::Current);
    }
}

/// Whether a table is recorded as one of this thread group.
#[inline(always)]
fn is_listed(files: u64, tgid: u32) -> bool {
    // SAFETY: the pointer comes from the map.
    TABLES.get_ptr(files).is_some_and(|table| unsafe { (*table).tgid } == tgid)
}

/// The current task asked for a table of its own.
#[inline(always)]
pub(crate) fn unshared(files: u64) {
    let tgid = current_tgid();
    // Another process may be left with the table that this one had, which is charged and listed as if it weren't.
    if sharers(files) == 1 && !is_listed(files, tgid) {
        notify::uncertain();
    }
    born(files, tgid, event::UNSHARED, Who::Current);
}

#[inline(always)]
fn born(files: u64, tgid: u32, code: u32, who: Who) {
    // A thread, or a process made with CLONE_FILES: no new table.
    if files == 0 || sharers(files) > 1 {
        return;
    }
    if !is_listed(files, tgid) {
        forget_predecessor(files);
    }
    scan(files, if who == Who::Child { mode::QUIET | mode::REMOTE } else { mode::QUIET });
    notify::table(code, files, who, false);
}

/// The kernel reuses addresses: what is recorded under this one is of a table that has gone unseen.
#[inline(always)]
pub(super) fn forget_predecessor(files: u64) {
    if TABLES.get_ptr(files).is_none() {
        return;
    }
    // An audit may be about to forget it, too.
    let held = hold(files);
    if let Some(table) = TABLES.get_ptr(files) {
        end(files, table, Who::User);
    }
    if held {
        release(files);
    }
}

/// A table is no more, and all its slots with it.
#[inline(always)]
pub(super) fn end(files: u64, table: *const Table, who: Who) {
    // SAFETY: the pointer comes from the map. An audit may re-read the table at the same moment; the next one finds that.
    unsafe {
        if let Some(flow) = flow_of((*table).cgroup_id) {
            for kind in 0..Kind::COUNT {
                let n = (*table).n[kind];
                if n > 0 {
                    add(&raw mut (*flow).closed[kind], n as u64);
                }
            }
        }
    }
    notify::table(event::EXITED, files, who, false);
    remove_table(files);
}

/// After `begin_new_exec`: the table is private, and close-on-exec has been done.
#[tracepoint]
fn sched_process_exec(_ctx: TracePointContext) -> u32 {
    let files = current_files();
    if files == 0 {
        return 0;
    }
    let had = TABLES.get_ptr(files).is_some();
    if !counts_edges() && scan(files, mode::QUIET) > 0 && !had {
        // A copy, made because another process has the table, or a table that was missed.
        notify::uncertain();
    }
    notify::table(event::EXECED, files, Who::Current, had);
    0
}

/// Before `exit_files`: whoever holds the table last takes it along.
#[tracepoint]
fn sched_process_exit(_ctx: TracePointContext) -> u32 {
    let files = current_files();
    if files == 0 {
        return 0;
    }
    let Some(table) = TABLES.get_ptr_mut(files) else { return 0 };
    if sharers(files) > 1 {
        let is_last = live_threads() == 0;
        if counts_edges() {
            if is_last && another_process_has(files) {
                // It is charged and listed, perhaps, as the one that goes.
                notify::uncertain();
            }
        } else if is_last || !is_leaders(files) {
            // Threads that exit at once may all find the table shared; other processes may share it (CLONE_FILES). Only the
            // kernel's own list of tables tells.
            doubt(table);
        }
        return 0;
    }
    forget(files, table, Who::Current);
    0
}

/// [`end`], and what is recorded of the slots.
#[inline(always)]
pub(super) fn forget(files: u64, table: *const Table, who: Who) {
    if !counts_edges() {
        // SAFETY: the pointer comes from the map.
        let (generation, high) = unsafe { ((*table).generation, (*table).high_fd) };
        forget_slots(files, generation, high);
    }
    end(files, table, who);
}

/// Whether a table is that of the current process's first thread, whose other threads mostly have it, too.
#[inline(always)]
fn is_leaders(files: u64) -> bool {
    // SAFETY: pointers and integers are plain data.
    let leaders: u64 = unsafe { Probe::read(Probe::pointer(current(), &OFF_TASK_LEADER), &OFF_TASK_FILES) };
    leaders == files
}

/// `cgroup_attach_task(dst_cgrp, path, task, threadgroup)`, after the migration: charges the table to the new cgroup.
///
/// raw_tp, because the perf-style form gives no task. A run that is lost is made good by the next audit.
#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: RawTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(2);
    // SAFETY: a `u64` is plain data.
    let files: u64 = unsafe { Probe::read(task, &OFF_TASK_FILES) };
    // Threads with tables of their own have moved too, and only the leader is told of (kernel: cgroup_attach_task).
    if threads_of(task) > 1 {
        notify::uncertain();
    }
    let Some(table) = TABLES.get_ptr_mut(files) else { return 0 };
    let cgroup = cgroup_id::<Probe>(task);
    // SAFETY: the pointer comes from the map.
    unsafe {
        // A move in another hierarchy leaves this one's cgroup as it is.
        if (*table).cgroup_id != cgroup {
            (*table).cgroup_id = cgroup;
            add(&raw mut (*table).seq, 1);
            notify::table(event::MOVED, files, Who::User, false);
        }
    }
    0
}
