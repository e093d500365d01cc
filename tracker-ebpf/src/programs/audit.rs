//! The auditor: the iterator, which reads the kernel's own list of open files, and the program by
//! which user space repairs what is recorded.

use aya_ebpf::{cty::c_void, programs::RawTracePointContext};
use tracker_ebpf::{
    FileRecord, MAX_SCANNED_FDS, SEEN_IN_CGROUP, SEEN_IN_TGID, Slot, Sums, Tag, kind_sum, mode, resync,
    slot_sum, walk,
};

use crate::{
    file_kind::{NOT_COUNTED, kind_of},
    iterator::TaskFile,
    kernel::{
        Access, Ptr, cgroup_id, is_own,
        layout::{OFF_TASK_FILES, OFF_TASK_FLAGS, OFF_TASK_STATE, OFF_TASK_TGID, Task},
    },
    maps::{CONTROL, FLOWS, TABLES},
    measure::{adjust, measure},
    notify::Subject,
    programs::lifecycle,
    scan::scan,
    slots::{differs, forget_slot, sync_slot},
    tables::{follow_move, lock_table, mark_stale, on_behalf_of, remove_table, unlock_table},
    value::Find as _,
};

/// Visits every slot that holds a file that is counted: writes a [`FileRecord`] for it, or adds it
/// to its table's entry ([`walk`]).
///
/// Runs for each fd of each table once, under a reference to the file. aya has no macro for
/// iterators.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn audit(slot: &TaskFile) -> i32 {
    let (task, file) = (slot.task, slot.file);
    if task.is_null() || file.is_null() {
        return 0;
    }
    let tgid = task.read(&OFF_TASK_TGID);
    if is_own(tgid) {
        return 0;
    }
    // A number to the verifier, as a probe read gives.
    let files = task.probed().read(&OFF_TASK_FILES);
    let Some(control) = CONTROL.find(0) else { return 0 };
    let table = TABLES.find(files);
    if let Some(table) = table
        && table.visited().get() != control.pass().get()
    {
        table.visited().set(control.pass().get());
        table.sums().set(Sums { task: task.address(), file: 0, slots: 0, kinds: 0, users: 0 });
    }
    let kind = kind_of(file);
    if kind == NOT_COUNTED || !is_alive(task) {
        return 0;
    }
    let (fd, cgroup_id) = (slot.fd, cgroup_id(task));
    if let Some(table) = table
        && control.walk().get() == walk::SUMS
    {
        let sums = table.sums();
        if sums.task().get() == task.address() {
            // Through memory it becomes a number, with which the verifier allows arithmetic.
            sums.file().set_volatile(file.address());
            let tag = Tag::new(kind, sums.file().get_volatile());
            sums.slots().set(sums.slots().get().wrapping_add(slot_sum(fd, tag)));
            sums.kinds().set(sums.kinds().get().wrapping_add(kind_sum(kind)));
        }
        if table.cgroup_id().get() == cgroup_id {
            sums.users().set(sums.users().get() | SEEN_IN_CGROUP);
        }
        if table.tgid().get() == tgid {
            sums.users().set(sums.users().get() | SEEN_IN_TGID);
        }
        return 0;
    }
    if control.walk().get() == walk::TABLES {
        if control.last().get() == files && fd < MAX_SCANNED_FDS {
            return 0;
        }
        control.last().set(0);
    }
    let (task, file) = (task.address(), file.address());
    if slot.meta.output.write(&FileRecord { files, task, file, kind, cgroup_id, tgid, fd }) {
        control.last().set(files);
    }
    0
}

/// Acts on one table as a probe would, with preemption off. User space runs it
/// (`BPF_PROG_TEST_RUN`, Linux 5.10); it is never attached. The arguments are [`resync`]'s. aya's
/// macro for raw tracepoints drops what a program returns.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/sys_exit")]
extern "C" fn resync(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    let (operation, files): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    match operation {
        resync::SCAN | resync::SLOT | resync::ADJUST => act(&ctx),
        resync::FORGET => forget(&ctx),
        resync::COMPARE_SLOT => differs(files, ctx.arg(2)),
        resync::FORGET_SLOT => {
            u32::from(forget_slot(&Slot { files, generation: ctx.arg(2), fd: ctx.arg(3), pad: 0 }))
        }
        resync::FORGET_FLOW => u32::from(FLOWS.remove(files).is_ok()),
        resync::MEASURE => measure(files),
        _ => 0,
    }
}

/// Does `resync::FORGET`.
#[inline(always)]
fn forget(ctx: &RawTracePointContext) -> u32 {
    let files: u64 = ctx.arg(1);
    if !lock_table(files) {
        return 0;
    }
    let mut done = 0;
    if let Some(table) = TABLES.find(files)
        && (table.generation().get(), table.seq().get()) == (ctx.arg(2), ctx.arg(3))
    {
        lifecycle::end(files, table, Subject::User);
        done = 1;
    }
    unlock_table(files);
    done
}

/// Writes to a table on behalf of a task that has it. Arguments are read where they are used: the
/// stack is nearly all taken by what a scan calls.
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
        && let Some(table) = TABLES.find(ctx.arg::<u64>(1))
    {
        // The scan marks it again if it fails.
        table.unmark_stale();
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
    // Perhaps its last task began to exit meanwhile: it may have found nothing to forget, or told
    // what isn't known any more.
    if known {
        mark_stale(ctx.arg(1));
    } else if let Some(table) = TABLES.find(ctx.arg::<u64>(1)) {
        lifecycle::forget(ctx.arg(1), table, Subject::User);
    }
    resync::REFUSED
}

/// Corrects whose a table is, where that is `charged` and `listed`, which is wrong; and says that
/// an entry that is made next is the same task's.
///
/// The task's cgroup is read here and not taken from user space: it may have been moved since the
/// iterator saw it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn assign(files: u64, task: u64, charged: u64, listed: u32) -> u32 {
    let task = Ptr::<Task>::new(task);
    let mut tgid = task.read(&OFF_TASK_TGID);
    let own_cgroup = cgroup_id(task);
    let mut cgroup = own_cgroup;
    if let Some(table) = TABLES.find(files) {
        if table.cgroup_id().get() == charged {
            table.cgroup_id().set(cgroup);
            follow_move(table, task, cgroup);
        }
        if table.tgid().get() == listed {
            table.tgid().set(tgid);
        }
        (tgid, cgroup) = (table.tgid().get(), table.cgroup_id().get());
    }
    // What is charged otherwise has another user there.
    on_behalf_of(tgid, cgroup, if cgroup == own_cgroup { task } else { Ptr::new(0) });
    0
}

/// A table's generation; 0 if it isn't recorded.
#[inline(always)]
fn generation(files: u64) -> u64 {
    TABLES.find(files).map_or(0, |table| table.generation().get())
}

/// Whether a table is still the one that user space means, and a task still has it. Otherwise what
/// is at its address may be another's, or nobody's: memory that was freed still looks like a table.
#[inline(always)]
fn may_act(files: u64, wanted: u64, task: u64) -> bool {
    (wanted == resync::ANY || wanted == generation(files)) && is_in_use(task, files)
}

/// Whether a task has a table, and hasn't begun to exit.
#[inline(always)]
fn is_in_use(task: u64, files: u64) -> bool {
    let task = Ptr::<Task>::new(task);
    task.read(&OFF_TASK_FILES) == files && is_alive(task)
}

/// Whether a task has begun to live, and hasn't begun to exit. One that is being made is in the
/// first cgroup for a while, and then in its own (kernel: `cgroup_fork`, `cgroup_post_fork`); of
/// one that exits the table may be forgotten already.
#[inline(always)]
fn is_alive<R: Access>(task: Ptr<Task, R>) -> bool {
    // include/linux/sched.h
    const PF_EXITING: u32 = 4;
    const TASK_NEW: u32 = 0x800;
    task.read(&OFF_TASK_FLAGS) & PF_EXITING == 0 && task.read(&OFF_TASK_STATE) & TASK_NEW == 0
}
