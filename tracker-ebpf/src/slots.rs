//! Follows slots: [`sync_slot`] makes what is recorded of one slot equal to what the kernel holds
//! in it.
//!
//! It is called after every change that a slot may have gone through. It is idempotent, so a call
//! too many does no harm, and a call that was missed is made good by any later one.
//!
//! # Why it is exact
//! Two CPUs may follow the same slot of a shared table at once. The one that inserts the slot into
//! `LOCKS` has locked it, and changes the record. The other returns at once, because the first
//! reads the slot *again* after it has unlocked it: it sees the change for which the other came.
//! Insertion into a hash map is the one atomic test-and-set that Linux 5.10 has.

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST};
use tracker_ebpf::{Loss, Slot, TABLE_STALE, Tag, mode};

use crate::{
    fdtable::{BLOCKS, WORDS, open_fds, read_slot},
    kernel::current_tgid,
    loss::lose,
    maps::{LOCKS, LockKey, RECORDED, SLOTS, TABLES},
    tables::{EEXIST, mark_stale, new_table, record},
    value::{Find as _, TableRef},
};

/// How often a slot is read again when it moves meanwhile.
const RETRIES: u32 = 4;

/// What [`change_slot`] returns when a map is full.
const NO_ROOM: u32 = u32::MAX;

/// What is recorded of a slot.
#[inline(always)]
fn recorded(table: Option<TableRef>, files: u64, fd: u32) -> Tag {
    let Some(table) = table else { return Tag::EMPTY };
    let key = Slot { files, generation: table.generation().get(), fd, pad: 0 };
    // A stale value is found by the next read.
    SLOTS.find(&key).map_or(Tag::EMPTY, |tag| tag.get())
}

/// Makes the record of a slot equal to the kernel's. Returns the number of changes.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn sync_slot(files: u64, fd: u32, mode: u32) -> u32 {
    let mut changes = 0;
    // A probe mostly finds nothing to do, so it compares before it locks; an audit has compared.
    let mut is_known = mode & mode::AUDIT != 0;
    for _ in 0..RETRIES {
        if !is_known && read_slot(files, fd) == recorded(TABLES.find(files), files, fd) {
            return changes;
        }
        is_known = false;
        let lock = LockKey { files, fd: u64::from(fd) };
        match LOCKS.insert(&lock, 0, u64::from(BPF_NOEXIST)) {
            Ok(()) => {}
            Err(EEXIST) => return changes,
            Err(_) => break,
        }
        let changed = change_slot(files, fd, mode);
        let _ = LOCKS.remove(&lock);
        if changed == NO_ROOM {
            return changes;
        }
        changes += changed;
    }
    lose(Loss::Contended);
    mark_stale(files);
    changes
}

/// Does [`resync::COMPARE_SLOT`](tracker_ebpf::resync::COMPARE_SLOT).
#[inline(always)]
pub(crate) fn differs(files: u64, fd: u32) -> u32 {
    u32::from(read_slot(files, fd) != recorded(TABLES.find(files), files, fd))
}

/// Reads a slot and records what it holds. The caller has locked the slot.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn change_slot(files: u64, fd: u32, mode: u32) -> u32 {
    let now = read_slot(files, fd);
    let mut entry = TABLES.find(files);
    if entry.is_none() && now != Tag::EMPTY {
        entry = new_table(files, mode);
        if entry.is_none() {
            return NO_ROOM;
        }
    }
    let Some(table) = entry else { return 0 };
    let was = recorded(entry, files, fd);
    if was == now {
        return 0;
    }
    let key = Slot { files, generation: table.generation().get(), fd, pad: 0 };
    if now == Tag::EMPTY {
        forget_slot(&key);
    } else if !record_slot(&key, now) {
        lose(Loss::Slots);
        table.mark(TABLE_STALE);
        return NO_ROOM;
    }
    // Two CPUs may get in each other's way here; then a scan misses a record, which an audit finds.
    if fd >= table.high_fd().get() {
        table.high_fd().set(fd + 1);
    }
    if mode & mode::REMOTE == 0 {
        table.tgid().set(current_tgid());
    }
    record(table, files, fd, was, now, mode);
    1
}

/// Follows one slot of a table.
#[inline(always)]
pub(crate) fn follow(files: u64, fd: u32, mode: u32) {
    if files != 0 {
        sync_slot(files, fd, mode);
    }
}

/// Forgets what is recorded of the slots of a table that are open. (What isn't open has no record.)
#[inline(always)]
pub(crate) fn forget_slots(files: u64, generation: u64, high: u32) {
    for block in 0..BLOCKS {
        if block * WORDS * 64 >= high {
            return;
        }
        forget_block(files, generation, block * WORDS);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn forget_block(files: u64, generation: u64, first: u32) -> u32 {
    for i in 0..WORDS {
        let word = first.wrapping_add(i);
        let bits = open_fds(files, word);
        if bits != 0 {
            forget_word(files, generation, word, bits);
        }
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn forget_word(files: u64, generation: u64, word: u32, bits: u64) -> u32 {
    for bit in 0..64 {
        if bits >> bit & 1 != 0 {
            forget_fd(files, generation, word * 64 + bit);
        }
    }
    0
}

/// A function of its own, so that the verifier walks it once and not for every bit.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn forget_fd(files: u64, generation: u64, fd: u32) -> u32 {
    u32::from(forget_slot(&Slot { files, generation, fd, pad: 0 }))
}

/// Forgets what is recorded of a slot. Returns whether anything was.
#[inline(always)]
pub(crate) fn forget_slot(slot: &Slot) -> bool {
    let had = SLOTS.remove(slot).is_ok();
    if had {
        count_record(u64::MAX);
    }
    had
}

/// Records what a slot holds. Returns whether there was room.
#[inline(always)]
fn record_slot(slot: &Slot, tag: Tag) -> bool {
    match SLOTS.insert(slot, tag, u64::from(BPF_NOEXIST)) {
        Ok(()) => {
            count_record(1);
            true
        }
        Err(EEXIST) => SLOTS.insert(slot, tag, u64::from(BPF_EXIST)).is_ok(),
        Err(_) => false,
    }
}

#[inline(always)]
fn count_record(delta: u64) {
    if let Some(n) = RECORDED.find(0) {
        n.add(delta);
    }
}
