//! The kprobe feeder: the four functions through which every slot of every table is filled, copied and emptied, on every
//! kernel from 5.10 on.
//!
//! kprobes, not fentry: a BPF trampoline skips a program that another task on its CPU is in the middle of, which on a preemptible
//! kernel loses events. A kprobe's program can't be preempted.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracker_ebpf::{Loss, NO_FD, TABLE_BORN, Tag, event, mode};

use crate::{
    edges::{emptied, filled, is_adopted},
    fdtable::{file_at, open_fds, tag_of},
    kernel::{
        OFF_REGS_ARG0, OFF_REGS_ARG1, OFF_TASK_FILES, OFF_TASK_TGID, Probe, Read as _, another_process_has,
        cgroup_id, current_files, current_tgid, is_own, sharers, syscall_arg, syscall_number,
    },
    maps::{TABLES, lose},
    notify::{self, Who},
    programs::lifecycle,
    scan::scan,
    tables::on_behalf_of,
};

// arch/x86/entry/syscalls/syscall_64.tbl
const CLOSE: u64 = 3;
const DUP2: u64 = 33;
const EXECVE: u64 = 59;
const UNSHARE: u64 = 272;
const DUP3: u64 = 292;
const EXECVEAT: u64 = 322;
const CLOSE_RANGE: u64 = 436;

/// `fd_install(fd, file)`: every way to fill an empty slot ends here. The slot is written right after.
#[kprobe]
fn fd_install(ctx: ProbeContext) -> u32 {
    let (Some(fd), Some(file)) = (ctx.arg::<u32>(0), ctx.arg::<u64>(1)) else { return 0 };
    let tag = tag_of(file);
    let files = if tag == Tag::EMPTY { 0 } else { current_files() };
    if files != 0 {
        filled(files, fd, tag);
    }
    0
}

/// `do_dup2(files, file, fd, flags)`: dup2, dup3, and the kernel's own `replace_fd`. The table is locked. What the slot held is closed
/// by `filp_close` afterwards.
#[kprobe]
fn do_dup2(ctx: ProbeContext) -> u32 {
    let (Some(files), Some(file), Some(fd)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u32>(2))
    else {
        return 0;
    };
    let tag = tag_of(file);
    if tag == Tag::EMPTY || is_own(current_tgid()) {
        return 0;
    }
    // EBUSY: another thread has reserved the slot, and hasn't filled it yet.
    let reserved = open_fds(files, fd / 64) >> (fd % 64) & 1 != 0;
    if !(reserved && file_at(files, fd) == 0) {
        filled(files, fd, tag);
    }
    0
}

/// `filp_close(file, files)`, and `filp_flush(file, files)`, which that calls from Linux 6.6 on and which `close` calls by itself; only
/// one of the two is probed. A slot of the table has just been emptied: by close, close_range, dup2, exec, exit.
#[kprobe]
fn filp_close(ctx: ProbeContext) -> u32 {
    let (Some(file), Some(files)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) else { return 0 };
    // 0: a file that was in no table. The id may also be something else than a table (nfsd), but not of a file that is counted.
    if files == 0 || is_own(current_tgid()) {
        return 0;
    }
    // A table that goes with its last user was forgotten when that began to exit (kernel: `exit_files` clears `task->files` first).
    let going = current_files() != files;
    if going && TABLES.get_ptr(files).is_none() {
        return 0;
    }
    let tag = tag_of(file);
    if tag == Tag::EMPTY {
        return 0;
    }
    // An exec, and the end of a table, are told as a whole.
    let (fd, mode) = match syscall_number() {
        _ if going => (NO_FD, mode::QUIET),
        EXECVE | EXECVEAT => (NO_FD, mode::QUIET),
        CLOSE => (syscall_arg(&OFF_REGS_ARG0) as u32, 0),
        DUP2 | DUP3 => (syscall_arg(&OFF_REGS_ARG1) as u32, 0),
        _ => (NO_FD, 0),
    };
    emptied(files, fd, tag, mode);
    0
}

/// The return of `dup_fd`, in which every table is born: a copy that nobody else has yet, for a fork, an unshare, an exec of a
/// shared table or a `close_range(CLOSE_RANGE_UNSHARE)`.
#[kretprobe]
fn dup_fd(ctx: RetProbeContext) -> u32 {
    /// include/linux/err.h
    const MAX_ERRNO: u64 = 4095;
    let files: u64 = ctx.ret();
    if files == 0 || files > MAX_ERRNO.wrapping_neg() || is_own(current_tgid()) {
        return 0;
    }
    // The kernel reuses addresses: what is recorded under this one is of a table that has gone.
    if let Some(predecessor) = TABLES.get_ptr(files) {
        lifecycle::end(files, predecessor, Who::User);
    }
    let copied = current_files();
    // A fork leaves no table.
    if matches!(syscall_number(), UNSHARE | CLOSE_RANGE | EXECVE | EXECVEAT) && another_process_has(copied) {
        // The other is left with a table that is charged and listed, perhaps, as this one's.
        notify::uncertain();
    }
    if is_adopted() && TABLES.get_ptr(copied).is_none() {
        return 0;
    }
    if scan(files, mode::QUIET) == 0 {
        return 0;
    }
    match syscall_number() {
        UNSHARE | CLOSE_RANGE => notify::table(event::UNSHARED, files, Who::Current, false),
        // `sched_process_exec` tells what is left.
        EXECVE | EXECVEAT => {}
        _ => {
            if let Some(table) = TABLES.get_ptr_mut(files) {
                // SAFETY: the pointer comes from the map.
                unsafe { (*table).flags |= TABLE_BORN };
            }
        }
    }
    0
}

/// `wake_up_new_task(task)`, at the end of a fork: the child has its pid and its cgroup now, and doesn't run yet.
#[kprobe]
fn wake_up_new_task(ctx: ProbeContext) -> u32 {
    let Some(child) = ctx.arg::<*const u8>(0) else { return 0 };
    // SAFETY: integers are plain data.
    let (files, tgid): (u64, u32) =
        unsafe { (Probe::read(child, &OFF_TASK_FILES), Probe::read(child, &OFF_TASK_TGID)) };
    // A thread, or a process made with CLONE_FILES: no new table.
    if files == 0 || is_own(tgid) || sharers(files) > 1 {
        return 0;
    }
    let cgroup = cgroup_id::<Probe>(child);
    let born = TABLES.get_ptr_mut(files).filter(|table| {
        // SAFETY: the pointer comes from the map.
        unsafe { (**table).flags & TABLE_BORN != 0 }
    });
    match born {
        // SAFETY: the pointer comes from the map.
        Some(table) => unsafe {
            (*table).flags &= !TABLE_BORN;
            (*table).tgid = tgid;
            (*table).cgroup_id = cgroup;
        },
        None => missed_birth(files, tgid, cgroup),
    }
    notify::table(event::FORKED, files, Who::Child, false);
    0
}

/// The kernel runs a return probe only so often at once; the rest it skips.
#[inline(always)]
fn missed_birth(files: u64, tgid: u32, cgroup: u64) {
    if let Some(predecessor) = TABLES.get_ptr(files) {
        lifecycle::end(files, predecessor, Who::User);
    } else if is_adopted() && TABLES.get_ptr(current_files()).is_none() {
        return;
    }
    on_behalf_of(tgid, cgroup);
    if scan(files, mode::QUIET | mode::REMOTE) > 0 {
        lose(Loss::Births);
    }
}
