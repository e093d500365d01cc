//! The auditor: the iterator, which reads the absolute truth, and the program by which user space acts on it.

use aya_ebpf::{
    bindings::seq_file, cty::c_void, helpers::generated::bpf_seq_write, programs::RawTracePointContext,
};
use tracker_ebpf::{
    FileRecord, MAX_SCANNED_FDS, MET_CGROUP, MET_TGID, Met, Slot, TABLE_STALE, Tag, kind_sum, mode, resync,
    slot_sum, walk,
};

use crate::{
    edges::{adjust, measure},
    file_kind::{NOT_COUNTED, kind_of},
    kernel::{
        Direct, OFF_TASK_FILES, OFF_TASK_FLAGS, OFF_TASK_STATE, OFF_TASK_TGID, Probe, Read, cgroup_id, is_own,
    },
    maps::{CONTROL, FLOWS, TABLES},
    notify::Who,
    programs::lifecycle,
    scan::scan,
    slots::{differs, forget_slot, sync_slot},
    tables::{follow_move, hold, mark_stale, on_behalf_of, release, remove_table},
};

/// Context of `iter/task_file` (kernel: `struct bpf_iter__task_file`).
#[repr(C)]
pub(super) struct TaskFile {
    pub(super) meta: *const Meta,
    pub(super) task: *const u8,
    fd: u32,
    pub(super) file: *const u8,
}

/// Head of `struct bpf_iter_meta`.
#[repr(C)]
pub(super) struct Meta {
    pub(super) seq: *mut seq_file,
}

/// Meets every slot that holds a file that is counted: writes a [`FileRecord`] for it, or adds it to its table's entry ([`walk`]).
///
/// Runs for each fd of each table once, under a reference to the file. aya has no macro for iterators.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn audit(ctx: *const TaskFile) -> i32 {
    // SAFETY: the context is the kernel's; `task` and `file` may be null at the end of the walk, and are then not
    // used. The rest are loads that the verifier checks.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task.is_null() || file.is_null() {
            return 0;
        }
        let tgid: u32 = Direct::read(task, &OFF_TASK_TGID);
        if is_own(tgid) {
            return 0;
        }
        // A number to the verifier, as a probe read gives.
        let files: u64 = Probe::read(task, &OFF_TASK_FILES);
        let Some(control) = CONTROL.get_ptr_mut(0) else { return 0 };
        let table = TABLES.get_ptr_mut(files);
        if let Some(table) = table
            && (*table).visited != (*control).pass
        {
            (*table).visited = (*control).pass;
            (*table).met = Met { task: task as u64, file: 0, slots: 0, kinds: 0, users: 0 };
        }
        let kind = kind_of::<Direct>(file);
        if kind == NOT_COUNTED || !is_alive::<Direct>(task) {
            return 0;
        }
        let (fd, cgroup_id) = ((*ctx).fd, cgroup_id::<Direct>(task));
        if let Some(table) = table
            && (*control).walk == walk::SUMS
        {
            let met = &raw mut (*table).met;
            if (*met).task == task as u64 {
                // Through memory it becomes a number, with which the verifier allows arithmetic.
                (&raw mut (*met).file).write_volatile(file as u64);
                let tag = Tag::new(kind, (&raw const (*met).file).read_volatile());
                (*met).slots = (*met).slots.wrapping_add(slot_sum(fd, tag));
                (*met).kinds = (*met).kinds.wrapping_add(kind_sum(kind));
            }
            if (*table).cgroup_id == cgroup_id {
                (*met).users |= MET_CGROUP;
            }
            if (*table).tgid == tgid {
                (*met).users |= MET_TGID;
            }
            return 0;
        }
        if (*control).walk == walk::TABLES {
            if (*control).last == files && fd < MAX_SCANNED_FDS {
                return 0;
            }
            (*control).last = 0;
        }
        let record = FileRecord { files, task: task as u64, file: file as u64, kind, cgroup_id, tgid, fd };
        // Room is made by the kernel, which runs the program again for this file.
        let size = size_of::<FileRecord>() as u32;
        if bpf_seq_write((*(*ctx).meta).seq, (&raw const record).cast(), size) == 0 {
            (*control).last = files;
        }
    }
    0
}

/// Run by user space (`BPF_PROG_TEST_RUN`, Linux 5.10), never attached: acts on one table as a probe would, with
/// preemption off. The arguments are [`resync`]'s. aya's macro for raw tracepoints drops what a program returns.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sys_exit")]
extern "C" fn resync(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    let (operation, files): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    match operation {
        resync::SCAN | resync::SLOT | resync::ADJUST => act(&ctx),
        resync::FORGET => forget(&ctx),
        resync::PEEK => differs(files, ctx.arg(2)),
        resync::FORGET_SLOT => {
            u32::from(forget_slot(&Slot { files, generation: ctx.arg(2), fd: ctx.arg(3), pad: 0 }))
        }
        resync::FORGET_FLOW => u32::from(FLOWS.remove(files).is_ok()),
        resync::MEASURE => measure(files),
        _ => 0,
    }
}

/// `resync::FORGET`
#[inline(always)]
fn forget(ctx: &RawTracePointContext) -> u32 {
    let files: u64 = ctx.arg(1);
    if !hold(files) {
        return 0;
    }
    let mut done = 0;
    if let Some(table) = TABLES.get_ptr(files) {
        // SAFETY: the pointer comes from the map.
        if unsafe { ((*table).generation, (*table).seq) } == (ctx.arg(2), ctx.arg(3)) {
            lifecycle::end(files, table, Who::User);
            done = 1;
        }
    }
    release(files);
    done
}

/// Writes to a table on behalf of a task that has it. Arguments are read where they are used: the stack is nearly all taken by what a
/// scan calls.
#[inline(always)]
fn act(ctx: &RawTracePointContext) -> u32 {
    let known = generation(ctx.arg(1)) != 0;
    if !may_act(ctx.arg(1), ctx.arg(2), ctx.arg(4)) {
        return resync::REFUSED;
    }
    assign(ctx.arg(1), ctx.arg(4), ctx.arg(5), ctx.arg(6));
    if ctx.arg::<u32>(3) & mode::RECOUNT != 0 {
        // The new entry has a generation of its own, to which no recorded slot belongs.
        remove_table(ctx.arg(1));
    } else if ctx.arg::<u64>(0) == resync::SCAN
        && let Some(table) = TABLES.get_ptr_mut(ctx.arg::<u64>(1))
    {
        // The scan marks it again if it fails.
        // SAFETY: the pointer comes from the map.
        unsafe { (*table).flags &= !TABLE_STALE };
    }
    let mode = ctx.arg::<u32>(3) | mode::REMOTE | mode::AUDIT;
    let result = match ctx.arg::<u64>(0) {
        resync::SCAN => scan(ctx.arg(1), mode),
        resync::SLOT => sync_slot(ctx.arg(1), ctx.arg(7), mode),
        _ => adjust(ctx.arg(1), mode),
    };
    if is_in_use(ctx.arg(4), ctx.arg(1)) {
        return result;
    }
    // Its last task, perhaps, began to exit meanwhile: it may have found nothing to forget, or told what isn't known any more.
    if known {
        mark_stale(ctx.arg(1));
    } else if let Some(table) = TABLES.get_ptr(ctx.arg::<u64>(1)) {
        lifecycle::forget(ctx.arg(1), table, Who::User);
    }
    resync::REFUSED
}

/// Puts right whose a table is, where that is `charged` and `listed`, which it isn't; an entry that is made next is the same task's.
///
/// What the task's cgroup is, is read here and not taken from user space: it may have been moved since the iterator saw it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn assign(files: u64, task: u64, charged: u64, listed: u32) -> u32 {
    let task = task as *const u8;
    // SAFETY: integers are plain data.
    let mut tgid: u32 = unsafe { Probe::read(task, &OFF_TASK_TGID) };
    let own_cgroup = cgroup_id::<Probe>(task);
    let mut cgroup = own_cgroup;
    if let Some(table) = TABLES.get_ptr_mut(files) {
        // SAFETY: the pointer comes from the map.
        unsafe {
            if (*table).cgroup_id == charged {
                (*table).cgroup_id = cgroup;
                follow_move(table, task, cgroup);
            }
            if (*table).tgid == listed {
                (*table).tgid = tgid;
            }
            (tgid, cgroup) = ((*table).tgid, (*table).cgroup_id);
        }
    }
    // What is charged otherwise has another user there.
    on_behalf_of(tgid, cgroup, if cgroup == own_cgroup { task } else { core::ptr::null() });
    0
}

/// A table's generation; 0 if it isn't recorded.
#[inline(always)]
fn generation(files: u64) -> u64 {
    // SAFETY: the pointer comes from the map.
    TABLES.get_ptr(files).map_or(0, |table| unsafe { (*table).generation })
}

/// The table that was looked at may have ended since, and what is at its address be another's, or nobody's: memory that was freed,
/// which still looks like a table.
#[inline(always)]
fn may_act(files: u64, wanted: u64, task: u64) -> bool {
    (wanted == resync::ANY || wanted == generation(files)) && is_in_use(task, files)
}

/// Whether a task has a table, and hasn't begun to exit.
#[inline(always)]
fn is_in_use(task: u64, files: u64) -> bool {
    let task = task as *const u8;
    // SAFETY: integers are plain data; an address that is no longer valid reads as anything.
    unsafe { Probe::read::<u64>(task, &OFF_TASK_FILES) == files && is_alive::<Probe>(task) }
}

/// Whether a task has begun to live, and hasn't begun to exit. One that is being made is in the first cgroup for a while, and then in its
/// own (kernel: `cgroup_fork`, `cgroup_post_fork`); of one that exits the table may be forgotten already.
///
/// # Safety
/// `task` is a `struct task_struct *` that `R` can read.
#[inline(always)]
unsafe fn is_alive<R: Read>(task: *const u8) -> bool {
    // include/linux/sched.h
    const PF_EXITING: u32 = 4;
    const TASK_NEW: u32 = 0x800;
    // SAFETY: integers are plain data.
    unsafe {
        R::read::<u32>(task, &OFF_TASK_FLAGS) & PF_EXITING == 0
            && R::read::<u32>(task, &OFF_TASK_STATE) & TASK_NEW == 0
    }
}
