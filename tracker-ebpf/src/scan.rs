//! Walks whole tables.

use tracker_ebpf::{Loss, MAX_SCANNED_FDS, mode};

use crate::{
    deltas::count_slot,
    fdtable::{BLOCKS, WORDS, max_fds, open_fds},
    kernel::counts_deltas,
    loss::lose,
    maps::TABLES,
    slots::sync_slot,
    tables::mark_stale,
    value::Find as _,
};

/// Visits the slots `word * 64 ..` whose bits are set: counts them, or follows them, as the feeder
/// does.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn sync_word(files: u64, word: u32, bits: u64, mode: u32) -> u32 {
    let mut changes = 0;
    for bit in 0..64 {
        if bits >> bit & 1 != 0 {
            let fd = word * 64 + bit;
            changes += if counts_deltas() { count_slot(files, fd, mode) } else { sync_slot(files, fd, mode) };
        }
    }
    changes
}

/// Visits every slot of a table: those that are open, and those that were recorded. Returns the
/// number of changes.
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

/// Does what [`scan`] does for the slots `first ..= last`, and some on either side.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn scan_range(files: u64, first: u32, last: u32, mode: u32) -> u32 {
    let high = TABLES.find(files).map_or(0, |table| table.high_fd().get());
    // One branch only in the loop, because the verifier walks each turn's.
    let room = max_fds(files);
    let end = (if last < room { last + 1 } else { room }).div_ceil(64);
    let mut word = first / 64;
    let mut changes = 0;
    for _ in 0..BLOCKS {
        if word >= end {
            break;
        }
        changes += sync_block(files, word, high, mode);
        word += WORDS;
    }
    changes
}

/// Visits the slots of the words `first ..`; all of those below `high`, which may have been
/// recorded.
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
