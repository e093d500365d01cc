//! The real Prometheus and Alertmanager, each with its own port and directory, and a webhook that
//! gets the alerts.
//!
//! Configurations are written as JSON, which is also YAML.

mod alertmanager;
mod prometheus;
mod server;
mod webhook;

pub use alertmanager::{ALERTMANAGER, Alertmanager};
pub use prometheus::{PROMETHEUS, Prometheus, Sample};
pub use webhook::Webhook;
