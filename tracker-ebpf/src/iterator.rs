//! Iterators: what the kernel hands to them, and what they write.

use core::mem::size_of;

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};

use crate::kernel::{
    Direct, Ptr,
    layout::{File, Task},
};

/// Head of `struct bpf_iter_meta`.
#[repr(C)]
pub(crate) struct Meta {
    pub(crate) output: Output,
}

/// What user space reads from an iterator.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Output(*mut seq_file);

impl Output {
    /// Writes a record. Returns whether there was room: if not, the kernel makes room, and runs the
    /// program again for the same object.
    #[inline(always)]
    pub(crate) fn write<T>(self, record: &T) -> bool {
        // SAFETY: the record lives through the call, and is as large as its type.
        unsafe { self.write_bytes((&raw const *record).cast(), size_of::<T>()) }
    }

    /// Writes a copy of what the iterator is at, such as an entry of a map.
    #[inline(always)]
    pub(crate) fn copy<T>(self, item: Ptr<T, Direct>) -> bool {
        // SAFETY: the verifier checks that the item has as many bytes.
        unsafe { self.write_bytes(item.as_ptr(), size_of::<T>()) }
    }

    /// # Safety
    /// There are as many bytes at the address, for as long as the call takes.
    #[inline(always)]
    unsafe fn write_bytes(self, bytes: *const u8, len: usize) -> bool {
        // SAFETY: the helper reads the bytes and keeps no pointer to them; the verifier checks that the
        // file is one that the kernel has given to the iterator.
        unsafe { bpf_seq_write(self.0, bytes.cast_mut().cast(), len as u32) == 0 }
    }
}

/// Context of `iter/task_file` (kernel: `struct bpf_iter__task_file`). Task and file are null at
/// the end of the walk.
#[repr(C)]
pub(crate) struct TaskFile {
    pub(crate) meta: &'static Meta,
    pub(crate) task: Ptr<Task, Direct>,
    pub(crate) fd: u32,
    pub(crate) file: Ptr<File, Direct>,
}
