//! Parsers for values that clap has no parser for.

use std::time::Duration;

use caps::Capability;
use thiserror::Error;

use crate::privileges;

/// Why a flag can't have a value.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum ValueError {
    #[error("the agent has no use for it: it uses {}", privileges::USES.map(|used| used.capability.to_string()).join(", "))]
    Capability,
    #[error("{0:?} is not a duration of at least 100ms, such as 30s, 500ms or 2m")]
    Duration(String),
    #[error("not a path such as /metrics: a slash, then letters, digits, and any of /-_.~")]
    Path,
    #[error("{0:?} is no size, such as 4194304 or 4M")]
    Size(String),
    #[error("something else is answered there")]
    TakenPath,
}

/// Parses a capability that the agent uses.
pub(super) fn capability(name: &str) -> Result<Capability, ValueError> {
    let mut uses = privileges::USES.iter().map(|used| used.capability);
    uses.find(|capability| capability.to_string() == name).ok_or(ValueError::Capability)
}

/// Parses a duration that is long enough for work to be repeated at that interval.
pub(super) fn duration(text: &str) -> Result<Duration, ValueError> {
    let wrong = || ValueError::Duration(text.to_owned());
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    let duration = Duration::try_from(parsed).map_err(|_| wrong())?;
    if duration < Duration::from_millis(100) { Err(wrong()) } else { Ok(duration) }
}

/// Parses the path of the metrics.
pub(super) fn telemetry_path(text: &str) -> Result<String, ValueError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
    if !text.starts_with('/') || !text.chars().all(plain) {
        return Err(ValueError::Path);
    }
    let taken = matches!(text, "/livez" | "/readyz" | "/v1") || text.starts_with("/v1/");
    if taken { Err(ValueError::TakenPath) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "30", "-1s", "0s", "1ms", "soon"] {
            assert!(duration(bad).unwrap_err().to_string().contains("such as 30s"), "{bad}");
        }
    }

    #[test]
    fn paths() {
        assert_eq!(telemetry_path("/a/metrics").as_deref(), Ok("/a/metrics"));
        assert!(telemetry_path("/").is_ok());
        for bad in ["", "metrics", "/a?b", "/a b", "/<b>"] {
            assert_eq!(telemetry_path(bad), Err(ValueError::Path), "{bad}");
        }
        for taken in ["/livez", "/v1/containers", "/readyz"] {
            assert_eq!(telemetry_path(taken), Err(ValueError::TakenPath), "{taken}");
        }
    }
}
