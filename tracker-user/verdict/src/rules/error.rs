//! What can be wrong with a file of rules.

use std::fmt;

use thiserror::Error;

use super::{file, message};
use crate::{
    FileKind, Pass, Verdict,
    facts::{Fact, Type},
    options::DumpOption,
    reason::ParseReasonError,
};

/// A file of rules that is malformed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{file}, line {line}: {}{problem}", of_rule(rule.as_deref()))]
pub struct RuleError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The reason of the rule that it is in, as it is written; `None` where there is none.
    pub rule: Option<String>,
    /// What is wrong.
    pub problem: Problem,
}

fn of_rule(rule: Option<&str>) -> String {
    rule.map(|rule| format!("rule {rule:?}: ")).unwrap_or_default()
}

/// What is wrong, and what would be right.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Problem {
    /// It is no TOML.
    #[error("{0}")]
    Toml(String),
    /// A word that isn't known.
    #[error("{}{}", Unknown(*expected, word), Hint(*expected, word))]
    Word {
        /// What it should be one of.
        expected: Expected,
        /// The word.
        word: String,
    },
    /// A value of another type.
    #[error("{name} is {expected}, and not {found}")]
    Type {
        /// The field or the fact.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// No code for why.
    #[error(transparent)]
    Reason(#[from] ParseReasonError),
    /// No relation to a number.
    #[error("{0:?} is no comparison, such as \">= 64\" or \"> ghost_limit\"")]
    Comparison(String),
    /// No range of versions.
    #[error("{0:?} is no range of versions, such as \">=4.1, <4.2\"")]
    Versions(String),
    /// A place for a fact that isn't closed.
    #[error("a {{ without a }} in {0:?}")]
    Open(String),
    /// A number's form, of a fact that is none.
    #[error("{fact} is no number, and has no form {form:?}")]
    Form {
        /// The fact.
        fact: &'static str,
        /// The form.
        form: String,
    },
    /// A rule that refuses files and doesn't say how.
    #[error("what isn't ok needs a message and a remedy")]
    NoMessage,
    /// A rule that asks for an option and doesn't say which.
    #[error("needs_option needs the option that would help: unless or options")]
    NoOption,
}

/// What a word should be one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A field of the file.
    File,
    /// A field of a rule.
    Rule,
    /// A field of a condition.
    Condition,
    /// A kind.
    Kind,
    /// A pass.
    Pass,
    /// A verdict that a rule can come to.
    Verdict,
    /// An option that is on or off.
    Option,
    /// A fact.
    Fact,
    /// A word that this fact can be.
    Of(Fact),
    /// A form of a number in a message.
    Form,
}

/// From here on two words are like each other (by Jaro and Winkler: 1 if they are the same).
const ALIKE: f64 = 0.8;

impl Expected {
    /// Lists the words that would be right.
    #[must_use]
    pub fn known(self) -> Vec<&'static str> {
        match self {
            Self::File => file::FILE_FIELDS.to_vec(),
            Self::Rule => file::RULE_FIELDS.to_vec(),
            Self::Condition => vec!["not"],
            Self::Kind => FileKind::ALL.iter().map(|kind| kind.name()).collect(),
            Self::Pass => Pass::ALL.iter().map(|pass| pass.name()).collect(),
            Self::Verdict => file::VERDICTS.iter().map(|verdict: &Verdict| verdict.name()).collect(),
            Self::Option => DumpOption::ALL.iter().map(|option| option.name()).collect(),
            Self::Fact => Fact::ALL.iter().map(|fact| fact.name()).collect(),
            Self::Of(fact) => match fact.value_type() {
                Type::Word(words) => words.to_vec(),
                Type::Bool | Type::Int | Type::Text => Vec::new(),
            },
            Self::Form => message::FORMS.iter().map(|(name, _)| *name).filter(|n| !n.is_empty()).collect(),
        }
    }

    /// Finds the word that is most like a wrong one, if one is.
    #[must_use]
    pub fn nearest(self, word: &str) -> Option<&'static str> {
        let likeness = |known: &'static str| (strsim::jaro_winkler(known, word), known);
        let best = self.known().into_iter().map(likeness).max_by(|(a, _), (b, _)| a.total_cmp(b));
        best.filter(|(likeness, _)| *likeness > ALIKE).map(|(_, known)| known)
    }
}

/// That a word isn't known.
struct Unknown<'a>(Expected, &'a str);

impl fmt::Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(expected, word) = self;
        let what = match expected {
            Expected::File => "field of a file of rules",
            Expected::Rule => "field of a rule",
            Expected::Condition => "field of a condition",
            Expected::Kind => "kind",
            Expected::Pass => "pass",
            Expected::Verdict => "verdict",
            Expected::Option => "option",
            Expected::Fact => "fact",
            Expected::Of(fact) => return write!(f, "{} is never {word:?}", fact.name()),
            Expected::Form => "form of a number",
        };
        write!(f, "{word:?} is no {what}")
    }
}

/// What would be right.
struct Hint<'a>(Expected, &'a str);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(expected, word) = self;
        match expected.nearest(word) {
            Some(nearest) => write!(f, "; did you mean {nearest:?}?"),
            None => write!(f, "; known are {}", expected.known().join(", ")),
        }
    }
}
