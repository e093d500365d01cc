//! fdtracker tells, for every running container and at every moment, whether CRIU could dump it, and which open fds stand
//! in the way.
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
//! - [`inventory`]: from fd tables to processes to containers. Pure.
//! - [`verdict`]: what CRIU would say, and what became of that in time: a crate of its own. Pure.
//! - [`inspect`]: looks at a process tree from outside, for [`verdict`]. Knows nothing of BPF.
//! - [`target`]: which process tree a user means; [`freeze`]: so that it keeps still; [`criu`]: the CRIU to judge for.
//! - [`api`]: what goes over the wire, as plain data. No I/O.
//! - [`agent`]: puts these together: the owner of the agent's state, the tasks that keep it true, and snapshots of it;
//!   [`privileges`]: what the agent gives up once it is attached.
//! - [`config`]: values of flags from a file and the environment.
//! - `proc`, `file_handle`: files of `/proc`, and files by their handles, for several of these. They depend on none.
//! - [`metrics`], [`http`], [`cli`]: how they are shown it; [`error`]: and what went wrong.

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
