//! The tracepoint feeder's syscalls: each program is attached to the exits of all syscalls that
//! change slots in the same way (`SYSCALLS` in tracker-user/src/bpf/feeder.rs says which).
//!
//! Perf-style tracepoints (`tp/`), not `raw_tp` or `tp_btf`: those can be preempted from Linux 7.0
//! on, and a program that is preempted loses the runs of other tasks on its CPU. At the exit of a
//! syscall the arguments are still in the saved registers.

use aya_ebpf::{EbpfContext as _, macros::tracepoint, programs::TracePointContext};
use tracker_ebpf::{Kind, Loss, mode};

use crate::{
    fdtable::{file_at, tag_of},
    kernel::{
        Ptr, current_files,
        layout::{File, OFF_REGS_ARG0, OFF_REGS_ARG1, OFF_REGS_ARG2, OFF_REGS_ARG3},
        syscall_arg, user,
    },
    loss::lose,
    maps::TABLES,
    notify,
    programs::lifecycle,
    scan::{scan, scan_range},
    slots::follow,
    tables::mark_stale,
    value::Find as _,
};

/// What a syscall returns. The format is the same for all:
/// `/sys/kernel/tracing/events/syscalls/*/format`.
#[inline(always)]
fn returned(ctx: &TracePointContext) -> i64 {
    // SAFETY: the context of a syscall's exit is 24 bytes, and this its last word.
    unsafe { *ctx.as_ptr().byte_add(16).cast::<i64>() }
}

/// Syscalls that return the fd that they filled.
#[tracepoint]
fn returns_fd(ctx: TracePointContext) -> u32 {
    let fd = returned(&ctx);
    if fd >= 0 {
        follow(current_files(), fd as u32, 0);
    }
    0
}

/// `fcntl(2)`: `F_DUPFD` and `F_DUPFD_CLOEXEC` return a new fd.
#[tracepoint]
fn fcntl(ctx: TracePointContext) -> u32 {
    const F_DUPFD: u32 = 0;
    const F_DUPFD_CLOEXEC: u32 = 1030;
    let fd = returned(&ctx);
    if fd >= 0 && matches!(syscall_arg(&OFF_REGS_ARG1) as u32, F_DUPFD | F_DUPFD_CLOEXEC) {
        follow(current_files(), fd as u32, 0);
    }
    0
}

/// `ioctl(2)`: most of those that make an fd return it (KVM, VFIO, perf, nsfs, userfaultfd), and it
/// is never 0 in practice. Some leave it in the caller's memory.
#[tracepoint]
fn ioctl(ctx: TracePointContext) -> u32 {
    const DMA_HEAP_IOCTL_ALLOC: u32 = 0xc018_4800;
    const DRM_IOCTL_PRIME_HANDLE_TO_FD: u32 = 0xc00c_642d;
    const DRM_IOCTL_SYNCOBJ_HANDLE_TO_FD: u32 = 0xc010_64c1;
    const SYNC_IOC_MERGE: u32 = 0xc030_3e03;
    const KVM_CREATE_DEVICE: u32 = 0xc00c_aee0;
    /// Fills a slot of another process, and returns its number there. Only the kernel knows which
    /// process that is.
    const SECCOMP_IOCTL_NOTIF_ADDFD: u32 = 0x4018_2103;
    let fd = returned(&ctx);
    if fd >= 0 && syscall_arg(&OFF_REGS_ARG1) as u32 == SECCOMP_IOCTL_NOTIF_ADDFD {
        notify::request_audit();
        return 0;
    }
    if fd > 0 {
        follow(current_files(), fd as u32, 0);
    }
    if fd == 0 {
        let offset = match syscall_arg(&OFF_REGS_ARG1) as u32 {
            DMA_HEAP_IOCTL_ALLOC | DRM_IOCTL_PRIME_HANDLE_TO_FD | DRM_IOCTL_SYNCOBJ_HANDLE_TO_FD => 8,
            SYNC_IOC_MERGE => 36,
            KVM_CREATE_DEVICE => 4,
            _ => return 0,
        };
        follow(current_files(), user::<u32>(syscall_arg(&OFF_REGS_ARG2).wrapping_add(offset)), 0);
    }
    0
}

/// `close(2)`. The slot is empty whatever is returned. A table that never had anything to count
/// needs nothing.
#[tracepoint]
fn close(_ctx: TracePointContext) -> u32 {
    let files = current_files();
    if files != 0 && TABLES.find(files).is_some() {
        follow(files, syscall_arg(&OFF_REGS_ARG0) as u32, 0);
    }
    0
}

/// `close_range(2)`.
#[tracepoint]
fn close_range(ctx: TracePointContext) -> u32 {
    const CLOSE_RANGE_UNSHARE: u64 = 2;
    const CLOSE_RANGE_CLOEXEC: u64 = 4;
    if returned(&ctx) != 0 {
        return 0;
    }
    let flags = syscall_arg(&OFF_REGS_ARG2);
    let files = current_files();
    if flags & CLOSE_RANGE_UNSHARE != 0 {
        lifecycle::unshared(files);
    } else if flags & CLOSE_RANGE_CLOEXEC == 0 && files != 0 && TABLES.find(files).is_some() {
        let (first, last) = (syscall_arg(&OFF_REGS_ARG0) as u32, syscall_arg(&OFF_REGS_ARG1) as u32);
        scan_range(files, first, last, 0);
    }
    0
}

/// `unshare(2)`: with `CLONE_FILES` the task has a table of its own.
#[tracepoint]
fn unshare(ctx: TracePointContext) -> u32 {
    const CLONE_FILES: u64 = 0x400;
    if returned(&ctx) == 0 && syscall_arg(&OFF_REGS_ARG0) & CLONE_FILES != 0 {
        lifecycle::unshared(current_files());
    }
    0
}

const CLONE_PIDFD: u64 = 0x1000;

/// `fork(2)`, `vfork(2)`: returns in the child, whose table may be new.
#[tracepoint]
fn fork(ctx: TracePointContext) -> u32 {
    if returned(&ctx) == 0 {
        lifecycle::forked();
    }
    0
}

/// `clone(2)`: as `fork`, and with `CLONE_PIDFD` the parent has a pidfd where `parent_tid` points.
#[tracepoint]
fn clone(ctx: TracePointContext) -> u32 {
    match returned(&ctx) {
        0 => lifecycle::forked(),
        1.. if syscall_arg(&OFF_REGS_ARG0) & CLONE_PIDFD != 0 => {
            follow(current_files(), user::<u32>(syscall_arg(&OFF_REGS_ARG2)), 0);
        }
        _ => {}
    }
    0
}

/// `clone3(2)`: as `clone`; flags and the pidfd's address are the first words of
/// `struct clone_args`.
#[tracepoint]
fn clone3(ctx: TracePointContext) -> u32 {
    match returned(&ctx) {
        0 => lifecycle::forked(),
        1.. => {
            let args = syscall_arg(&OFF_REGS_ARG0);
            if user::<u64>(args) & CLONE_PIDFD != 0 {
                follow(current_files(), user::<u32>(user::<u64>(args + 8)), 0);
            }
        }
        _ => {}
    }
    0
}

/// `getsockopt(2)`: `SO_PEERPIDFD` (Linux 6.5) makes a pidfd. D-Bus daemons hold dozens of these.
#[tracepoint]
fn getsockopt(ctx: TracePointContext) -> u32 {
    const SOL_SOCKET: u32 = 1;
    const SO_PEERPIDFD: u32 = 77;
    if returned(&ctx) == 0
        && syscall_arg(&OFF_REGS_ARG1) as u32 == SOL_SOCKET
        && syscall_arg(&OFF_REGS_ARG2) as u32 == SO_PEERPIDFD
    {
        follow(current_files(), user::<u32>(syscall_arg(&OFF_REGS_ARG3)), 0);
    }
    0
}

/// `socketpair(2)` leaves two fds in the caller's memory. They are counted unless the family is
/// `AF_UNIX` (TIPC).
#[tracepoint]
fn socketpair(ctx: TracePointContext) -> u32 {
    const AF_UNIX: u32 = 1;
    if returned(&ctx) == 0 && syscall_arg(&OFF_REGS_ARG0) as u32 != AF_UNIX {
        let (files, pair) = (current_files(), syscall_arg(&OFF_REGS_ARG3));
        follow(files, user::<u32>(pair), 0);
        follow(files, user::<u32>(pair.wrapping_add(4)), 0);
    }
    0
}

/// `read(2)`: of a fanotify group, it fills a slot for every event. Attached only once there is
/// such a group.
#[tracepoint]
fn read(ctx: TracePointContext) -> u32 {
    if returned(&ctx) <= 0 {
        return 0;
    }
    let files = current_files();
    let fanotify = TABLES.find(files).is_some_and(|table| table.count(Kind::Fanotify.index()) > 0);
    if fanotify && is_fanotify(file_at(files, syscall_arg(&OFF_REGS_ARG0) as u32)) {
        scan(files, 0);
    }
    0
}

#[inline(always)]
fn is_fanotify(file: Ptr<File>) -> bool {
    tag_of(file).kind_index() == Kind::Fanotify.index()
}

/// `recvmsg(2)`: fds come in control messages.
#[tracepoint]
fn recvmsg(ctx: TracePointContext) -> u32 {
    if returned(&ctx) >= 0 {
        let files = current_files();
        if files != 0 {
            received(files, syscall_arg(&OFF_REGS_ARG1));
        }
    }
    0
}

/// `recvmmsg(2)`: returns the number of messages.
#[tracepoint]
fn recvmmsg(ctx: TracePointContext) -> u32 {
    const MAX_MESSAGES: i64 = 32;
    /// `sizeof(struct mmsghdr)`
    const MMSGHDR: u64 = 64;
    let count = returned(&ctx);
    if count <= 0 {
        return 0;
    }
    let files = current_files();
    if files == 0 {
        return 0;
    }
    let vector = syscall_arg(&OFF_REGS_ARG1);
    for i in 0..MAX_MESSAGES {
        if i >= count {
            return 0;
        }
        received(files, vector.wrapping_add(i as u64 * MMSGHDR));
    }
    if count > MAX_MESSAGES {
        scan(files, mode::QUIET);
    }
    0
}

/// Follows the fds that a received message carried: the kernel left their numbers in the receiver's
/// memory.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn received(files: u64, msghdr: u64) -> u32 {
    const SOL_SOCKET: u32 = 1;
    const SCM_RIGHTS: u32 = 1;
    const SCM_PIDFD: u32 = 4;
    /// `sizeof(struct cmsghdr)`
    const CMSGHDR: u64 = 16;
    const MAX_CMSGS: u32 = 8;
    let control = user::<u64>(msghdr.wrapping_add(32));
    let len = user::<u64>(msghdr.wrapping_add(40));
    if control == 0 || len < CMSGHDR {
        return 0;
    }
    let end = control.wrapping_add(len);
    let mut at = control;
    for _ in 0..MAX_CMSGS {
        if at.wrapping_add(CMSGHDR) > end {
            return 0;
        }
        let cmsg_len = user::<u64>(at);
        if cmsg_len < CMSGHDR {
            return 0;
        }
        let level = user::<u32>(at.wrapping_add(8));
        if level == SOL_SOCKET && matches!(user::<u32>(at.wrapping_add(12)), SCM_RIGHTS | SCM_PIDFD) {
            received_fds(files, at.wrapping_add(CMSGHDR), (cmsg_len - CMSGHDR) / 4);
        }
        // CMSG_NEXT
        at = at.wrapping_add((cmsg_len + 7) & !7);
    }
    if at.wrapping_add(CMSGHDR) <= end {
        lose(Loss::Truncated);
        mark_stale(files);
    }
    0
}

/// Follows `count` fds from an array in the current process's memory.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn received_fds(files: u64, array: u64, count: u64) -> u32 {
    /// net/core/scm.c
    const SCM_MAX_FD: u64 = 253;
    for i in 0..SCM_MAX_FD {
        if i >= count {
            break;
        }
        follow(files, user::<u32>(array.wrapping_add(i * 4)), 0);
    }
    0
}
