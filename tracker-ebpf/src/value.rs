//! Typed pointers to values that the kernel gives to a program: in maps, and in the ring.

use core::{
    borrow::Borrow,
    ptr::{read_volatile, write_volatile},
};

use aya_ebpf::maps::{Array, HashMap, PerCpuArray, ring_buf::RingBufEntry};
use tracker_ebpf::{COMM_LEN, Control, Flow, Fop, Header, Kind, SlotEvent, Sums, Table, TableEvent, Tag};

use crate::maps::Scratch;

/// A pointer to a value in a map, or to a part of one; or into an entry of the ring.
///
/// Others may change the value at any time, so nothing borrows it: it is read and written like a
/// `Cell`.
///
/// Made only from what a lookup or a reservation gave. The kernel keeps that memory for as long as
/// the program runs, and the verifier refuses a program that could go beyond it.
#[repr(transparent)]
pub(crate) struct ValueRef<V>(*mut V);

/// An entry of `TABLES`.
pub(crate) type TableRef = ValueRef<Table>;

/// An entry of `FLOWS`.
pub(crate) type FlowRef = ValueRef<Flow>;

impl<V> Clone for ValueRef<V> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<V> Copy for ValueRef<V> {}

impl<V: Copy> ValueRef<V> {
    #[inline(always)]
    pub(crate) fn get(self) -> V {
        // SAFETY: the pointer is into memory that the program may use, as said at the type. A
        // number that another CPU writes at the same time is read as it was or as it is.
        unsafe { *self.0 }
    }

    #[inline(always)]
    pub(crate) fn set(self, value: V) {
        // SAFETY: as said at the type. Another CPU that writes at the same time makes no value that
        // isn't one.
        unsafe { *self.0 = value }
    }

    /// Reads the value here and now: the compiler neither moves nor merges the load.
    #[inline(always)]
    pub(crate) fn get_volatile(self) -> V {
        // SAFETY: as in `get`; the value is aligned, because maps and the ring align to 8 bytes.
        unsafe { read_volatile(self.0) }
    }

    /// Writes the value here and now.
    #[inline(always)]
    pub(crate) fn set_volatile(self, value: V) {
        // SAFETY: as in `set`; the value is aligned, because maps and the ring align to 8 bytes.
        unsafe { write_volatile(self.0, value) }
    }
}

impl<V> ValueRef<V> {
    /// What a ring's entry is to hold.
    #[inline(always)]
    pub(crate) fn reserved(entry: &mut RingBufEntry<V>) -> Self {
        Self(entry.as_mut_ptr())
    }

    /// Inserts a copy of the value into a map.
    #[inline(always)]
    pub(crate) fn insert_into<K>(self, map: &HashMap<K, V>, key: K, flags: u64) -> Result<(), i32> {
        // SAFETY: the pointer is as said at the type, and the reference ends with the call. Only
        // values in `SCRATCH` are inserted: nobody else writes to this CPU's while the program
        // runs.
        map.insert(key, unsafe { &*self.0 }, flags)
    }
}

impl ValueRef<u64> {
    /// Adds, atomically. `AtomicU64::fetch_add` doesn't exist for BPF targets, and an add that
    /// gives the old value back needs Linux 5.12.
    #[inline(always)]
    pub(crate) fn add(self, delta: u64) {
        // SAFETY: the instruction changes the value alone, and the pointer is as said at the type.
        unsafe {
            core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) self.0, in(reg) delta);
        }
    }
}

impl ValueRef<i64> {
    /// Adds, atomically.
    #[inline(always)]
    pub(crate) fn add(self, delta: i64) {
        ValueRef(self.0.cast::<u64>()).add(delta as u64);
    }
}

impl<T, const N: usize> ValueRef<[T; N]> {
    /// An element; `None` beyond the last.
    #[inline(always)]
    pub(crate) fn element(self, index: usize) -> Option<ValueRef<T>> {
        // SAFETY: the index was compared with the length.
        if index < N { Some(unsafe { self.element_unchecked(index) }) } else { None }
    }

    /// The elements, from the first to the last.
    #[inline(always)]
    pub(crate) fn elements(self) -> impl Iterator<Item = ValueRef<T>> {
        // SAFETY: the indices are below the length.
        (0..N).map(move |index| unsafe { self.element_unchecked(index) })
    }

    /// # Safety
    /// The index is below the length.
    #[inline(always)]
    pub(crate) unsafe fn element_unchecked(self, index: usize) -> ValueRef<T> {
        // SAFETY: the element is inside of what the pointer is to, as said at the type.
        ValueRef(unsafe { self.0.cast::<T>().add(index) })
    }
}

/// Defines for each type methods that give pointers to its members.
macro_rules! members {
    ($($of:ty { $($member:ident: $type:ty),+ })+) => { $(
        impl ValueRef<$of> { $(
            #[inline(always)]
            pub(crate) fn $member(self) -> ValueRef<$type> {
                // SAFETY: the member is inside of what the pointer is to, as said at the type.
                ValueRef(unsafe { &raw mut (*self.0).$member })
            }
        )+ }
    )+ };
}

members! {
    Table {
        n: [i64; Kind::COUNT], seq: u64, generation: u64, cgroup_id: u64, tgid: u32, visited: u32,
        high_fd: u32, flags: u32, slots: u64, sums: Sums
    }
    Sums { task: u64, file: u64, slots: u64, kinds: u64, users: u64 }
    Flow { opened: [u64; Kind::COUNT], closed: [u64; Kind::COUNT] }
    Fop { kind: u64 }
    Control { pass: u32, adopted: u32, walk: u32, last: u64 }
    Scratch { table: Table, flow: Flow, remote_tgid: u32, remote_cgroup_id: u64, remote_task: u64 }
    Header {
        event: u32, tgid: u32, pid: u32, fd: u32, time_ns: u64, files: u64, cgroup_id: u64,
        comm: [u8; COMM_LEN]
    }
    SlotEvent { header: Header, tag: Tag }
    TableEvent { header: Header, n: [u32; Kind::COUNT] }
}

/// Maps in which a key finds a value.
pub(crate) trait Find {
    type Key;
    type Value;

    /// The value of a key.
    fn find(&self, key: impl Borrow<Self::Key>) -> Option<ValueRef<Self::Value>>;
}

impl<K, V> Find for HashMap<K, V> {
    type Key = K;
    type Value = V;

    #[inline(always)]
    fn find(&self, key: impl Borrow<K>) -> Option<ValueRef<V>> {
        self.get_ptr_mut(key).map(ValueRef)
    }
}

impl<V> Find for Array<V> {
    type Key = u32;
    type Value = V;

    #[inline(always)]
    fn find(&self, index: impl Borrow<u32>) -> Option<ValueRef<V>> {
        self.get_ptr_mut(*index.borrow()).map(ValueRef)
    }
}

impl<V> Find for PerCpuArray<V> {
    type Key = u32;
    type Value = V;

    #[inline(always)]
    fn find(&self, index: impl Borrow<u32>) -> Option<ValueRef<V>> {
        self.get_ptr_mut(*index.borrow()).map(ValueRef)
    }
}
