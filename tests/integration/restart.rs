//! Tests agents that start late, are killed, or find another agent in their place.

use std::process::Command;

use aya::maps::{HashMap, Map, MapData, loaded_maps};
use fdtracker_tests::{Agent, Cgroup, Zoo, eventually, fdtracker, patience, same};
use tracker_ebpf::{Kind, Table};

use crate::{Needs::Root, Test, test, test_or_skip};

pub fn tests() -> Vec<Test> {
    vec![
        test("restart::adopts_what_was_open_before", Root, adopts_what_was_open_before),
        test_or_skip("restart::an_audit_heals_what_probes_missed", Root, an_audit_heals_what_probes_missed),
        test("restart::an_audit_heals_a_wrong_number", Root, an_audit_heals_a_wrong_number),
        test("restart::without_room_nothing_is_called_clean", Root, without_room_nothing_is_called_clean),
        test("restart::an_audit_finds_nothing_to_heal", Root, an_audit_finds_nothing_to_heal),
        test("restart::leaves_nothing_behind", Root, leaves_nothing_behind),
        test("restart::alone_without_an_agent", Root, alone_without_an_agent),
    ]
}

fn adopts_what_was_open_before() {
    let events = own_events();
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let fd = zoo.must("open pidfd");
    zoo.must("open io_uring");
    let child = zoo.must("fork");
    let mut agent = Agent::start(&["--criu", "4.0"]);
    // This is so at once: /readyz waits for the adoption.
    assert_eq!(agent.counts(&cgroup.id), Ok(cgroup.truth()));
    let labels = [("container", cgroup.name()), ("kind", "pidfd")];
    assert_eq!(agent.metrics().get("fdtracker_fds_opened_total", &labels), 0.0, "adoption is no opening");
    // What was adopted is followed like other files.
    zoo.must(&format!("close {fd}"));
    eventually("the close is counted", || same(agent.counts(&cgroup.id)?, cgroup.truth()));
    zoo.must(&format!("kill {child}"));
    eventually("the exit is counted", || same(agent.counts(&cgroup.id)?, cgroup.truth()));
    assert_eq!(agent.metrics().corrections().unwrap_or(0.0), 0.0);

    // A killed agent leaves its socket behind. That doesn't stop the next one.
    agent.kill();
    assert!(agent.socket.exists());
    agent.start_again();
    assert_eq!(agent.counts(&cgroup.id), Ok(cgroup.truth()));
    assert_eq!(agent.stop(), Some(0));
    assert!(own_events() <= events, "the kernel keeps an event of an agent that was killed");
}

/// Returns how many of the kernel's kprobe events belong to fdtracker.
fn own_events() -> usize {
    let events = std::fs::read_to_string("/sys/kernel/tracing/kprobe_events").unwrap_or_default();
    events.lines().filter(|line| line.contains(":fdtracker/")).count()
}

fn an_audit_heals_what_probes_missed() -> Result<(), String> {
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let agent = Agent::start(&["--audit-interval", "200ms"]);
    if agent.metrics().find("fdtracker_feeder_info", &[("feeder", "tracepoint")]).is_none() {
        return Err("kprobes see 32-bit system calls too".into());
    }
    let fd = zoo.ask("open_unseen").map_err(|reason| format!("no 32-bit system calls here: {reason}"))?[0];
    eventually("the open is found", || same(agent.counts(&cgroup.id)?, cgroup.truth()));
    assert_eq!(agent.counts(&cgroup.id).map(|counts| counts["eventfd"]), Ok(1));
    zoo.must(&format!("close_unseen {fd}"));
    eventually("the close is found", || same(agent.counts(&cgroup.id)?, cgroup.truth()));
    // Both count as corrections, and as one opened and one closed file. kprobes miss no system
    // call.
    let kprobes = agent.metrics().find("fdtracker_feeder_info", &[("feeder", "kprobe")]) == Some(1.0);
    let missed = if kprobes { 0.0 } else { 2.0 };
    let labels = [("container", cgroup.name()), ("kind", "eventfd")];
    eventually("the counters", || {
        let metrics = agent.metrics();
        let corrections = metrics.corrections().unwrap_or(missed);
        let opened = metrics.get("fdtracker_fds_opened_total", &labels);
        same((corrections, opened, metrics.get("fdtracker_fds_closed_total", &labels)), (missed, 1.0, 1.0))
    });
    Ok(())
}

fn without_room_nothing_is_called_clean() {
    let cgroups = [Cgroup::docker(), Cgroup::docker(), Cgroup::docker()];
    let mut zoos: Vec<Zoo> = cgroups.iter().map(Zoo::in_cgroup).collect();
    zoos[0].must("open pidfd");
    for _ in 0..20 {
        zoos[0].must("fork");
    }
    // There must be room for the agent's self-test, but none for what follows.
    let agent = Agent::start(&["--criu", "4.0", "--max-tables", "16", "--audit-interval", "1s"]);
    for zoo in &mut zoos[1..] {
        zoo.must("open pidfd");
    }
    // From the first moment on, and also after audits, which can't make room.
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_secs(3) {
        let states =
            cgroups.each_ref().map(|c| agent.container(&c.id).expect("the container")["state"].clone());
        assert!(states.iter().all(|state| state == "blocked" || state == "stale"), "{states:?}");
        assert!(states.iter().any(|state| state == "stale"), "{states:?}");
        let checkpointable =
            |name: &str| agent.metrics().find("fdtracker_container_checkpointable", &[("container", name)]);
        assert!(cgroups.iter().all(|cgroup| checkpointable(cgroup.name()) != Some(1.0)));
    }
    assert!(agent.metrics().get("fdtracker_events_lost_total", &[("stage", "tables_full")]) > 0.0);
}

fn an_audit_heals_a_wrong_number() {
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open pidfd");
    let agent = Agent::start(&["--audit-interval", "200ms"]);
    spoil_numbers_of(zoo.pid());
    eventually("the number is right again", || same(agent.counts(&cgroup.id)?, cgroup.truth()));
    // Its slots are followed as before.
    zoo.must("close_range 3 100 0");
    eventually("the close is counted", || same(agent.counts(&cgroup.id)?, cgroup.truth()));
    assert!(agent.metrics().get("fdtracker_audit_corrections_total", &[]) >= 1.0);
}

/// Writes a wrong number into what the newest agent has recorded for a process.
fn spoil_numbers_of(pid: u32) {
    const SIZE: usize = size_of::<Table>();
    let tables = loaded_maps().flatten().filter(|map| map.name_as_str() == Some("TABLES"));
    let newest = tables.map(|map| map.id()).max().expect("an agent's map");
    let map = Map::HashMap(MapData::from_id(newest).expect("open the map"));
    let mut map: HashMap<_, u64, [u8; SIZE]> = HashMap::try_from(map).expect("the map's types");
    let offset = std::mem::offset_of!(Table, tgid);
    let of_pid = |value: &[u8; SIZE]| value[offset..offset + 4] == pid.to_ne_bytes();
    let (files, mut value) =
        map.iter().flatten().find(|(_, value)| of_pid(value)).expect("the process's table");
    value[Kind::Eventfd.index() * 8] = 5;
    map.insert(files, value, 0).expect("write the map");
}

/// Runs audits while fds come and go. An audit that is ahead of a probe must not count as a
/// correction.
fn an_audit_finds_nothing_to_heal() {
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let agent = Agent::start(&["--audit-interval", "100ms"]);
    let (turns, each) = (10, 5000 / patience());
    for _ in 0..turns {
        zoo.must(&format!("churn {each}"));
    }
    let metrics = agent.metrics();
    let audits = metrics.get("fdtracker_audits_total", &[("result", "ok")]);
    assert!(audits > 1.0, "only {audits} audits");
    assert_eq!(metrics.corrections().unwrap_or(0.0), 0.0);
    let misses = metrics.sum("fdtracker_probe_misses_total");
    let labels = [("container", cgroup.name()), ("kind", "pidfd")];
    for metric in ["fdtracker_fds_opened_total", "fdtracker_fds_closed_total"] {
        let found = metrics.get(metric, &labels);
        let opened = f64::from(turns * each);
        assert!((opened - misses..=opened).contains(&found), "{metric}: {found}, with {misses} misses");
    }
}

fn leaves_nothing_behind() {
    let mut agent = Agent::start(&[]);
    let (pid, socket) = (agent.pid(), agent.socket.clone());
    assert!(socket.exists());
    assert_eq!(agent.stop(), Some(0));
    assert!(!socket.exists());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

fn alone_without_an_agent() {
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open io_uring");
    let output = Command::new(fdtracker())
        .args(["ls", "-o", "json", "--socket", "/nonexistent/agent.sock"])
        .output()
        .expect("run ls");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ls: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found = ls["containers"].as_array().expect("a list").iter().find(|c| c["id"] == *cgroup.id).cloned();
    let counts = found.expect("the container")["counts"].clone();
    assert_eq!(counts, serde_json::json!([{"kind": "io_uring", "verdict": "blocked", "count": 1}]));
}
