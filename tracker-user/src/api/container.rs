//! The answer of `/v1/containers/NAME`, as plain data. Field names are stable.

use serde::Serialize;

use super::{BlockerRow, Comm, ContainerRow, Criu, names_path, timestamp};
use crate::{
    inventory::{Detail, Entry},
    runtime::Owner,
    verdict::{Judge, Verdict},
};

/// The inspection that a verdict comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Inspection {
    /// The last inspection still holds.
    Current,
    /// Files have changed since the last inspection.
    Outdated,
    /// There was no inspection yet.
    Pending,
    /// There won't be one: the host is never dumped.
    None,
}

/// One container, with all blockers.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerReport {
    /// The CRIU that verdicts are about.
    pub criu: Criu,
    /// The counts, also by process.
    #[serde(flatten)]
    pub container: ContainerRow,
    /// The verdict: `ok`, `needs_option`, `blocked` or `unknown`.
    pub verdict: Verdict,
    /// The inspection that it comes from.
    pub look: Inspection,
    /// When it could last be dumped, as far as the agent knows.
    pub last_checkpointable: Option<String>,
    /// How long it could not be dumped, or only with an option, since the agent started.
    pub blocked_seconds: f64,
    /// All blockers that the last inspection found, in the order in which CRIU would come to them;
    /// null if there was none.
    pub blockers: Option<Vec<BlockerRow>>,
}

impl ContainerReport {
    /// Creates the report on an owner from its judged entry.
    #[must_use]
    pub fn new(owner: &Owner, entry: &Entry, judge: &Judge, comm: Comm<'_>) -> Self {
        let (look, assessment) = match &entry.detail {
            Detail::None => (Inspection::None, None),
            Detail::Pending => (Inspection::Pending, None),
            Detail::Known(known) if entry.judged.is_current => (Inspection::Current, Some(known)),
            Detail::Known(known) => (Inspection::Outdated, Some(known)),
        };
        Self {
            criu: Criu::new(judge.profile()),
            container: ContainerRow::new(owner, entry, judge, Some(comm)),
            verdict: entry.judged.verdict,
            look,
            last_checkpointable: entry.history.last_ok.map(timestamp),
            blocked_seconds: entry.history.blocked.as_secs_f64(),
            blockers: assessment.map(|known| known.blockers.iter().map(BlockerRow::new).collect()),
        }
    }

    /// Removes links and messages that contain a path.
    pub fn hide_paths(&mut self) {
        for text in self.blockers.iter_mut().flatten().flat_map(|row| [&mut row.link, &mut row.message]) {
            if names_path(text) {
                text.clear();
            }
        }
    }
}
