//! The rules: data, of which this is the form. What they say is in `rules.toml`, one rule per row of what CRIU does, and can be
//! extended or overridden by a file of the same form.

mod comparison;
mod condition;
mod error;
mod file;
mod message;
mod reader;
mod rule;

use std::collections::BTreeSet;

pub use error::{Place, Problem, RuleError};
pub use message::Message;
pub(crate) use rule::Matches;
pub use rule::Rule;

use crate::{FileKind, Reason};

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
        let reasons: BTreeSet<Reason> = other.all.iter().map(|rule| rule.reason.clone()).collect();
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
