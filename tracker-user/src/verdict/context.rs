//! From relations to facts: what is inside a (sub)tree, and what is outside.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    facts::{Fact, Facts},
    tree::{File, Process, Relation, Tree, UnixSocket},
};

/// What a dump of some processes takes.
pub(super) struct Context<'a> {
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
    pipes: BTreeSet<u64>,
}

/// TCP's states, which unix sockets have too (include/net/tcp_states.h).
const ESTABLISHED: i64 = 1;
const LISTEN: i64 = 10;
const SOCK_DGRAM: i64 = 2;

impl<'a> Context<'a> {
    /// `processes` are the tree's that are dumped, its root first.
    pub(super) fn new(tree: &'a Tree, processes: &[&'a Process]) -> Self {
        let relations =
            || processes.iter().flat_map(|process| &process.files).flat_map(|file| &file.relations);
        let of_namespace = |name: &str| {
            processes
                .iter()
                .filter_map(|process| process.namespaces.get(name).copied())
                .collect::<BTreeSet<_>>()
        };
        let all = processes.iter().map(|process| &process.namespaces).chain([&tree.host]);
        let pending =
            tree.unix.iter().flat_map(|(inode, socket)| socket.pending.iter().map(|p| (*p, *inode)));
        Self {
            tree,
            root: processes.first().copied(),
            pids: processes.iter().map(|process| process.pid).collect(),
            sessions: processes.iter().filter(|p| p.pid == p.session).map(|p| p.session).collect(),
            mount_namespaces: of_namespace("mnt"),
            net_namespaces: of_namespace("net"),
            namespaces: all.flatten().map(|(name, id)| (name.as_str(), *id)).collect(),
            unix: relations()
                .filter_map(|r| if let Relation::Unix(inode) = r { Some(*inode) } else { None })
                .collect(),
            pending: pending.collect(),
            masters: relations()
                .filter_map(|r| {
                    if let Relation::Terminal { index, master: true } = r { Some(*index) } else { None }
                })
                .collect(),
            pipes: relations()
                .filter_map(|r| if let Relation::ReadablePipe(inode) = r { Some(*inode) } else { None })
                .collect(),
        }
    }

    /// All that is known of a file in this tree.
    pub(super) fn facts(&self, process: &Process, file: &File) -> Facts {
        let mut facts = file.facts.clone();
        facts.set(Fact::Pid, i64::from(process.pid));
        facts.set(Fact::Link, file.link.clone());
        facts.set(Fact::Path, file.link.trim_end_matches(" (deleted)").to_owned());
        facts.set_some(Fact::Fd, file.fd.map(i64::from));
        self.set_own_netns(&mut facts);
        for relation in &file.relations {
            self.set(relation, &mut facts);
        }
        facts
    }

    fn set(&self, relation: &Relation, facts: &mut Facts) {
        match relation {
            Relation::Target(pid) => self.set_target(*pid, facts),
            Relation::Unix(inode) => self.set_unix(*inode, facts),
            Relation::SocketNamespace(id) => {
                facts.set(Fact::Netns, where_is(self.net_namespaces.contains(id)));
            }
            Relation::Namespace(name, id) => {
                facts.set(Fact::Namespace, where_is(self.namespaces.contains(&(name.as_str(), *id))));
                facts.set(Fact::Inode, i64::try_from(*id).unwrap_or(i64::MAX));
            }
            Relation::Mount(id) => self.set_mount(*id, facts),
            Relation::Terminal { index, master } => {
                facts.set(Fact::Terminal, *index);
                facts.set(Fact::End, if *master { "master" } else { "slave" });
                facts.set(Fact::Paired, *master || self.masters.contains(index));
            }
            Relation::Session(id) => {
                let leader = match u32::try_from(*id) {
                    Ok(0) | Err(_) => "none",
                    Ok(id) => where_is(self.sessions.contains(&id)),
                };
                facts.set(Fact::Leader, leader);
                facts.set(Fact::Session, *id);
            }
            Relation::Lock(pid) => self.set_lock(*pid, facts),
            Relation::ReadablePipe(_) => {
                facts.set(Fact::Pipes, i64::try_from(self.pipes.len()).unwrap_or(i64::MAX));
            }
        }
    }

    /// `net.c:dump_net_ns`: a network namespace is dumped if the root isn't in CRIU's.
    fn set_own_netns(&self, facts: &mut Facts) {
        let (Some(root), Some(host)) = (self.root, self.tree.host.get("net")) else { return };
        facts.set_some(Fact::OwnNetns, root.namespaces.get("net").map(|net| net != host));
    }

    fn set_target(&self, pid: i64, facts: &mut Facts) {
        facts.set(Fact::TargetPid, pid);
        let target = match u32::try_from(pid) {
            // -1
            Err(_) => "reaped",
            Ok(pid) => where_is(self.pids.contains(&pid)),
        };
        facts.set(Fact::Target, target);
    }

    fn set_mount(&self, id: i64, facts: &mut Facts) {
        let found = self.mount_namespaces.iter().find_map(|namespace| {
            self.tree.mounts.get(namespace).and_then(|mounts| mounts.overmounted.get(&id))
        });
        // Of a namespace that couldn't be read it isn't known what is mounted.
        let all_known = self.mount_namespaces.iter().all(|id| self.tree.mounts.contains_key(id));
        match found {
            Some(true) => facts.set(Fact::Mount, "overmounted"),
            Some(false) => facts.set(Fact::Mount, "known"),
            None if all_known => facts.set(Fact::Mount, "unknown"),
            None => {}
        }
    }

    fn set_lock(&self, pid: i64, facts: &mut Facts) {
        facts.set(Fact::LockPid, pid);
        // -1: a lock of an open file, which nobody owns.
        let inside =
            u32::try_from(pid).is_err() || u32::try_from(pid).is_ok_and(|pid| self.pids.contains(&pid));
        facts.set(Fact::Lock, if inside { "held" } else { "outside" });
    }

    /// `sk-unix.c:dump_one_unix_fd`
    fn set_unix(&self, inode: u64, facts: &mut Facts) {
        facts.set(Fact::Inode, i64::try_from(inode).unwrap_or(i64::MAX));
        let Some(socket) = self.tree.unix.get(&inode) else {
            // The lists that could be read don't have it.
            facts.set(Fact::Netns, "outside");
            return;
        };
        facts.set(Fact::Netns, "inside");
        facts.set(Fact::SocketType, socket.socket_type);
        facts.set(Fact::State, state_of(socket));
        facts.set(Fact::Name, socket.name.clone().unwrap_or_else(|| "(null)".to_owned()));
        facts.set(Fact::ShutDown, socket.shutdown == 3);
        facts.set(Fact::Unread, socket.send_queue);
        facts.set(Fact::PendingClosed, socket.state == LISTEN && socket.pending.contains(&0));
        self.set_peer(inode, socket, facts);
    }

    fn set_peer(&self, inode: u64, socket: &UnixSocket, facts: &mut Facts) {
        let Some(peer) = socket.peer.filter(|peer| *peer != 0) else {
            let pending = socket.state == ESTABLISHED
                && socket.socket_type != SOCK_DGRAM
                && self.pending.contains_key(&inode);
            facts.set(Fact::Peer, if pending { "pending" } else { "none" });
            return;
        };
        facts.set(Fact::PeerInode, i64::try_from(peer).unwrap_or(i64::MAX));
        let other = self.tree.unix.get(&peer);
        facts.set(
            Fact::Peer,
            match other {
                None => "missing",
                Some(_) => where_is(self.unix.contains(&peer)),
            },
        );
        if let Some(other) = other {
            facts.set(Fact::PeerNamed, other.name.is_some());
            facts.set(Fact::PeerName, other.name.clone().unwrap_or_else(|| "(null)".to_owned()));
        }
    }
}

fn where_is(inside: bool) -> &'static str {
    if inside { "inside" } else { "outside" }
}

fn state_of(socket: &UnixSocket) -> &'static str {
    match socket.state {
        ESTABLISHED => "connected",
        LISTEN => "listen",
        _ => "close",
    }
}
