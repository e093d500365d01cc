//! The result of `check`, as plain data. Field names are stable.

use serde::Serialize;

use crate::verdict::{
    self, Blocker, FileKind, Judge, Profile, Reason, Report, Step, Subtree, Verdict, VersionSource,
};

/// The document that `check -o json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The target, as the user gave it.
    pub target: String,
    /// `ok`, `needs_option`, `blocked` or `unknown`.
    pub verdict: Verdict,
    /// The CRIU that it is about.
    pub criu: Criu,
    /// The kernel that it would run on.
    pub kernel: String,
    /// Whether the tree was frozen during the inspection. If not, it may have changed meanwhile.
    pub frozen: bool,
    /// All files that aren't dumped, in the order in which CRIU would come to them.
    pub blockers: Vec<BlockerRow>,
    /// The tree, each process before its children.
    pub tree: Vec<SubtreeRow>,
    /// The shortest way to a dump of the whole tree.
    pub plan: Vec<StepRow>,
}

/// The CRIU that a verdict is about.
#[derive(Clone, Debug, Serialize)]
pub struct Criu {
    /// Its version.
    pub version: String,
    /// `given`, `path` or `assumed`.
    pub source: String,
    /// Its options.
    pub options: Vec<String>,
    /// A remark on the version.
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
    /// The fd; null if no slot holds the file.
    pub fd: Option<u32>,
    /// The file's kind.
    pub kind: FileKind,
    /// The target of its link in `/proc`.
    pub link: String,
    /// `needs_option`, `blocked` or `unknown`.
    pub verdict: Verdict,
    /// The stable code of the reason.
    pub reason: Reason,
    /// CRIU's message; empty if it isn't known.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// A process with all its descendants, as if it were dumped alone.
#[derive(Clone, Debug, Serialize)]
pub struct SubtreeRow {
    /// Its root.
    pub pid: u32,
    /// The root's parent.
    pub parent: u32,
    /// The root's name.
    pub comm: String,
    /// Its depth below the tree's root.
    pub depth: usize,
    /// How many processes it has.
    pub processes: usize,
    /// The verdict on it.
    pub verdict: Verdict,
    /// How many blockers it has.
    pub blockers: usize,
}

/// One change on the way to a dump.
#[derive(Clone, Debug, Serialize)]
pub struct StepRow {
    /// `option`, `criu` or `change`.
    pub action: &'static str,
    /// The option, the version, or the remedy.
    pub what: String,
    /// The reason; only for a `change`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The processes that must change; only for a `change`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pids: Vec<u32>,
}

impl Check {
    /// Creates the document from a report.
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
