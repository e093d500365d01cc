//! Iterators over the agent's own maps: how user space reads them.
//!
//! Reading a map by system call makes the kernel skip all kprobes and tracepoints of the CPU for that long (kernel:
//! `bpf_disable_instrumentation`): for as long as the reader doesn't run, if it is preempted in between, as it can be on preemptible
//! kernels. Iterators don't.

use aya_ebpf::helpers::generated::bpf_seq_write;
use tracker_ebpf::{Flow, Slot, Table, Tag};

use super::audit::Meta;

/// Context of `iter/bpf_map_elem` (kernel: `struct bpf_iter__bpf_map_elem`).
#[repr(C)]
struct MapElem {
    meta: *const Meta,
    map: *const u8,
    key: *const u8,
    value: *const u8,
}

/// Writes an entry of a map of these types: the key, and then the value.
#[inline(always)]
fn dump<K, V>(ctx: *const MapElem) -> i32 {
    // SAFETY: the context is the kernel's; key and value are null at the end of the walk, and are then not used. The verifier
    // checks their sizes against the map that the program is attached to.
    unsafe {
        let (key, value) = ((*ctx).key, (*ctx).value);
        if key.is_null() || value.is_null() {
            return 0;
        }
        let seq = (*(*ctx).meta).seq;
        // If there is no room for both the kernel takes back what was written, and runs the program again.
        bpf_seq_write(seq, key.cast_mut().cast(), size_of::<K>() as u32);
        bpf_seq_write(seq, value.cast_mut().cast(), size_of::<V>() as u32);
    }
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
extern "C" fn dump_tables(ctx: *const MapElem) -> i32 {
    dump::<u64, Table>(ctx)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
extern "C" fn dump_flows(ctx: *const MapElem) -> i32 {
    dump::<u64, Flow>(ctx)
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
extern "C" fn dump_slots(ctx: *const MapElem) -> i32 {
    dump::<Slot, Tag>(ctx)
}
