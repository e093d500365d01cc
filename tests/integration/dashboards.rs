//! Sends Prometheus the queries that Grafana would send for the dashboards that are shipped.

use std::{fs, path::Path};

use fdtracker_tests::{
    Agent, Container, eventually,
    monitoring::{PROMETHEUS, Prometheus},
    same,
};
use serde_json::Value;

use crate::{Needs::Programs, Test, agent, alerts::name, test};

pub fn tests() -> Vec<Test> {
    vec![test("dashboards::every_panel_has_data", Programs(&[PROMETHEUS, "runc"]), every_panel_has_data)]
}

/// Checks that Prometheus understands all queries, and answers those about metrics that the agent
/// exports here.
fn every_panel_has_data() {
    let agent = agent();
    let prometheus = Prometheus::start(agent.address, "", None);
    let (mut blocked, fine) = (Container::start(None, "/docker"), Container::start(None, "/docker"));
    for container in [&blocked, &fine] {
        let found =
            format!(r#"fdtracker_container_checkpointable{{container="{}"}} == 1"#, name(&agent, container));
        eventually("it can be dumped", || same(prometheus.query(&found)?.len(), 1));
    }
    let pidfd = blocked.zoo.must("open pidfd");
    blocked.zoo.must(&format!("dup {pidfd}"));
    blocked.zoo.must(&format!("close {pidfd}"));
    let choice = Choice { instance: agent.address.to_string(), container: name(&agent, &blocked) };

    let (mut answered, mut unanswered) = (0, Vec::new());
    for query in shipped() {
        let shown = format!("{}: {}", query.place, query.expression);
        let expression = choice.fill_in(&query.expression);
        let ask = || match query.is_instant {
            true => prometheus.query(&expression).map(|samples| samples.len()),
            false => prometheus.series(&expression),
        };
        if is_exported(&agent, &expression) {
            eventually(&shown, || if ask()? > 0 { Ok(()) } else { Err("no data".to_owned()) });
            answered += 1;
        } else {
            ask().unwrap_or_else(|error| panic!("{shown}: {error}"));
            unanswered.push(query.expression);
        }
    }
    eprintln!("{answered} queries have data; not exported here: {unanswered:#?}");
    assert!(answered > unanswered.len(), "{answered} queries have data");
}

/// What a user chose at the top of a dashboard.
struct Choice {
    instance: String,
    container: String,
}

impl Choice {
    /// Puts values where a query has variables. Quotes them as Grafana quotes values in a regular
    /// expression.
    fn fill_in(&self, expression: &str) -> String {
        let instance = self.instance.replace('.', r"\\.");
        let filled = expression
            .replace("$instance", &instance)
            .replace("$container", &self.container)
            // No container here has a namespace.
            .replace("$namespace", ".*")
            .replace("$pod", ".*")
            .replace("$__rate_interval", "5s")
            .replace("$__range", "30s");
        assert!(!filled.contains('$'), "a variable that this test doesn't know in {expression}");
        filled
    }
}

/// A query of Grafana's.
struct Query {
    /// The variable or panel.
    place: String,
    expression: String,
    is_instant: bool,
}

/// Returns the queries of all dashboards.
fn shipped() -> Vec<Query> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("deploy/grafana");
    let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let files = files.flatten().map(|entry| entry.path());
    let dashboards = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
    dashboards.flat_map(|file| queries(&read(&file))).collect()
}

fn read(file: &Path) -> Value {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Returns the queries of a dashboard: for the values of its variables, and for its panels.
fn queries(dashboard: &Value) -> Vec<Query> {
    let variables = list(&dashboard["templating"]["list"]).filter(|variable| variable["type"] == "query");
    let of_variables = variables.map(|variable| {
        let call =
            variable["query"].as_str().and_then(|q| q.strip_prefix("label_values(")?.strip_suffix(')'));
        let call = call.and_then(|call| call.rsplit_once(", "));
        let (selector, label) = call.unwrap_or_else(|| panic!("not label_values: {variable}"));
        let expression = format!("count by ({label}) ({selector})");
        Query { place: text(&variable["name"]), expression, is_instant: true }
    });
    let of_panels = of_panels(&dashboard["panels"]);
    assert!(!of_panels.is_empty(), "no queries in {dashboard}");
    of_variables.chain(of_panels).collect()
}

fn of_panels(panels: &Value) -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in list(panels) {
        // A row contains panels.
        queries.extend(of_panels(&panel["panels"]));
        queries.extend(list(&panel["targets"]).map(|target| Query {
            place: text(&panel["title"]),
            expression: text(&target["expr"]),
            is_instant: target["instant"] == true,
        }));
    }
    queries
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// Returns whether all metrics of an expression are exported here, and stay. Some exist only on
/// some kernels or with some options, and one only while something is wrong.
fn is_exported(agent: &Agent, expression: &str) -> bool {
    let metrics = agent.metrics();
    let has = |name: &str| {
        metrics.0.lines().any(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
    };
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut names = words.filter(|word| word.starts_with("fdtracker_") || word.starts_with("process_"));
    names.all(|name| name != "fdtracker_container_stale" && has(name))
}
