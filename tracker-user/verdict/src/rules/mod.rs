//! Rules are data: `rules.toml` has one for each thing that CRIU does. A file of the same form can
//! add to them and override them.

mod comparison;
mod condition;
mod error;
mod file;
mod message;
mod reader;
mod rule;

use std::collections::BTreeSet;

pub use error::{Expected, Problem, RuleError};
pub use message::Message;
pub(crate) use rule::Matches;
pub use rule::Rule;

use crate::{FileKind, Reason};

/// Rules, in the order in which CRIU finds out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    all: Vec<Rule>,
}

impl Rules {
    /// Reads the rules of this build, for the releases that are known.
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

    /// Puts those of another file before them. They replace all rules that have the same reasons.
    #[must_use]
    pub fn overridden_by(self, other: Self) -> Self {
        let reasons: BTreeSet<Reason> = other.all.iter().map(|rule| rule.reason.clone()).collect();
        let rest = self.all.into_iter().filter(|rule| !reasons.contains(&rule.reason));
        Self { all: other.all.into_iter().chain(rest).collect() }
    }

    /// Iterates over all rules, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.all.iter()
    }

    /// Iterates over the rules for a kind, in order.
    pub fn of_kind(&self, kind: FileKind) -> impl Iterator<Item = &Rule> {
        self.all.iter().filter(move |rule| rule.kinds.contains(&kind))
    }
}
