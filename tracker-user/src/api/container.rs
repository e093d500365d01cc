//! What `/v1/containers/NAME` tells, as plain data. Field names are stable.

use serde::Serialize;

use super::{BlockerRow, Comm, ContainerRow, Criu, names_path, timestamp};
use crate::{
    inventory::{Detail, Entry},
    runtime::Owner,
    verdict::{Judge, Verdict},
};

/// What a verdict is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Inspection {
    /// An inspection that still holds.
    Current,
    /// An inspection before files changed.
    Outdated,
    /// There was no inspection yet.
    Pending,
    /// There won't be one: of the host there is no dump.
    None,
}

/// One container, with all that stands in the way of a dump.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerReport {
    /// The CRIU that verdicts are about.
    pub criu: Criu,
    /// What is counted, by process too.
    #[serde(flatten)]
    pub container: ContainerRow,
    /// What CRIU would make of it: `ok`, `needs_option`, `blocked` or `unknown`.
    pub verdict: Verdict,
    /// What that is from.
    pub look: Inspection,
    /// When it could last be dumped, as far as the agent looked.
    pub last_checkpointable: Option<String>,
    /// For how long it could not be dumped, or only with an option, since the agent started.
    pub blocked_seconds: f64,
    /// All that the last look found in the way, in the order in which CRIU would meet it; null without one.
    pub blockers: Option<Vec<BlockerRow>>,
}

impl ContainerReport {
    /// Describes what an owner holds, which was judged.
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

    /// Leaves out what names a file by its path.
    pub fn hide_paths(&mut self) {
        for text in self.blockers.iter_mut().flatten().flat_map(|row| [&mut row.link, &mut row.message]) {
            if names_path(text) {
                text.clear();
            }
        }
    }
}
