//! What the documents show is what the program does.

use std::{collections::BTreeSet, fs, path::Path};

use clap::Parser as _;
use fdtracker::cli::Cli;
use fdtracker_tests::{Cgroup, Zoo, eventually, same};
use libtest_mimic::Trial;

use crate::{
    Needs::{Nobody, Root},
    agent, test,
};

pub fn trials() -> Vec<Trial> {
    vec![
        test("documents::commands_are_understood", Nobody, commands_are_understood),
        test("documents::links_lead_somewhere", Nobody, links_lead_somewhere),
        test("documents::the_line_of_tail", Root, the_line_of_tail),
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
    for document in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/compatibility.md",
        "docs/metrics.md",
        "deploy/README.md",
    ] {
        let text = read(document);
        let dir = root().join(document);
        let dir = dir.parent().expect("a directory");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(link.starts_with("http") || dir.join(link).exists(), "{document} links to {link}");
        }
    }
}

/// The README's line has the fields, in the order, of a real one.
fn the_line_of_tail() {
    let readme = read("README.md");
    let shown = readme.lines().find(|line| line.starts_with("{\"time\"")).expect("a line of tail");
    let (agent, cgroup) = (agent(), Cgroup::docker());
    let mut zoo = Zoo::in_cgroup(&cgroup);
    eventually("the container is there", || agent.container(&cgroup.id));
    let mut tail = crate::containers::Tail::start(&agent, &["--container", &cgroup.id]);
    let real = tail.first_line(&mut zoo);
    assert_eq!(keys(shown), keys(real.trim()), "{real}");
}

/// The field names of a line of JSON, as they stand in it.
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
    let exported: BTreeSet<String> = agent
        .metrics()
        .0
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next().map(str::to_owned))
        .filter(|name| name.starts_with("fdtracker_"))
        .collect();
    let unlisted: Vec<_> = exported.difference(&listed).collect();
    assert!(unlisted.is_empty(), "docs/metrics.md lacks {unlisted:?}");
    // These have a series only when there is something to say.
    let rare = BTreeSet::from(["fdtracker_container_stale".to_owned()]);
    let gone: Vec<_> = listed.difference(&exported).filter(|name| !rare.contains(*name)).collect();
    assert!(gone.is_empty(), "docs/metrics.md lists {gone:?}, which isn't exported");
}
