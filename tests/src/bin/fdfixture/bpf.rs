//! What `bpf(2)` makes.

use std::io;

use fdtracker_tests::{
    kinds::{bpf, close, open},
    sys::address,
};

use crate::{
    Fixture, here,
    os::{set, zoo},
};

/// A type of `bpf_map_type`, and the arguments of such a map: size of the key, size of the value,
/// number of entries, flags.
struct Map(u64, [u64; 4]);

const HASH: u64 = 1;
const NO_PREALLOC: u64 = 1;

impl Map {
    fn make(&self, inner: u64) -> io::Result<i64> {
        let Self(kind, [key, value, entries, flags]) = self;
        bpf(0, &[kind | key << 32, value | entries << 32, flags | inner << 32])
    }
}

macro_rules! map {
    ($name:literal, $about:literal, $kind:literal, $sizes:expr) => {
        here(concat!("bpfmap.", $name), $about, || Map($kind, $sizes).make(0).map(drop))
    };
}

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = plain_maps();
    all.extend(maps_of_others());
    all.extend(programs());
    all
}

fn plain_maps() -> Vec<Fixture> {
    vec![
        map!("hash", "a hash table", 1, [4, 8, 4, 0]),
        map!("array", "an array", 2, [4, 8, 4, 0]),
        map!("percpu_hash", "a hash table for each processor", 5, [4, 8, 4, 0]),
        map!("percpu_array", "an array for each processor", 6, [4, 8, 4, 0]),
        map!("stack_trace", "stacks", 7, [4, 80, 4, 0]),
        map!("lru", "a hash table that forgets", 9, [4, 8, 4, 0]),
        map!("lru_percpu", "one for each processor", 10, [4, 8, 4, 0]),
        map!("lpm_trie", "prefixes", 11, [8, 8, 4, NO_PREALLOC]),
        map!("queue", "a queue", 22, [0, 8, 4, 0]),
        map!("stack", "a stack", 23, [0, 8, 4, 0]),
        map!("ringbuf", "a ring of events", 27, [0, 0, 4096, 0]),
        map!("user_ringbuf", "a ring of requests (Linux 6.1)", 31, [0, 0, 4096, 0]),
        map!("bloom_filter", "a set that may err", 30, [0, 8, 4, 0]),
        map!("arena", "memory (Linux 6.9)", 33, [0, 0, 1, 1 << 10]),
    ]
}

fn maps_of_others() -> Vec<Fixture> {
    vec![
        map!("prog_array", "programs", 3, [4, 4, 4, 0]),
        map!("perf_event_array", "performance counters", 4, [4, 4, 4, 0]),
        map!("cgroup_array", "cgroups", 8, [4, 4, 4, 0]),
        map!("devmap", "network interfaces", 14, [4, 4, 4, 0]),
        map!("sockmap", "sockets", 15, [4, 4, 4, 0]),
        map!("cpumap", "processors", 16, [4, 4, 4, 0]),
        map!("sockhash", "a hash table of sockets", 18, [4, 4, 4, 0]),
        here("bpfmap.array_of_maps", "an array of hash tables", || nested(12)),
        here("bpfmap.hash_of_maps", "a hash table of hash tables", || nested(13)),
        here("bpfmap.hash_full", "a hash table with an entry", || {
            const UPDATE: i64 = 2;
            let map = Map(HASH, [4, 8, 4, 0]).make(0)?;
            let (key, value) = (1_u32, 2_u64);
            bpf(UPDATE, &[map as u64, address(&key) as u64, address(&value) as u64]).map(drop)
        }),
        here("bpfmap.hash_frozen", "a hash table that user space can't write to any more", || {
            const FREEZE: i64 = 22;
            let map = Map(HASH, [4, 8, 4, 0]).make(0)?;
            bpf(FREEZE, &[map as u64]).map(drop)
        }),
    ]
}

fn nested(kind: u64) -> io::Result<()> {
    let inner = Map(HASH, [4, 8, 4, 0]).make(0)?;
    let outer = Map(kind, [4, 4, 4, 0]).make(inner as u64);
    close(inner);
    outer.map(drop)
}

/// Loads a program that passes every packet.
fn socket_program() -> io::Result<i64> {
    const BPF_PROG_LOAD: i64 = 5;
    const SOCKET_FILTER: u64 = 1;
    // r0 = 0xffff; exit
    let code = [0xb7_u64 | 0xffff << 32, 0x95];
    bpf(BPF_PROG_LOAD, &[SOCKET_FILTER | 2 << 32, address(&code) as u64, c"GPL".as_ptr() as u64])
}

fn programs() -> Vec<Fixture> {
    vec![
        here("bpf_prog.plain", "a program", || zoo("bpf_prog")),
        here("bpf_link.plain", "an attached program", || zoo("bpf_link")),
        here("btf.plain", "types", || zoo("btf")),
        here("socket.bpf_filter", "a socket with a BPF program as its filter", || {
            const SO_ATTACH_BPF: i32 = 50;
            let program = socket_program()?;
            let socket = open("unix")?;
            let attached = set(socket, libc::SOL_SOCKET, SO_ATTACH_BPF, &(program as i32));
            close(program);
            attached
        }),
        here("socket.classic_filter", "a socket with a classic filter", || {
            const SO_ATTACH_FILTER: i32 = 26;
            // struct sock_filter: return 0xffff
            let filter = [0xffff_u64 << 32 | 0x06];
            let program = [1_u64, address(&filter) as u64];
            set(open("unix")?, libc::SOL_SOCKET, SO_ATTACH_FILTER, &program)
        }),
    ]
}
