//! What is attached: the tracepoint feeder (`syscalls`, `io_uring`), the kprobe feeder (`kprobes`), what both need (`lifecycle`), the
//! auditor (`audit`, `hidden`), and how user space reads what they keep (`dump`).

mod audit;
mod dump;
mod hidden;
mod io_uring;
mod kprobes;
mod lifecycle;
mod syscalls;
