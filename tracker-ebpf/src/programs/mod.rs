//! What is attached: the tracepoint feeder (`syscalls`, `io_uring`), the kprobe feeder (`kprobes`), what both need (`lifecycle`), and the
//! auditor (`audit`).

mod audit;
mod io_uring;
mod kprobes;
mod lifecycle;
mod syscalls;
