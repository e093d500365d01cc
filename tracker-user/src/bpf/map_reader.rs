//! Reads the agent's own maps: by iterators, or by system calls where the kernel allows no
//! iterators over maps.

use std::{
    collections::HashMap,
    hash::Hash,
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::sys::{Plain, bpf, bpf_fd, read_records};

// enum bpf_cmd, include/uapi/linux/bpf.h
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;
const BPF_LINK_CREATE: i32 = 28;
const BPF_ITER_CREATE: i32 = 33;

/// How a map is read.
pub(super) enum MapReader {
    /// By a program that writes its entries, which is attached to the map by this link. Minimum
    /// kernel: 5.9.
    Iterator(OwnedFd),
    /// By two system calls for each entry. While one of them copies an entry, the kernel skips all
    /// probes on its CPU (kernel: `bpf_disable_instrumentation`), which counts as misses:
    /// tracker-ebpf/src/programs/dump.rs. So only where it must be: hardened kernels refuse all
    /// programs that could write to other maps' entries.
    Calls(Calls),
}

/// A map, and how large the kernel says that its parts are.
pub(super) struct Calls {
    pub(super) map: OwnedFd,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
}

/// `union bpf_attr`, as `BPF_LINK_CREATE` sees it for an iterator.
#[repr(C)]
struct IterLink {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    pad: u32,
}

/// `union bpf_attr`, as `BPF_ITER_CREATE` sees it.
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// `union bpf_attr`, as commands about an entry see it. `to` is where the value goes, or the next
/// key.
#[repr(C)]
struct Lookup {
    map_fd: u32,
    pad: u32,
    key: u64,
    to: u64,
    flags: u64,
}

/// An entry of a map, as the program writes it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry<K, V> {
    key: K,
    value: V,
}

// SAFETY: both are plain, and all plain types have a size that is a multiple of their alignment,
// which is 8 for all keys and values.
unsafe impl<K: Plain, V: Plain> Plain for Entry<K, V> {}

impl MapReader {
    /// Attaches a program of the type `iter/bpf_map_elem` to a map. aya attaches only iterators
    /// without a target.
    pub(super) fn attach(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<Self> {
        const BPF_TRACE_ITER: u32 = 28;
        // union bpf_iter_link_info
        let info = map.as_raw_fd() as u32;
        let mut attributes = IterLink {
            prog_fd: program.as_raw_fd() as u32,
            target_fd: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            iter_info: (&raw const info) as u64,
            iter_info_len: size_of_val(&info) as u32,
            pad: 0,
        };
        Ok(Self::Iterator(bpf_fd(BPF_LINK_CREATE, &mut attributes)?))
    }

    /// Reads the whole map. Entries that come or go meanwhile may or may not be seen. While others
    /// go, an entry may be missed, or seen twice.
    pub(super) fn read<K: Plain + Eq + Hash, V: Plain>(&self) -> io::Result<Vec<(K, V)>> {
        match self {
            Self::Iterator(link) => {
                let mut attributes = IterCreate { link_fd: link.as_raw_fd() as u32, flags: 0 };
                let iterator = std::fs::File::from(bpf_fd(BPF_ITER_CREATE, &mut attributes)?);
                let mut found = Vec::new();
                read_records(iterator, |Entry { key, value }: Entry<K, V>| found.push((key, value)))?;
                Ok(found)
            }
            Self::Calls(calls) => Ok(calls.walk()?.into_iter().collect()),
        }
    }
}

impl Calls {
    /// Reads the map entry by entry.
    fn walk<K: Plain + Eq + Hash, V: Plain>(&self) -> io::Result<HashMap<K, V>> {
        // The kernel writes as much as an entry has.
        if [self.key_size, self.value_size].map(|size| size as usize) != [size_of::<K>(), size_of::<V>()] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // A walk begins anew when the entry where it was has gone (kernel:
        // `htab_map_get_next_key`): not for ever.
        const OFTEN: usize = 1000;
        let (mut found, mut last, mut seen_again) = (HashMap::new(), None, 0);
        while let Some(key) = self.next_key::<K>(last)? {
            if let Some(value) = self.value(key)? {
                seen_again += usize::from(found.insert(key, value).is_some());
            }
            if seen_again > OFTEN.max(found.len()) {
                break;
            }
            last = Some(key);
        }
        Ok(found)
    }

    fn next_key<K: Plain>(&self, last: Option<K>) -> io::Result<Option<K>> {
        let mut next = MaybeUninit::<K>::zeroed();
        let key = last.as_ref().map_or(0, |last| std::ptr::from_ref(last) as u64);
        let done = self.call(BPF_MAP_GET_NEXT_KEY, key, next.as_mut_ptr() as u64)?;
        // SAFETY: any bytes are a value.
        Ok(done.then(|| unsafe { next.assume_init() }))
    }

    fn value<K: Plain, V: Plain>(&self, key: K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        let done = self.call(BPF_MAP_LOOKUP_ELEM, (&raw const key) as u64, value.as_mut_ptr() as u64)?;
        // SAFETY: any bytes are a value.
        Ok(done.then(|| unsafe { value.assume_init() }))
    }

    /// Whether there is such an entry.
    fn call(&self, command: i32, key: u64, to: u64) -> io::Result<bool> {
        let mut attributes = Lookup { map_fd: self.map.as_raw_fd() as u32, pad: 0, key, to, flags: 0 };
        match bpf(command, &mut attributes) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
