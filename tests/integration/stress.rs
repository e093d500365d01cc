//! Tests with many tasks that use the same fds at once (`fdstress`). At every quiescent point,
//! counts must be what `/proc` says, whatever else makes it difficult for the agent.
//!
//! `FDTRACKER_SEED` repeats a mixture of operations, `FDTRACKER_STRESS_OPS` sets their number.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use fdtracker_tests::{
    Agent, Cgroup, Metrics, Rival, Zoo, counts_of, fdstress, random_id, truth, try_eventually,
};
use tracker_ebpf::Kind;

use crate::{Needs::Root, Test, agent, test};

pub fn tests() -> Vec<Test> {
    let tests = vec![
        test("stress::counts_are_exact", Root, counts_are_exact),
        test("stress::events_are_lost_counts_are_not", Root, events_are_lost_counts_are_not),
        test("stress::too_many_tables_are_not_called_clean", Root, too_many_tables_are_not_called_clean),
        test("stress::an_agent_that_is_killed", Root, an_agent_that_is_killed),
        test("stress::two_agents", Root, two_agents),
        test("stress::beside_another_tracer", Root, beside_another_tracer),
    ];
    // A run may be asked for many operations, which take long.
    tests.into_iter().map(|test| test.within(Duration::from_secs(300))).collect()
}

type Counts = BTreeMap<String, i64>;

fn counts_are_exact() {
    let agent = Agent::start(&["--audit-interval", "1h"]);
    let mut stress = Stress::start(8, 3);
    let start = Instant::now();
    for _ in 0..5 {
        stress.run(operations(1) / 5);
        stress.agrees_with(&agent);
        stress.flows_add_up(&agent.metrics());
    }
    let metrics = agent.metrics();
    let corrections = metrics.get("fdtracker_audit_corrections_total", &[]);
    let (done, took, slowest) = (stress.done, start.elapsed(), stress.slowest);
    eprintln!("{done} operations in {took:?}, {corrections} corrections, agreement within {slowest:?}");
    if metrics.find("fdtracker_feeder_info", &[("feeder", "kprobe")]).is_some() {
        assert_eq!(metrics.corrections().unwrap_or(0.0), 0.0, "seed {}: kprobes miss nothing", stress.seed);
    }
}

fn events_are_lost_counts_are_not() {
    // Events that request an audit may be lost too.
    let agent = Agent::start(&["--ring-size", "4096", "--audit-interval", "1s"]);
    let mut stress = Stress::start(8, 3);
    for _ in 0..2 {
        stress.run(operations(20));
        stress.agrees_with(&agent);
    }
    let metrics = agent.metrics();
    stress.flows_add_up(&metrics);
    assert!(metrics.get("fdtracker_events_lost_total", &[("stage", "ring")]) > 0.0, "seed {}", stress.seed);
}

fn too_many_tables_are_not_called_clean() {
    // There is room for the host's processes and for one worker with all that it starts.
    let host = agent().container("host").expect("the host")["processes"].as_array().map_or(0, Vec::len);
    let room = (host + 40).to_string();
    let agent = Agent::start(&["--max-tables", &room, "--audit-interval", "500ms"]);
    let is_full = || agent.metrics().get("fdtracker_events_lost_total", &[("stage", "tables_full")]) > 0.0;
    let mut stress = Stress::start(48, 1);
    let mut turns = 0;
    // There isn't room for most of the workers. Sooner or later enough of them have had something
    // to count.
    while turns < 2 || !is_full() {
        assert!(turns < 50, "seed {}: there is room for all", stress.seed);
        turns += 1;
        stress.run(operations(40));
        let truth = stress.truth();
        // From the first moment on, and also after audits, which can't make room.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            let differences = stress.differences(&agent, &truth);
            let clean = differences.iter().find(|(_, state, _)| state != "stale");
            assert!(clean.is_none(), "seed {}: {differences:?}", stress.seed);
        }
    }
    stress.fixture.must("workers 1");
    stress.agrees_with(&agent);
    stress.run(1000);
    stress.agrees_with(&agent);
}

fn an_agent_that_is_killed() {
    let mut agent = Agent::start(&[]);
    let mut stress = Stress::start(8, 3);
    for _ in 0..2 {
        stress.meanwhile(operations(40), || {
            agent.kill();
            agent = Agent::start(&[]);
        });
        stress.agrees_with(&agent);
    }
}

fn two_agents() {
    let (one, other) = (agent(), Agent::start(&[]));
    let mut stress = Stress::start(8, 3);
    for _ in 0..2 {
        stress.run(operations(20));
        stress.agrees_with(&one);
        stress.agrees_with(&other);
    }
    stress.flows_add_up(&one.metrics());
    stress.flows_add_up(&other.metrics());
}

fn beside_another_tracer() {
    let (agent, rival) = (agent(), Rival::start().expect("attach another tracer"));
    let mut stress = Stress::start(8, 3);
    for _ in 0..2 {
        stress.run(operations(20));
        stress.agrees_with(&agent);
    }
    stress.flows_add_up(&agent.metrics());
    let seen = rival.count().expect("read its map");
    eprintln!("the other has seen {seen}{}", if rival.has_kprobes { ", by kprobes too" } else { "" });
    assert!(seen > stress.done as u64 / 2, "it was asleep: {seen} of {}", stress.done);
}

/// Sets this when dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Returns a share of all the operations.
fn operations(share: i64) -> i64 {
    number("FDTRACKER_STRESS_OPS").unwrap_or(1_000_000) / share
}

fn number<N: std::str::FromStr>(variable: &str) -> Option<N> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// The fixture, with some containers.
struct Stress {
    // It is dropped first, with all the tasks.
    fixture: Zoo,
    cgroups: [Cgroup; 3],
    seed: u64,
    done: i64,
    /// The longest time that an agent needed until it agreed.
    slowest: Duration,
}

impl Stress {
    fn start(workers: u32, threads: u32) -> Self {
        let seed = number("FDTRACKER_SEED")
            .unwrap_or_else(|| u64::from_str_radix(&random_id()[..16], 16).expect("hexadecimal digits"));
        eprintln!("FDTRACKER_SEED={seed}");
        let cgroups = [Cgroup::docker(), Cgroup::docker(), Cgroup::docker()];
        let mut command = Command::new(fdstress());
        command.args([seed, workers.into(), threads.into()].map(|n| n.to_string()));
        command.args(cgroups.each_ref().map(Cgroup::dir));
        Self { fixture: Zoo::start(command), cgroups, seed, done: 0, slowest: Duration::ZERO }
    }

    /// Has the fixture work until all is quiet.
    fn run(&mut self, operations: i64) {
        self.done += self.fixture.must(&format!("run {operations}"));
    }

    /// Does something while the fixture works, in turns of this many operations.
    fn meanwhile(&mut self, turn: i64, something: impl FnOnce()) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    self.run(turn);
                }
            });
            // Is dropped also if something panics.
            let _over = Over(&over);
            something();
        });
    }

    /// Returns what `/proc` says, container by container.
    fn truth(&self) -> [Counts; 3] {
        self.cgroups.each_ref().map(Cgroup::truth)
    }

    /// Returns where the agent has each process with something open, how much, and where the
    /// process really is.
    fn processes(&self, agent: &Agent) -> String {
        let ls = agent.ls();
        let mut lines = String::new();
        for container in ls["containers"].as_array().into_iter().flatten() {
            for row in container["processes"].as_array().into_iter().flatten() {
                let pid = row["pid"].as_u64().unwrap_or(0) as u32;
                let counted: i64 = counts_of(&row["counts"]).values().sum();
                let open: i64 = truth(pid).values().sum();
                let at =
                    self.cgroups.iter().find(|cgroup| cgroup.pids().contains(&pid)).map_or("-", Cgroup::name);
                lines += &format!("\n  {} {pid}: {counted}; {at}: {open}", container["name"]);
            }
        }
        for cgroup in &self.cgroups {
            for pid in cgroup.pids() {
                let open: i64 = truth(pid).values().sum();
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let state = status.lines().find(|line| line.starts_with("State")).unwrap_or_default();
                lines += &format!("\n  at {} {pid}: {open} {state}", cgroup.name());
            }
        }
        lines
    }

    /// Waits until the agent counts what `/proc` says, and is sure of it.
    #[track_caller]
    fn agrees_with(&mut self, agent: &Agent) {
        let truth = self.truth();
        let start = Instant::now();
        let agreed = try_eventually(&format!("seed {}: the agent agrees with /proc", self.seed), || {
            let differences = self.differences(agent, &truth);
            let lines = differences.iter().map(|(name, state, what)| format!("\n  {name} ({state}): {what}"));
            if differences.is_empty() { Ok(()) } else { Err(lines.collect::<String>()) }
        });
        if let Err(error) = agreed {
            let quiet = if self.truth() == truth { "" } else { "\n  the fixture isn't quiet" };
            panic!("{error}{quiet}{}{}", health(agent), self.processes(agent));
        }
        self.slowest = self.slowest.max(start.elapsed());
        assert_eq!(self.truth(), truth, "seed {}: the fixture isn't quiet", self.seed);
    }

    /// Returns where the agent counts something else: the container, the state that it shows for
    /// it, and what is wrong.
    fn differences(&self, agent: &Agent, truth: &[Counts; 3]) -> Vec<(String, String, String)> {
        let ls = agent.ls();
        let listed = ls["containers"].as_array().expect("a list of containers");
        let mut differences = Vec::new();
        for (cgroup, truth) in self.cgroups.iter().zip(truth) {
            let Some(container) = listed.iter().find(|container| container["id"] == cgroup.id) else {
                differences.push((cgroup.name().to_owned(), "not listed".to_owned(), String::new()));
                continue;
            };
            let state = container["state"].as_str().expect("a state").to_owned();
            let mut counts = counts_of(&container["counts"]);
            // Files in flight over the fixture's sockets are in no slot, so that they aren't in the
            // truth.
            counts.retain(|kind, _| !Kind::from_name(kind).is_some_and(Kind::is_hidden));
            let what = compare(&counts, truth);
            if !what.is_empty() || state == "stale" {
                differences.push((cgroup.name().to_owned(), state, what));
            }
        }
        differences
    }

    /// Checks that what was opened and not closed is open. A file may be closed in another
    /// container than the one it was opened in.
    fn flows_add_up(&self, metrics: &Metrics) {
        let mut open = Counts::new();
        for (kind, n) in self.truth().into_iter().flatten() {
            *open.entry(kind).or_default() += n;
        }
        let mut left = Counts::new();
        for kind in Kind::ALL.iter().map(|kind| kind.name()) {
            let sum = |metric: &str| -> f64 {
                let of =
                    |cgroup: &Cgroup| metrics.get(metric, &[("container", cgroup.name()), ("kind", kind)]);
                self.cgroups.iter().map(of).sum()
            };
            left.insert(
                kind.to_owned(),
                (sum("fdtracker_fds_opened_total") - sum("fdtracker_fds_closed_total")) as i64,
            );
        }
        let what = compare(&left, &open);
        assert!(what.is_empty(), "seed {}: opened less closed: {what}", self.seed);
    }
}

/// Returns what the agent's metrics say about itself, where they aren't 0.
fn health(agent: &Agent) -> String {
    let metrics = agent.metrics();
    let own = ["audit", "events_lost", "probe_misses"].map(|part| format!("fdtracker_{part}"));
    let lines = metrics.0.lines().filter(|line| own.iter().any(|part| line.starts_with(part)));
    lines.filter(|line| !line.ends_with(" 0")).map(|line| format!("\n  {line}")).collect()
}

fn compare(found: &Counts, expected: &Counts) -> String {
    let kinds: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let of = |counts: &Counts, kind| counts.get(kind).copied().unwrap_or(0);
    let pairs = kinds.into_iter().map(|kind| (kind, of(found, kind), of(expected, kind)));
    let wrong = pairs.filter(|(_, found, expected)| found != expected);
    let words = wrong.map(|(kind, found, expected)| format!("{kind}: found {found}, expected {expected}"));
    words.collect::<Vec<_>>().join("; ")
}
