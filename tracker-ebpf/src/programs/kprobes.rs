//! The kprobe feeder: the functions through which every slot of every table is filled, copied and
//! emptied, on every kernel from 5.10 on.
//!
//! kprobes, not fentry: a BPF trampoline skips a program that another task on its CPU is in the
//! middle of, which on a preemptible kernel loses events. A kprobe's program can't be preempted.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracker_ebpf::{NO_FD, Tag, event, mode};

use crate::{
    deltas::{emptied, filled, is_adopted},
    fdtable::{file_at, open_fds, tag_of},
    kernel::{
        Ptr, another_process_has, cgroup_id, current, current_files, current_tgid, is_own,
        layout::{OFF_REGS_ARG0, OFF_REGS_ARG1, OFF_TASK_FILES, OFF_TASK_FLAGS, OFF_TASK_TGID, Task},
        syscall_arg, syscall_number,
    },
    maps::TABLES,
    notify::{self, Subject},
    programs::lifecycle::forget_predecessor,
    scan::scan,
    tables::{lock_table, on_behalf_of, unlock_table},
    value::Find as _,
};

// arch/x86/entry/syscalls/syscall_64.tbl
const CLOSE: u64 = 3;
const DUP2: u64 = 33;
const CLONE: u64 = 56;
const FORK: u64 = 57;
const VFORK: u64 = 58;
const EXECVE: u64 = 59;
const UNSHARE: u64 = 272;
const DUP3: u64 = 292;
const EXECVEAT: u64 = 322;
const CLONE3: u64 = 435;
const CLOSE_RANGE: u64 = 436;

/// `fd_install(fd, file)`: every way to fill an empty slot ends here. The slot is written right
/// after.
#[kprobe]
fn fd_install(ctx: ProbeContext) -> u32 {
    let (Some(fd), Some(file)) = (ctx.arg::<u32>(0), ctx.arg::<u64>(1)) else { return 0 };
    let tag = tag_of(Ptr::new(file));
    let files = if tag == Tag::EMPTY { 0 } else { current_files() };
    if files != 0 {
        filled(files, fd, tag);
    }
    0
}

/// `do_dup2(files, file, fd, flags)`: dup2, dup3, and the kernel's own `replace_fd`. The kernel has
/// locked the table. What the slot held is closed by `filp_close` afterwards.
#[kprobe]
fn do_dup2(ctx: ProbeContext) -> u32 {
    let (Some(files), Some(file), Some(fd)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1), ctx.arg::<u32>(2))
    else {
        return 0;
    };
    let tag = tag_of(Ptr::new(file));
    if tag == Tag::EMPTY || is_own(current_tgid()) {
        return 0;
    }
    // EBUSY: another thread has reserved the slot, and hasn't filled it yet.
    let reserved = open_fds(files, fd / 64) >> (fd % 64) & 1 != 0;
    if !(reserved && file_at(files, fd).is_null()) {
        filled(files, fd, tag);
    }
    0
}

/// `filp_close(file, files)` or `filp_flush(file, files)`: a slot of the table has just been
/// emptied, by close, close_range, dup2, exec or exit. From Linux 6.6 on `filp_close` calls
/// `filp_flush`, and `close` calls it alone; only one of the two is probed.
#[kprobe]
fn filp_close(ctx: ProbeContext) -> u32 {
    let (Some(file), Some(files)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) else { return 0 };
    // 0: the file was in no table. The id may also be something else than a table (nfsd), but only
    // of a file that isn't counted.
    if files == 0 || is_own(current_tgid()) {
        return 0;
    }
    if current_files() != files {
        return emptied_by_another(files, file);
    }
    let tag = tag_of(Ptr::new(file));
    if tag == Tag::EMPTY {
        return 0;
    }
    let (fd, mode) = match syscall_number() {
        // One event tells what an exec left.
        EXECVE | EXECVEAT => (NO_FD, mode::QUIET),
        CLOSE => (syscall_arg(&OFF_REGS_ARG0) as u32, 0),
        DUP2 | DUP3 => (syscall_arg(&OFF_REGS_ARG1) as u32, 0),
        _ => (NO_FD, 0),
    };
    emptied(files, fd, tag, mode);
    0
}

/// Counts that a slot was emptied in a table that the current task doesn't have any more, or not
/// yet.
#[inline(always)]
fn emptied_by_another(files: u64, file: u64) -> u32 {
    // A table that ends with its last task was forgotten when that began to exit (kernel:
    // `exit_files` clears `task->files` first).
    if TABLES.find(files).is_none() || is_stillborn() {
        return 0;
    }
    let tag = tag_of(Ptr::new(file));
    if tag == Tag::EMPTY {
        return 0;
    }
    // An audit may be about to forget the table, with what is left in it.
    let locked = lock_table(files);
    if TABLES.find(files).is_some() {
        // One event tells the end of a table.
        emptied(files, NO_FD, tag, mode::QUIET);
    }
    if locked {
        unlock_table(files);
    }
    0
}

/// Whether a table is a copy that the current task has made for a child which doesn't come to life.
/// What is recorded under its address is of a table that has gone.
#[inline(always)]
fn is_stillborn() -> bool {
    // A task without a table has begun to exit, in whatever system call that was.
    current_files() != 0 && is_fork(syscall_number())
}

#[inline(always)]
fn is_fork(syscall: u64) -> bool {
    matches!(syscall, FORK | VFORK | CLONE | CLONE3)
}

/// Whether a task that copies its table does so for a child. Means something of such a task only: a
/// number of a 32-bit call is another call's in 64 bits, but none of those copies a table.
#[inline(always)]
fn is_forking() -> bool {
    // include/linux/sched.h: a kernel thread, which starts a helper in no system call.
    const PF_KTHREAD: u32 = 0x0020_0000;
    // arch/x86/entry/syscalls/syscall_32.tbl
    const FORK_32: u64 = 2;
    const CLONE_32: u64 = 120;
    const VFORK_32: u64 = 190;
    let flags = current().read(&OFF_TASK_FLAGS);
    let syscall = syscall_number();
    flags & PF_KTHREAD != 0 || is_fork(syscall) || matches!(syscall, FORK_32 | CLONE_32 | VFORK_32)
}

/// The return of `dup_fd`, in which every copy of a table is made: for an unshare, an exec of a
/// shared table or a `close_range(CLOSE_RANGE_UNSHARE)`. Nobody else has it yet.
///
/// The copy for a fork is counted when the child is known: this function can sleep, and the kernel
/// follows only a limited number of calls at once to their return
/// (tracker-user/src/bpf/returns.rs).
#[kretprobe]
fn dup_fd(ctx: RetProbeContext) -> u32 {
    /// include/linux/err.h
    const MAX_ERRNO: u64 = 4095;
    let (files, copied): (u64, u64) = (ctx.ret(), current_files());
    if files == 0 || files > MAX_ERRNO.wrapping_neg() || copied == 0 || is_forking() {
        return 0;
    }
    if another_process_has(copied) {
        // The other keeps a table that is perhaps charged and listed as this process's.
        notify::request_audit();
    }
    forget_predecessor(files);
    if is_adopted() && TABLES.find(copied).is_none() {
        return 0;
    }
    scan(files, mode::QUIET);
    // `sched_process_exec` tells what an exec leaves.
    if matches!(syscall_number(), UNSHARE | CLOSE_RANGE) {
        notify::table(event::UNSHARED, files, Subject::Current, false);
    }
    0
}

/// `wake_up_new_task(task)`, at the end of a fork: the child has its pid, its cgroup and its table
/// now, and doesn't run yet.
#[kprobe]
fn wake_up_new_task(ctx: ProbeContext) -> u32 {
    let Some(child) = ctx.arg(0).map(Ptr::<Task>::new) else { return 0 };
    let (files, tgid) = (child.read(&OFF_TASK_FILES), child.read(&OFF_TASK_TGID));
    let parents = current_files();
    // A thread, or a process made with CLONE_FILES: no new table.
    if files == 0 || files == parents || is_own(tgid) {
        return 0;
    }
    forget_predecessor(files);
    // Nothing is recorded of the agent's own table.
    if is_adopted() && parents != 0 && TABLES.find(parents).is_none() {
        return 0;
    }
    on_behalf_of(tgid, cgroup_id(child), child);
    scan(files, mode::QUIET | mode::REMOTE);
    notify::table(event::FORKED, files, Subject::Child, false);
    0
}
