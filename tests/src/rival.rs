//! Another agent: BPF programs of another tool, at the same places as fdtracker's, which count
//! events.
//!
//! It uses bare `bpf(2)` and `perf_event_open(2)`, so that it needs no tool, and shares no code
//! with what is tested.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
};

use crate::{sys::check, unlimit_locked_memory};

const TRACEFS: &str = "/sys/kernel/tracing/events";
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";

/// The tracepoints that it uses.
const TRACEPOINTS: &[&str] = &[
    "sched/sched_process_exec",
    "sched/sched_process_exit",
    "sched/sched_process_fork",
    "syscalls/sys_exit_clone",
    "syscalls/sys_exit_clone3",
    "syscalls/sys_exit_close",
    "syscalls/sys_exit_close_range",
    "syscalls/sys_exit_dup2",
    "syscalls/sys_exit_dup3",
    "syscalls/sys_exit_eventfd2",
    "syscalls/sys_exit_pidfd_open",
    "syscalls/sys_exit_recvmsg",
];
const FUNCTIONS: &[&std::ffi::CStr] = &[c"fd_install", c"filp_close", c"dup_fd"];

/// Running programs. They are detached when this is dropped.
pub struct Rival {
    map: OwnedFd,
    /// These keep the programs attached.
    _events: Vec<OwnedFd>,
    /// Whether it also traces kernel functions.
    pub has_kprobes: bool,
}

impl Rival {
    /// Attaches the programs: to tracepoints, and to functions where the kernel has kprobes.
    pub fn start() -> io::Result<Self> {
        const BPF_PROG_TYPE_KPROBE: u64 = 2;
        const BPF_PROG_TYPE_TRACEPOINT: u64 = 5;
        unlimit_locked_memory(std::process::id());
        let map = new_map()?;
        let mut events = Vec::new();
        let program = new_program(BPF_PROG_TYPE_TRACEPOINT, &map)?;
        for name in TRACEPOINTS {
            let id = number(&format!("{TRACEFS}/{name}/id"))?;
            events.push(attach(&program, &tracepoint(id))?);
        }
        let kprobe = number(KPROBES).ok();
        if let Some(pmu) = kprobe {
            let program = new_program(BPF_PROG_TYPE_KPROBE, &map)?;
            for function in FUNCTIONS {
                events.push(attach(&program, &probe(pmu, function))?);
            }
        }
        Ok(Self { map, _events: events, has_kprobes: kprobe.is_some() })
    }

    /// Returns how many times its programs have run.
    pub fn count(&self) -> io::Result<u64> {
        const BPF_MAP_LOOKUP_ELEM: i64 = 1;
        let (key, mut value) = (0_u32, 0_u64);
        let attr = [self.map.as_raw_fd() as u64, ptr::from_ref(&key) as u64, (&raw mut value) as u64];
        bpf(BPF_MAP_LOOKUP_ELEM, &attr)?;
        Ok(value)
    }
}

/// Makes an array of one number.
fn new_map() -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: i64 = 0;
    const BPF_MAP_TYPE_ARRAY: u64 = 2;
    let (key_size, value_size, entries) = (4, 8, 1);
    own(bpf(BPF_MAP_CREATE, &[BPF_MAP_TYPE_ARRAY | key_size << 32, value_size | entries << 32])?)
}

/// Loads a program that adds 1 to the number.
fn new_program(kind: u64, map: &OwnedFd) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: i64 = 5;
    let code = [
        op(0x62, 10, 0, -4, 0),             // *(u32 *)(r10 - 4) = 0
        op(0xbf, 2, 10, 0, 0),              // r2 = r10
        op(0x07, 2, 0, 0, -4),              // r2 -= 4
        op(0x18, 1, 1, 0, map.as_raw_fd()), // r1 = map
        0,
        op(0x85, 0, 0, 0, 1), // r0 = bpf_map_lookup_elem(r1, r2)
        op(0x15, 0, 0, 2, 0), // if r0 == 0, skip 2
        op(0xb7, 1, 0, 0, 1), // r1 = 1
        op(0xdb, 0, 1, 0, 0), // lock *(u64 *)r0 += r1
        op(0xb7, 0, 0, 0, 0), // r0 = 0
        op(0x95, 0, 0, 0, 0), // exit
    ];
    let license = c"GPL";
    own(bpf(
        BPF_PROG_LOAD,
        &[kind | (code.len() as u64) << 32, code.as_ptr() as u64, license.as_ptr() as u64],
    )?)
}

/// Returns a `struct bpf_insn`.
fn op(code: u64, to: u64, from: u64, offset: i16, number: i32) -> u64 {
    code | to << 8 | from << 12 | u64::from(offset as u16) << 16 | u64::from(number as u32) << 32
}

/// The part of `struct perf_event_attr` that is used here.
type PerfEvent = [u64; 16];

const PERF_EVENT_SIZE: u64 = size_of::<PerfEvent>() as u64;

fn tracepoint(id: u64) -> PerfEvent {
    const PERF_TYPE_TRACEPOINT: u64 = 2;
    let mut event = [0; 16];
    event[..3].copy_from_slice(&[PERF_TYPE_TRACEPOINT | PERF_EVENT_SIZE << 32, id, 1]);
    event
}

fn probe(pmu: u64, function: &std::ffi::CStr) -> PerfEvent {
    const KPROBE_FUNC: usize = 7;
    let mut event = [0; 16];
    event[0] = pmu | PERF_EVENT_SIZE << 32;
    event[KPROBE_FUNC] = function.as_ptr() as u64;
    event
}

/// Attaches a program to an event. An event on one CPU is enough: the program runs on every CPU
/// that reaches its tracepoint or probe (kernel: `trace_call_bpf`).
fn attach(program: &OwnedFd, event: &PerfEvent) -> io::Result<OwnedFd> {
    const PERF_EVENT_IOC_SET_BPF: u64 = 0x4004_2408;
    const PERF_EVENT_IOC_ENABLE: u64 = 0x2400;
    const PERF_FLAG_FD_CLOEXEC: i64 = 8;
    let (nobody, first_cpu, no_group) = (-1_i64, 0_i64, -1_i64);
    // SAFETY: the event outlives the call.
    let fd = unsafe {
        let event = event.as_ptr();
        libc::syscall(libc::SYS_perf_event_open, event, nobody, first_cpu, no_group, PERF_FLAG_FD_CLOEXEC)
    };
    let fd = own(check(fd)?)?;
    // SAFETY: these calls take integers.
    unsafe {
        check(libc::ioctl(fd.as_raw_fd(), PERF_EVENT_IOC_SET_BPF, program.as_raw_fd()).into())?;
        check(libc::ioctl(fd.as_raw_fd(), PERF_EVENT_IOC_ENABLE, 0).into())?;
    }
    Ok(fd)
}

fn bpf(command: i64, attr: &[u64]) -> io::Result<i64> {
    let mut padded = [0_u64; 16];
    padded[..attr.len()].copy_from_slice(attr);
    // SAFETY: what the attributes lead to outlives the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, padded.as_ptr(), size_of_val(&padded)) })
}

fn own(fd: i64) -> io::Result<OwnedFd> {
    let fd = fd.try_into().map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(path: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(io::Error::other)
}
