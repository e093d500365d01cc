//! Runs the real Prometheus and Alertmanager on the agent's metrics and on the alert rules that are
//! shipped with it.

use std::{fs, path::Path};

use fdtracker_tests::{
    Agent, Container, eventually,
    monitoring::{ALERTMANAGER, Alertmanager, PROMETHEUS, Prometheus, Sample, Webhook},
    same,
};
use serde_json::Value;

use crate::{Needs::Programs, Test, agent, test};

pub fn tests() -> Vec<Test> {
    let all = Programs(&[PROMETHEUS, ALERTMANAGER, "runc"]);
    vec![
        test("alerts::a_scrape_is_clean", Programs(&[PROMETHEUS, "runc"]), a_scrape_is_clean),
        test("alerts::one_is_told_and_taken_back", all, one_is_told_and_taken_back),
    ]
}

/// Checks that Prometheus has no complaint while the series of containers appear, change and go.
fn a_scrape_is_clean() {
    let agent = agent();
    let prometheus = Prometheus::start(agent.address, "", None);
    let mut container = Container::start(None, "/docker");
    let pidfd = container.zoo.must("open pidfd");
    let name = name(&agent, &container);
    let open = format!(r#"fdtracker_open_fds{{container="{name}",kind="pidfd",verdict="blocked"}}"#);
    let samples = eventually("Prometheus has the pidfd", || {
        let samples = prometheus.query(&open)?;
        same(values(&samples), vec![1.0])?;
        Ok::<_, String>(samples)
    });
    // The container has no pod. It must not get the label of the pod that the agent is in.
    assert_eq!(samples[0].labels.get("pod"), None);
    container.zoo.must(&format!("close {pidfd}"));
    eventually("the series goes", || same(values(&prometheus.query(&open)?), vec![]));
    let closed = format!(r#"fdtracker_fds_closed_total{{container="{name}",kind="pidfd"}}"#);
    eventually("the close is counted", || same(values(&prometheus.query(&closed)?), vec![1.0]));
    drop(container);
    let any = format!(r#"{{container="{name}"}}"#);
    eventually("nothing is left of the container", || same(prometheus.query(&any)?, vec![]));

    eventually("its last scrape went well", || {
        let target = prometheus.target()?;
        same((&target["health"], &target["lastError"]), (&"up".into(), &"".into()))
    });
    for rejected in ["duplicate_timestamp", "out_of_order", "out_of_bounds"] {
        let metric = format!("prometheus_target_scrapes_sample_{rejected}_total");
        assert_eq!(prometheus.own(&metric), Ok(0.0), "{metric}");
    }
    assert_eq!(prometheus.complaints(), Vec::<String>::new());
}

/// Tests an alert from start to end. When a container opens a file that its CRIU can't dump, the
/// webhook gets the alert. When the file is closed, it is told that the alert is resolved. Nobody
/// is ever told about the neighbour container, nor about the agent until it is killed.
fn one_is_told_and_taken_back() {
    let mut agent = Agent::start(&["--criu", "3.17.1", "--judge-interval", "200ms"]);
    let (mut blocked, mut fine) = (Container::start(None, "/docker"), Container::start(None, "/docker"));
    fine.zoo.must("open eventfd");
    let (name, neighbour) = (name(&agent, &blocked), name(&agent, &fine));
    let webhook = Webhook::start();
    let alertmanager = Alertmanager::start(webhook.address);
    let prometheus = Prometheus::start(agent.address, &hastened_rules(), Some(alertmanager.address()));
    let checkpointable = |container: &str, value: f64| {
        let expression = format!(r#"fdtracker_container_checkpointable{{container="{container}"}}"#);
        same(values(&prometheus.query(&expression)?), vec![value])
    };
    eventually("Prometheus knows that both can be dumped", || {
        checkpointable(&name, 1.0)?;
        checkpointable(&neighbour, 1.0)
    });

    let pidfd = blocked.zoo.must("open pidfd");
    let of_it = |alert: &Value| {
        alert["labels"]["alertname"] == "FdtrackerContainerNotCheckpointable"
            && alert["labels"]["container"] == *name
    };
    // The alert looks back over a range. It isn't active while that range still has much time in
    // which the container could be dumped.
    eventually("Prometheus knows that it can't", || checkpointable(&name, 0.0));
    eventually("Prometheus suspects something", || {
        prometheus.alerts()?.into_iter().find(of_it).ok_or_else(|| "no alert".to_owned())
    });
    let told = eventually("somebody is told", || last(&webhook, of_it).ok_or("nobody was told"));
    assert_eq!(
        (&told["status"], &told["labels"]["severity"]),
        (&"firing".into(), &"warning".into()),
        "{told}"
    );
    assert_eq!(told["labels"]["instance"], agent.address.to_string());
    is_readable(&told, &name);

    blocked.zoo.must(&format!("close {pidfd}"));
    eventually("it is taken back", || {
        let told = last(&webhook, of_it).ok_or("nobody was told")?;
        same(&told["status"], &"resolved".into())
    });
    eventually("Prometheus knows why", || checkpointable(&name, 1.0));
    for rule in prometheus.rules().expect("rules") {
        assert_eq!((&rule["health"], &rule["lastError"]), (&"ok".into(), &Value::Null), "{rule}");
        assert!(rule["duration"].as_f64() <= Some(2.0), "{rule}");
    }
    assert_eq!(prometheus.complaints(), Vec::<String>::new());

    agent.kill();
    // Before its first scrape, Prometheus may have raised this alert without an instance.
    let absent = |alert: &Value| {
        alert["labels"]["alertname"] == "FdtrackerAbsent"
            && alert["labels"]["instance"] == agent.address.to_string()
    };
    let told = eventually("the agent is missed", || last(&webhook, absent).ok_or("nobody was told"));
    assert_eq!(
        (&told["status"], &told["labels"]["severity"]),
        (&"firing".into(), &"critical".into()),
        "{told}"
    );
    is_readable(&told, &agent.address.to_string());
    let ever = format!(r#"count_over_time(ALERTS{{container="{neighbour}"}}[1h])"#);
    assert_eq!(prometheus.query(&ever), Ok(vec![]));
}

/// Returns the last alert of this sort that the webhook got.
pub fn last(webhook: &Webhook, is_such: impl Fn(&Value) -> bool) -> Option<Value> {
    webhook.alerts().into_iter().rfind(is_such)
}

/// Checks the texts for people: they name what the alert is about, and no template is left in them.
#[track_caller]
fn is_readable(alert: &Value, subject: &str) {
    let annotations = &alert["annotations"];
    assert!(annotations["summary"].as_str().is_some_and(|text| text.contains(subject)), "{alert}");
    assert!(annotations["description"].as_str().is_some_and(|text| text.contains(subject)), "{alert}");
    let link = annotations["runbook_url"].as_str().expect("a link to a runbook");
    assert!(
        link.ends_with(&format!("/{}.md", alert["labels"]["alertname"].as_str().expect("a name"))),
        "{link}"
    );
    let text = annotations.to_string();
    for left in ["{{", "<no value>", "<error", "%!"] {
        assert!(!text.contains(left), "{left} in {text}");
    }
}

/// Returns the rules that are shipped, but faster: alerts wait 2 seconds, and ranges are seconds
/// where they were minutes. Thresholds are fractions of time, so they stay as they are.
pub fn hastened_rules() -> String {
    let shipped = shipped("deploy/prometheus/fdtracker.rules.yml");
    let mut hastened = 0;
    let lines = shipped.lines().map(|line| match line.trim().split_once(": ") {
        Some(("for" | "keep_firing_for", _)) => {
            hastened += 1;
            format!("{}: 2s", line.split(':').next().expect("a key"))
        }
        _ => {
            line.replace("m]", "s]").replace("m:30s]", "s:1s]").replace("h]", "m]").replace("h:30s]", "m:1s]")
        }
    });
    let rules = lines.collect::<Vec<_>>().join("\n");
    assert!(hastened > 0, "no alert waits in\n{shipped}");
    rules
}

/// Reads a file of this repository.
fn shipped(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the name that the agent gives a container.
pub fn name(agent: &Agent, container: &Container) -> String {
    let found = eventually("the container is there", || agent.container(&container.id));
    found["name"].as_str().expect("a name").to_owned()
}

fn values(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.value).collect()
}
