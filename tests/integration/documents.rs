//! Checks that the program does what the documents show.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use clap::Parser as _;
use fdtracker::cli::Cli;
use fdtracker_tests::{Cgroup, Container, Zoo, eventually, fdtracker, same};

use crate::{
    Needs::{Nobody, Programs, Root},
    Test, agent, test,
};

pub fn tests() -> Vec<Test> {
    vec![
        test("documents::commands_are_understood", Nobody, commands_are_understood),
        test("documents::links_lead_somewhere", Nobody, links_lead_somewhere),
        test("documents::the_check_of_the_readme", Programs(&["runc"]), the_check_of_the_readme),
        test("documents::the_line_of_tail", Root, the_line_of_tail),
        test("documents::the_answers_of_the_api", Programs(&["runc"]), the_answers_of_the_api),
        test("documents::every_metric_is_listed", Root, every_metric_is_listed),
    ]
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn commands_are_understood() {
    let readme = read("README.md");
    let commands: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("$ fdtracker ")).collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        let words = command.split(" #").next().expect("a command").split_whitespace();
        if let Err(error) = Cli::try_parse_from(["fdtracker"].into_iter().chain(words)) {
            panic!("README.md shows `fdtracker {command}`: {error}");
        }
    }
}

fn links_lead_somewhere() {
    for document in documents() {
        let text = read(&document);
        let dir = root().join(&document);
        let dir = dir.parent().expect("a directory");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            assert!(link.starts_with("http") || dir.join(file).exists(), "{document} links to {link}");
        }
    }
}

/// Returns every document for users and newcomers.
fn documents() -> Vec<String> {
    let named = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md"].map(str::to_owned);
    let listed = ["docs", "docs/runbooks"].into_iter().flat_map(|dir| {
        let entries = fs::read_dir(root().join(dir)).unwrap_or_else(|error| panic!("{dir}: {error}"));
        entries.flatten().map(move |entry| format!("{dir}/{}", entry.file_name().display()))
    });
    named.into_iter().chain(listed.filter(|name| name.ends_with(".md"))).collect()
}

/// Checks that the README's line has the fields of a real one, in the same order.
fn the_line_of_tail() {
    let readme = read("README.md");
    let shown = readme.lines().find(|line| line.starts_with("{\"time\"")).expect("a line of tail");
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    eventually("the container is there", || agent.container(&cgroup.id));
    let mut tail = crate::containers::Tail::start(&agent, &["--container", &cgroup.id]);
    tail.first_line(&mut zoo);
    let fd = zoo.must("open pidfd");
    let real = tail.until_text("opened", fd);
    assert_eq!(keys(shown), keys(real.trim()), "{real}");
}

/// Checks that the answers in docs/http-api.md have the fields of real ones, and say the same about
/// a blocker.
fn the_answers_of_the_api() {
    let (agent, mut container) = (agent(), Container::start(None, "/docker"));
    assert_eq!(container.zoo.must("open pidfd"), 3);
    let ask = |path: &str| -> serde_json::Value {
        let (status, body) = agent.ask(path);
        serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {status} {body}"))
    };
    let path = format!("/v1/containers/{}", container.id);
    let real = eventually("it is inspected", || match agent.ask(&path) {
        (200, body) if body.contains("pidfd_unsupported") => Ok(body),
        (_, body) => Err(body),
    });
    let real: serde_json::Value = serde_json::from_str(&real).expect("JSON");
    let shown = example("container");
    assert_eq!(fields(&shown), fields(&real), "{real}");
    assert_eq!(shown["counts"], real["counts"]);
    for field in ["fd", "kind", "link", "verdict", "reason", "remedy"] {
        assert_eq!(shown["blockers"][0][field], real["blockers"][0][field], "{real}");
    }
    let (shown, real) = (example("containers"), ask("/v1/containers"));
    assert_eq!(fields(&shown), fields(&real), "{real}");
}

/// Returns a block of JSON from docs/http-api.md.
fn example(name: &str) -> serde_json::Value {
    let text = read("docs/http-api.md");
    let start = text.split(&format!("```json {name}\n")).nth(1).expect("the example is there");
    serde_json::from_str(start.split("```").next().expect("its end")).expect("JSON")
}

/// Returns all fields, with the names of those above them.
fn fields(value: &serde_json::Value) -> BTreeSet<String> {
    let below = |name: &str, value: &serde_json::Value| {
        let inner = fields(value).into_iter().map(|field| format!("{name}.{field}"));
        [name.to_owned()].into_iter().chain(inner).collect::<Vec<_>>()
    };
    match value {
        serde_json::Value::Object(map) => map.iter().flat_map(|(name, value)| below(name, value)).collect(),
        serde_json::Value::Array(all) => all.iter().flat_map(fields).collect(),
        _ => BTreeSet::new(),
    }
}

/// Returns the field names of a line of JSON, in their order.
fn keys(line: &str) -> Vec<String> {
    line.split("\":").filter_map(|part| part.rsplit('"').next()).map(str::to_owned).collect()
}

fn every_metric_is_listed() {
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    zoo.must("open pidfd");
    eventually("the pidfd is counted", || same(agent.counts(&cgroup.id)?.get("pidfd"), Some(&1)));
    let listed: BTreeSet<String> = read("docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned))
        .filter(|name| name.starts_with("fdtracker_"))
        .collect();
    let exported = || -> BTreeSet<String> {
        let metrics = agent.metrics();
        let names = metrics.0.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
        names.filter(|name| name.starts_with("fdtracker_")).map(str::to_owned).collect()
    };
    let unlisted: Vec<_> = exported().difference(&listed).cloned().collect();
    assert!(unlisted.is_empty(), "docs/metrics.md lacks {unlisted:?}");
    // These have a series only when they have something to report.
    let rare = [
        "fdtracker_container_stale",
        "fdtracker_container_last_checkpointable_timestamp_seconds",
        "fdtracker_program_run_seconds_total",
        "fdtracker_program_runs_total",
    ];
    // Histories change with the clock.
    eventually("all metrics of docs/metrics.md are exported", || {
        let exported = exported();
        let gone = listed.difference(&exported).filter(|name| !rare.contains(&name.as_str()));
        same(gone.collect::<Vec<_>>(), vec![])
    });
}

/// Runs the check that README.md begins with, on a container like the one there.
fn the_check_of_the_readme() {
    let mut container = Container::start(Some("web"), "/fdtracker-test");
    for kind in ["pidfd", "io_uring"] {
        container.zoo.must(&format!("open {kind}"));
    }
    let child = container.zoo.must("vfork_exec");
    let init = container.init().to_string();
    let output =
        Command::new(fdtracker()).args(["check", "web", "--criu", "4.0"]).output().expect("run check");
    let stdout = String::from_utf8_lossy(&output.stdout);
    // The fixture tells the child's pid as it is inside the container; here it is the one outside.
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("its children");
    let outside = children.split_whitespace().next().unwrap_or_else(|| panic!("no child {child}"));
    let kernel = fdtracker::host::running_kernel().expect("a version").to_string();
    let found = stdout.replace(&init, "4711").replace(outside, "4712").replace(&kernel, "6.12");
    let readme = read("README.md");
    let shown =
        readme.split("$ fdtracker check web --criu 4.0\n").nth(1).and_then(|rest| rest.split("```").next());
    assert_eq!(found, shown.expect("README.md shows a check"), "README.md shows this check otherwise");
    assert_eq!(output.status.code(), Some(1));
}
