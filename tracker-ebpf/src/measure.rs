//! Measures tables for the auditor, where only numbers are kept (kprobe feeder).

use tracker_ebpf::{TABLE_STALE, mode};

use crate::{
    maps::{MEASURED, TABLES},
    scan::scan,
    tables::flow_of,
    value::{Find as _, TableRef},
};

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
    if mode & mode::INEXACT != 0 {
        table.mark(TABLE_STALE);
    }
    1
}
