//! What the real Prometheus and Alertmanager make of the agent's metrics, and of the rules that go with it.

use fdtracker_tests::{
    Agent, Container, eventually,
    monitoring::{PROMETHEUS, Prometheus, Sample},
    same,
};
use libtest_mimic::Trial;

use crate::{Needs::Programs, agent, test};

pub fn trials() -> Vec<Trial> {
    vec![test("alerts::a_scrape_is_clean", Programs(&[PROMETHEUS, "runc"]), a_scrape_is_clean)]
}

/// Series come, change and go as containers do, and Prometheus has nothing to say against it.
fn a_scrape_is_clean() {
    let agent = agent();
    let prometheus = Prometheus::start(agent.address, "", None);
    let mut container = Container::start(None, "/docker");
    let pidfd = container.zoo.must("open pidfd");
    let name = name(&agent, &container);
    let open = format!(r#"fdtracker_open_fds{{container="{name}",kind="pidfd",verdict="blocked"}}"#);
    eventually("Prometheus has the pidfd", || same(values(&prometheus.query(&open)?), vec![1.0]));
    container.zoo.must(&format!("close {pidfd}"));
    eventually("the series goes", || same(values(&prometheus.query(&open)?), vec![]));
    let seen = format!(r#"fdtracker_fds_closed_total{{container="{name}",kind="pidfd"}}"#);
    eventually("the close is counted", || same(values(&prometheus.query(&seen)?), vec![1.0]));
    drop(container);
    let any = format!(r#"{{container="{name}"}}"#);
    eventually("nothing is left of the container", || same(prometheus.query(&any)?, vec![]));

    let target = prometheus.target().expect("a target");
    assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
    for rejected in ["duplicate_timestamp", "out_of_order", "out_of_bounds"] {
        let metric = format!("prometheus_target_scrapes_sample_{rejected}_total");
        assert_eq!(prometheus.own(&metric), Ok(0.0), "{metric}");
    }
    assert_eq!(prometheus.complaints(), Vec::<String>::new());
}

/// The name that the agent gives a container.
fn name(agent: &Agent, container: &Container) -> String {
    let found = eventually("the container is there", || agent.container(&container.id));
    found["name"].as_str().expect("a name").to_owned()
}

fn values(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.value).collect()
}
