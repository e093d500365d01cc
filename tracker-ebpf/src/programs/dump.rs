//! Iterators over the agent's own maps: how user space reads them.
//!
//! Reading a map by system call makes the kernel skip all kprobes and tracepoints of the CPU for
//! that long (kernel: `bpf_disable_instrumentation`). On a preemptible kernel the reader may be
//! preempted meanwhile, and that can be long. Iterators don't do this.

use tracker_ebpf::{Flow, Slot, Table, Tag};

use crate::{
    iterator::Meta,
    kernel::{Direct, Ptr},
};

/// Context of `iter/bpf_map_elem` (kernel: `struct bpf_iter__bpf_map_elem`), for maps of these
/// types: the verifier checks that their sizes are those of the map. Key and value are null at the
/// end of the walk.
///
/// No references to the types: LLVM would describe them in BTF in an order that isn't the same in
/// every build.
#[repr(C)]
struct MapElement<K, V> {
    meta: &'static Meta,
    map: Ptr<(), Direct>,
    key: Ptr<K, Direct>,
    value: Ptr<V, Direct>,
}

/// Writes an entry: the key, and then the value.
#[inline(always)]
fn dump<K, V>(entry: &MapElement<K, V>) -> i32 {
    if !entry.key.is_null() && !entry.value.is_null() {
        // If there is no room for both, the kernel takes back what was written, and runs the program
        // again.
        entry.meta.output.copy(entry.key);
        entry.meta.output.copy(entry.value);
    }
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
extern "C" fn dump_tables(entry: &MapElement<u64, Table>) -> i32 {
    dump(entry)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
extern "C" fn dump_flows(entry: &MapElement<u64, Flow>) -> i32 {
    dump(entry)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
extern "C" fn dump_slots(entry: &MapElement<Slot, Tag>) -> i32 {
    dump(entry)
}
