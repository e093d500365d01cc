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
        // SAFETY: the record lives through the call, which reads no more than that.
        unsafe { bpf_seq_write(self.0, (&raw const *record).cast_mut().cast(), size_of::<T>() as u32) == 0 }
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
