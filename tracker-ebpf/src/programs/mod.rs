//! The programs: the tracepoint feeder (`syscalls`, `io_uring`), the kprobe feeder (`kprobes`),
//! what both need (`lifecycle`), the auditor (`audit`), the hidden scan (`hidden`), and how user
//! space reads maps (`dump`).

mod audit;
mod dump;
mod hidden;
mod io_uring;
mod kprobes;
mod lifecycle;
mod syscalls;
