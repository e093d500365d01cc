//! Tests every way in which a slot is filled or emptied. After each step, counts must equal what
//! `/proc` says.

use std::collections::BTreeMap;

use fdtracker_tests::{Agent, Cgroup, Zoo, eventually, same};
use tracker_ebpf::{Class, Kind};

use crate::{Needs::Root, Test, agent, test, test_or_skip};

pub fn tests() -> Vec<Test> {
    vec![
        test("life_cycle::every_kind", Root, every_kind),
        test_or_skip(
            "life_cycle::an_ioctl_that_leaves_the_fd_in_memory",
            Root,
            an_ioctl_that_leaves_the_fd_in_memory,
        ),
        test("life_cycle::what_is_not_counted", Root, what_is_not_counted),
        test("life_cycle::dup_and_close", Root, dup_and_close),
        test("life_cycle::dup_over_another_kind", Root, dup_over_another_kind),
        test("life_cycle::close_range", Root, close_range),
        test("life_cycle::pidfds_of_all_makers", Root, pidfds_of_all_makers),
        test("life_cycle::scm_rights", Root, scm_rights),
        test("life_cycle::fork_and_kill", Root, fork_and_kill),
        test("life_cycle::exec_closes_on_exec", Root, exec_closes_on_exec),
        test("life_cycle::spawn", Root, spawn),
        test("life_cycle::shared_table", Root, shared_table),
        test("life_cycle::threads_with_tables_of_their_own", Root, threads_with_tables_of_their_own),
        test("life_cycle::many_fds", Root, many_fds),
        test("life_cycle::moved_to_another_cgroup", Root, moved_to_another_cgroup),
        test("life_cycle::exit", Root, exit),
        // After this test the tracepoint feeder's audits have corrected something.
        test_or_skip("life_cycle::io_uring_opens_and_closes", Root, io_uring_opens_and_closes),
        test_or_skip("life_cycle::read_of_fanotify", Root, read_of_fanotify),
        test_or_skip("life_cycle::seccomp_addfd", Root, seccomp_addfd),
    ]
}

/// Waits until the agent counts what `/proc` says for this cgroup. The iterator must agree: audits
/// find nothing to correct.
#[track_caller]
fn agrees(agent: &Agent, cgroup: &Cgroup) {
    agrees_with_proc(agent, cgroup);
    let audited = || agent.metrics().get("fdtracker_audits_total", &[("result", "ok")]);
    let (start, corrections) = (audited(), agent.metrics().corrections());
    // The first may have begun before this call.
    eventually("two audits", || if audited() >= start + 2.0 { Ok(()) } else { Err("not yet") });
    nothing_corrected_since(corrections, agent);
}

/// Checks that audits corrected nothing since then. If the kernel has skipped programs, there is
/// nothing to compare.
#[track_caller]
fn nothing_corrected_since(before: Option<f64>, agent: &Agent) {
    if let Some(corrections) = agent.metrics().corrections() {
        assert_eq!(Some(corrections), before, "an audit found something to put right");
    }
}

/// Compares counts with `/proc`, which can't tell the kind of sockets: these are left out.
#[track_caller]
fn agrees_with_proc(agent: &Agent, cgroup: &Cgroup) {
    eventually("the agent agrees with /proc", || {
        let mut counted = agent.counts(&cgroup.id)?;
        counted.retain(|kind, _| !is_socket(kind));
        same(counted, cgroup.truth())
    });
}

fn is_socket(kind: &str) -> bool {
    Kind::from_name(kind).is_some_and(|kind| kind.class() == Class::Socket)
}

#[track_caller]
fn counts(agent: &Agent, cgroup: &Cgroup, expected: &[(&str, i64)]) {
    let expected: BTreeMap<String, i64> = expected.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
    eventually("the counts", || same(agent.counts(&cgroup.id)?, expected.clone()));
}

fn every_kind() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let mut opened = Vec::new();
    for kind in Kind::ALL {
        match zoo.ask(&format!("open {}", kind.name())) {
            Ok(fd) => opened.push((*kind, fd[0])),
            Err(reason) => eprintln!("{}: not here: {reason}", kind.name()),
        }
    }
    // An fd of a KVM machine exists only where there is KVM. The other kinds are on every kernel
    // that the agent runs on.
    for kind in
        [Kind::Eventfd, Kind::Pidfd, Kind::Epoll, Kind::PerfEvent, Kind::BpfMap, Kind::BpfProg, Kind::Inotify]
    {
        assert!(opened.iter().any(|(k, _)| *k == kind), "{} could not be opened", kind.name());
    }
    let expected: Vec<(&str, i64)> = opened.iter().map(|(kind, _)| (kind.name(), 1)).collect();
    counts(&agent, &cgroup, &expected);
    agrees(&agent, &cgroup);
    for (_, fd) in opened {
        zoo.must(&format!("close {fd}"));
    }
    counts(&agent, &cgroup, &[]);
}

fn an_ioctl_that_leaves_the_fd_in_memory() -> Result<(), String> {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.ask("open kvm_device").map_err(|reason| format!("no KVM device here: {reason}"))?[0];
    counts(&agent, &cgroup, &[("kvm", 1)]);
    agrees(&agent, &cgroup);
    zoo.must(&format!("close {fd}"));
    counts(&agent, &cgroup, &[]);
    Ok(())
}

fn what_is_not_counted() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    for kind in ["null", "dir", "tcp", "udp", "unix", "netlink", "memfd"] {
        zoo.must(&format!("open {kind}"));
    }
    zoo.must("open eventfd");
    counts(&agent, &cgroup, &[("eventfd", 1)]);
}

fn dup_and_close() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.must("open pidfd");
    let copy = zoo.must(&format!("dup {fd}"));
    zoo.must(&format!("dupfd {fd} 300"));
    zoo.must(&format!("dup2 {fd} 400"));
    counts(&agent, &cgroup, &[("pidfd", 4)]);
    agrees(&agent, &cgroup);
    zoo.must(&format!("close {copy}"));
    zoo.must("close 300");
    counts(&agent, &cgroup, &[("pidfd", 2)]);
}

fn dup_over_another_kind() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let (pidfd, eventfd) = (zoo.must("open pidfd"), zoo.must("open eventfd"));
    zoo.must(&format!("dup2 {pidfd} {eventfd}"));
    counts(&agent, &cgroup, &[("pidfd", 2)]);
    let null = zoo.must("open null");
    zoo.must(&format!("dup2 {null} {eventfd}"));
    zoo.must(&format!("dup2 {null} {pidfd}"));
    counts(&agent, &cgroup, &[]);
    agrees(&agent, &cgroup);
}

fn close_range() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.must("open pidfd");
    for to in [350, 355, 360, 700] {
        zoo.must(&format!("dup2 {fd} {to}"));
    }
    counts(&agent, &cgroup, &[("pidfd", 5)]);
    zoo.must("close_range 350 360 0");
    counts(&agent, &cgroup, &[("pidfd", 2)]);
    agrees(&agent, &cgroup);
}

fn pidfds_of_all_makers() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.must("open pidfd");
    zoo.must("clone_pidfd");
    zoo.must(&format!("getfd {fd}"));
    let mut expected = 3;
    for newer in ["peerpidfd", "scm_pidfd"] {
        match zoo.ask(newer) {
            Ok(_) => expected += 1,
            Err(reason) => eprintln!("{newer}: not here: {reason}"),
        }
    }
    counts(&agent, &cgroup, &[("pidfd", expected)]);
    agrees(&agent, &cgroup);
}

fn scm_rights() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.must("open pidfd");
    let received = zoo.must(&format!("pass {fd}"));
    counts(&agent, &cgroup, &[("pidfd", 2)]);
    zoo.must(&format!("close {fd}"));
    zoo.must(&format!("close {received}"));
    counts(&agent, &cgroup, &[]);
}

fn fork_and_kill() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open pidfd");
    zoo.must("open eventfd");
    let child = zoo.must("fork");
    counts(&agent, &cgroup, &[("pidfd", 2), ("eventfd", 2)]);
    agrees(&agent, &cgroup);
    let processes = agent.container(&cgroup.id).expect("the container")["processes"].clone();
    let pids: Vec<i64> =
        processes.as_array().expect("a list").iter().filter_map(|p| p["pid"].as_i64()).collect();
    assert!(pids.contains(&child) && pids.contains(&zoo.pid().into()), "{processes}");
    zoo.must(&format!("kill {child}"));
    counts(&agent, &cgroup, &[("eventfd", 1), ("pidfd", 1)]);
}

fn exec_closes_on_exec() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let goes = zoo.must("open pidfd");
    zoo.must("open eventfd");
    zoo.must(&format!("cloexec {goes}"));
    counts(&agent, &cgroup, &[("eventfd", 1), ("pidfd", 1)]);
    zoo.must("exec");
    zoo.must("pid");
    counts(&agent, &cgroup, &[("eventfd", 1)]);
    agrees(&agent, &cgroup);
}

fn spawn() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open eventfd");
    let child = zoo.must("vfork_exec");
    counts(&agent, &cgroup, &[("eventfd", 2)]);
    agrees(&agent, &cgroup);
    zoo.must(&format!("kill {child}"));
    counts(&agent, &cgroup, &[("eventfd", 1)]);
}

fn shared_table() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open eventfd");
    let sharer = zoo.must("sharer 3");
    // It is one table, whichever process it is read from.
    counts(&agent, &cgroup, &[("eventfd", 4)]);
    zoo.must(&format!("kill {sharer}"));
    counts(&agent, &cgroup, &[("eventfd", 4)]);
    // The probe couldn't be sure that the table still exists, so it requested an audit.
    eventually("the requested audit is done", || {
        same(agent.container(&cgroup.id)?["state"].clone(), "ok".into())
    });
    agrees(&agent, &cgroup);
}

fn threads_with_tables_of_their_own() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.must("open eventfd");
    for to in [350, 355, 360] {
        zoo.must(&format!("dup2 {fd} {to}"));
    }
    zoo.must("thread_unshare");
    zoo.must("thread_close_range 350 355");
    // Both threads have ended, and their tables are gone.
    counts(&agent, &cgroup, &[("eventfd", 4)]);
    agrees(&agent, &cgroup);
}

fn many_fds() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    for _ in 0..600 {
        zoo.must("open eventfd");
    }
    counts(&agent, &cgroup, &[("eventfd", 600)]);
    let child = zoo.must("fork");
    counts(&agent, &cgroup, &[("eventfd", 1200)]);
    zoo.must(&format!("kill {child}"));
    counts(&agent, &cgroup, &[("eventfd", 600)]);
    zoo.must("close_range 3 2000 0");
    counts(&agent, &cgroup, &[]);
}

fn moved_to_another_cgroup() {
    let (agent, from, to) = (agent(), Cgroup::docker(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&from);
    zoo.must("open pidfd");
    counts(&agent, &from, &[("pidfd", 1)]);
    to.add(zoo.pid());
    counts(&agent, &to, &[("pidfd", 1)]);
    counts(&agent, &from, &[]);
}

fn io_uring_opens_and_closes() -> Result<(), String> {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let eventfd = zoo.must("open eventfd");
    zoo.ask("uring_open").map_err(|reason| format!("no io_uring, or no /dev/fuse here: {reason}"))?;
    counts(&agent, &cgroup, &[("eventfd", 1), ("char_device", 1)]);
    zoo.must(&format!("uring_close {eventfd}"));
    counts(&agent, &cgroup, &[("char_device", 1)]);
    agrees_with_proc(&agent, &cgroup);
    settled(&agent, &cgroup);
    Ok(())
}

fn read_of_fanotify() -> Result<(), String> {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let group =
        zoo.ask("fanotify_watch").map_err(|reason| format!("no pidfds from fanotify here: {reason}"))?[0];
    counts(&agent, &cgroup, &[("fanotify", 1)]);
    zoo.must(&format!("fanotify_event {group}"));
    counts(&agent, &cgroup, &[("fanotify", 1), ("pidfd", 1)]);
    agrees_with_proc(&agent, &cgroup);
    Ok(())
}

fn seccomp_addfd() -> Result<(), String> {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.ask("seccomp_addfd").map_err(|reason| format!("no SECCOMP_IOCTL_NOTIF_ADDFD here: {reason}"))?;
    counts(&agent, &cgroup, &[("eventfd", 1)]);
    agrees_with_proc(&agent, &cgroup);
    Ok(())
}

/// Waits until no count is being repaired.
fn settled(agent: &Agent, cgroup: &Cgroup) {
    eventually("no count is being repaired", || {
        let state = agent.container(&cgroup.id)?["state"].clone();
        if state == "stale" { Err("stale") } else { Ok(()) }.map_err(str::to_owned)
    });
}

fn exit() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let before = agent.metrics().corrections();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open pidfd");
    counts(&agent, &cgroup, &[("pidfd", 1)]);
    zoo.end();
    counts(&agent, &cgroup, &[]);
    nothing_corrected_since(before, &agent);
}
