//! Counts deltas: the kprobe feeder sees every change of a slot, one by one, and adds it to its table.
//!
//! # Why it is exact
//! A file is counted just before it becomes visible in its slot, and taken off just after it vanished (kernel:
//! `fd_install`, `do_dup2`, `filp_close`), so a count is never smaller than what a scan can find. Additions
//! commute: what the auditor found missing is added too, whatever happened since the auditor measured.

use tracker_ebpf::{TABLE_STALE, Tag, mode};

use crate::{
    fdtable::read_slot,
    kernel::current_tgid,
    maps::{CONTROL, MEASURED, TABLES},
    scan::scan,
    tables::{flow_of, record},
    value::{Find as _, TableRef},
};

/// Whether what was open before the feeder was attached has been counted.
#[inline(always)]
pub(crate) fn is_adopted() -> bool {
    CONTROL.find(0).is_some_and(|control| control.adopted().get() != 0)
}

/// Counts that the current task fills a slot.
#[inline(always)]
pub(crate) fn filled(files: u64, fd: u32, tag: Tag) {
    let Some(table) = TableRef::find_or_make(files, 0) else { return };
    table.tgid().set(current_tgid());
    record(table, files, fd, Tag::EMPTY, tag, 0);
}

/// Counts that a slot of a table was emptied.
#[inline(always)]
pub(crate) fn emptied(files: u64, fd: u32, tag: Tag, mode: u32) {
    // A table without an entry was there before the feeder; or, if those are adopted, its birth was missed.
    let Some(table) = TableRef::find_or_make(files, mode) else { return };
    record(table, files, fd, tag, Tag::EMPTY, mode);
    if table.count(tag.kind_index()) < 0 && is_adopted() && !table.is_stale() {
        table.request_audit();
    }
}

/// Counts what a slot holds: of a table that nobody else has yet; or, to measure, of any.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn count_slot(files: u64, fd: u32, mode: u32) -> u32 {
    let now = read_slot(files, fd);
    if now == Tag::EMPTY {
        return 0;
    }
    if mode & mode::MEASURE != 0 {
        // Only the auditor uses the map.
        if let Some(n) = MEASURED.find(0).and_then(|n| n.element(now.kind_index())) {
            n.set(n.get() + 1);
        }
        return 1;
    }
    let Some(table) = TableRef::find_or_make(files, mode) else { return 0 };
    record(table, files, fd, Tag::EMPTY, now, mode | mode::QUIET);
    1
}

/// Does [`resync::MEASURE`](tracker_ebpf::resync::MEASURE).
#[inline(always)]
pub(crate) fn measure(files: u64) -> u32 {
    let before = start_measure(files);
    scan(files, mode::MEASURE | mode::AUDIT);
    u32::from(version(files) == before)
}

/// Generation and seq of a table in one word: it changes if either does.
#[inline(always)]
fn version(files: u64) -> u64 {
    TABLES.find(files).map_or(0, |table| table.generation().get().wrapping_add(table.seq().get()))
}

/// Puts into `MEASURED` what is counted, as negative numbers: what is found is then added.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn start_measure(files: u64) -> u64 {
    let before = version(files);
    let Some(measured) = MEASURED.find(0) else { return 0 };
    let table = TABLES.find(files);
    for (kind, to) in measured.elements().enumerate() {
        let n = table.and_then(|table| table.n().element(kind)).map_or(0, |n| n.get_volatile());
        to.set_volatile(n.wrapping_neg());
    }
    before
}

/// Does [`resync::ADJUST`](tracker_ebpf::resync::ADJUST).
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn adjust(files: u64, mode: u32) -> u32 {
    let Some(measured) = MEASURED.find(0) else { return 0 };
    let Some(table) = TableRef::find_or_make(files, mode) else { return 0 };
    let flow = if mode & mode::ADOPT == 0 { flow_of(table.cgroup_id().get()) } else { None };
    for (kind, delta) in measured.elements().enumerate() {
        let delta = delta.get_volatile();
        if delta == 0 {
            continue;
        }
        if let Some(n) = table.n().element(kind) {
            n.add(delta);
        }
        if let Some(flow) = flow {
            let moved = if delta > 0 { flow.opened() } else { flow.closed() };
            if let Some(n) = moved.element(kind) {
                n.add(delta.unsigned_abs());
            }
        }
    }
    table.seq().add(1);
    table.unmark_stale();
    if mode & mode::DOUBT != 0 {
        table.mark(TABLE_STALE);
    }
    1
}
