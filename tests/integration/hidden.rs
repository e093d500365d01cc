//! Tests hidden files: a scan finds them, and the next scan after their end forgets them.

use std::{collections::BTreeMap, process::Command};

use fdtracker_tests::{Agent, Cgroup, Zoo, counts_of, eventually, fdtracker, same};

use crate::{Needs::Root, Test, agent, test, test_or_skip};

pub fn tests() -> Vec<Test> {
    vec![
        test_or_skip("hidden::mapped_io_uring", Root, || mapped("io_uring", "io_uring_mapped")),
        test_or_skip("hidden::mapped_perf_event", Root, || mapped("perf_event", "perf_event_mapped")),
        test_or_skip("hidden::mapped_memfd_secret", Root, || mapped("memfd_secret", "memfd_secret_mapped")),
        test("hidden::mapped_files_are_no_matter", Root, mapped_files_are_no_matter),
        test_or_skip("hidden::registered_ring", Root, registered_ring),
        test_or_skip("hidden::registered_only_ring", Root, registered_only_ring),
        test_or_skip("hidden::direct_descriptor", Root, direct_descriptor),
        test("hidden::in_flight", Root, in_flight),
        test("hidden::in_flight_to_nobody_yet", Root, in_flight_to_nobody_yet),
        test_or_skip(
            "hidden::without_probes_and_without_an_agent",
            Root,
            without_probes_and_without_an_agent,
        ),
    ]
}

/// Returns whether the agent does hidden scans of this sort on this kernel; otherwise, why the test
/// is skipped.
fn is_scanned(agent: &Agent, place: &str) -> Result<(), String> {
    match agent.metrics().get("fdtracker_hidden_look", &[("place", place)]) {
        1.0 => Ok(()),
        _ => Err(format!("{place} files aren't looked for on this kernel")),
    }
}

#[track_caller]
fn counts(agent: &Agent, cgroup: &Cgroup, expected: &[(&str, i64)]) {
    let expected: BTreeMap<String, i64> = expected.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
    eventually("the counts", || same(agent.counts(&cgroup.id)?, expected.clone()));
}

/// Waits until the container is in this state. If a probe misses anything anywhere, all states are
/// stale until the next audit.
fn state(agent: &Agent, cgroup: &Cgroup, expected: &str) -> serde_json::Value {
    eventually(&format!("the container is {expected}"), || {
        let container = agent.container(&cgroup.id)?;
        if container["state"] == expected { Ok(container) } else { Err(container["state"].to_string()) }
    })
}

/// Waits for the end of two more hidden scans, so that one has begun after this call.
fn wait_for_two_scans(agent: &Agent) {
    let scans = || agent.metrics().get("fdtracker_hidden_looks_total", &[("result", "ok")]);
    let start = scans();
    eventually("two more hidden scans", || if scans() >= start + 2.0 { Ok(()) } else { Err("not yet") });
}

fn mapped(kind: &str, hidden: &str) -> Result<(), String> {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    is_scanned(&agent, "mapped")?;
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.ask(&format!("open {kind}")).map_err(|reason| format!("no {kind} here: {reason}"))?[0];
    let pages = [zoo.must(&format!("mmap {fd}")), zoo.must(&format!("mmap {fd}"))];
    // The file is open and mapped, and counted once.
    wait_for_two_scans(&agent);
    counts(&agent, &cgroup, &[(kind, 1)]);
    zoo.must(&format!("close {fd}"));
    counts(&agent, &cgroup, &[(hidden, 1)]);
    let container = state(&agent, &cgroup, "blocked");
    assert_eq!(container["processes"][0]["pid"], zoo.pid());
    let metrics = agent.metrics();
    let name = ("container", cgroup.name());
    let labels = [name, ("kind", hidden), ("verdict", "blocked")];
    assert_eq!(metrics.get("fdtracker_open_fds", &labels), 1.0);
    eventually("it is said to be blocked", || {
        same(agent.metrics().find("fdtracker_container_checkpointable", &[name]), Some(0.0))
    });
    // It is counted as one file, however often it is mapped.
    zoo.must(&format!("munmap {}", pages[0]));
    wait_for_two_scans(&agent);
    counts(&agent, &cgroup, &[(hidden, 1)]);
    zoo.must(&format!("munmap {}", pages[1]));
    counts(&agent, &cgroup, &[]);
    state(&agent, &cgroup, "ok");
    Ok(())
}

fn mapped_files_are_no_matter() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.must("open memfd");
    zoo.must(&format!("mmap {fd}"));
    zoo.must(&format!("close {fd}"));
    wait_for_two_scans(&agent);
    counts(&agent, &cgroup, &[]);
}

fn registered_ring() -> Result<(), String> {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    is_scanned(&agent, "registered")?;
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let ring = zoo.ask("open io_uring").map_err(|reason| format!("no io_uring here: {reason}"))?[0];
    let index = zoo.must(&format!("register_ring {ring}"));
    wait_for_two_scans(&agent);
    counts(&agent, &cgroup, &[("io_uring", 1)]);
    let page = zoo.must(&format!("mmap {ring}"));
    zoo.must(&format!("close {ring}"));
    // The ring is mapped and registered, and still counted once.
    counts(&agent, &cgroup, &[("io_uring_mapped", 1)]);
    zoo.must(&format!("munmap {page}"));
    counts(&agent, &cgroup, &[("io_uring_registered", 1)]);
    state(&agent, &cgroup, "blocked");
    zoo.must(&format!("unregister_ring {index}"));
    counts(&agent, &cgroup, &[]);
    Ok(())
}

fn registered_only_ring() -> Result<(), String> {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    is_scanned(&agent, "registered")?;
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let index =
        zoo.ask("registered_only").map_err(|reason| format!("no rings without an fd here: {reason}"))?[0];
    counts(&agent, &cgroup, &[("io_uring_registered", 1)]);
    zoo.must(&format!("unregister_ring {index}"));
    counts(&agent, &cgroup, &[]);
    Ok(())
}

fn direct_descriptor() -> Result<(), String> {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    is_scanned(&agent, "direct")?;
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let ring = zoo.ask("open io_uring").map_err(|reason| format!("no io_uring here: {reason}"))?[0];
    let eventfd = zoo.must("open eventfd");
    zoo.must(&format!("register_file {ring} {eventfd}"));
    zoo.must(&format!("close {eventfd}"));
    counts(&agent, &cgroup, &[("io_uring", 1), ("io_uring_direct", 1)]);
    // This ring is only mapped, and holds a file.
    if is_scanned(&agent, "mapped").is_ok() {
        let copy = zoo.must(&format!("dup {ring}"));
        let page = zoo.must(&format!("mmap {ring}"));
        zoo.must(&format!("close {ring}"));
        zoo.must(&format!("close {copy}"));
        counts(&agent, &cgroup, &[("io_uring_direct", 1), ("io_uring_mapped", 1)]);
        zoo.must(&format!("munmap {page}"));
    } else {
        zoo.must(&format!("unregister_files {ring}"));
        counts(&agent, &cgroup, &[("io_uring", 1)]);
        zoo.must(&format!("close {ring}"));
    }
    counts(&agent, &cgroup, &[]);
    Ok(())
}

fn in_flight() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fds = [zoo.must("open eventfd"), zoo.must("open pidfd"), zoo.must("open memfd")];
    let sockets = fds.map(|fd| {
        let socket = zoo.must(&format!("send {fd}"));
        zoo.must(&format!("close {fd}"));
        socket
    });
    counts(&agent, &cgroup, &[("fd_in_flight", 2)]);
    let metrics = agent.metrics();
    let labels = |verdict| [("container", cgroup.name()), ("kind", "fd_in_flight"), ("verdict", verdict)];
    // A file in flight has the same verdict as an open file of its kind.
    assert_eq!(metrics.get("fdtracker_open_fds", &labels("ok")), 1.0);
    assert_eq!(metrics.get("fdtracker_open_fds", &labels("blocked")), 1.0);
    state(&agent, &cgroup, "blocked");
    // A child has the sockets too, but the files in them are the same.
    let child = zoo.must("fork");
    wait_for_two_scans(&agent);
    counts(&agent, &cgroup, &[("fd_in_flight", 2)]);
    zoo.must(&format!("kill {child}"));
    let received = zoo.must(&format!("receive {}", sockets[1]));
    counts(&agent, &cgroup, &[("fd_in_flight", 1), ("pidfd", 1)]);
    zoo.must(&format!("close {received}"));
    // The files in a socket go with the socket.
    zoo.must(&format!("close {}", sockets[0]));
    counts(&agent, &cgroup, &[]);
}

fn in_flight_to_nobody_yet() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.must("open pidfd");
    let listener = zoo.must(&format!("send_unaccepted {fd}"));
    zoo.must(&format!("close {fd}"));
    counts(&agent, &cgroup, &[("fd_in_flight", 1)]);
    zoo.must(&format!("close {listener}"));
    counts(&agent, &cgroup, &[]);
}

fn without_probes_and_without_an_agent() -> Result<(), String> {
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let ring = zoo.ask("open io_uring").map_err(|reason| format!("no io_uring here: {reason}"))?[0];
    let pidfd = zoo.must("open pidfd");
    zoo.must(&format!("send {pidfd}"));
    let page = zoo.must(&format!("mmap {ring}"));
    zoo.must(&format!("close {pidfd}"));
    let agent = Agent::start(&["--feeder", "audit", "--audit-interval", "1s"]);
    let is_mapped = is_scanned(&agent, "mapped").is_ok();
    zoo.must(&format!("close {ring}"));
    let expected: &[_] =
        if is_mapped { &[("fd_in_flight", 1), ("io_uring_mapped", 1)] } else { &[("fd_in_flight", 1)] };
    counts(&agent, &cgroup, expected);
    let ls = Command::new(fdtracker())
        .args(["ls", "-o", "json", "--socket", "/nonexistent/agent.sock"])
        .output()
        .expect("run ls");
    let ls: serde_json::Value = serde_json::from_slice(&ls.stdout).expect("ls prints JSON");
    let containers = ls["containers"].as_array().expect("a list of containers");
    let found = containers.iter().find(|c| c["id"] == *cgroup.id).expect("the container");
    assert_eq!(Ok(counts_of(&found["counts"])), agent.counts(&cgroup.id));
    zoo.must(&format!("munmap {page}"));
    counts(&agent, &cgroup, &[("fd_in_flight", 1)]);
    Ok(())
}
