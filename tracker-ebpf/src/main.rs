//! The BPF programs. See the crate's library for the contract, `docs/architecture.md` for the whole picture.
//!
//! - `kernel`: where things are in this kernel, and how to read them;
//! - `file_kind`: what kind of file is this;
//! - `maps`: all state;
//! - `fdtable`: reading a table's slots;
//! - `tables`: the counts, and how a change is written into them;
//! - `slots`: following slots one by one (tracepoint feeder);
//! - `edges`: counting changes (kprobe feeder);
//! - `scan`: walking whole tables;
//! - `notify`: events;
//! - `programs`: what is attached.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod edges;
mod fdtable;
mod file_kind;
mod iterator;
mod kernel;
mod maps;
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
