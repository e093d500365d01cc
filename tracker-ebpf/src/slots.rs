//! Following slots: [`sync_slot`] makes what is recorded of one slot equal to what the kernel holds in it.
//!
//! It is called after every change that a slot may have gone through. It is idempotent, so a call too many does no
//! harm, and a call that was missed is made good by any later one.
//!
//! # Why it is exact
//! Two CPUs may follow the same slot of a shared table at once. Whoever inserts the slot into `LOCKS` changes the
//! record; the other returns at once, because the holder reads the slot *again* after it has let go: it sees
//! whatever made the other come. Insertion into a hash map is the one atomic test-and-set that Linux 5.10 has.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns};
use tracker_ebpf::{Flow, Loss, MAX_SCANNED_FDS, Slot, TABLE_STALE, Table, Tag, event, mode};

use crate::{
    classify::{NOT_COUNTED, classify},
    kernel::{
        OFF_FDT_FD, OFF_FDT_MAX_FDS, OFF_FDT_OPEN_FDS, OFF_FILES_FDT, Probe, Read, cgroup_id, current,
        current_tgid,
    },
    maps::{FLOWS, LOCKS, LockKey, SCRATCH, SLOTS, TABLES, add, lose},
    notify,
};

/// How often a slot is read again when it moves meanwhile.
const RETRIES: u32 = 4;

const EEXIST: i32 = -17;

/// Returned by [`change_slot`] when a map is full.
const NO_ROOM: u32 = u32::MAX;

/// What the kernel holds in a slot now.
#[inline(always)]
fn read_slot(files: u64, fd: u32) -> Tag {
    // SAFETY: pointers and integers are plain data; a pointer that is no longer valid reads as anything, and the
    // caller reads the slot again.
    unsafe {
        let fdt = Probe::pointer(files as *const u8, &OFF_FILES_FDT);
        if fd >= Probe::read::<u32>(fdt, &OFF_FDT_MAX_FDS) {
            return Tag::EMPTY;
        }
        let slot = Probe::pointer(fdt, &OFF_FDT_FD).wrapping_add(fd as usize * 8);
        let Ok(file) = aya_ebpf::helpers::bpf_probe_read_kernel(slot.cast::<u64>()) else {
            return Tag::EMPTY;
        };
        if file == 0 {
            return Tag::EMPTY;
        }
        match classify::<Probe>(file as *const u8) {
            NOT_COUNTED => Tag::EMPTY,
            kind => Tag::new(kind, file),
        }
    }
}

/// What is recorded of a slot.
#[inline(always)]
fn recorded(table: Option<*mut Table>, files: u64, fd: u32) -> Tag {
    let Some(table) = table else { return Tag::EMPTY };
    // SAFETY: the pointer comes from the map; a torn or stale value is found by the next read.
    unsafe {
        let key = Slot { files, generation: (*table).generation, fd, pad: 0 };
        SLOTS.get(&key).copied().unwrap_or(Tag::EMPTY)
    }
}

/// Makes the record of a slot equal to the kernel's. Returns the number of changes.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn sync_slot(files: u64, fd: u32, mode: u32) -> u32 {
    let mut changes = 0;
    for _ in 0..RETRIES {
        let now = read_slot(files, fd);
        if now == recorded(TABLES.get_ptr_mut(files), files, fd) {
            return changes;
        }
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

/// Reads a slot and records what it holds. The caller holds the slot's lock.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn change_slot(files: u64, fd: u32, mode: u32) -> u32 {
    let now = read_slot(files, fd);
    let mut entry = TABLES.get_ptr_mut(files);
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
    // SAFETY: the pointer comes from the map, and the verifier checks every access.
    unsafe {
        let key = Slot { files, generation: (*table).generation, fd, pad: 0 };
        if now == Tag::EMPTY {
            let _ = SLOTS.remove(&key);
        } else if SLOTS.insert(&key, now, 0).is_err() {
            lose(Loss::Slots);
            (*table).flags |= TABLE_STALE;
            return NO_ROOM;
        }
        // Two CPUs may get in each other's way here; then a scan misses a record, which an audit finds.
        if fd >= (*table).high_fd {
            (*table).high_fd = fd + 1;
        }
        if mode & mode::REMOTE == 0 {
            (*table).tgid = current_tgid();
        }
        if let Some(n) = (*table).n.get_mut(was.kind_index()) {
            add((&raw mut *n).cast(), u64::MAX);
        }
        if let Some(n) = (*table).n.get_mut(now.kind_index()) {
            add((&raw mut *n).cast(), 1);
        }
        add(&raw mut (*table).seq, 1);
        if mode & mode::ADOPT == 0 {
            flow((*table).cgroup_id, was, now);
        }
        if mode & mode::QUIET == 0 {
            if was != Tag::EMPTY {
                notify::slot(event::CLOSED, files, fd, was, table, mode);
            }
            if now != Tag::EMPTY {
                notify::slot(event::OPENED, files, fd, now, table, mode);
            }
        }
    }
    1
}

/// Makes the entry of a table that has something to count for the first time.
#[inline(always)]
fn new_table(files: u64, mode: u32) -> Option<*mut Table> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer comes from the map; the program can't be preempted, so nobody else is using it. `n` stays 0.
    unsafe {
        let table = &raw mut (*scratch).table;
        (*table).seq = 0;
        (*table).generation = bpf_ktime_get_ns();
        (*table).visited = 0;
        (*table).high_fd = 0;
        (*table).flags = 0;
        if mode & mode::REMOTE == 0 {
            (*table).tgid = current_tgid();
            (*table).cgroup_id = cgroup_id::<Probe>(current());
        } else {
            (*table).tgid = (*scratch).remote_tgid;
            (*table).cgroup_id = (*scratch).remote_cgroup_id;
        }
        match TABLES.insert(files, &*table, u64::from(BPF_NOEXIST)) {
            Ok(()) | Err(EEXIST) => {}
            Err(_) => lose(Loss::Tables),
        }
    }
    TABLES.get_ptr_mut(files)
}

/// The counters of a cgroup.
#[inline(always)]
pub(crate) fn flow_of(cgroup: u64) -> Option<*mut Flow> {
    if let Some(flow) = FLOWS.get_ptr_mut(cgroup) {
        return Some(flow);
    }
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer comes from the map; the value is never written.
    match unsafe { FLOWS.insert(cgroup, &(*scratch).flow, u64::from(BPF_NOEXIST)) } {
        Ok(()) | Err(EEXIST) => FLOWS.get_ptr_mut(cgroup),
        Err(_) => {
            lose(Loss::Flows);
            None
        }
    }
}

#[inline(always)]
fn flow(cgroup: u64, was: Tag, now: Tag) {
    let Some(flow) = flow_of(cgroup) else { return };
    // SAFETY: the pointer comes from the map, and the verifier checks every access.
    unsafe {
        if let Some(n) = (*flow).closed.get_mut(was.kind_index()) {
            add(n, 1);
        }
        if let Some(n) = (*flow).opened.get_mut(now.kind_index()) {
            add(n, 1);
        }
    }
}

#[inline(always)]
pub(crate) fn mark_stale(files: u64) {
    if let Some(table) = TABLES.get_ptr_mut(files) {
        // SAFETY: the pointer comes from the map.
        unsafe { (*table).flags |= TABLE_STALE }
    }
}

/// Follows one slot of a table.
#[inline(always)]
pub(crate) fn follow(files: u64, fd: u32, mode: u32) {
    if files != 0 {
        sync_slot(files, fd, mode);
    }
}

/// Follows the slots `word * 64 ..` whose bits are set.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn sync_word(files: u64, word: u32, bits: u64, mode: u32) -> u32 {
    let mut changes = 0;
    for bit in 0..64 {
        if bits >> bit & 1 != 0 {
            changes += sync_slot(files, word * 64 + bit, mode);
        }
    }
    changes
}

/// Words of a block, and blocks of a table. The verifier walks a loop turn by turn, so one loop over all words would be too
/// long for it; functions that don't inline it verifies once.
const WORDS: u32 = 16;
const BLOCKS: u32 = MAX_SCANNED_FDS / 64 / WORDS;

/// Follows every slot of a table: those that are open, and those that were recorded. Returns the number of changes.
///
/// The verifier takes no more than eight functions deep, and `learn` is seven below a program.
#[inline(always)]
pub(crate) fn scan(files: u64, mode: u32) -> u32 {
    let changes = scan_range(files, 0, MAX_SCANNED_FDS - 1, mode);
    if mode & mode::AUDIT == 0 && max_fds(files) > MAX_SCANNED_FDS {
        lose(Loss::Truncated);
        mark_stale(files);
    }
    changes
}

/// As [`scan`], for the slots `first ..= last` and some on either side.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn scan_range(files: u64, first: u32, last: u32, mode: u32) -> u32 {
    let high = match TABLES.get_ptr(files) {
        // SAFETY: the pointer comes from the map.
        Some(table) => unsafe { (*table).high_fd },
        None => 0,
    };
    let room = max_fds(files);
    let mut changes = 0;
    for block in 0..BLOCKS {
        let start = block * WORDS * 64;
        if start >= room || start > last {
            break;
        }
        if start + WORDS * 64 > first {
            changes += sync_block(files, block * WORDS, high, mode);
        }
    }
    changes
}

/// Follows the slots of the words `first ..`; all of those below `high`, which may have been recorded.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn sync_block(files: u64, first: u32, high: u32, mode: u32) -> u32 {
    let mut changes = 0;
    for i in 0..WORDS {
        let word = first.wrapping_add(i);
        let bits = if word.wrapping_mul(64) < high { u64::MAX } else { open_fds(files, word) };
        if bits != 0 {
            changes += sync_word(files, word, bits, mode);
        }
    }
    changes
}

/// How many fds a table has room for.
#[inline(always)]
fn max_fds(files: u64) -> u32 {
    // SAFETY: pointers and integers are plain data.
    unsafe { Probe::read(Probe::pointer(files as *const u8, &OFF_FILES_FDT), &OFF_FDT_MAX_FDS) }
}

/// Which of the fds `word * 64 ..` are open.
///
/// The bitmap is a superset of the slots that hold a file: `alloc_fd` sets the bit first.
#[inline(always)]
fn open_fds(files: u64, word: u32) -> u64 {
    if word * 64 >= max_fds(files) {
        return 0;
    }
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let fdt = Probe::pointer(files as *const u8, &OFF_FILES_FDT);
        let bitmap = Probe::pointer(fdt, &OFF_FDT_OPEN_FDS).wrapping_add(word as usize * 8);
        aya_ebpf::helpers::bpf_probe_read_kernel(bitmap.cast::<u64>()).unwrap_or(0)
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
            let _ = SLOTS.remove(Slot { files, generation, fd: word * 64 + bit, pad: 0 });
        }
    }
    0
}
