//! Whole tables: birth, exec, move and end.

use aya_ebpf::{
    macros::{raw_tracepoint, tracepoint},
    programs::{RawTracePointContext, TracePointContext},
};
use tracker_ebpf::{event, mode};

use crate::{
    kernel::{
        Ptr, another_process_has, cgroup_id, counts_deltas, current, current_files, current_tgid,
        layout::{OFF_TASK_FILES, OFF_TASK_LEADER, OFF_TASK_TGID, Task},
        live_threads, sharers, threads_of,
    },
    maps::TABLES,
    notify::{self, Subject},
    scan::scan,
    slots::forget_slots,
    tables::{flow_of, lock_table, on_behalf_of, remove_table, unlock_table},
    value::{Find as _, TableRef},
};

/// `sched_process_fork(parent, child)`: the child's table is final, nobody else has it, and the
/// child doesn't run yet.
///
/// raw_tp, because the perf-style form gives no task. From Linux 7.0 on such a program can be
/// preempted, which its use of per-CPU scratch space doesn't allow, so there it isn't attached, and
/// [`forked`] does it all.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    let child = Ptr::<Task>::new(ctx.arg(1));
    let (files, tgid) = (child.read(&OFF_TASK_FILES), child.read(&OFF_TASK_TGID));
    on_behalf_of(tgid, cgroup_id(child), child);
    born(files, tgid, event::FORKED, Subject::Child);
    0
}

/// Counts the table of a new process that runs for the first time.
#[inline(always)]
pub(crate) fn forked() {
    let (files, tgid) = (current_files(), current_tgid());
    // Otherwise it was counted when it was forked.
    if !is_listed(files, tgid) {
        born(files, tgid, event::FORKED, Subject::Current);
    }
}

/// Whether a table is recorded as one of this thread group.
#[inline(always)]
fn is_listed(files: u64, tgid: u32) -> bool {
    TABLES.find(files).is_some_and(|table| table.tgid().get() == tgid)
}

/// Counts the table of a current task that has asked for one of its own.
#[inline(always)]
pub(crate) fn unshared(files: u64) {
    let tgid = current_tgid();
    // Another process may keep the table that this one had, and which is charged and listed as this
    // one's.
    if sharers(files) == 1 && !is_listed(files, tgid) {
        notify::request_audit();
    }
    born(files, tgid, event::UNSHARED, Subject::Current);
}

/// Counts a new table.
#[inline(always)]
fn born(files: u64, tgid: u32, code: u32, subject: Subject) {
    // A thread, or a process made with CLONE_FILES: no new table.
    if files == 0 || sharers(files) > 1 {
        return;
    }
    if !is_listed(files, tgid) {
        forget_predecessor(files);
    }
    scan(files, if subject == Subject::Child { mode::QUIET | mode::REMOTE } else { mode::QUIET });
    notify::table(code, files, subject, false);
}

/// Forgets what is recorded under a new table's address: the kernel uses addresses again, so that
/// is a table whose end no probe saw.
#[inline(always)]
pub(super) fn forget_predecessor(files: u64) {
    if TABLES.find(files).is_none() {
        return;
    }
    // An audit may be about to forget it, too.
    let locked = lock_table(files);
    if let Some(table) = TABLES.find(files) {
        end(files, table, Subject::User);
    }
    if locked {
        unlock_table(files);
    }
}

/// Ends a table that is no more, and all its slots with it.
#[inline(always)]
pub(super) fn end(files: u64, table: TableRef, subject: Subject) {
    // An audit may re-read the table at the same moment; the next one finds that.
    if let Some(flow) = flow_of(table.cgroup_id().get()) {
        for (closed, n) in flow.closed().elements().zip(table.n().elements()) {
            let n = n.get();
            if n > 0 {
                closed.add(n as u64);
            }
        }
    }
    notify::table(event::EXITED, files, subject, false);
    remove_table(files);
}

/// Runs after `begin_new_exec`: the table is private, and close-on-exec has been done.
#[tracepoint]
fn sched_process_exec(_ctx: TracePointContext) -> u32 {
    let files = current_files();
    if files == 0 {
        return 0;
    }
    let had = TABLES.find(files).is_some();
    if !counts_deltas() && scan(files, mode::QUIET) > 0 && !had {
        // A copy, made because another process has the table, or a table that was missed.
        notify::request_audit();
    }
    notify::table(event::EXECED, files, Subject::Current, had);
    0
}

/// Runs before `exit_files`: the table ends with the last task that has it.
#[tracepoint]
fn sched_process_exit(_ctx: TracePointContext) -> u32 {
    let files = current_files();
    if files == 0 {
        return 0;
    }
    let Some(table) = TABLES.find(files) else { return 0 };
    if sharers(files) > 1 {
        let is_last = live_threads() == 0;
        if counts_deltas() {
            if is_last && another_process_has(files) {
                // It is perhaps charged and listed as the process that ends.
                notify::request_audit();
            }
        } else if is_last || !is_leaders(files) {
            // Threads that exit at the same time may all find the table shared; other processes may
            // share it (CLONE_FILES). Only the kernel's own list of tables tells.
            table.request_audit();
        }
        return 0;
    }
    forget(files, table, Subject::Current);
    0
}

/// Ends a table, and forgets what is recorded of its slots.
#[inline(always)]
pub(super) fn forget(files: u64, table: TableRef, subject: Subject) {
    if !counts_deltas() {
        forget_slots(files, table.generation().get(), table.high_fd().get());
    }
    end(files, table, subject);
}

/// Whether a table is that of the current process's first thread. Mostly all its threads have that
/// table.
#[inline(always)]
fn is_leaders(files: u64) -> bool {
    current().follow(&OFF_TASK_LEADER).read(&OFF_TASK_FILES) == files
}

/// `cgroup_attach_task(dst_cgrp, path, task, threadgroup)`, after the migration: charges the table
/// to the new cgroup.
///
/// raw_tp, because the perf-style form gives no task. The next audit repairs a run that is lost.
#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: RawTracePointContext) -> i32 {
    let task = Ptr::<Task>::new(ctx.arg(2));
    let files = task.read(&OFF_TASK_FILES);
    // Threads with tables of their own have moved too, and only the leader is told of (kernel:
    // cgroup_attach_task).
    if threads_of(task) > 1 {
        notify::request_audit();
    }
    let Some(table) = TABLES.find(files) else { return 0 };
    let cgroup = cgroup_id(task);
    // A move in another hierarchy leaves this one's cgroup as it is.
    if table.cgroup_id().get() != cgroup {
        table.cgroup_id().set(cgroup);
        table.seq().add(1);
        notify::table(event::MOVED, files, Subject::User, false);
    }
    0
}
