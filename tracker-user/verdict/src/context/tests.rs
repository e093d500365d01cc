//! What is inside, and what is outside.

use super::*;
use crate::tree::Mounts;

fn file(relations: Vec<Relation>) -> File {
    let kind = FileKind::File;
    let is_terminal = relations.iter().any(|relation| matches!(relation, Relation::Terminal { .. }));
    let link = if is_terminal { "/dev/pts/4" } else { "/a (deleted)" };
    File { fd: Some(3), kind, link: link.into(), facts: Facts::default(), relations }
}

fn process(pid: u32, parent: u32, relations: Vec<Relation>) -> Process {
    let namespaces = [("mnt".to_owned(), 100), ("net".to_owned(), 200)].into();
    Process { pid, parent, session: 10, namespaces, files: vec![file(relations)], ..Process::default() }
}

/// What is known of the first file of the last process, in a tree of these.
fn facts(tree: &Tree) -> Facts {
    let processes: Vec<&Process> = tree.processes.iter().collect();
    let last = processes[processes.len() - 1];
    Context::new(tree, &processes).facts(last, &last.files[0])
}

fn tree(processes: Vec<Process>) -> Tree {
    let mounts = Mounts { overmounted: [(1, false), (2, true)].into() };
    let host = [("mnt".to_owned(), 100), ("net".to_owned(), 201)].into();
    Tree { processes, mounts: [(100, mounts)].into(), host, ..Tree::default() }
}

fn alone(relation: Relation) -> Facts {
    facts(&tree(vec![process(10, 1, vec![relation])]))
}

fn socket(peer: Option<u64>, state: i64, socket_type: i64) -> UnixSocket {
    UnixSocket { peer, socket_type, state, ..UnixSocket::default() }
}

#[test]
fn a_file_has_its_path_and_process() {
    let facts = alone(Relation::Mount(1));
    assert_eq!(facts.get(fact::PATH), Some("/a"));
    assert_eq!((facts.get(fact::FD), facts.get(fact::PID)), (Some(3), Some(10)));
    assert_eq!(facts.get(fact::OWN_NETNS), Some(true));
}

#[test]
fn targets_of_pidfds() {
    for (pid, target) in
        [(-1, Target::Reaped), (0, Target::Outside), (10, Target::Inside), (11, Target::Outside)]
    {
        assert_eq!(alone(Relation::Target(pid)).get(fact::TARGET), Some(target));
    }
}

#[test]
fn mounts_are_those_of_the_tree() {
    for (id, mount) in [(1, MountState::Known), (2, MountState::Overmounted), (3, MountState::Unknown)] {
        assert_eq!(alone(Relation::Mount(id)).get(fact::MOUNT), Some(mount));
    }
    let mut unread = tree(vec![process(10, 1, vec![Relation::Mount(3)])]);
    unread.mounts.clear();
    assert_eq!(facts(&unread).get(fact::MOUNT), None);
}

#[test]
fn peers_of_unix_sockets() {
    let peer = |other: Option<u64>, inside: bool| {
        let own = Relation::Unix(1);
        let relations = if inside { vec![Relation::Unix(2)] } else { vec![] };
        let mut tree = tree(vec![process(10, 1, relations), process(11, 10, vec![own])]);
        tree.unix = [(1, socket(other, 1, 1)), (2, socket(Some(1), 1, 1))].into();
        facts(&tree).get(fact::PEER)
    };
    assert_eq!(peer(Some(2), true), Some(Peer::Inside));
    assert_eq!(peer(Some(2), false), Some(Peer::Outside));
    assert_eq!(peer(Some(9), false), Some(Peer::Missing));
    assert_eq!(peer(None, false), Some(Peer::None));
}

#[test]
fn a_connection_that_waits_to_be_accepted_has_no_peer_yet() {
    let mut tree = tree(vec![process(10, 1, vec![Relation::Unix(1)])]);
    let listener = UnixSocket { pending: vec![1, 0], ..socket(None, 10, 1) };
    tree.unix = [(1, socket(None, 1, 1)), (5, listener)].into();
    assert_eq!(facts(&tree).get(fact::PEER), Some(Peer::Pending));
    tree.processes[0].files[0].relations = vec![Relation::Unix(5)];
    assert_eq!(facts(&tree).get(fact::PENDING_CLOSED), Some(true));
    tree.processes[0].files[0].relations = vec![Relation::Unix(77)];
    assert_eq!(facts(&tree).get(fact::NETNS), Some(Place::Outside));
}

#[test]
fn terminals_have_another_end_and_a_session() {
    let slave = Relation::Terminal { index: 4, master: false };
    let master = Relation::Terminal { index: 4, master: true };
    assert_eq!(alone(slave.clone()).get(fact::PAIRED), Some(false));
    let pair = tree(vec![process(10, 1, vec![master]), process(11, 10, vec![slave])]);
    assert_eq!(facts(&pair).get(fact::PAIRED), Some(true));
    for (session, leader) in [(0, Leader::None), (10, Leader::Inside), (7, Leader::Outside)] {
        assert_eq!(alone(Relation::Session(session)).get(fact::LEADER), Some(leader));
    }
}

#[test]
fn locks_namespaces_and_pipes() {
    assert_eq!(alone(Relation::Lock(10)).get(fact::LOCK), Some(LockHolder::Held));
    assert_eq!(alone(Relation::Lock(-1)).get(fact::LOCK), Some(LockHolder::Held));
    assert_eq!(alone(Relation::Lock(7)).get(fact::LOCK), Some(LockHolder::Outside));
    for (id, place) in [(200, Place::Inside), (201, Place::Inside), (202, Place::Outside)] {
        assert_eq!(alone(Relation::Namespace("net".into(), id)).get(fact::NAMESPACE), Some(place));
    }
    let pipes = vec![Relation::ReadablePipe(1), Relation::ReadablePipe(1), Relation::ReadablePipe(2)];
    assert_eq!(facts(&tree(vec![process(10, 1, pipes)])).get(fact::PIPES), Some(2));
}
