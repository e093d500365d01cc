//! What aya doesn't offer: maps read in batches, keys of the contract's types.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use tracker_ebpf::{FileRecord, Flow, Slot, SlotEvent, Table, TableEvent, Tag};

/// Types that any bytes are a value of, so that they may be read from the kernel.
///
/// # Safety
/// The type must have no padding, no pointer, and no invalid value.
pub(super) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($ty:ty),+) => { $(
        // SAFETY: integers, or `repr(C)` structs of integers without padding (tested in tracker-ebpf).
        unsafe impl Plain for $ty {}
    )+ };
}

plain!(u32, u64, FileRecord, Flow, Slot, SlotEvent, Table, TableEvent, Tag);

/// Reads a value from the start of some bytes.
pub(super) fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: there are enough bytes, any bytes are a value, and the read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

// enum bpf_cmd, include/uapi/linux/bpf.h
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;

/// `union bpf_attr`, as the batch commands see it.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads a whole hash map. Entries that come or go meanwhile may or may not be seen; none is seen twice, because the kernel
/// walks bucket by bucket. Minimum kernel: 5.6.
pub(super) fn read_hash<K: Plain, V: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut found = Vec::new();
    let mut room = 1024;
    let mut position: Option<u32> = None;
    loop {
        let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::uninit(); room];
        let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); room];
        let mut next = 0_u32;
        let mut batch = Batch {
            in_batch: position.as_ref().map_or(0, |p| (&raw const *p) as u64),
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut batch);
        let done = match result {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                // The end; `count` entries are filled all the same.
                Some(libc::ENOENT) => true,
                // A bucket has more entries than there is room for.
                Some(libc::ENOSPC) if room < 1 << 20 => {
                    room *= 4;
                    continue;
                }
                _ => return Err(error),
            },
        };
        for (key, value) in keys.iter().zip(&values).take(batch.count as usize) {
            // SAFETY: the kernel filled `count` entries of each, and any bytes are a value.
            found.push(unsafe { (key.assume_init(), value.assume_init()) });
        }
        if done {
            return Ok(found);
        }
        position = Some(next);
    }
}

/// `union bpf_attr`, as the commands on one element see it.
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Removes an entry; that it isn't there is no error.
pub(super) fn delete<K: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut element =
        Element { map_fd: map.as_raw_fd() as u32, pad: 0, key: (&raw const *key) as u64, value: 0, flags: 0 };
    match bpf(BPF_MAP_DELETE_ELEM, &mut element) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// The first words of `struct bpf_prog_info`, up to `recursion_misses` (Linux 5.12).
#[repr(C)]
struct ProgramInfo {
    before: [u64; 26],
    recursion_misses: u64,
}

/// `union bpf_attr`, as `BPF_OBJ_GET_INFO_BY_FD` sees it.
#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// How often the kernel didn't run a program because its CPU was running one already. 0 where the kernel doesn't count that.
pub(super) fn recursion_misses(program: BorrowedFd<'_>) -> io::Result<u64> {
    const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
    let mut answer = ProgramInfo { before: [0; 26], recursion_misses: 0 };
    let mut info = Info {
        bpf_fd: program.as_raw_fd() as u32,
        info_len: size_of::<ProgramInfo>() as u32,
        info: (&raw mut answer) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut info)?;
    Ok(answer.recursion_misses)
}

fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the attributes are those of the command, and what they point to lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_records_are_refused() {
        assert_eq!(read::<u32>(&[1, 0, 0]), None);
        assert_eq!(read::<u32>(&1_u32.to_ne_bytes()), Some(1));
        assert!(read::<SlotEvent>(&[0; 8]).is_none());
    }
}
