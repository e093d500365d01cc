//! Events to user space: notifications, lost when the ring is full, and then counted.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, generated::bpf_ktime_get_boot_ns},
    maps::ring_buf::RingBufEntry,
};
use tracker_ebpf::{COMM_LEN, Header, Kind, Loss, SlotEvent, Table, TableEvent, Tag, mode};

use crate::{
    kernel::{current_pid, current_tgid},
    maps::{EVENTS, lose},
};

/// Fills a record's head in place: a record put together on the stack would be copied byte by byte.
#[inline(always)]
fn fill(header: *mut Header, event: u32, files: u64, fd: u32, cgroup_id: u64) {
    // SAFETY: the pointer is into a ring entry that was just reserved.
    unsafe {
        (*header).event = event;
        (*header).fd = fd;
        // SAFETY: the helper has no precondition.
        (*header).time_ns = bpf_ktime_get_boot_ns();
        (*header).files = files;
        (*header).cgroup_id = cgroup_id;
        (*header).tgid = current_tgid();
        (*header).pid = current_pid();
        (*header).comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
    }
}

/// A slot was filled or emptied.
#[inline(always)]
pub(crate) fn slot(code: u32, files: u64, fd: u32, tag: Tag, cgroup_id: u64, tgid: u32, mode: u32) {
    let Some(mut entry): Option<RingBufEntry<SlotEvent>> = EVENTS.reserve(0) else {
        lose(Loss::Ring);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry was reserved for this type.
    unsafe {
        fill(&raw mut (*record).header, code, files, fd, cgroup_id);
        (*record).tag = tag;
        if mode & mode::REMOTE != 0 {
            (*record).header.tgid = tgid;
            (*record).header.pid = tgid;
            (*record).header.comm = [0; COMM_LEN];
        }
    }
    entry.submit(0);
}

/// Something happened to a whole table. Nothing is said of a table that holds nothing, unless `always`.
#[inline(always)]
pub(crate) fn table(code: u32, files: u64, table: *const Table, always: bool) {
    let Some(mut entry): Option<RingBufEntry<TableEvent>> = EVENTS.reserve(0) else {
        lose(Loss::Ring);
        return;
    };
    let record = entry.as_mut_ptr();
    let mut sum = 0;
    // SAFETY: the entry was reserved for this type, and `table` comes from the map.
    unsafe {
        fill(&raw mut (*record).header, code, files, 0, (*table).cgroup_id);
        for kind in 0..Kind::COUNT {
            let n = (*table).n[kind] as u32;
            (*record).n[kind] = n;
            sum |= n;
        }
    }
    if sum != 0 || always {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
}
