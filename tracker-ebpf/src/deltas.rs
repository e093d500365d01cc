//! Counts deltas: the kprobe feeder sees every change of a slot, one by one, and adds it to its
//! table.
//!
//! # Why it is exact
//! A file is counted just before it becomes visible in its slot, and taken off just after it
//! vanished (kernel: `fd_install`, `do_dup2`, `filp_close`), so a count is never smaller than what
//! a scan can find. Additions commute: what the auditor found missing is added too, whatever
//! happened since the auditor measured.

use tracker_ebpf::{Tag, mode};

use crate::{
    fdtable::read_slot,
    kernel::current_tgid,
    maps::{CONTROL, MEASURED},
    tables::record,
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
    // A table without an entry was there before the feeder; or, if those are adopted, its birth was
    // missed.
    let Some(table) = TableRef::find_or_make(files, mode) else { return };
    record(table, files, fd, tag, Tag::EMPTY, mode);
    if table.count(tag.kind_index()) < 0 && is_adopted() && !table.is_stale() {
        table.request_audit();
    }
}

/// Counts what a slot holds, of a table that nobody else has yet; or of any, to measure it.
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
