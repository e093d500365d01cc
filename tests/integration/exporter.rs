//! `/metrics`, as Prometheus sees it.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use fdtracker_tests::{Cgroup, Zoo, eventually, feeder, same};
use libtest_mimic::Trial;

use crate::{
    Needs::{Programs, Root},
    agent, test,
};

pub fn trials() -> Vec<Trial> {
    vec![
        test("exporter::promtool_finds_nothing_wrong", Programs(&["promtool"]), promtool_finds_nothing_wrong),
        test("exporter::counters_are_exact", Root, counters_are_exact),
        test("exporter::pages", Root, pages),
    ]
}

fn promtool_finds_nothing_wrong() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open pidfd");
    zoo.must("open epoll");
    eventually("the pidfd is counted", || same(agent.counts(&cgroup.id)?.get("pidfd"), Some(&1)));
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
    // Process names aren't told over TCP.
    assert_eq!(agent.get("/v1/containers").0, 403);
    let metrics = agent.metrics();
    assert_eq!(metrics.get("fdtracker_ready", &[]), 1.0);
    assert_eq!(metrics.get("fdtracker_feeder_info", &[("live", "true")]), 1.0);
    if let Some(feeder) = feeder() {
        assert_eq!(metrics.get("fdtracker_feeder_info", &[("feeder", &feeder)]), 1.0);
    }
    assert_eq!(metrics.get("fdtracker_criu_info", &[("version", "4.0"), ("source", "given")]), 1.0);
    assert_eq!(metrics.get("fdtracker_events_lost_total", &[("stage", "ring")]), 0.0);
}
