//! The BPF programs. See the crate's library for the contract, `docs/architecture.md` for the whole
//! picture.
//!
//! - `kernel`: the kernel's structs, and how they are read;
//! - `value`: typed pointers to what is in maps;
//! - `maps`: all state;
//! - `file_kind`: what kind of file is this;
//! - `fdtable`: reads a table's slots;
//! - `tables`: the counts, and how a change is written into them;
//! - `slots`: follows slots one by one (tracepoint feeder);
//! - `deltas`: counts changes (kprobe feeder);
//! - `scan`: walks whole tables;
//! - `measure`: measures tables for the auditor;
//! - `notify`, `loss`: events, and what was lost;
//! - `iterator`: what iterators are given, and what they write;
//! - `programs`: what is attached.
//!
//! `unsafe` is in `kernel` and `value`, and where a helper wants it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod deltas;
mod fdtable;
mod file_kind;
mod iterator;
mod kernel;
mod loss;
mod maps;
mod measure;
mod notify;
mod programs;
mod scan;
mod slots;
mod tables;
mod value;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier refuses a program with a reachable panic.
    loop {}
}

/// The kernel gives helpers such as `bpf_probe_read_kernel` only to programs that say "GPL".
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
