//! What is attached: the tracepoint feeder (`syscalls`), the kprobe feeder (`kprobes`), what both need (`lifecycle`), and the
//! auditor (`audit`).

mod audit;
mod kprobes;
mod lifecycle;
mod syscalls;
