//! Events to user space: notifications, lost when the ring is full, and then counted.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, generated::bpf_ktime_get_boot_ns},
    maps::ring_buf::RingBufEntry,
};
use tracker_ebpf::{COMM_LEN, Header, Kind, Loss, SlotEvent, Table, TableEvent, Tag, event, mode};

use crate::{
    kernel::{current_pid, current_tgid},
    maps::{EVENTS, TABLES, lose},
};

/// Whom an event is about.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Who {
    /// The task that the program runs in.
    Current,
    /// A child of that task, which is the table's user.
    Child,
    /// The table's user: the program runs in a task that acts on another.
    User,
}

/// Fills a record's head in place: a record put together on the stack would be copied byte by byte.
#[inline(always)]
fn fill(header: *mut Header, event: u32, files: u64, fd: u32, table: *const Table, who: Who) {
    // SAFETY: the pointer is into a ring entry that was just reserved.
    unsafe {
        (*header).event = event;
        (*header).fd = fd;
        // SAFETY: the helper has no precondition.
        (*header).time_ns = bpf_ktime_get_boot_ns();
        (*header).files = files;
        (*header).cgroup_id = (*table).cgroup_id;
        if who == Who::Current {
            (*header).tgid = current_tgid();
            (*header).pid = current_pid();
        } else {
            (*header).tgid = (*table).tgid;
            (*header).pid = (*table).tgid;
        }
        (*header).comm = match who {
            // A child begins with its parent's name.
            Who::Current | Who::Child => bpf_get_current_comm().unwrap_or([0; COMM_LEN]),
            Who::User => [0; COMM_LEN],
        };
    }
}

/// A slot was filled or emptied.
#[inline(always)]
pub(crate) fn slot(code: u32, files: u64, fd: u32, tag: Tag, table: *const Table, mode: u32) {
    let Some(mut entry): Option<RingBufEntry<SlotEvent>> = EVENTS.reserve(0) else {
        lose(Loss::Ring);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry was reserved for this type.
    unsafe {
        let who = if mode & mode::REMOTE == 0 { Who::Current } else { Who::User };
        fill(&raw mut (*record).header, code, files, fd, table, who);
        (*record).tag = tag;
    }
    entry.submit(0);
}

/// Something happened to a whole table. Nothing is said of a table that holds nothing, unless `always`.
#[inline(always)]
pub(crate) fn table(code: u32, files: u64, who: Who, always: bool) {
    table_event(code, files, who as u32, u32::from(always));
}

/// [`table`], with a stack frame of its own. The frames of a program and of all that it calls must fit in 512 bytes, each rounded
/// up to 32 (to 16 on newer kernels), so a program that scans has next to none to spare.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn table_event(code: u32, files: u64, who: u32, always: u32) -> u32 {
    let Some(table) = TABLES.get_ptr(files) else { return 0 };
    let Some(mut entry): Option<RingBufEntry<TableEvent>> = EVENTS.reserve(0) else {
        lose(Loss::Ring);
        return 0;
    };
    let who = match who {
        0 => Who::Current,
        1 => Who::Child,
        _ => Who::User,
    };
    let record = entry.as_mut_ptr();
    let mut sum = 0;
    // SAFETY: the entry was reserved for this type, and `table` comes from the map.
    unsafe {
        fill(&raw mut (*record).header, code, files, 0, table, who);
        for kind in 0..Kind::COUNT {
            // Volatile, or all are loaded before any is stored.
            let n = core::ptr::read_volatile(&raw const (*table).n[kind]) as u32;
            (*record).n[kind] = n;
            sum |= n;
        }
    }
    if sum != 0 || always != 0 {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
    0
}

/// Something happened to a table that isn't known: an audit must look.
#[inline(always)]
pub(crate) fn uncertain() {
    let Some(mut entry): Option<RingBufEntry<u64>> = EVENTS.reserve(0) else {
        lose(Loss::Ring);
        return;
    };
    // The code is the first word of every record, and the rest of this one nothing.
    entry.write(u64::from(event::UNCERTAIN.to_le()));
    entry.submit(0);
}
