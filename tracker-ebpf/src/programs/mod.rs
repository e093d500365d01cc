//! What is attached: the tracepoint feeder (`syscalls`, `lifecycle`) and the auditor (`audit`).

mod audit;
mod lifecycle;
mod syscalls;
