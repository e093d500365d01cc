//! The kernel's structs: where their members are, how they are read, and what they say of tasks.
//!
//! User space sets the flags here as it sets the offsets. A branch on a flag that is off is removed
//! before the verifier looks at it.

pub(crate) mod layout;
mod pointer;

use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf, generated::bpf_task_pt_regs,
    },
};

use self::layout::{
    Files, OFF_CGROUP_KN, OFF_CSET_CGROUP, OFF_CSS_CGROUP, OFF_FILES_COUNT, OFF_KN_ID, OFF_REGS_SYSCALL,
    OFF_SIGNAL_LIVE, OFF_SIGNAL_THREADS, OFF_STACK_REGS, OFF_TASK_CGROUPS, OFF_TASK_FILES, OFF_TASK_SIGNAL,
    OFF_TASK_STACK, Registers, Task,
};
pub(crate) use self::pointer::{Access, Direct, Member, Plain, Pointer, Ptr, user};

/// 1 if the cgroup of a task is reached through a v1 controller's `cgroup_subsys_state`, not
/// through `dfl_cgrp`.
#[unsafe(no_mangle)]
static CGROUP_BY_CSS: Global<u8> = Global::new(0);

/// 1 if the helper `bpf_task_pt_regs` exists (Linux 5.15); else the registers are found at the top
/// of the kernel stack.
#[unsafe(no_mangle)]
static HAVE_TASK_PT_REGS: Global<u8> = Global::new(0);

/// The agent's own thread group, which is not counted: its audits would be events that it then
/// reports.
#[unsafe(no_mangle)]
static OWN_TGID: Global<u32> = Global::new(0);

/// 1 if the kprobe feeder counts: deltas are added, and no slot is recorded. Else slots are
/// followed one by one.
#[unsafe(no_mangle)]
static COUNT_DELTAS: Global<u8> = Global::new(0);

/// Whether the kprobe feeder counts: by deltas, not slot by slot.
#[inline(always)]
pub(crate) fn counts_deltas() -> bool {
    COUNT_DELTAS.load() != 0
}

/// The current task.
#[inline(always)]
pub(crate) fn current() -> Ptr<Task> {
    // SAFETY: the helper has no precondition.
    Ptr::new(unsafe { bpf_get_current_task() })
}

/// The current task's fd table: the address of a `files_struct`; 0 for a task that has none, and
/// for the agent.
#[inline(always)]
pub(crate) fn current_files() -> u64 {
    if current_tgid() == OWN_TGID.load() {
        return 0;
    }
    current().read(&OFF_TASK_FILES)
}

/// The current thread group.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The current thread.
#[inline(always)]
pub(crate) fn current_pid() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// Whether a task belongs to the agent.
#[inline(always)]
pub(crate) fn is_own(tgid: u32) -> bool {
    tgid == OWN_TGID.load()
}

/// The id of a task's cgroup in the hierarchy that user space chose.
#[inline(always)]
pub(crate) fn cgroup_id<R: Access>(task: Ptr<Task, R>) -> u64 {
    let mut cgroup = task.follow(&OFF_TASK_CGROUPS).follow(&OFF_CSET_CGROUP);
    if CGROUP_BY_CSS.load() != 0 {
        cgroup = cgroup.cast().follow(&OFF_CSS_CGROUP);
    }
    cgroup.follow(&OFF_CGROUP_KN).read(&OFF_KN_ID)
}

/// How many references a table has: of tasks, and on kernels before 5.11 of readers of
/// `/proc/PID/fd`.
#[inline(always)]
pub(crate) fn sharers(files: u64) -> u32 {
    Ptr::<Files>::new(files).read(&OFF_FILES_COUNT)
}

/// How many threads of the current process haven't begun to exit (`signal_struct.live`).
#[inline(always)]
pub(crate) fn live_threads() -> u32 {
    threads_of(current())
}

/// How many threads of a task's process haven't begun to exit.
#[inline(always)]
pub(crate) fn threads_of(task: Ptr<Task>) -> u32 {
    task.follow(&OFF_TASK_SIGNAL).read(&OFF_SIGNAL_LIVE)
}

/// Whether it is certain that another process, too, has a table of the current task's: the table
/// has more references than the process has threads that haven't been released
/// (`signal_struct.nr_threads`).
#[inline(always)]
pub(crate) fn another_process_has(files: u64) -> bool {
    let threads = current().follow(&OFF_TASK_SIGNAL).read(&OFF_SIGNAL_THREADS);
    sharers(files) > threads
}

/// The saved registers of a syscall.
#[inline(always)]
fn saved_registers() -> Ptr<Registers> {
    if HAVE_TASK_PT_REGS.load() != 0 {
        // SAFETY: the helper takes a task, and has no other precondition.
        Ptr::new(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64)
    } else {
        current().follow(&OFF_TASK_STACK).member(&OFF_STACK_REGS)
    }
}

/// An argument of the system call that the current task is in.
#[inline(always)]
pub(crate) fn syscall_arg(register: &Member<Registers, u64>) -> u64 {
    saved_registers().read(register)
}

/// The number of the system call that the current task is in. Meaningless in a kernel thread, and
/// in a 32-bit call.
#[inline(always)]
pub(crate) fn syscall_number() -> u64 {
    syscall_arg(&OFF_REGS_SYSCALL)
}
