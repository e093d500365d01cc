//! Birth, exec, move and death of whole tables.

use aya_ebpf::{
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use tracker_ebpf::{Kind, TABLE_STALE, Table, event, mode};

use crate::{
    kernel::{
        OFF_TASK_FILES, Probe, Read as _, cgroup_id, current_files, current_tgid, live_threads, sharers,
    },
    maps::{TABLES, add},
    notify::{self, Who},
    slots::{flow_of, forget_slots, scan},
};

/// A new process runs for the first time: its table is final, and nobody else has it.
///
/// Here and not at `sched_process_fork`, whose perf-style form gives no task, and whose other forms can be lost.
#[inline(always)]
pub(crate) fn forked() {
    born(current_files(), event::FORKED);
}

/// The current task asked for a table of its own.
#[inline(always)]
pub(crate) fn unshared(files: u64) {
    born(files, event::UNSHARED);
}

#[inline(always)]
fn born(files: u64, code: u32) {
    // A thread, or a process made with CLONE_FILES: no new table.
    if files == 0 || sharers(files) > 1 {
        return;
    }
    forget_predecessor(files);
    scan(files, mode::QUIET);
    if let Some(table) = TABLES.get_ptr(files) {
        notify::table(code, files, table, Who::Current, false);
    }
}

/// The kernel reuses addresses: what is recorded under this one may be of a table that has gone unseen.
#[inline(always)]
fn forget_predecessor(files: u64) {
    if let Some(table) = TABLES.get_ptr(files) {
        // SAFETY: the pointer comes from the map.
        if unsafe { (*table).tgid } != current_tgid() {
            end(files, table, Who::User);
        }
    }
}

/// A table is no more, and all its slots with it.
#[inline(always)]
pub(super) fn end(files: u64, table: *const Table, who: Who) {
    // SAFETY: the pointer comes from the map; nobody else uses this table any more.
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
    notify::table(event::EXITED, files, table, who, false);
    let _ = TABLES.remove(files);
}

/// After `begin_new_exec`: the table is private, and close-on-exec has been done.
#[tracepoint]
fn sched_process_exec(_ctx: TracePointContext) -> u32 {
    let files = current_files();
    if files == 0 {
        return 0;
    }
    let had = TABLES.get_ptr(files).is_some();
    scan(files, mode::QUIET);
    if let Some(table) = TABLES.get_ptr(files) {
        notify::table(event::EXECED, files, table, Who::Current, had);
    }
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
        // Threads that exit at once may all find the table shared; other processes may share it (CLONE_FILES).
        // Only the kernel's own list of tables tells.
        if live_threads() == 0 {
            // SAFETY: the pointer comes from the map.
            unsafe { (*table).flags |= TABLE_STALE };
            notify::table(event::UNCERTAIN, files, table, Who::Current, true);
        }
        return 0;
    }
    // SAFETY: the pointer comes from the map.
    let (generation, high) = unsafe { ((*table).generation, (*table).high_fd) };
    forget_slots(files, generation, high);
    end(files, table, Who::Current);
    0
}

/// `cgroup_attach_task(dst_cgrp, path, task, threadgroup)`, after the migration: charges the table to the new cgroup.
///
/// raw_tp, because the perf-style form gives no task. A run that is lost is made good by the next audit.
#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: RawTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(2);
    // SAFETY: a `u64` is plain data.
    let files: u64 = unsafe { Probe::read(task, &OFF_TASK_FILES) };
    let Some(table) = TABLES.get_ptr_mut(files) else { return 0 };
    let cgroup = cgroup_id::<Probe>(task);
    // SAFETY: the pointer comes from the map.
    unsafe {
        // A move in another hierarchy leaves this one's cgroup as it is.
        if (*table).cgroup_id != cgroup {
            (*table).cgroup_id = cgroup;
            add(&raw mut (*table).seq, 1);
            notify::table(event::MOVED, files, table, Who::User, false);
        }
    }
    0
}
