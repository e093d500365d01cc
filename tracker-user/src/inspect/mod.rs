//! Looks at a live process tree from outside, and tells what a dump would find: I/O, no BPF.
//!
//! Nothing of the processes is changed, and none is stopped: `/proc`, `kcmp`, `sock_diag`, handles of watched files, and for
//! sockets a duplicate for microseconds. What can't be looked at isn't said, which makes a verdict `unknown`.
//!
//! - `parse`: what `/proc` writes; pure;
//! - `kinds`: what a file is; pure;
//! - `sys`: system calls; `netlink`: questions about sockets; `unix`: all unix sockets;
//! - `processes`: who is in the tree;
//! - `surroundings`: what several processes share: mounts, locks, terminals; each is read once;
//! - `files`: what a process has open, and for some kinds `paths`, `epoll`, `watches`, `sockets`, `terminals`;
//! - `mappings`: what a process has mapped;
//! - `limits`: what can't be seen on this machine.
//!
//! It knows of `verdict` its facts and its tree, and nothing of rules.

mod epoll;
mod files;
mod kinds;
mod limits;
mod mappings;
mod netlink;
mod parse;
mod paths;
mod processes;
mod sockets;
mod surroundings;
mod sys;
mod terminals;
mod unix;
mod watches;

use std::collections::BTreeSet;

use thiserror::Error;

pub use self::limits::limits;
use self::{files::Looker, processes::Seen, surroundings::Surroundings};
use crate::{
    error::SyscallError,
    verdict::tree::{Process, Tree},
};

/// Why a tree can't be looked at.
#[derive(Debug, Error)]
pub enum InspectError {
    /// There is no such process, or it has ended meanwhile.
    #[error("no process {0}")]
    NoProcess(u32),
    /// It has no fd table that a dump would take.
    #[error("process {0} is a thread of the kernel")]
    KernelThread(u32),
    /// It isn't the first thread of its process.
    #[error("{thread} is a thread of process {process}")]
    Thread {
        /// What was asked for.
        thread: u32,
        /// The process.
        process: u32,
    },
    /// What everything else depends on can't be read.
    #[error(transparent)]
    Call(#[from] SyscallError),
}

/// Looks at a process and all that descends from it. `scan` are the paths where CRIU looks for watched files
/// ([`Profile::irmap_paths`](crate::verdict::Profile::irmap_paths)).
///
/// # Errors
/// When there is no such process, or it isn't one that can be dumped. Processes that end meanwhile are left out.
pub fn tree(root: u32, scan: &BTreeSet<String>) -> Result<Tree, InspectError> {
    let proc = open_proc()?;
    let mut seen = processes::list(&proc, root)?;
    let mut around = Surroundings::new(proc, scan.clone());
    for process in &seen {
        around.know(process);
    }
    around.listed = unix::namespaces(&seen);
    for process in &mut seen {
        look(process, &mut around);
    }
    let mut tree = Tree { host: around.host(), ..Tree::default() };
    unix::know(&mut seen, &mut around, &mut tree);
    tree.mounts = around.mounts();
    tree.unreadable = around.unreadable();
    tree.processes = seen.into_iter().filter(|seen| !seen.gone).map(|seen| seen.process).collect();
    match tree.processes.first() {
        Some(first) if first.pid == root => Ok(tree),
        _ => Err(InspectError::NoProcess(root)),
    }
}

fn open_proc() -> Result<std::fs::File, InspectError> {
    Ok(std::fs::File::open("/proc").map_err(SyscallError::on("open", "/proc"))?)
}

/// What a process has mapped, and what is open.
fn look(seen: &mut Seen, around: &mut Surroundings) {
    if seen.process.zombie || seen.process.unreadable.is_some() {
        return;
    }
    let mut files = Vec::new();
    let mut results = vec![mappings::look(seen, around, &mut files)];
    if seen.process.shares_files_with.is_none() {
        results.push(Looker::new(seen, around).and_then(|mut looker| looker.look(&mut files)));
    }
    let errors: Vec<String> = results.into_iter().filter_map(|r| Some(r.err()?.to_string())).collect();
    if !errors.is_empty() && !seen.is_alive() {
        // It has ended. Until its parent has waited for it a dump takes it, with nothing that is open.
        seen.gone = !seen.is_there();
        seen.process.zombie = true;
        return;
    }
    if !errors.is_empty() {
        unreadable(&mut seen.process, &errors.join("; "));
    }
    seen.process.files = files;
}

/// Notes why not all is known of a process.
fn unreadable(process: &mut Process, why: &str) {
    process.unreadable.get_or_insert_with(|| why.to_owned());
}
