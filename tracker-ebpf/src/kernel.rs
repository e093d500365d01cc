//! Where things are in the running kernel, and how to read them.
//!
//! User space finds every offset in the kernel's BTF and writes it here before it loads the programs. The values
//! are then frozen, so the verifier knows them: `pointer + offset` keeps its BTF type, and a branch on a flag that
//! is off is removed before it is looked at.

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user},
};

macro_rules! offsets {
    ($($name:ident)*) => { $(#[unsafe(no_mangle)] pub(crate) static $name: Global<u64> = Global::new(0);)* };
}

// One for each entry of `OFFSETS` in tracker-user/src/bpf/offsets.rs.
offsets! {
    OFF_TASK_FILES OFF_TASK_FLAGS OFF_TASK_STATE OFF_TASK_LEADER OFF_TASK_TGID OFF_TASK_SIGNAL OFF_SIGNAL_LIVE OFF_SIGNAL_THREADS OFF_TASK_CGROUPS
    OFF_CSET_CGROUP OFF_CSS_CGROUP OFF_CGROUP_KN OFF_KN_ID
    OFF_FILES_COUNT OFF_FILES_FDT OFF_FDT_MAX_FDS OFF_FDT_FD OFF_FDT_OPEN_FDS
    OFF_FILE_INODE OFF_FILE_OP OFF_FILE_DENTRY OFF_FILE_PRIVATE OFF_DENTRY_NAME
    OFF_INODE_MODE OFF_INODE_SB OFF_INODE_RDEV OFF_SB_MAGIC
    OFF_SOCKET_TYPE OFF_SOCKET_SK OFF_SK_FAMILY OFF_SK_PROTOCOL
    OFF_TASK_STACK OFF_STACK_REGS OFF_REGS_ARG0 OFF_REGS_ARG1 OFF_REGS_ARG2 OFF_REGS_ARG3 OFF_REGS_SYSCALL
}

// One for each entry of `LOOKS` in tracker-user/src/bpf/offsets.rs: some kernels lack some of these.
offsets! {
    OFF_VMA_FILE OFF_VMA_MM
    OFF_TASK_IO_URING OFF_URING_RINGS
    OFF_SK_STATE OFF_SK_QUEUE OFF_QUEUE_LEN OFF_SKB_NEXT OFF_SKB_SK OFF_SKB_CB OFF_CB_FP OFF_FP_COUNT OFF_FP_FILES
    OFF_RING_FILES_LEN OFF_RING_FILES OFF_NODE_FILE
}

/// The cgroup of a task is reached through a v1 controller's `cgroup_subsys_state`, not through `dfl_cgrp`.
#[unsafe(no_mangle)]
static CGROUP_BY_CSS: Global<u8> = Global::new(0);

/// The helper `bpf_task_pt_regs` exists (Linux 5.15); else the registers are found at the top of the kernel stack.
#[unsafe(no_mangle)]
static HAVE_TASK_PT_REGS: Global<u8> = Global::new(0);

/// The agent's own thread group, which is not counted: its audits would be events that it then reports.
#[unsafe(no_mangle)]
static OWN_TGID: Global<u32> = Global::new(0);

/// The kprobe feeder counts: each change of a slot is an edge, and no slot is recorded. Else slots are followed one by one.
#[unsafe(no_mangle)]
static COUNT_EDGES: Global<u8> = Global::new(0);

/// Whether the kprobe feeder counts.
#[inline(always)]
pub(crate) fn counts_edges() -> bool {
    COUNT_EDGES.load() != 0
}

/// How a kernel pointer is read. A failed read gives zeroes, as a null pointer's does.
pub(crate) trait Read {
    /// # Safety
    /// `T` must be plain data.
    unsafe fn read<T: Copy>(base: *const u8, offset: &Global<u64>) -> T;

    /// Reads a pointer.
    ///
    /// # Safety
    /// None beyond [`Read::read`]'s: what is returned may be anything, and reading it is safe in the same way.
    #[inline(always)]
    unsafe fn pointer(base: *const u8, offset: &Global<u64>) -> *const u8 {
        // SAFETY: a pointer is plain data.
        unsafe { Self::read(base, offset) }
    }
}

/// A plain load through a pointer whose BTF type the verifier knows: in iterators.
pub(crate) struct Direct;

impl Read for Direct {
    #[inline(always)]
    unsafe fn read<T: Copy>(base: *const u8, offset: &Global<u64>) -> T {
        // SAFETY: the verifier accepts only loads inside the pointer's type, and the kernel turns a fault into 0.
        unsafe { core::ptr::read_volatile(base.add(offset.load() as usize).cast::<T>()) }
    }
}

/// `bpf_probe_read_kernel`, for pointers that the verifier knows nothing of: in tracepoints.
pub(crate) struct Probe;

impl Read for Probe {
    #[inline(always)]
    unsafe fn read<T: Copy>(base: *const u8, offset: &Global<u64>) -> T {
        // SAFETY: the helper checks the address; `T` is plain data, so zeroes are a value of it.
        unsafe {
            bpf_probe_read_kernel(base.wrapping_add(offset.load() as usize).cast::<T>())
                .unwrap_or(core::mem::zeroed())
        }
    }
}

/// The current task.
#[inline(always)]
pub(crate) fn current() -> *const u8 {
    // SAFETY: the helper has no precondition.
    (unsafe { bpf_get_current_task() }) as *const u8
}

/// The current task's fd table: a `files_struct`; 0 for a task that has none, and for the agent.
#[inline(always)]
pub(crate) fn current_files() -> u64 {
    if current_tgid() == OWN_TGID.load() {
        return 0;
    }
    // SAFETY: a `u64` is plain data.
    unsafe { Probe::read(current(), &OFF_TASK_FILES) }
}

/// The current thread group.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32
}

/// The current thread.
#[inline(always)]
pub(crate) fn current_pid() -> u32 {
    aya_ebpf::helpers::bpf_get_current_pid_tgid() as u32
}

/// Whether a task belongs to the agent.
#[inline(always)]
pub(crate) fn is_own(tgid: u32) -> bool {
    tgid == OWN_TGID.load()
}

/// The id of a task's cgroup in the hierarchy that user space chose.
#[inline(always)]
pub(crate) fn cgroup_id<R: Read>(task: *const u8) -> u64 {
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let cset = R::pointer(task, &OFF_TASK_CGROUPS);
        let mut cgroup = R::pointer(cset, &OFF_CSET_CGROUP);
        if CGROUP_BY_CSS.load() != 0 {
            cgroup = R::pointer(cgroup, &OFF_CSS_CGROUP);
        }
        R::read(R::pointer(cgroup, &OFF_CGROUP_KN), &OFF_KN_ID)
    }
}

/// How many hold a table: tasks, and on kernels before 5.11 readers of `/proc/PID/fd`.
#[inline(always)]
pub(crate) fn sharers(files: u64) -> u32 {
    // SAFETY: a `u32` is plain data.
    unsafe { Probe::read(files as *const u8, &OFF_FILES_COUNT) }
}

/// Threads of the current process that have not begun to exit (`signal_struct.live`).
#[inline(always)]
pub(crate) fn live_threads() -> u32 {
    threads_of(current())
}

/// As [`live_threads`], of a task's process.
#[inline(always)]
pub(crate) fn threads_of(task: *const u8) -> u32 {
    // SAFETY: pointers and integers are plain data.
    unsafe { Probe::read(Probe::pointer(task, &OFF_TASK_SIGNAL), &OFF_SIGNAL_LIVE) }
}

/// Whether another process than the current one has a table of the current task's, for certain: more have it than there are threads
/// that haven't been released (`signal_struct.nr_threads`).
#[inline(always)]
pub(crate) fn another_process_has(files: u64) -> bool {
    // SAFETY: pointers and integers are plain data.
    let threads: u32 =
        unsafe { Probe::read(Probe::pointer(current(), &OFF_TASK_SIGNAL), &OFF_SIGNAL_THREADS) };
    sharers(files) > threads
}

/// The address of a syscall's saved registers.
#[inline(always)]
fn saved_regs() -> *const u8 {
    if HAVE_TASK_PT_REGS.load() != 0 {
        // SAFETY: the helper takes a task and has no other precondition.
        unsafe { aya_ebpf::helpers::generated::bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8 }
    } else {
        // SAFETY: a pointer is plain data.
        let stack = unsafe { Probe::pointer(current(), &OFF_TASK_STACK) };
        stack.wrapping_add(OFF_STACK_REGS.load() as usize)
    }
}

/// An argument of the system call that the current task is in.
#[inline(always)]
pub(crate) fn syscall_arg(register: &Global<u64>) -> u64 {
    // SAFETY: a `u64` is plain data.
    unsafe { Probe::read(saved_regs(), register) }
}

/// The number of the system call that the current task is in. Meaningless in a kernel thread, and in a 32-bit call.
#[inline(always)]
pub(crate) fn syscall_number() -> u64 {
    syscall_arg(&OFF_REGS_SYSCALL)
}

/// Reads the memory of the current process. A page that isn't there gives zeroes.
#[inline(always)]
pub(crate) fn user<T: Copy>(address: u64) -> T {
    // SAFETY: the helper checks the address; callers read integers only, of which zeroes are a value.
    unsafe { bpf_probe_read_user(address as *const T).unwrap_or(core::mem::zeroed()) }
}
