//! The agent's knowledge at one moment: made once, judged once, and then only read.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::hidden::HiddenScans;
use crate::{
    api::{Comm, ContainerReport, HOST, Listing},
    bpf::{Audit, Feeder, Fill, Program, RingFill},
    inventory::Inventory,
    runtime::{LookupCounts, Owner},
    target::{self, TargetError},
    verdict::Judge,
};

/// Everything that users are told, at one moment.
pub struct Snapshot {
    /// When it was begun. It includes everything that happened before.
    pub begun: Instant,
    /// Who holds what, with verdicts; `None` until adoption is done.
    pub inventory: Option<Inventory>,
    /// The judge that gave the verdicts.
    pub judge: Arc<Judge>,
    /// The feeder.
    pub feeder: Feeder,
    /// How much was lost in the kernel, by stage.
    pub lost: Vec<(&'static str, u64)>,
    /// The kernel's statistics of the programs.
    pub programs: Vec<Program>,
    /// How full the maps are; empty until adoption is done.
    pub fills: Vec<Fill>,
    /// How full the ring is.
    pub ring: RingFill,
    /// What audits have done.
    pub audits: AuditStats,
    /// Files that no slot holds.
    pub hidden: HiddenScans,
    /// How often runtimes were asked for names, by result.
    pub runtime_lookups: LookupCounts,
    /// Whether adoption is done.
    pub ready: bool,
    /// The results of reloading the configuration.
    pub reloads: Reloads,
}

impl Snapshot {
    /// Returns who holds what, as users see it; empty until adoption is done.
    #[must_use]
    pub fn listing(&self, comm: Option<Comm<'_>>) -> Listing {
        match &self.inventory {
            Some(inventory) => Listing::new(inventory, &self.judge, comm),
            None => Listing::default(),
        }
    }

    /// Returns the blockers of one container, or what the host holds.
    ///
    /// # Errors
    /// When there is no such container, or there are several.
    pub fn container(&self, name: &str, comm: Comm<'_>) -> Result<ContainerReport, TargetError> {
        let none = Inventory::default();
        let inventory = self.inventory.as_ref().unwrap_or(&none);
        let report = |owner: &Owner, entry| ContainerReport::new(owner, entry, &self.judge, comm);
        if name == HOST {
            return Ok(report(&Owner::Host, &inventory.host));
        }
        let containers: Vec<_> = inventory.containers.iter().map(|(c, _)| Arc::clone(c)).collect();
        let found = target::by_name(&containers, name)?;
        let entry = inventory.containers.iter().find(|(container, _)| Arc::ptr_eq(container, &found));
        let (_, entry) = entry.ok_or_else(|| TargetError::Empty(found.cgroup.clone()))?;
        Ok(report(&Owner::Container(Arc::clone(&found)), entry))
    }
}

/// What audits have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditStats {
    /// Audits that were finished.
    pub finished: u64,
    /// Of these, audits that corrected something.
    pub corrected: u64,
    /// Audits that failed.
    pub failed: u64,
    /// Corrected slots, without adoption.
    pub corrections: u64,
    /// How long the last one took.
    pub last: Duration,
    /// When the last successful audit ended.
    pub ended: Option<SystemTime>,
}

impl AuditStats {
    /// Records an audit; `None` if it failed. `live` says whether probes keep counts current.
    pub(super) fn note(&mut self, audit: Option<&Audit>, live: bool) {
        let Some(audit) = audit else {
            self.failed += 1;
            return;
        };
        self.finished += 1;
        self.last = audit.took;
        self.ended = Some(SystemTime::now());
        // Adoption is no correction. Without probes, no later audit is either: all that it finds is
        // new.
        if self.finished > 1 && live && audit.changes > 0 {
            self.corrections += audit.changes;
            self.corrected += 1;
        }
    }
}

/// The results of reloading the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Reloads {
    /// Whether the last succeeded. The start is the first.
    pub successful: bool,
    /// When one last succeeded.
    pub succeeded_at: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_audit_finds_is_a_correction_only_after_adoption_and_with_probes() {
        let found = Audit { changes: 3, ..Audit::default() };
        for (live, corrections) in [(true, 3), (false, 0)] {
            let mut stats = AuditStats::default();
            stats.note(Some(&found), live);
            assert_eq!((stats.finished, stats.corrections), (1, 0));
            stats.note(None, live);
            stats.note(Some(&found), live);
            assert_eq!((stats.finished, stats.failed, stats.corrections), (2, 1, corrections));
        }
    }
}
