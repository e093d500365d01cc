//! Tests with real engines: podman, docker, and containerd as Kubernetes uses it. They check what
//! is counted in containers, and under which names.
//!
//! Rootless podman isn't tested. On cgroup v1 its containers have no cgroup of their own, so that
//! their files are counted for whoever started them. On cgroup v2 it needs a user's systemd.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path};

use fdtracker_tests::{
    Agent, Cgroup, Zoo,
    engines::{Containerd, Engine, IMAGE},
    eventually, same,
};
use serde_json::{Value, json};

use crate::{
    Needs::{self, Programs, Root},
    Test, test, test_or_skip,
};

const CONTAINERD: Needs = Programs(&["containerd", "containerd-shim-runc-v2", "ctr", "runc"]);
const DOCKER: Needs = Programs(&["docker", "dockerd", "containerd", "containerd-shim-runc-v2", "runc"]);
const PODMAN: Needs = Programs(&["podman", "conmon", "crun", "runc"]);

pub fn tests() -> Vec<Test> {
    vec![
        test("engines::a_pod_of_containerd", CONTAINERD, a_pod_of_containerd),
        test("engines::containerd_restarts", CONTAINERD, containerd_restarts),
        test("engines::a_socket_that_is_away", DOCKER, a_socket_that_is_away),
        test("engines::podman_with_runc", PODMAN, || names_of(&Engine::podman("runc"), "podman")),
        test_or_skip("engines::podman_with_crun", PODMAN, podman_with_crun),
        test("engines::docker", DOCKER, || names_of(&Engine::docker(), "docker")),
        test("engines::ten_thousand_cgroups", Root, ten_thousand_cgroups),
    ]
}

/// Starts an agent that asks only at this socket.
fn agent(protocol: &str, socket: &Path) -> Agent {
    let socket = format!("{protocol}://{}", socket.display());
    Agent::start(&[
        "--criu",
        "4.0",
        "--audit-interval",
        "200ms",
        "--runtime-interval",
        "200ms",
        "--runtime-socket",
        &socket,
    ])
}

/// Returns what `ls` shows about a container.
fn shown(agent: &Agent, id: &str, columns: &[&str]) -> Result<Value, String> {
    let row = agent.container(id)?;
    Ok(columns.iter().map(|column| row[*column].clone()).collect())
}

/// Waits until `ls` shows a container by its name, in its pod.
#[track_caller]
fn is_named(agent: &Agent, id: &str, namespace: Option<&str>, pod: Option<&str>, name: &str) {
    eventually("the container is named", || {
        let found = shown(agent, id, &["namespace", "pod", "name"])?;
        same(found, json!([namespace, pod, name]))
    });
}

/// Waits until this number of pidfds is counted under these names. `None`: until there is no such
/// series.
#[track_caller]
fn counts(agent: &Agent, namespace: &str, pod: &str, container: &str, pidfds: Option<f64>) {
    let labels = [("namespace", namespace), ("pod", pod), ("container", container), ("kind", "pidfd")];
    eventually("pidfds are counted under the name", || {
        let found = agent.metrics().find("fdtracker_open_fds", &labels);
        same(found, pidfds).map_err(|error| format!("{labels:?}: {error}"))
    });
}

/// Waits until no series has this value in its label `container`.
#[track_caller]
fn no_series_of(agent: &Agent, container: &str) {
    let label = format!("container=\"{container}\"");
    eventually("its series have gone", || {
        let metrics = agent.metrics().0;
        metrics.lines().find(|line| line.contains(&label)).map_or(Ok(()), |line| Err(line.to_owned()))
    });
}

fn a_pod_of_containerd() {
    let containerd = Containerd::start();
    let pod = containerd.run_pod("shop", "web-0");
    let agent = agent("cri", &containerd.socket());
    let nginx = containerd.run(&pod, "nginx");
    let mut zoo = containerd.zoo(&nginx);
    let fd = zoo.must("open pidfd");
    zoo.must(&format!("dup {fd}"));
    is_named(&agent, &nginx, Some("shop"), Some("web-0"), "nginx");
    counts(&agent, "shop", "web-0", "nginx", Some(2.0));
    // As long as only kinds are known, the pidfds block the dump. After an inspection they don't:
    // what `exec` started isn't a descendant of the container's first process, so that no dump
    // includes it.
    eventually("it is known that a dump leaves out what was started later", || {
        same(shown(&agent, &nginx, &["runtime", "image", "state"])?, json!(["containerd", IMAGE, "ok"]))
    });

    // A container of the same name in another pod is another container.
    let other = containerd.run_pod("shop", "web-1");
    let mut others = containerd.zoo(&containerd.run(&other, "nginx"));
    others.must("open pidfd");
    counts(&agent, "shop", "web-1", "nginx", Some(1.0));
    counts(&agent, "shop", "web-0", "nginx", Some(2.0));

    // As after a crash: a container with another id uses the name again.
    containerd.remove(&nginx);
    counts(&agent, "shop", "web-0", "nginx", None);
    let again = containerd.run(&pod, "nginx");
    let mut zoo = containerd.zoo(&again);
    zoo.must("open pidfd");
    counts(&agent, "shop", "web-0", "nginx", Some(1.0));
    is_named(&agent, &again, Some("shop"), Some("web-0"), "nginx");
    assert!(agent.container(&nginx).is_err(), "the container that was removed is still listed");
}

fn containerd_restarts() {
    let mut containerd = Containerd::start();
    let pod = containerd.run_pod("shop", "web-0");
    let agent = agent("cri", &containerd.socket());
    let nginx = containerd.run(&pod, "nginx");
    // It isn't started by `ctr`: that wouldn't survive a restart.
    let mut zoo = zoo_beside(&agent, &nginx);
    zoo.must("open pidfd");
    counts(&agent, "shop", "web-0", "nginx", Some(1.0));
    containerd.stop();
    zoo.must("open pidfd");
    counts(&agent, "shop", "web-0", "nginx", Some(2.0));
    containerd.resume();
    zoo.must("open pidfd");
    counts(&agent, "shop", "web-0", "nginx", Some(3.0));
    // The agent asks the new daemon for this one's name.
    let sidecar = containerd.run(&pod, "sidecar");
    containerd.zoo(&sidecar).must("open pidfd");
    is_named(&agent, &sidecar, Some("shop"), Some("web-0"), "sidecar");
    is_named(&agent, &nginx, Some("shop"), Some("web-0"), "nginx");
}

/// Starts the fixture in a container's cgroup, but not in its namespaces.
fn zoo_beside(agent: &Agent, id: &str) -> Zoo {
    let row = eventually("the container is there", || agent.container(id));
    let cgroup = row["cgroup"].as_str().expect("a cgroup").trim_start_matches('/');
    let procs = fdtracker_tests::hierarchy().root().join(cgroup).join("cgroup.procs");
    let mut zoo = Zoo::start(std::process::Command::new(fdtracker_tests::fdzoo()));
    fs::write(procs, zoo.pid().to_string()).expect("move a process to a cgroup");
    zoo.must("pid");
    zoo
}

fn a_socket_that_is_away() {
    let engine = Engine::docker();
    let link = engine.socket().with_extension("link");
    let agent = agent("docker", &link);
    let mut zoo = engine.run("web");
    zoo.must("open pidfd");
    // It is counted at once, under the id and the runtime that its cgroup tells.
    let id = engine.id("web");
    counts(&agent, "", "", &id[..12], Some(1.0));
    symlink(engine.socket(), &link).expect("make a link");
    is_named(&agent, &id, None, None, "web");
    counts(&agent, "", "", "web", Some(1.0));
    no_series_of(&agent, &id[..12]);
}

/// Tests podman with crun, which refuses to run where cgroups of both versions have controllers.
fn podman_with_crun() -> Result<(), String> {
    let engine = Engine::podman("crun");
    match engine.try_out() {
        Err(why) if why.contains("hybrid mode not supported") => Err(why),
        Err(why) => panic!("{why}"),
        Ok(()) => {
            names_of(&engine, "podman");
            Ok(())
        }
    }
}

/// Tests names with podman or docker.
fn names_of(engine: &Engine, runtime: &str) {
    let agent = agent(runtime, &engine.socket());
    let mut zoo = engine.run("web");
    let fd = zoo.must("open pidfd");
    zoo.must(&format!("dup {fd}"));
    let id = engine.id("web");
    is_named(&agent, &id, None, None, "web");
    counts(&agent, "", "", "web", Some(2.0));
    eventually("all of it is shown", || {
        same(shown(&agent, &id, &["runtime", "image", "state"])?, json!([runtime, IMAGE, "blocked"]))
    });

    engine.rename("web", "shop");
    is_named(&agent, &id, None, None, "shop");
    counts(&agent, "", "", "shop", Some(2.0));
    no_series_of(&agent, "web");

    // Another container gets the name that has become free.
    let mut other = engine.run("web");
    other.must("open pidfd");
    counts(&agent, "", "", "web", Some(1.0));
    counts(&agent, "", "", "shop", Some(2.0));

    engine.remove("shop");
    no_series_of(&agent, "shop");
    let mut again = engine.run("shop");
    again.must("open pidfd");
    again.must("open epoll");
    counts(&agent, "", "", "shop", Some(1.0));
    let new = engine.id("shop");
    assert_ne!(new, id);
    is_named(&agent, &new, None, None, "shop");
    assert!(agent.container(&id).is_err(), "the container that was removed is still listed");
}

/// Checks that many short-lived cgroups leave nothing behind, neither series nor memory.
fn ten_thousand_cgroups() {
    const BATCHES: usize = 20;
    const BATCH: usize = 500;
    /// So many cgroups of each batch have a process.
    const USED: usize = 10;
    let home = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&home);
    let agent = Agent::start(&["--audit-interval", "200ms", "--runtime-socket", "none"]);
    zoo.must("open pidfd");
    eventually("the pidfd is counted", || same(agent.counts(&home.id)?.get("pidfd"), Some(&1)));
    let (mut warm, mut made) = (0, BTreeSet::new());
    for batch in 0..BATCHES {
        let cgroups: Vec<Cgroup> = (0..BATCH).map(|_| Cgroup::docker()).collect();
        made.extend(cgroups.iter().map(|cgroup| cgroup.name().to_owned()));
        for cgroup in cgroups.iter().take(USED) {
            cgroup.add(zoo.pid());
            eventually("the process is where it went", || {
                same(agent.counts(&cgroup.id)?.get("pidfd"), Some(&1))
            });
        }
        // Containers that have or had an fd have series now. Those that never had one don't.
        let during = containers(&agent, &made);
        assert!(during.len() <= USED, "{} containers have series", during.len());
        home.add(zoo.pid());
        drop(cgroups);
        if batch == BATCHES / 4 {
            warm = resident(&agent);
        }
    }
    eventually("only what is there has series", || same(containers(&agent, &made), BTreeSet::new()));
    let at_end = resident(&agent);
    eprintln!(
        "resident after {} cgroups: {warm} KiB, after {}: {at_end} KiB",
        BATCHES / 4 * BATCH,
        BATCHES * BATCH
    );
    // A leak for each cgroup would have made it four times as large. Allocators keep a little.
    assert!(at_end < warm + warm / 4 + 4096, "grew from {warm} to {at_end} KiB");
}

/// Returns which of these are values of the label `container` in `/metrics`.
fn containers(agent: &Agent, names: &BTreeSet<String>) -> BTreeSet<String> {
    let metrics = agent.metrics().0;
    let values =
        metrics.lines().filter_map(|line| Some(line.split_once("container=\"")?.1.split_once('"')?.0));
    values.filter(|name| names.contains(*name)).map(str::to_owned).collect()
}

/// Returns the memory that an agent uses, in KiB.
fn resident(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("read its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
