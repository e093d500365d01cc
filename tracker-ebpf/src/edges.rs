//! Counting edges: the kprobe feeder sees every change of a slot, one by one, and adds it to its table.
//!
//! # Why it is exact
//! A file is counted just before it becomes visible in its slot, and taken off just after it vanished (kernel:
//! `fd_install`, `do_dup2`, `filp_close`), so a count is never smaller than what a scan can find. Additions commute: what the
//! auditor found missing is added too, whatever happened since it looked.

use tracker_ebpf::{Kind, TABLE_STALE, Tag, mode};

use crate::{
    fdtable::read_slot,
    kernel::current_tgid,
    maps::{CONTROL, MEASURED, TABLES, add},
    scan::scan,
    tables::{doubt, flow_of, new_table, record},
};

/// Whether what was open before the feeder was attached has been counted.
#[inline(always)]
pub(crate) fn is_adopted() -> bool {
    // SAFETY: the pointer comes from the map.
    CONTROL.get_ptr(0).is_some_and(|control| unsafe { (*control).adopted } != 0)
}

/// The current task fills a slot.
#[inline(always)]
pub(crate) fn filled(files: u64, fd: u32, tag: Tag) {
    let Some(table) = TABLES.get_ptr_mut(files).or_else(|| new_table(files, 0)) else { return };
    // SAFETY: the pointer comes from the map.
    unsafe {
        (*table).tgid = current_tgid();
        record(table, files, fd, Tag::EMPTY, tag, 0);
    }
}

/// A slot of a table was emptied.
#[inline(always)]
pub(crate) fn emptied(files: u64, fd: u32, tag: Tag, mode: u32) {
    // Without an entry, a table that was there before the feeder; or, if those are adopted, one whose birth was missed.
    let Some(table) = TABLES.get_ptr_mut(files).or_else(|| new_table(files, mode)) else { return };
    // SAFETY: the pointer comes from the map, and the verifier checks every access.
    unsafe {
        record(table, files, fd, tag, Tag::EMPTY, mode);
        let left = (*table).n.get(tag.kind_index()).copied().unwrap_or(0);
        if left < 0 && is_adopted() && (*table).flags & TABLE_STALE == 0 {
            doubt(table);
        }
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
        // SAFETY: the pointer comes from the map, and the verifier checks every access. Only the auditor uses it.
        if let Some(n) = MEASURED.get_ptr_mut(0).and_then(|n| unsafe { (*n).get_mut(now.kind_index()) }) {
            *n += 1;
        }
        return 1;
    }
    let Some(table) = TABLES.get_ptr_mut(files).or_else(|| new_table(files, mode)) else { return 0 };
    // SAFETY: the pointer comes from the map.
    unsafe { record(table, files, fd, Tag::EMPTY, now, mode | mode::QUIET) };
    1
}

/// `resync::MEASURE`
#[inline(always)]
pub(crate) fn measure(files: u64) -> u32 {
    let before = start_measure(files);
    scan(files, mode::MEASURE | mode::AUDIT);
    u32::from(moves(files) == before)
}

/// Generation and seq of a table in one word: it changes if either does.
#[inline(always)]
fn moves(files: u64) -> u64 {
    // SAFETY: the pointer comes from the map.
    TABLES.get_ptr(files).map_or(0, |table| unsafe { (*table).generation.wrapping_add((*table).seq) })
}

/// What is counted is taken off what will be found.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn start_measure(files: u64) -> u64 {
    let before = moves(files);
    let Some(measured) = MEASURED.get_ptr_mut(0) else { return 0 };
    let table = TABLES.get_ptr(files);
    // SAFETY: the pointers come from the maps.
    unsafe {
        for (kind, to) in (*measured).iter_mut().enumerate() {
            let n = match table {
                Some(table) => core::ptr::read_volatile(&raw const (*table).n[kind]),
                None => 0,
            };
            core::ptr::write_volatile(to, n.wrapping_neg());
        }
    }
    before
}

/// `resync::ADJUST`
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn adjust(files: u64, mode: u32) -> u32 {
    let Some(measured) = MEASURED.get_ptr_mut(0) else { return 0 };
    let Some(table) = TABLES.get_ptr_mut(files).or_else(|| new_table(files, mode)) else { return 0 };
    // SAFETY: the pointers come from the maps, and the verifier checks every access.
    unsafe {
        let flow = if mode & mode::ADOPT == 0 { flow_of((*table).cgroup_id) } else { None };
        for kind in 0..Kind::COUNT {
            let delta = core::ptr::read_volatile(&raw const (*measured)[kind]);
            if delta == 0 {
                continue;
            }
            add((&raw mut (*table).n[kind]).cast(), delta as u64);
            if let Some(flow) = flow {
                if delta > 0 {
                    add(&raw mut (*flow).opened[kind], delta as u64);
                } else {
                    add(&raw mut (*flow).closed[kind], delta.wrapping_neg() as u64);
                }
            }
        }
        add(&raw mut (*table).seq, 1);
        (*table).flags &= !TABLE_STALE;
        if mode & mode::DOUBT != 0 {
            (*table).flags |= TABLE_STALE;
        }
    }
    1
}
