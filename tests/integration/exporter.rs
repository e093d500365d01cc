//! Tests `/metrics` as Prometheus sees it.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use fdtracker_tests::{Agent, Cgroup, Zoo, eventually, feeder, same};

use crate::{
    Needs::{Programs, Root},
    Test, agent, test,
};

pub fn tests() -> Vec<Test> {
    vec![
        test("exporter::promtool_finds_nothing_wrong", Programs(&["promtool"]), promtool_finds_nothing_wrong),
        test("exporter::counters_are_exact", Root, counters_are_exact),
        test("exporter::pages", Root, pages),
        test("exporter::runs_of_programs", Root, runs_of_programs),
        test("exporter::how_full_everything_is", Root, how_full_everything_is),
    ]
}

fn promtool_finds_nothing_wrong() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open eventfd");
    let labels = [("container", cgroup.name())];
    let checkpointable = || agent.metrics().find("fdtracker_container_checkpointable", &labels);
    eventually("it can be dumped", || same(checkpointable(), Some(1.0)));
    let fd = zoo.must("open pidfd");
    zoo.must(&format!("send_unaccepted {fd}"));
    zoo.must(&format!("close {fd}"));
    // Promtool can judge only metrics that are there. These are all metrics of a container, except
    // those that exist only while something is wrong.
    let of_container = [
        "open_fds",
        "fds_opened_total",
        "fds_closed_total",
        "container_checkpointable",
        "container_last_checkpointable_timestamp_seconds",
        "container_blocked_seconds_total",
    ];
    eventually("all is exported of the container", || {
        let metrics = agent.metrics();
        let has = |name: &&str| {
            let start = format!("fdtracker_{name}{{container=\"{}\"", cgroup.name());
            metrics.0.lines().any(|line| line.starts_with(&start))
        };
        same(of_container.into_iter().filter(|name| !has(name)).collect(), Vec::<&str>::new())
    });
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    promtool.stdin.take().expect("its input").write_all(agent.metrics().0.as_bytes()).expect("feed promtool");
    let output = promtool.wait_with_output().expect("wait for promtool");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "promtool says:\n{said}");
}

fn counters_are_exact() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open eventfd");
    eventually("the eventfd is counted", || same(agent.counts(&cgroup.id)?.get("eventfd"), Some(&1)));
    zoo.must("churn 1000");
    let metrics = agent.metrics();
    for (kind, before) in [("pidfd", 0.0), ("eventfd", 1.0)] {
        let labels = [("container", cgroup.name()), ("kind", kind)];
        assert_eq!(metrics.get("fdtracker_fds_opened_total", &labels), 1000.0 + before, "{kind}");
        assert_eq!(metrics.get("fdtracker_fds_closed_total", &labels), 1000.0, "{kind}");
        assert_eq!(metrics.get("fdtracker_open_fds", &labels), before, "{kind}");
    }
}

fn pages() {
    let agent = agent();
    assert_eq!(agent.get("/readyz"), (200, "ready\n".into()));
    assert_eq!(agent.get("/livez").0, 200);
    assert!(agent.get("/").1.contains("/metrics"));
    assert_eq!(agent.get("/nowhere").0, 404);
    assert_eq!(agent.request("POST", "/metrics").0, 405);
    let metrics = agent.metrics();
    assert_eq!(metrics.get("fdtracker_ready", &[]), 1.0);
    assert_eq!(metrics.get("fdtracker_feeder_info", &[("live", "true")]), 1.0);
    if let Some(feeder) = feeder() {
        assert_eq!(metrics.get("fdtracker_feeder_info", &[("feeder", &feeder)]), 1.0);
    }
    assert_eq!(metrics.get("fdtracker_criu_info", &[("version", "4.0"), ("source", "given")]), 1.0);
    // It may have lost some events to the load of another test. That is a loss for subscribers, and
    // counts stay exact.
    assert!(metrics.find("fdtracker_events_lost_total", &[("stage", "ring")]).is_some());
    assert_eq!(metrics.get("fdtracker_map_capacity", &[("map", "tables")]), 16_384.0);
    assert_eq!(metrics.get("fdtracker_series_dropped", &[]), 0.0);
}

/// Checks that the kernel measures the programs' runs while the agent asks for that, and not after.
fn runs_of_programs() {
    let agent = Agent::start(&["--bpf-stats"]);
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    eventually("runs are counted", || {
        zoo.must("open pidfd");
        let metrics = agent.metrics();
        let of = |name: &str| metrics.sum(name);
        match (of("fdtracker_program_runs_total"), of("fdtracker_program_run_seconds_total")) {
            (runs, seconds) if runs > 0.0 && seconds > 0.0 => Ok(()),
            found => Err(format!("{found:?}")),
        }
    });
    // No other test uses this agent, so it has lost no events to their load.
    assert_eq!(agent.metrics().get("fdtracker_events_lost_total", &[("stage", "ring")]), 0.0);
}

fn how_full_everything_is() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open pidfd");
    eventually("the pidfd is counted", || same(agent.counts(&cgroup.id)?.get("pidfd"), Some(&1)));
    let metrics = agent.metrics();
    for map in ["tables", "flows"] {
        let (entries, capacity) = (
            metrics.get("fdtracker_map_entries", &[("map", map)]),
            metrics.get("fdtracker_map_capacity", &[("map", map)]),
        );
        assert!(entries >= 1.0 && entries < capacity, "{map}: {entries} of {capacity}");
    }
    let tables = metrics.sum("fdtracker_tables");
    assert_eq!(tables, metrics.get("fdtracker_map_entries", &[("map", "tables")]));
    assert!(metrics.get("fdtracker_last_audit_timestamp_seconds", &[]) > 1e9);
    let ring = metrics.get("fdtracker_ring_bytes", &[]);
    assert!(ring <= metrics.get("fdtracker_ring_capacity_bytes", &[]), "{ring}");
}
