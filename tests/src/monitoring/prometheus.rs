//! A Prometheus that scrapes, and evaluates rules, every second.

use std::{collections::BTreeMap, net::SocketAddr, process::Command, time::SystemTime};

use serde_json::{Value, json};

use super::server::{Server, configure, write};

/// The program.
pub const PROMETHEUS: &str = "prometheus";

/// A running Prometheus.
pub struct Prometheus(Server);

/// The labels of a series, with its name as `__name__`, and a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

impl Prometheus {
    /// Starts one that scrapes an agent as job `fdtracker`, evaluates these rules, and sends alerts
    /// to an Alertmanager. It gives the agent labels that the agent's metrics have too, as happens
    /// in Kubernetes.
    pub fn start(agent: SocketAddr, rules: &str, alertmanager: Option<SocketAddr>) -> Self {
        let dir = tempfile::tempdir().expect("a directory for Prometheus");
        let targets = |address: SocketAddr| json!([{"targets": [address.to_string()]}]);
        let told: Vec<Value> =
            alertmanager.map(|address| json!({"static_configs": targets(address)})).into_iter().collect();
        let configuration = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{
                "job_name": "fdtracker",
                "honor_labels": true,
                "static_configs": [{
                    "targets": [agent.to_string()],
                    "labels": {"namespace": "monitoring", "pod": "fdtracker-0", "container": "agent"},
                }],
            }],
            "alerting": {"alertmanagers": told},
        });
        configure(&dir, "prometheus.yml", &configuration);
        write(&dir.path().join("rules.yml"), rules);
        let mut command = Command::new(PROMETHEUS);
        command.args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        // It sends an alert that hasn't changed again every second.
        command.arg("--rules.alert.resend-delay=1s");
        Self(Server::start(command, dir))
    }

    /// Returns the present value of an expression.
    pub fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let data = self.api("query", &[("query", expression)])?;
        let samples = match (&data["resultType"], &data["result"]) {
            (kind, value) if kind == "scalar" => vec![sample(&Value::Null, value)],
            (_, list) => {
                list.as_array().into_iter().flatten().map(|s| sample(&s["metric"], &s["value"])).collect()
            }
        };
        samples.into_iter().collect::<Option<_>>().ok_or_else(|| format!("not understood: {data}"))
    }

    /// Returns how many series an expression gave in the last half minute, evaluated for each
    /// second.
    pub fn series(&self, expression: &str) -> Result<usize, String> {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_err(|error| error.to_string())?.as_secs();
        let (start, end) = ((now - 30).to_string(), now.to_string());
        let range = [("query", expression), ("start", &start), ("end", &end), ("step", "1")];
        Ok(self.api("query_range", &range)?["result"].as_array().map_or(0, Vec::len))
    }

    /// Returns the alerts that are pending or firing.
    pub fn alerts(&self) -> Result<Vec<Value>, String> {
        Ok(self.api("alerts", &[])?["alerts"].as_array().cloned().unwrap_or_default())
    }

    /// Returns the rules of all groups.
    pub fn rules(&self) -> Result<Vec<Value>, String> {
        let data = self.api("rules", &[])?;
        let groups = data["groups"].as_array().into_iter().flatten();
        Ok(groups.filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
    }

    /// Returns what it says about its one target.
    pub fn target(&self) -> Result<Value, String> {
        Ok(self.api("targets", &[])?["activeTargets"][0].clone())
    }

    /// Returns the value of one of Prometheus' own metrics, which has no labels.
    pub fn own(&self, metric: &str) -> Result<f64, String> {
        let (_, text) = self.0.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).ok_or_else(|| format!("Prometheus has no {metric}"))
    }

    /// Returns the lines of its log that are warnings or errors.
    pub fn complaints(&self) -> Vec<String> {
        let is_complaint = |line: &&str| {
            let line = line.to_lowercase();
            line.contains("level=warn") || line.contains("level=error")
        };
        self.0.log().lines().filter(is_complaint).map(str::to_owned).collect()
    }

    /// Calls the API. Warnings count as errors.
    fn api(&self, call: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let parameters: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let mut answer = self.0.json(&format!("/api/v1/{call}?{}", parameters.join("&")))?;
        if answer["status"] == "success" && answer["warnings"].is_null() {
            return Ok(answer["data"].take());
        }
        Err(answer.to_string())
    }
}

fn sample(labels: &Value, value: &Value) -> Option<Sample> {
    let labels = labels.as_object().into_iter().flatten();
    let labels = labels.map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    Some(Sample { labels: labels.collect::<Option<_>>()?, value: value[1].as_str()?.parse().ok()? })
}

/// Encodes a text as part of a URL.
fn encoded(text: &str) -> String {
    let byte =
        |b: u8| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(byte).collect()
}
