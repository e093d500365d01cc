//! Tests what is shipped for operators: alerts, dashboards, units, manifests.

mod image;
mod kubernetes;
mod systemd;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use clap::Parser as _;
use fdtracker::cli::Cli;
use serde_json::Value;

use self::kubernetes::{MANIFESTS, read_yaml};
use crate::{
    Needs::{Nobody, Programs},
    Test, test, test_or_skip,
};

pub fn tests() -> Vec<Test> {
    let mut trials = vec![
        test("deploy::rules_fire_when_they_should", Programs(&["promtool"]), rules_fire_when_they_should),
        test_or_skip("deploy::rules_say_what_to_do", MANIFESTS, rules_say_what_to_do),
        test("deploy::runbooks_have_all_sections", Nobody, runbooks_have_all_sections),
        test("deploy::queries_ask_for_what_there_is", Nobody, queries_ask_for_what_there_is),
        test("deploy::dashboards_are_whole", Nobody, dashboards_are_whole),
    ];
    trials.extend(systemd::tests());
    trials.extend(kubernetes::tests());
    trials.extend(image::tests());
    trials
}

const RULES: &str = "deploy/prometheus/fdtracker.rules.yml";
const DASHBOARDS: [&str; 3] =
    ["deploy/grafana/overview.json", "deploy/grafana/container.json", "deploy/grafana/agents.json"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

fn path(name: &str) -> PathBuf {
    root().join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// Runs a checker, which must find nothing wrong.
#[track_caller]
fn must(command: &mut Command) -> String {
    let output = run(command);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}:\n{said}");
    said
}

/// Checks that the agent understands these arguments.
#[track_caller]
fn understood(words: &[&str]) {
    if let Err(error) = Cli::try_parse_from(["fdtracker"].iter().chain(words)) {
        panic!("fdtracker {}: {error}", words.join(" "));
    }
}

fn rules_fire_when_they_should() {
    let said = must(Command::new("promtool").args(["check", "rules"]).arg(path(RULES)));
    assert!(said.contains("9 rules found"), "{said}");
    must(
        Command::new("promtool")
            .args(["test", "rules"])
            .arg(path("deploy/prometheus/fdtracker.rules.test.yml")),
    );
    must(
        Command::new("promtool")
            .args(["check", "config", "--syntax-only"])
            .arg(path("deploy/prometheus/prometheus.yml")),
    );
}

fn rules_say_what_to_do() -> Result<(), String> {
    let rules = read_yaml(&read(RULES))?.remove(0);
    let tests = read("deploy/prometheus/fdtracker.rules.test.yml");
    let groups = rules["groups"].as_array().expect("groups");
    let mut pages = BTreeSet::new();
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")) {
        let name = rule["alert"].as_str().expect("a name");
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{name}: {value}")).to_owned();
        let (expression, about) = (text(&rule["expr"]), &rule["annotations"]);
        assert!(text(&rule["for"]).ends_with('m'), "{name}");
        assert!(
            ["info", "warning", "critical"].contains(&text(&rule["labels"]["severity"]).as_str()),
            "{name}"
        );
        assert!(text(&about["summary"]).ends_with('.'), "{name}");
        assert!(text(&about["description"]).contains("{{ $labels."), "{name}");
        if expression.contains("fdtracker_container_") {
            assert!(expression.contains(r#"container!~"host|unknown|other""#), "{name}: {expression}");
        }
        let repository = format!("{}/blob/main/docs/runbooks/{name}.md", env!("CARGO_PKG_REPOSITORY"));
        assert_eq!(text(&about["runbook_url"]), repository, "{name}");
        assert!(path(&format!("docs/runbooks/{name}.md")).exists(), "{name} has no runbook");
        assert!(tests.contains(&format!("alertname: {name}")), "{name} has no test");
        pages.insert(format!("{name}.md"));
    }
    assert_eq!(pages, runbooks(), "each runbook is an alert's");

    // The rules' forms for Kubernetes must say the same.
    let custom = read_yaml(&read("deploy/kubernetes/prometheus-operator/prometheusrule.yaml"))?.remove(0);
    assert_eq!((&custom["kind"], &custom["spec"]), (&"PrometheusRule".into(), &rules));
    assert_eq!(read_yaml(&read("deploy/helm/fdtracker/files/fdtracker.rules.yml"))?.remove(0), rules);
    Ok(())
}

fn runbooks() -> BTreeSet<String> {
    let pages = fs::read_dir(path("docs/runbooks")).expect("list docs/runbooks").flatten();
    pages.map(|page| page.file_name().to_string_lossy().into_owned()).collect()
}

fn runbooks_have_all_sections() {
    let pages = runbooks();
    assert!(!pages.is_empty());
    for page in pages {
        let text = read(&format!("docs/runbooks/{page}"));
        let mut sections: BTreeMap<&str, usize> = BTreeMap::new();
        let mut section = "";
        for line in text.lines() {
            match line.strip_prefix("## ") {
                Some(title) => section = title,
                None => *sections.entry(section).or_default() += usize::from(!line.is_empty()),
            }
        }
        for title in ["Meaning", "Impact", "Diagnosis", "Mitigation"] {
            assert!(sections.get(title).is_some_and(|lines| *lines > 0), "{page} has nothing under {title}");
        }
    }
}

/// Returns the names of metrics in the first column of the tables of `docs/metrics.md`.
fn documented() -> BTreeSet<String> {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    rows.map(str::to_owned).collect()
}

/// Returns what looks like one of the agent's metrics in a query.
fn metrics_of(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("fdtracker_") || word.starts_with("process_"))
}

fn queries_ask_for_what_there_is() {
    let known = documented();
    let mut queries: Vec<String> = DASHBOARDS.iter().flat_map(|name| expressions(&dashboard(name))).collect();
    queries.push(
        read(RULES).lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n"),
    );
    let asked: BTreeSet<&str> = queries.iter().flat_map(|query| metrics_of(query)).collect();
    // `process_…` metrics come from every Prometheus client, so they aren't documented here.
    let unknown: Vec<_> =
        asked.into_iter().filter(|name| !name.starts_with("process_") && !known.contains(*name)).collect();
    assert!(unknown.is_empty(), "docs/metrics.md doesn't have {unknown:?}");
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns all queries of a dashboard, also those of its variables.
fn expressions(dashboard: &Value) -> Vec<String> {
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let queries = variables.filter(|v| v["type"] == "query").map(|v| &v["query"]);
    targets
        .map(|target| &target["expr"])
        .chain(queries)
        .map(|q| q.as_str().expect("a query").to_owned())
        .collect()
}

fn dashboards_are_whole() {
    let mut uids = BTreeSet::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        assert!(uids.insert(dashboard["uid"].as_str().expect("a uid").to_owned()), "{name}");
        let variables = dashboard["templating"]["list"].as_array().expect("variables");
        let variables: BTreeSet<_> = variables.iter().map(|v| v["name"].as_str().expect("a name")).collect();
        for expression in expressions(&dashboard) {
            assert_eq!(
                expression.matches('(').count(),
                expression.matches(')').count(),
                "{name}: {expression}"
            );
            let used =
                expression.split('$').skip(1).map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
            for variable in used.flatten() {
                assert!(variables.contains(variable), "{name}: ${variable} in {expression}");
            }
        }
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().expect("panels") {
            let at = |side: &str| panel["gridPos"][side].as_u64().expect("a number");
            assert!(at("x") + at("w") <= 24, "{name}: {}", panel["title"]);
            for x in at("x")..at("x") + at("w") {
                assert!(taken.insert((x, at("y"))), "{name}: {} covers another", panel["title"]);
            }
        }
    }
}
