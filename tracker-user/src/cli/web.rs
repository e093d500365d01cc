//! Flags of the service over TCP, named like those of Prometheus' exporters.

use std::{
    net::{AddrParseError, SocketAddr},
    path::PathBuf,
};

use clap::{Args, builder::RangedU64ValueParser};

use super::values::telemetry_path;
use crate::{
    http::{Options, WebConfig},
    metrics::{LEAST_SERIES, MAX_SERIES},
};

/// The default address. Prometheus' list of exporters gives this port to no other.
const DEFAULT_LISTEN: &str = "127.0.0.1:10460";

#[derive(Debug, Args)]
#[command(next_help_heading = "What is answered over TCP")]
pub(super) struct Web {
    /// Address for /metrics, /readyz and /v1; can be given several times. :PORT means all addresses
    #[arg(long = "web.listen-address", value_name = "ADDRESS:PORT", default_value = DEFAULT_LISTEN, value_parser = address)]
    pub(super) listen: Vec<SocketAddr>,

    /// Listen on the sockets that systemd has opened instead (a .socket unit)
    #[arg(long = "web.systemd-socket")]
    pub(super) systemd_socket: bool,

    /// Path of the metrics
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics", value_parser = telemetry_path)]
    pub(super) telemetry_path: String,

    /// How many requests are answered at a time; further ones get 503. /livez and /readyz are
    /// always answered
    #[arg(long = "web.max-requests", value_name = "N", default_value_t = 40, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(super) max_requests: usize,

    /// How many series /metrics has at most; containers beyond that are added up as
    /// container="other", those that can be dumped first
    #[arg(long = "web.max-series", value_name = "SERIES", default_value_t = MAX_SERIES, value_parser = RangedU64ValueParser::<usize>::new().range(LEAST_SERIES as u64..=1_000_000))]
    pub(super) max_series: usize,

    /// TLS, client certificates, passwords and headers, in the format of Prometheus' exporters;
    /// read again when it changes
    #[arg(long = "web.config.file", value_name = "FILE")]
    pub(super) web_config: Option<PathBuf>,

    /// Answer /v1, which tells of processes, to everybody who can connect, and not only to loopback
    /// addresses and to clients with a password or a certificate
    #[arg(long = "web.serve-processes")]
    pub(super) serve_processes: bool,
}

impl Web {
    /// Checks what can't be seen in a single value. clap sees no conflict between values from the
    /// file and the environment.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let is_default = self.listen.iter().map(ToString::to_string).eq([DEFAULT_LISTEN]);
        anyhow::ensure!(
            !self.systemd_socket || is_default,
            "with --web.systemd-socket the addresses are those of systemd's socket: leave --web.listen-address out, \
             or say --web.systemd-socket=false"
        );
        if let Some(path) = &self.web_config {
            WebConfig::check(path)?;
        }
        Ok(())
    }

    pub(super) fn options(&self) -> Options {
        Options {
            addresses: self.listen.clone(),
            systemd_socket: self.systemd_socket,
            telemetry_path: self.telemetry_path.clone(),
            max_requests: self.max_requests,
            config_file: self.web_config.clone(),
            serve_processes: self.serve_processes,
        }
    }
}

/// Parses an address. Exporters write `:PORT` for all addresses.
fn address(text: &str) -> Result<SocketAddr, AddrParseError> {
    if text.starts_with(':') { format!("[::]{text}").parse() } else { text.parse() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(address(":9100").unwrap(), "[::]:9100".parse().unwrap());
        assert_eq!(address("127.0.0.1:1").unwrap().port(), 1);
        assert!(address("9100").is_err());
    }
}
