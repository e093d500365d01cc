//! From relations to facts: what is inside a (sub)tree, and what is outside.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    FileKind, fact,
    facts::{Facts, Text},
    tree::{File, Namespaces, Process, Relation, Tree, UnixSocket},
    word::{End, Leader, LockHolder, MountState, Nested, Peer, Place, SocketState, Target},
};

/// What a dump of some processes takes.
pub(crate) struct Context<'a> {
    tree: &'a Tree,
    root: Option<&'a Process>,
    pids: BTreeSet<u32>,
    sessions: BTreeSet<u32>,
    mount_namespaces: BTreeSet<u64>,
    net_namespaces: BTreeSet<u64>,
    /// All namespaces that a process is in, and CRIU's.
    namespaces: BTreeSet<(&'a str, u64)>,
    unix: BTreeSet<u64>,
    /// Connections that wait to be accepted, and the listening socket.
    pending: BTreeMap<u64, u64>,
    masters: BTreeSet<i64>,
    slaves: BTreeSet<i64>,
    /// Sessions of pseudo terminals.
    terminals: BTreeSet<i64>,
    pipes: BTreeSet<u64>,
    /// Files are on their way through sockets: any of them may be a peer.
    in_flight: bool,
}

/// TCP's states, which unix sockets have too.
///
/// # Source
/// Linux: `include/net/tcp_states.h`.
const ESTABLISHED: i64 = 1;
const LISTEN: i64 = 10;
const SOCK_DGRAM: i64 = 2;

/// Kinds of namespaces of which only the root's are dumped, by their names in `/proc/PID/ns`.
const NESTED: [(&str, Nested); 6] = [
    ("pid", Nested::Pid),
    ("ipc", Nested::Ipc),
    ("uts", Nested::Uts),
    ("cgroup", Nested::Cgroup),
    ("time", Nested::Time),
    ("user", Nested::User),
];

impl<'a> Context<'a> {
    /// Takes the processes of a tree that are dumped, its root first.
    pub(crate) fn new(tree: &'a Tree, processes: &[&'a Process]) -> Self {
        let of_namespace =
            |name| processes.iter().filter_map(|process| process.namespaces.get(name).copied()).collect();
        let namespaces = processes.iter().map(|process| &process.namespaces).chain([&tree.host]).flatten();
        let pending =
            tree.unix.iter().flat_map(|(inode, socket)| socket.pending.iter().map(|p| (*p, *inode)));
        let end = |master| {
            related(processes, move |relation| match relation {
                Relation::Terminal { index, master: is_master } => (*is_master == master).then_some(*index),
                _ => None,
            })
        };
        Self {
            tree,
            root: processes.first().copied(),
            pids: processes.iter().map(|process| process.pid).collect(),
            sessions: processes.iter().filter(|p| p.pid == p.session).map(|p| p.session).collect(),
            mount_namespaces: of_namespace("mnt"),
            net_namespaces: of_namespace("net"),
            namespaces: namespaces.map(|(name, id)| (name.as_str(), *id)).collect(),
            unix: related(processes, |relation| match relation {
                Relation::Unix(inode) => Some(*inode),
                _ => None,
            }),
            pending: pending.collect(),
            masters: end(true),
            slaves: end(false),
            terminals: files(processes).filter_map(terminal_session).collect(),
            pipes: related(processes, |relation| match relation {
                Relation::ReadablePipe(inode) => Some(*inode),
                _ => None,
            }),
            in_flight: files(processes).any(|file| file.kind == FileKind::FdInFlight),
        }
    }

    /// Collects all that is known of a file in this tree.
    pub(crate) fn facts(&self, process: &Process, file: &File) -> Facts {
        let mut facts = file.facts.clone();
        facts.set(fact::PID, i64::from(process.pid));
        facts.set(fact::LINK, file.link.clone().into());
        facts.set(fact::PATH, file.link.trim_end_matches(" (deleted)").to_owned().into());
        facts.set_some(fact::FD, file.fd.map(i64::from));
        self.set_own_netns(&mut facts);
        for relation in &file.relations {
            self.set(relation, &mut facts);
        }
        if facts.get(fact::END) == Some(End::Slave) && file.link.ends_with(" (deleted)") {
            // Its master is closed: nothing is asked of such a terminal (tty.c:dump_tty_info,
            // hangup).
            facts.set(fact::PAIRED, true);
        }
        if facts.get(fact::END) == Some(End::Control) {
            facts.set_some(
                fact::PAIRED,
                facts.get(fact::SESSION).map(|id| id == 0 || self.terminals.contains(&id)),
            );
        }
        facts
    }

    /// Collects what is known of a process besides its files.
    pub(crate) fn process_facts(&self, process: &Process) -> Facts {
        let mut facts = Facts::default();
        facts.set(fact::PID, i64::from(process.pid));
        facts.set(fact::TRACED, process.traced);
        facts.set(fact::NESTED, self.nested(process));
        // Only the root is asked.
        let is_root = self.root.is_some_and(|root| root.pid == process.pid);
        facts.set(fact::ROOT, is_root);
        facts.set(fact::PROCESS_STATE, process.state.to_string().into());
        facts.set(fact::LEADER, leader(!is_root || process.session == process.pid));
        facts
    }

    /// Finds a namespace that only this process has, of a kind of which only the root's is dumped.
    ///
    /// # Source
    /// CRIU: `namespaces.c:dump_task_ns_ids`.
    fn nested(&self, process: &Process) -> Nested {
        let is_own = |(name, _): &&(&str, Nested)| {
            let of = |namespaces: &Namespaces| namespaces.get(*name).copied();
            let (own, host) = (of(&process.namespaces), of(&self.tree.host));
            let root = self.root.and_then(|root| of(&root.namespaces));
            own.is_some() && own != root && own != host
        };
        NESTED.iter().find(is_own).map_or(Nested::None, |(_, nested)| *nested)
    }

    fn set(&self, relation: &Relation, facts: &mut Facts) {
        match relation {
            Relation::Target(pid) => self.set_target(*pid, facts),
            Relation::Unix(inode) => self.set_unix(*inode, facts),
            Relation::SocketNamespace(id) => {
                facts.set(fact::NETNS, self.net_namespaces.contains(id).into());
            }
            Relation::Namespace(name, id) => {
                facts.set(fact::NAMESPACE, self.namespaces.contains(&(name.as_str(), *id)).into());
                facts.set(fact::INODE, i64::try_from(*id).unwrap_or(i64::MAX));
            }
            Relation::Mount(id) => self.set_mount(*id, facts),
            Relation::Terminal { index, master } => {
                facts.set(fact::TERMINAL, *index);
                facts.set(fact::END, if *master { End::Master } else { End::Slave });
                facts.set(fact::PAIRED, *master || self.masters.contains(index));
                let lone = self.slaves.range(..index).filter(|slave| !self.masters.contains(slave)).count();
                facts.set(fact::LONE_BEFORE, i64::try_from(lone).unwrap_or(i64::MAX));
            }
            Relation::Session(id) => {
                let leader = match u32::try_from(*id) {
                    Ok(0) | Err(_) => Leader::None,
                    Ok(id) => leader(self.sessions.contains(&id)),
                };
                facts.set(fact::LEADER, leader);
                facts.set(fact::SESSION, *id);
            }
            Relation::Lock(pid) => self.set_lock(*pid, facts),
            Relation::ReadablePipe(_) => {
                facts.set(fact::PIPES, i64::try_from(self.pipes.len()).unwrap_or(i64::MAX));
            }
        }
    }

    /// Says whether the network namespace is dumped: if the root isn't in CRIU's.
    ///
    /// # Source
    /// CRIU: `net.c:dump_net_ns`.
    fn set_own_netns(&self, facts: &mut Facts) {
        let (Some(root), Some(host)) = (self.root, self.tree.host.get("net")) else { return };
        facts.set_some(fact::OWN_NETNS, root.namespaces.get("net").map(|net| net != host));
    }

    fn set_target(&self, pid: i64, facts: &mut Facts) {
        facts.set(fact::TARGET_PID, pid);
        let target = match u32::try_from(pid) {
            // -1
            Err(_) => Target::Reaped,
            Ok(pid) if self.pids.contains(&pid) => Target::Inside,
            Ok(_) => Target::Outside,
        };
        facts.set(fact::TARGET, target);
    }

    fn set_mount(&self, id: i64, facts: &mut Facts) {
        let found = self.mount_namespaces.iter().find_map(|namespace| {
            self.tree.mounts.get(namespace).and_then(|mounts| mounts.overmounted.get(&id))
        });
        // Of a namespace that couldn't be read it isn't known what is mounted.
        let all_known = self.mount_namespaces.iter().all(|id| self.tree.mounts.contains_key(id));
        match found {
            Some(true) => facts.set(fact::MOUNT, MountState::Overmounted),
            Some(false) => facts.set(fact::MOUNT, MountState::Known),
            None if all_known => facts.set(fact::MOUNT, MountState::Unknown),
            None => {}
        }
    }

    fn set_lock(&self, pid: i64, facts: &mut Facts) {
        facts.set(fact::LOCK_PID, pid);
        // -1: a lock of an open file, which nobody owns.
        let inside =
            u32::try_from(pid).is_err() || u32::try_from(pid).is_ok_and(|pid| self.pids.contains(&pid));
        facts.set(fact::LOCK, if inside { LockHolder::Held } else { LockHolder::Outside });
    }

    /// Says what is known of a unix socket.
    ///
    /// # Source
    /// CRIU: `sk-unix.c:dump_one_unix_fd`.
    fn set_unix(&self, inode: u64, facts: &mut Facts) {
        facts.set(fact::INODE, i64::try_from(inode).unwrap_or(i64::MAX));
        let Some(socket) = self.tree.unix.get(&inode) else {
            // The lists that could be read don't have it.
            facts.set(fact::NETNS, Place::Outside);
            return;
        };
        facts.set(fact::NETNS, Place::Inside);
        facts.set(fact::SOCKET_TYPE, socket.socket_type);
        facts.set(fact::STATE, state_of(socket));
        facts.set(fact::NAME, name_of(socket));
        facts.set(fact::SHUT_DOWN, socket.shutdown == 3);
        facts.set(fact::UNREAD, socket.send_queue);
        facts.set(fact::PENDING_CLOSED, socket.state == LISTEN && socket.pending.contains(&0));
        self.set_peer(inode, socket, facts);
    }

    fn set_peer(&self, inode: u64, socket: &UnixSocket, facts: &mut Facts) {
        let Some(peer) = socket.peer.filter(|peer| *peer != 0) else {
            let pending = socket.state == ESTABLISHED
                && socket.socket_type != SOCK_DGRAM
                && self.pending.contains_key(&inode);
            facts.set(fact::PEER, if pending { Peer::Pending } else { Peer::None });
            return;
        };
        facts.set(fact::PEER_INODE, i64::try_from(peer).unwrap_or(i64::MAX));
        let other = self.tree.unix.get(&peer);
        match other {
            None => facts.set(fact::PEER, Peer::Missing),
            Some(_) if self.unix.contains(&peer) => facts.set(fact::PEER, Peer::Inside),
            Some(_) if self.in_flight => {}
            Some(_) => facts.set(fact::PEER, Peer::Outside),
        }
        if let Some(other) = other {
            facts.set(fact::PEER_NAMED, other.name.is_some());
            facts.set(fact::PEER_NAME, name_of(other));
        }
    }
}

fn files<'a>(processes: &[&'a Process]) -> impl Iterator<Item = &'a File> {
    processes.iter().flat_map(|process| &process.files)
}

/// Collects what some relations of files are to.
fn related<T: Ord>(processes: &[&Process], of: impl Fn(&Relation) -> Option<T>) -> BTreeSet<T> {
    files(processes).flat_map(|file| &file.relations).filter_map(of).collect()
}

/// Finds the session of a pseudo terminal.
fn terminal_session(file: &File) -> Option<i64> {
    let is_pseudo = file.relations.iter().any(|relation| matches!(relation, Relation::Terminal { .. }));
    let session = |relation: &Relation| if let Relation::Session(id) = relation { Some(*id) } else { None };
    file.relations.iter().find_map(session).filter(|_| is_pseudo)
}

const fn leader(is_inside: bool) -> Leader {
    if is_inside { Leader::Inside } else { Leader::Outside }
}

const fn state_of(socket: &UnixSocket) -> SocketState {
    match socket.state {
        ESTABLISHED => SocketState::Connected,
        LISTEN => SocketState::Listen,
        _ => SocketState::Close,
    }
}

/// Returns a socket's name, as CRIU prints it.
fn name_of(socket: &UnixSocket) -> Text {
    socket.name.clone().map_or("(null)".into(), Text::from)
}

#[cfg(test)]
mod tests;
