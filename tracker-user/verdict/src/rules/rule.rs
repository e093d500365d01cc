//! One rule.

use std::collections::BTreeSet;

use super::{
    comparison::Versions,
    condition::{Condition, Truth},
    message::Message,
};
use crate::{
    FileKind, Pass, Profile, Reason, Verdict,
    facts::{Fact, Value},
    options::DumpOption,
};

/// What CRIU makes of files of some kinds, under some conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The stable code for why.
    pub reason: Reason,
    /// The kinds of file that it is about.
    pub kinds: BTreeSet<FileKind>,
    /// When CRIU finds it out.
    pub pass: Pass,
    /// The releases of CRIU that it is about.
    pub(super) criu: Versions,
    /// The kernels that it is about.
    pub(super) kernel: Versions,
    /// Options with any of which it doesn't match.
    pub unless: Vec<DumpOption>,
    /// What must be so of the file.
    pub(super) when: Vec<(Fact, Condition)>,
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

/// Whether a rule matches a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Matches {
    Yes,
    No,
    /// It depends on these facts, which aren't known.
    Unknown(Vec<Fact>),
}

impl Rule {
    /// Whether the rule is about this release and kernel, in general.
    #[must_use]
    pub fn is_about(&self, profile: &Profile) -> bool {
        let criu = [profile.version.major, profile.version.minor, profile.version.patch];
        self.criu.include(criu) && self.kernel.include([profile.kernel.major, profile.kernel.minor, 0])
    }

    /// Whether it matches a file, and on what that depends if it can't be told.
    pub(crate) fn matches<'a>(
        &self,
        lookup: impl Fn(Fact) -> Option<&'a Value>,
        profile: &Profile,
    ) -> Matches {
        if !self.is_about(profile) || self.unless.iter().any(|option| profile.options.has(*option)) {
            return Matches::No;
        }
        let mut unknown = Vec::new();
        for (fact, condition) in &self.when {
            match condition.of(lookup(*fact), profile) {
                Truth::Yes => {}
                Truth::No => return Matches::No,
                Truth::Unknown => unknown.push(*fact),
            }
        }
        if unknown.is_empty() { Matches::Yes } else { Matches::Unknown(unknown) }
    }

    /// Describes its conditions.
    #[must_use]
    pub fn conditions(&self) -> String {
        let mut parts: Vec<String> = self.when.iter().map(|(fact, what)| what.describe(*fact)).collect();
        parts.extend(self.criu.describe("CRIU"));
        parts.extend(self.kernel.describe("Linux"));
        parts.extend(self.unless.iter().map(|option| format!("without {option}")));
        parts.join(", ")
    }
}
