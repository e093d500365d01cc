//! The rules: data, of which this is the form. What they say is in `rules.toml`, one rule per row of what CRIU does, and can be
//! extended or overridden by a file of the same form.

mod condition;
mod file;
mod message;

use std::{collections::BTreeSet, fmt};

pub use condition::{Condition, Truth};
pub use file::RuleError;
pub use message::Message;
use serde::Deserialize;

use self::condition::Versions;
use super::{FileKind, Verdict, facts::Fact, options::DumpOption};

/// What CRIU does when, in the order of its passes over a process tree (`cr-dump.c:cr_dump_tasks`, `dump_one_task`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// Processes and their namespaces are collected (`collect_pstree`, `collect_pstree_ids`).
    Collect,
    /// Mappings of a process (`collect_mappings`).
    Mappings,
    /// Its files are sent to CRIU (`drain_fds`).
    Drain,
    /// Each file is dumped (`dump_one_file`).
    #[default]
    File,
    /// Its epolls are dumped (`flush_eventpoll_dinfo_queue`).
    Epoll,
    /// After all processes: dead processes whose pid is another's thread by now (`dead_pid_conflict`).
    DeadPids,
    /// File locks (`dump_file_locks`).
    Locks,
    /// Terminals of a session that isn't in the tree (`dump_verify_tty_sids`).
    Sessions,
    /// The tree itself (`dump_pstree`).
    Tree,
    /// Sockets whose peer is outside (`fix_external_unix_sockets`).
    ExternalSockets,
    /// Terminals without their other end (`tty_verify_active_pairs`).
    Terminals,
}

impl Pass {
    /// Whether the pass is over one process, before the next one's begins; else over all of them.
    #[must_use]
    pub const fn is_of_process(self) -> bool {
        matches!(self, Self::Mappings | Self::Drain | Self::File | Self::Epoll)
    }
}

/// What CRIU makes of files of some kinds, under some conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The stable code for why.
    pub reason: String,
    /// The kinds of file that it is about.
    pub kinds: BTreeSet<FileKind>,
    /// When CRIU finds it out.
    pub pass: Pass,
    /// The releases of CRIU for which it holds.
    criu: Versions,
    /// The kernels on which it holds.
    kernel: Versions,
    /// It doesn't hold with any of these options.
    pub unless: Vec<DumpOption>,
    /// What must be so of the file.
    when: Vec<(Fact, Condition)>,
    /// What CRIU makes of it.
    pub verdict: Verdict,
    /// What CRIU says.
    pub message: Message,
    /// What to do.
    pub remedy: Message,
    /// Options, one of which would help; as they are given to CRIU.
    pub options: Vec<Message>,
    /// Where CRIU says so: file and function.
    pub source: String,
}

impl Rule {
    /// Whether the rule is about this release and kernel, in general.
    #[must_use]
    pub fn is_about(&self, profile: &super::Profile) -> bool {
        let criu = [profile.version.major, profile.version.minor, profile.version.patch];
        self.criu.include(criu) && self.kernel.include([profile.kernel.major, profile.kernel.minor, 0])
    }

    /// Whether it holds for a file, and on what it depends if that can't be told.
    pub(super) fn holds(
        &self,
        look: impl Fn(Fact) -> Option<super::Value>,
        profile: &super::Profile,
    ) -> Holds {
        if !self.is_about(profile) || self.unless.iter().any(|option| profile.options.has(*option)) {
            return Holds::No;
        }
        let mut unknown = Vec::new();
        for (fact, condition) in &self.when {
            match condition.of(look(*fact).as_ref(), profile) {
                Truth::Yes => {}
                Truth::No => return Holds::No,
                Truth::Unknown => unknown.push(*fact),
            }
        }
        if unknown.is_empty() { Holds::Yes } else { Holds::Unknown(unknown) }
    }

    /// Its conditions, for people.
    #[must_use]
    pub fn conditions(&self) -> String {
        let mut parts: Vec<String> = self.when.iter().map(|(fact, what)| what.describe(*fact)).collect();
        parts.extend(self.criu.describe("CRIU"));
        parts.extend(self.kernel.describe("Linux"));
        parts.extend(self.unless.iter().map(|option| format!("without {option}")));
        parts.join(", ")
    }
}

/// Whether a rule holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    No,
    /// It depends on these facts, which aren't known.
    Unknown(Vec<Fact>),
}

/// All rules, in the order in which CRIU looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    all: Vec<Rule>,
}

impl Rules {
    /// The rules for the releases that are known.
    ///
    /// # Errors
    /// Never, unless this build is broken: a test reads them.
    pub fn embedded() -> Result<Self, RuleError> {
        Self::parse(include_str!("rules.toml"), "the rules of this build")
    }

    /// Reads a file of rules. `name` is what errors call it.
    ///
    /// # Errors
    /// When it is malformed: which line, and why.
    pub fn parse(text: &str, name: &str) -> Result<Self, RuleError> {
        Ok(Self { all: file::parse(text, name)? })
    }

    /// These rules, and before them those of another file; of which those with a reason that is known here take its place.
    #[must_use]
    pub fn overridden_by(self, other: Self) -> Self {
        let reasons: BTreeSet<String> = other.all.iter().map(|rule| rule.reason.clone()).collect();
        let rest = self.all.into_iter().filter(|rule| !reasons.contains(&rule.reason));
        Self { all: other.all.into_iter().chain(rest).collect() }
    }

    /// Every rule.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.all.iter()
    }

    /// The rules for a kind, in order.
    pub fn of_kind(&self, kind: FileKind) -> impl Iterator<Item = &Rule> {
        self.all.iter().filter(move |rule| rule.kinds.contains(&kind))
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Collect => "collect",
            Self::Mappings => "mappings",
            Self::Drain => "drain",
            Self::File => "file",
            Self::Epoll => "epoll",
            Self::DeadPids => "dead_pids",
            Self::Locks => "locks",
            Self::Sessions => "sessions",
            Self::Tree => "tree",
            Self::ExternalSockets => "external_sockets",
            Self::Terminals => "terminals",
        })
    }
}
