//! Tells user space of events. A full ring loses them, and the loss is counted.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, generated::bpf_ktime_get_boot_ns},
    maps::ring_buf::RingBufEntry,
};
use tracker_ebpf::{COMM_LEN, Header, Loss, SlotEvent, TableEvent, Tag, event, mode};

use crate::{
    kernel::{current_pid, current_tgid},
    loss::lose,
    maps::{EVENTS, TABLES},
    value::{Find as _, TableRef, ValueRef},
};

/// The task that an event is about.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Subject {
    /// The task that the program runs in.
    Current,
    /// A child of that task, which has the table.
    Child,
    /// A task that has the table: the program runs in a task that acts on another.
    User,
}

/// Fills a record's head in place: a record put together on the stack would be copied byte by byte.
#[inline(always)]
fn fill(header: ValueRef<Header>, event: u32, files: u64, fd: u32, table: TableRef, subject: Subject) {
    header.event().set(event);
    header.fd().set(fd);
    // SAFETY: the helper has no precondition.
    header.time_ns().set(unsafe { bpf_ktime_get_boot_ns() });
    header.files().set(files);
    header.cgroup_id().set(table.cgroup_id().get());
    if subject == Subject::Current {
        header.tgid().set(current_tgid());
        header.pid().set(current_pid());
    } else {
        header.tgid().set(table.tgid().get());
        header.pid().set(table.tgid().get());
    }
    header.comm().set(match subject {
        // A child begins with its parent's name.
        Subject::Current | Subject::Child => bpf_get_current_comm().unwrap_or([0; COMM_LEN]),
        Subject::User => [0; COMM_LEN],
    });
}

/// Tells that a slot was filled or emptied.
#[inline(always)]
pub(crate) fn slot(code: u32, files: u64, fd: u32, tag: Tag, table: TableRef, mode: u32) {
    let Some(mut entry): Option<RingBufEntry<SlotEvent>> = EVENTS.reserve(0) else {
        lose(Loss::Ring);
        return;
    };
    let event = ValueRef::reserved(&mut entry);
    let subject = if mode & mode::REMOTE == 0 { Subject::Current } else { Subject::User };
    fill(event.header(), code, files, fd, table, subject);
    event.tag().set(tag);
    entry.submit(0);
}

/// Tells that something happened to a whole table. Nothing is said of a table that holds nothing,
/// unless `always`.
#[inline(always)]
pub(crate) fn table(code: u32, files: u64, subject: Subject, always: bool) {
    table_event(code, files, subject as u32, u32::from(always));
}

/// Does what [`table`] does, with a stack frame of its own. The frames of a program and of all that
/// it calls must fit in 512 bytes, each rounded up to 32 (to 16 on newer kernels), so a program
/// that scans has next to none to spare.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn table_event(code: u32, files: u64, subject: u32, always: u32) -> u32 {
    let Some(table) = TABLES.find(files) else { return 0 };
    let Some(mut entry): Option<RingBufEntry<TableEvent>> = EVENTS.reserve(0) else {
        lose(Loss::Ring);
        return 0;
    };
    let subject = match subject {
        0 => Subject::Current,
        1 => Subject::Child,
        _ => Subject::User,
    };
    let event = ValueRef::reserved(&mut entry);
    let mut sum = 0;
    fill(event.header(), code, files, 0, table, subject);
    for (to, n) in event.n().elements().zip(table.n().elements()) {
        // Volatile, or all are loaded before any is stored.
        let n = n.get_volatile() as u32;
        to.set(n);
        sum |= n;
    }
    if sum != 0 || always != 0 {
        entry.submit(0);
    } else {
        entry.discard(0);
    }
    0
}

/// Requests an audit: something may have happened to a table that no probe can tell.
#[inline(always)]
pub(crate) fn request_audit() {
    let Some(mut entry): Option<RingBufEntry<u64>> = EVENTS.reserve(0) else {
        lose(Loss::Ring);
        return;
    };
    // The code is the first word of every record, and the rest of this one nothing.
    entry.write(u64::from(event::AUDIT_REQUEST.to_le()));
    entry.submit(0);
}
