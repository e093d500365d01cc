//! What `check` tells, as plain data. Field names are stable.

use serde::Serialize;

use crate::verdict::{
    self, Blocker, FileKind, Judge, Profile, Reason, Report, Step, Subtree, Verdict, VersionSource,
};

/// The document that `check -o json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was asked for.
    pub target: String,
    /// `ok`, `needs_option`, `blocked` or `unknown`.
    pub verdict: Verdict,
    /// The CRIU that it is about.
    pub criu: Criu,
    /// The kernel that it would run on.
    pub kernel: String,
    /// Whether the tree was frozen meanwhile: else all is of one moment.
    pub frozen: bool,
    /// All that isn't dumped, in the order in which CRIU would meet it.
    pub blockers: Vec<BlockerRow>,
    /// The tree, each process before its children.
    pub tree: Vec<SubtreeRow>,
    /// The shortest way to a dump of the whole.
    pub plan: Vec<StepRow>,
}

/// The CRIU that a verdict is about.
#[derive(Clone, Debug, Serialize)]
pub struct Criu {
    /// Its version.
    pub version: String,
    /// `given`, `path` or `assumed`.
    pub source: String,
    /// What it would be told.
    pub options: Vec<String>,
    /// What is to be known of this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A file that isn't dumped.
#[derive(Clone, Debug, Serialize)]
pub struct BlockerRow {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The fd; null for what no slot holds.
    pub fd: Option<u32>,
    /// What the file is.
    pub kind: FileKind,
    /// What its link says.
    pub link: String,
    /// `needs_option`, `blocked` or `unknown`.
    pub verdict: Verdict,
    /// The stable code for why.
    pub reason: Reason,
    /// What CRIU says; empty if it can't be told.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// A process with all that descends from it, as if it were dumped by itself.
#[derive(Clone, Debug, Serialize)]
pub struct SubtreeRow {
    /// Its root.
    pub pid: u32,
    /// The root's parent.
    pub parent: u32,
    /// The root's name.
    pub comm: String,
    /// How far below the tree's root it is.
    pub depth: usize,
    /// How many processes it has.
    pub processes: usize,
    /// What CRIU would make of it.
    pub verdict: Verdict,
    /// How many reasons there are against it.
    pub blockers: usize,
}

/// One change on the way to a dump.
#[derive(Clone, Debug, Serialize)]
pub struct StepRow {
    /// `option`, `criu` or `change`.
    pub action: &'static str,
    /// The option, the version, or the remedy.
    pub what: String,
    /// Why; of a `change` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The processes that must change; of a `change` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pids: Vec<u32>,
}

impl Check {
    /// Describes a report.
    #[must_use]
    pub fn new(target: String, judge: &Judge, frozen: bool, report: &Report) -> Self {
        let profile = judge.profile();
        Self {
            target,
            verdict: report.verdict,
            criu: Criu::new(profile),
            kernel: profile.kernel.to_string(),
            frozen,
            blockers: report.blockers.iter().map(BlockerRow::new).collect(),
            tree: report.tree.iter().map(SubtreeRow::new).collect(),
            plan: report.plan.iter().map(StepRow::new).collect(),
        }
    }
}

impl Criu {
    fn new(profile: &Profile) -> Self {
        let newest = verdict::NEWEST_KNOWN;
        let note = match profile.source {
            VersionSource::Assumed => Some("no CRIU was found: the newest known is assumed".to_owned()),
            _ if profile.is_newer_than_known() => {
                Some(format!("newer than all that are known: judged as {newest}"))
            }
            _ => None,
        };
        Self {
            version: profile.version.to_string(),
            source: profile.source.to_string(),
            options: profile.options.arguments(),
            note,
        }
    }
}

impl BlockerRow {
    pub(super) fn new(blocker: &Blocker) -> Self {
        let Blocker { pid, comm, fd, kind, link, judgement } = blocker;
        Self {
            pid: *pid,
            comm: comm.clone(),
            fd: *fd,
            kind: *kind,
            link: link.clone(),
            verdict: judgement.verdict,
            reason: judgement.reason.clone(),
            message: judgement.message.clone(),
            remedy: judgement.remedy.clone(),
        }
    }
}

impl SubtreeRow {
    fn new(subtree: &Subtree) -> Self {
        let Subtree { pid, parent, comm, depth, processes, verdict, blockers } = subtree;
        Self {
            pid: *pid,
            parent: *parent,
            comm: comm.clone(),
            depth: *depth,
            processes: *processes,
            verdict: *verdict,
            blockers: *blockers,
        }
    }
}

impl StepRow {
    fn new(step: &Step) -> Self {
        let plain = |action, what| Self { action, what, reason: None, pids: Vec::new() };
        match step {
            Step::AddOption(option) => plain("option", option.clone()),
            Step::MoveTo(version) => plain("criu", version.to_string()),
            Step::Change { reason, remedy, processes } => Self {
                action: "change",
                what: remedy.clone(),
                reason: Some(reason.clone()),
                pids: processes.keys().copied().collect(),
            },
        }
    }
}
