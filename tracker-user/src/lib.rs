//! fdtracker tells at every moment, for every running container, whether CRIU could dump it, and
//! which open fds are blockers.
//!
//! Data flows one way:
//!
//! ```text
//! bpf ──▶ inventory ──▶ verdict ──▶ { metrics, http, tail, ls }
//!            ▲
//!         runtime (cgroup → container)
//! ```
//!
//! - [`bpf`]: the kernel side: probes, counts, audits. Knows nothing of containers.
//! - [`runtime`]: which container a cgroup belongs to. Knows nothing of BPF.
//! - [`inventory`]: adds up fd tables by process and container. Pure.
//! - [`verdict`]: what CRIU would say, and its history: a crate of its own. Pure.
//! - [`inspect`]: reads a process tree from outside, in detail, for [`verdict`]. Knows nothing of
//!   BPF.
//! - [`target`]: the process tree that a user means; [`freeze`]: stops it during an inspection;
//!   [`criu`]: the CRIU to judge for.
//! - [`api`]: what goes over the wire, as plain data. No I/O.
//! - [`agent`]: combines these: the owner of the agent's state, the tasks that keep it current, and
//!   snapshots of it; [`privileges`]: the capabilities that the agent keeps once it is attached.
//! - [`config`]: values of flags from a file and the environment.
//! - `proc`, `file_handle`: files of `/proc`, and files by their handles, for several rooms. They
//!   depend on none.
//! - [`metrics`], [`http`], [`cli`]: what users see; [`error`]: what went wrong.

pub mod agent;
pub mod api;
pub mod bpf;
pub mod cli;
pub mod config;
pub mod criu;
pub mod error;
mod file_handle;
pub mod freeze;
pub mod host;
pub mod http;
pub mod inspect;
pub mod inventory;
pub mod metrics;
pub mod privileges;
mod proc;
pub mod runtime;
pub mod target;

pub use tracker_verdict as verdict;
