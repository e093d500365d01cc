//! A process tree as it was inspected: what a dump would take.
//!
//! What depends on who else is in the tree isn't a fact yet, but a [`Relation`]: whether it is
//! inside or outside follows from the (sub)tree that is judged.

use std::collections::{BTreeMap, BTreeSet};

use crate::{FileKind, facts::Facts};

/// A process, with all that descends from it: what a dump takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Its processes, in CRIU's order: each before its children (`pstree.c:pstree_item_next`).
    pub processes: Vec<Process>,
    /// Mounts of each mount namespace that a process is in, by the namespace's number.
    pub mounts: BTreeMap<u64, Mounts>,
    /// All unix sockets of the network namespaces that a process is in, by inode.
    pub unix: BTreeMap<u64, UnixSocket>,
    /// The namespaces that CRIU is in: what a process shares with it isn't dumped.
    pub host: Namespaces,
    /// Of which places it could not be told what is there, and why.
    pub unreadable: Vec<String>,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// In the pid namespace of whoever inspects.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its name.
    pub comm: String,
    /// Its threads.
    pub threads: Vec<u32>,
    /// Its session.
    pub session: u32,
    /// Its state, as `/proc` tells it.
    pub state: char,
    /// Another process traces it.
    pub traced: bool,
    /// It has ended, and its parent hasn't waited for it: nothing is open.
    pub zombie: bool,
    /// It shares its fd table with this process, which comes before it: its files aren't inspected
    /// again.
    pub shares_files_with: Option<u32>,
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// What it has mapped, and what is open, in CRIU's order.
    pub files: Vec<File>,
    /// Why its files couldn't be inspected.
    pub unreadable: Option<String>,
}

/// Namespaces, by their names in `/proc/PID/ns` (`net`, `mnt`, …).
pub type Namespaces = BTreeMap<String, u64>;

/// A file that a process has open, or mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The fd; `None` for a mapping, and for a file on its way through a socket.
    pub fd: Option<u32>,
    /// What it is.
    pub kind: FileKind,
    /// What its link says.
    pub link: String,
    /// What is known of it by itself.
    pub facts: Facts,
    /// What it has to do with others.
    pub relations: Vec<Relation>,
}

/// What a file has to do with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relation {
    /// A pidfd's target: a pid, -1 if it has been reaped, 0 if it isn't visible.
    Target(i64),
    /// A unix socket, by its inode.
    Unix(u64),
    /// A socket's network namespace, by its number.
    SocketNamespace(u64),
    /// A namespace: its name and number.
    Namespace(String, u64),
    /// A mount, by its id.
    Mount(i64),
    /// A pseudo terminal.
    Terminal {
        /// Its number.
        index: i64,
        /// Whether this is the master.
        master: bool,
    },
    /// The session of a terminal, which is no more if it is 0.
    Session(i64),
    /// A lock that is held through the file, by this process.
    Lock(i64),
    /// A readable end of the pipe, or fifo, with this inode.
    ReadablePipe(u64),
}

/// The mounts of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// By id; whether something else is mounted over it.
    pub overmounted: BTreeMap<i64, bool>,
}

/// A unix socket, as `sock_diag` tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// The socket that it is connected to.
    pub peer: Option<u64>,
    /// `SOCK_STREAM` and so on.
    pub socket_type: i64,
    /// TCP's states: 1 connected, 7 closed, 10 listening.
    pub state: i64,
    /// The path, or @ and the rest of an abstract name.
    pub name: Option<String>,
    /// Inodes of connections that wait to be accepted; 0 for those that were closed.
    pub pending: Vec<u64>,
    /// Bytes, or connections, that wait to be read or accepted.
    pub receive_queue: i64,
    /// Bytes that were sent and not read.
    pub send_queue: i64,
    /// Directions that are shut down: 1 read, 2 write.
    pub shutdown: i64,
}

impl Tree {
    /// Lists a process with all that descends from it, in order: a tree of its own.
    #[must_use]
    pub fn below(&self, root: u32) -> Vec<&Process> {
        let mut pids = BTreeSet::from([root]);
        let inside = self.processes.iter().filter(|process| {
            let is_inside = process.pid == root || pids.contains(&process.parent);
            if is_inside {
                pids.insert(process.pid);
            }
            is_inside
        });
        inside.collect()
    }
}
