//! The real Prometheus and Alertmanager, each with a port and a directory of its own, and whom Alertmanager tells.
//!
//! Configurations are written as JSON: it is YAML, too.

mod alertmanager;
mod prometheus;
mod server;
mod webhook;

pub use alertmanager::{ALERTMANAGER, Alertmanager};
pub use prometheus::{PROMETHEUS, Prometheus, Sample};
pub use webhook::Webhook;
