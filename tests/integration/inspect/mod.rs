//! Tests the inspection of a process tree from outside: kinds and facts of files in many states,
//! trees of several processes, and processes that end, hide, or don't exist.

mod files;
mod sockets;
mod trees;

use std::{
    collections::BTreeSet,
    fmt::Debug,
    os::fd::{FromRawFd as _, OwnedFd},
    process::Command,
};

use fdtracker::{
    host::running_kernel,
    inspect::{self, InspectError},
    verdict::{
        self, FactType, Judge, Key, NOT_KNOWN, Profile, Rules, fact,
        tree::{File, Process, Relation, Tree},
    },
};
use fdtracker_tests::{Zoo, fdzoo};

use crate::{
    Needs::{Nobody, Root},
    Test, test, test_or_skip,
};

pub fn tests() -> Vec<Test> {
    vec![
        test("inspect::kinds", Root, kinds),
        test("inspect::regular_files", Root, files::regular_files),
        test("inspect::deleted_files", Root, files::deleted_files),
        test("inspect::locks", Root, files::locks),
        test("inspect::pipes", Root, files::pipes),
        test("inspect::tcp_and_udp", Root, sockets::tcp_and_udp),
        test("inspect::unix_sockets", Root, sockets::unix_sockets),
        test("inspect::unix_queues", Root, sockets::unix_queues),
        test("inspect::netlink_and_filters", Root, sockets::netlink_and_filters),
        test("inspect::epoll_targets", Root, files::epoll_targets),
        test("inspect::watches", Root, files::watches),
        test("inspect::pidfds", Root, files::pidfds),
        test("inspect::terminals", Root, files::terminals),
        test_or_skip("inspect::mappings", Root, files::mappings),
        test("inspect::a_tree", Root, trees::a_tree),
        test("inspect::a_shared_table", Root, trees::a_shared_table),
        test("inspect::a_dying_target", Root, trees::a_dying_target),
        test("inspect::what_is_no_tree", Nobody, trees::what_is_no_tree),
        test_or_skip("inspect::other_namespaces", Root, trees::other_namespaces),
        test("inspect::nothing_remains_unknown", Root, nothing_remains_unknown),
        test("inspect::many_files", Root, trees::many_files),
    ]
}

/// Inspects a tree, with no additional paths for watched files.
fn inspect(root: u32) -> Result<Tree, InspectError> {
    inspect::tree(root, &BTreeSet::new())
}

/// Inspects this process, in which tests open files.
fn me() -> Tree {
    inspect(std::process::id()).expect("this process can be inspected")
}

#[track_caller]
fn first(tree: &Tree) -> &Process {
    let process = tree.processes.first().expect("a process");
    assert_eq!(process.unreadable, None, "{:?}", tree.unreadable);
    process
}

#[track_caller]
fn fd(tree: &Tree, fd: i32) -> &File {
    let files = &first(tree).files;
    files.iter().find(|file| file.fd == Some(fd as u32)).unwrap_or_else(|| panic!("fd {fd} is in {files:#?}"))
}

#[track_caller]
fn has<T>(file: &File, key: Key<T>, value: T)
where
    T: for<'a> FactType<Ref<'a> = T> + PartialEq + Debug,
{
    assert_eq!(file.facts.get(key), Some(value), "{key:?} of {file:#?}");
}

#[track_caller]
fn is_related(file: &File, relation: &Relation) {
    assert!(file.relations.contains(relation), "{relation:?} of {file:#?}");
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the caller has just opened it.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn kinds() {
    let mut zoo = Zoo::start(Command::new(fdzoo()));
    let names = [
        "eventfd",
        "epoll",
        "signalfd",
        "timerfd",
        "inotify",
        "fanotify",
        "pidfd",
        "io_uring",
        "perf_event",
        "bpf_map",
        "bpf_prog",
        "bpf_link",
        "btf",
        "userfaultfd",
        "fscontext",
        "seccomp_notify",
        "landlock",
        "memfd_secret",
        "mqueue",
        "vsock",
        "alg",
        "xdp",
        "packet",
        "can",
        "mptcp",
        "sctp",
        "ping",
        "tun",
        "char_device",
        "kvm",
        "block_device",
        "tcp",
        "udp",
        "unix",
        "netlink",
        "memfd",
    ];
    let other = [("null", "mem_device"), ("dir", "directory")];
    let all = names.iter().map(|name| (*name, *name)).chain(other);
    let opened: Vec<_> =
        all.filter_map(|(name, kind)| Some((zoo.ask(&format!("open {name}")).ok()?[0], kind))).collect();
    assert!(opened.len() > 20, "{opened:?}");
    let tree = inspect(zoo.pid()).expect("the fixture can be inspected");
    for (number, kind) in opened {
        let file = fd(&tree, number as i32);
        assert_eq!(file.kind.name(), kind, "{file:#?}");
        match kind {
            "timerfd" => has(file, fact::CLOCK, 1),
            "bpf_map" => has(file, fact::MAP_TYPE, 2),
            "pidfd" => is_related(file, &Relation::Target(zoo.pid().into())),
            "netlink" => has(file, fact::QUEUED, 0),
            "packet" => has(file, fact::MEMBERSHIPS, false),
            "char_device" => assert_eq!(file.facts.get(fact::DEVICE), Some("10:229"), "{file:#?}"),
            "memfd_secret" | "mqueue" => assert!(file.facts.get(fact::MOUNT_ID).is_some(), "{file:#?}"),
            _ => {}
        }
    }
}

/// Checks that for files in plain states every fact that a rule needs is known.
fn nothing_remains_unknown() {
    let mut zoo = Zoo::start(Command::new(fdzoo()));
    let opened = [
        "eventfd",
        "epoll",
        "signalfd",
        "timerfd",
        "inotify",
        "pidfd",
        "tcp",
        "udp",
        "unix",
        "netlink",
        "memfd",
        "packet",
        "ping",
        "null",
        "dir",
        "perf_event",
        "userfaultfd",
        "memfd_secret",
        "mqueue",
        "vsock",
    ];
    let opened: Vec<_> = opened.iter().filter(|kind| zoo.ask(&format!("open {kind}")).is_ok()).collect();
    let tree = inspect(zoo.pid()).expect("the fixture can be inspected");
    let kernel = running_kernel().expect("a version");
    let profile = Profile::new(Some("4.2".parse().expect("a version")), None, kernel);
    let judge = Judge::new(Rules::embedded().expect("the rules"), profile);
    let report = verdict::check(&judge, &tree);
    let unknown: Vec<_> = report.blockers.iter().filter(|b| b.judgement.reason == NOT_KNOWN).collect();
    assert!(unknown.is_empty(), "{opened:?}: {unknown:#?}");
    let blocked: Vec<_> = report.blockers.iter().map(|blocker| blocker.kind.name()).collect();
    assert!(blocked.contains(&"perf_event"), "{blocked:?}");
    assert!(
        ["eventfd", "pidfd", "tcp", "unix", "directory"].iter().all(|kind| !blocked.contains(kind)),
        "{blocked:?}"
    );
}
