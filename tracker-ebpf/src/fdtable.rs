//! Reading a `files_struct`: its slots, and which of them are in use.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use tracker_ebpf::Tag;

use crate::{
    file_kind::{NOT_COUNTED, kind_of},
    kernel::{OFF_FDT_FD, OFF_FDT_MAX_FDS, OFF_FDT_OPEN_FDS, OFF_FILES_FDT, Probe, Read as _},
};

/// The `struct file` in a slot; 0 if there is none.
#[inline(always)]
pub(crate) fn file_at(files: u64, fd: u32) -> u64 {
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let fdt = Probe::pointer(files as *const u8, &OFF_FILES_FDT);
        if fd >= Probe::read::<u32>(fdt, &OFF_FDT_MAX_FDS) {
            return 0;
        }
        let slot = Probe::pointer(fdt, &OFF_FDT_FD).wrapping_add(fd as usize * 8);
        bpf_probe_read_kernel(slot.cast::<u64>()).unwrap_or(0)
    }
}

/// What a file is; [`Tag::EMPTY`] if it isn't counted.
#[inline(always)]
pub(crate) fn tag_of(file: u64) -> Tag {
    // SAFETY: a pointer that is no longer valid reads as anything.
    match unsafe { kind_of::<Probe>(file as *const u8) } {
        NOT_COUNTED => Tag::EMPTY,
        kind => Tag::new(kind, file),
    }
}

/// What the kernel holds in a slot now.
#[inline(always)]
pub(crate) fn read_slot(files: u64, fd: u32) -> Tag {
    Tag(slot_tag(files, fd))
}

/// A function of its own, because the classifier's outcomes multiply what follows them for the verifier.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn slot_tag(files: u64, fd: u32) -> u64 {
    match file_at(files, fd) {
        0 => Tag::EMPTY.0,
        file => tag_of(file).0,
    }
}

/// How many fds a table has room for.
#[inline(always)]
pub(crate) fn max_fds(files: u64) -> u32 {
    // SAFETY: pointers and integers are plain data.
    unsafe { Probe::read(Probe::pointer(files as *const u8, &OFF_FILES_FDT), &OFF_FDT_MAX_FDS) }
}

/// Which of the fds `word * 64 ..` are open.
///
/// The bitmap is a superset of the slots that hold a file: `alloc_fd` sets the bit first.
#[inline(always)]
pub(crate) fn open_fds(files: u64, word: u32) -> u64 {
    if word * 64 >= max_fds(files) {
        return 0;
    }
    // SAFETY: pointers and integers are plain data.
    unsafe {
        let fdt = Probe::pointer(files as *const u8, &OFF_FILES_FDT);
        let bitmap = Probe::pointer(fdt, &OFF_FDT_OPEN_FDS).wrapping_add(word as usize * 8);
        bpf_probe_read_kernel(bitmap.cast::<u64>()).unwrap_or(0)
    }
}
