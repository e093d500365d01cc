//! All unix sockets of the network namespaces that processes are in: whom they are connected to, and what waits.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use rustix::{fs::OFlags, thread::LinkNameSpaceType};

use super::{netlink, parse, processes::Seen, surroundings::Surroundings, sys};
use crate::verdict::{
    fact,
    tree::{File, Relation, Tree, UnixSocket},
};

/// Unix sockets by inode, each with its network namespace.
type Unix = BTreeMap<u64, (u64, UnixSocket)>;

/// Reads them. What can't be read is by namespace, with the reason.
fn list(seen: &[Seen]) -> (Unix, BTreeMap<u64, io::Result<()>>) {
    let (mut all, mut results) = (Unix::new(), BTreeMap::new());
    for process in seen.iter().filter(|seen| !seen.process.zombie && !seen.gone) {
        let Some(number) = process.namespace("net").filter(|number| !results.contains_key(number)) else {
            continue;
        };
        match ask(process, netlink::unix_sockets) {
            Ok(sockets) => {
                results.insert(number, Ok(()));
                all.extend(sockets.into_iter().map(|(inode, socket)| (inode, (number, socket))));
            }
            // Another process may be in it too.
            Err(_) if !process.is_alive() => {}
            Err(error) => {
                results.insert(number, Err(error));
            }
        }
    }
    (all, results)
}

/// The network namespaces of unix sockets, by inode.
pub(super) fn namespaces(seen: &[Seen]) -> BTreeMap<u64, u64> {
    list(seen).0.into_iter().map(|(inode, (namespace, _))| (inode, namespace)).collect()
}

/// Learns of all unix sockets, after the files: one that was seen is in the lists, unless it was closed since. Takes back what was
/// said of sockets of which nothing can be known.
pub(super) fn know(seen: &mut [Seen], around: &mut Surroundings, tree: &mut Tree) {
    let is_unix = |file: &File| file.relations.iter().any(|relation| matches!(relation, Relation::Unix(_)));
    if !seen.iter().flat_map(|seen| &seen.process.files).any(is_unix) {
        return;
    }
    let (all, results) = list(seen);
    tree.unix = all.into_iter().map(|(inode, (_, socket))| (inode, socket)).collect();
    let mut known = BTreeSet::new();
    for (number, result) in results {
        match result {
            Ok(()) => {
                known.insert(number);
            }
            Err(error) => around.cannot(format!("sockets of network namespace {number}: {error}")),
        }
    }
    let files = seen.iter_mut().flat_map(|seen| &mut seen.process.files);
    files.for_each(|file| settle(file, &tree.unix, &known));
}

/// A socket that isn't in the lists is of another namespace, or was closed.
fn settle(file: &mut File, unix: &BTreeMap<u64, UnixSocket>, known: &BTreeSet<u64>) {
    let unix_inode = |r: &Relation| if let Relation::Unix(inode) = r { Some(*inode) } else { None };
    let Some(inode) = file.relations.iter().find_map(unix_inode) else { return };
    if unix.contains_key(&inode) {
        return;
    }
    let namespace =
        |r: &Relation| if let Relation::SocketNamespace(number) = r { Some(*number) } else { None };
    match file.relations.iter().find_map(namespace) {
        Some(number) if !known.contains(&number) && !known.is_empty() => {}
        _ => {
            file.relations.retain(|relation| unix_inode(relation).is_none());
            file.facts.set(fact::WHY, "the kernel's list of sockets doesn't have it".into());
        }
    }
}

/// Asks about the sockets of the network namespace that a process is in; again if the list changed meanwhile.
pub(super) fn ask<T>(seen: &Seen, question: impl Fn(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
    const TRIES: usize = 5;
    let namespace = sys::open(seen.dir.as_fd(), c"ns/net", OFlags::RDONLY)?;
    let is_own = std::fs::read_link("/proc/self/ns/net").is_ok_and(|link| {
        let own = link.to_str().and_then(parse::namespace);
        own.map(|(_, number)| number) == seen.namespace("net")
    });
    // A socket stays in the namespace that it was made in.
    let once = || {
        let make = sys::diagnostics;
        let socket = if is_own {
            make()?
        } else {
            sys::in_namespace(namespace.as_fd(), LinkNameSpaceType::Network, make)?
        };
        question(socket.as_fd())
    };
    let is_interrupted = |result: &io::Result<T>| {
        result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
    };
    (1..TRIES).fold(once(), |result, _| if is_interrupted(&result) { once() } else { result })
}
