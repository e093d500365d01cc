//! Reading files of rules.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::{
    Rule,
    condition::{Condition, Versions},
    message::Message,
};
use crate::{FileKind, Pass, Verdict, facts::Fact, options::DumpOption, reason::ParseReasonError};

/// A file of rules that is malformed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{file}, line {line}: {why}")]
pub struct RuleError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub why: String,
}

/// A file, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Spanned<Written>>,
}

/// A rule, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    reason: String,
    kinds: Vec<String>,
    pass: Option<Pass>,
    criu: Option<String>,
    kernel: Option<String>,
    #[serde(default)]
    unless: Vec<String>,
    #[serde(default)]
    when: BTreeMap<String, toml::Value>,
    verdict: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    remedy: String,
    #[serde(default)]
    options: Vec<String>,
    source: String,
}

pub(super) fn parse(text: &str, name: &str) -> Result<Vec<Rule>, RuleError> {
    let error = |at: usize, why: String| {
        let before = text.get(..at).unwrap_or(text);
        RuleError { file: name.to_owned(), line: 1 + before.matches('\n').count(), why }
    };
    let file: File = toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start);
        error(at, e.message().to_owned())
    })?;
    let rule = |written: Spanned<Written>| {
        let at = written.span().start;
        written.into_inner().check().map_err(|why| error(at, why))
    };
    file.rule.into_iter().map(rule).collect()
}

impl Written {
    fn check(self) -> Result<Rule, String> {
        let of = |what: &str| format!("rule {:?}: {what}", self.reason);
        let reason = self.reason.parse().map_err(|error: ParseReasonError| of(&error.to_string()))?;
        let verdict = match self.verdict.as_str() {
            "ok" => Verdict::Ok,
            "needs_option" => Verdict::NeedsOption,
            "blocked" => Verdict::Blocked,
            other => return Err(of(&format!("{other:?} is no verdict: ok, needs_option or blocked is"))),
        };
        if verdict != Verdict::Ok && (self.message.is_empty() || self.remedy.is_empty()) {
            return Err(of("what isn't ok needs a message and a remedy"));
        }
        let kind = |name: &String| FileKind::from_name(name).ok_or_else(|| of(&unknown_kind(name)));
        let option = |name: &String| {
            DumpOption::from_name(name).ok_or_else(|| of(&format!("no option is called {name:?}")))
        };
        let condition = |(name, value): (&String, &toml::Value)| {
            let fact = Fact::from_name(name).ok_or_else(|| of(&format!("no fact is called {name:?}")))?;
            Ok((fact, Condition::parse(fact, value).map_err(|why| of(&why))?))
        };
        let versions = |range: &Option<String>| {
            let parsed = range.as_deref().map(Versions::parse).transpose();
            parsed.map(Option::unwrap_or_default).map_err(|why| of(&why))
        };
        let text = |text: &str| Message::parse(text).map_err(|why| of(&why));
        let unless = self.unless.iter().map(option).collect::<Result<Vec<_>, String>>()?;
        let mut options =
            self.options.iter().map(|option| text(option)).collect::<Result<Vec<_>, String>>()?;
        if options.is_empty() && verdict == Verdict::NeedsOption {
            options = unless.iter().map(|option| text(&option.to_string())).collect::<Result<_, String>>()?;
        }
        if verdict == Verdict::NeedsOption && options.is_empty() {
            return Err(of("needs_option needs the option that would help: unless or options"));
        }
        Ok(Rule {
            kinds: self.kinds.iter().map(kind).collect::<Result<_, String>>()?,
            pass: self.pass.unwrap_or(Pass::File),
            criu: versions(&self.criu)?,
            kernel: versions(&self.kernel)?,
            unless,
            when: self.when.iter().map(condition).collect::<Result<_, String>>()?,
            verdict,
            message: text(&self.message)?,
            remedy: text(&self.remedy)?,
            options,
            source: self.source.clone(),
            reason,
        })
    }
}

fn unknown_kind(name: &str) -> String {
    let known: Vec<&str> = FileKind::ALL.iter().map(|kind| kind.name()).collect();
    format!("no kind is called {name:?}; known are {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[rule]]
reason = "pidfd_unsupported"
kinds = ["pidfd"]
criu = "<4.1"
verdict = "blocked"
message = "Can't dump file {fd}"
remedy = "newer"
source = "files.c:dump_one_file"
"#;

    fn why(from: &str, to: &str) -> RuleError {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD);
        parse(&text, "vendor.toml").unwrap_err()
    }

    #[test]
    fn a_good_file_is_read() {
        let rules = parse(GOOD, "vendor.toml").unwrap();
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].conditions(), "CRIU < 4.1");
        assert_eq!(parse("", "empty.toml"), Ok(Vec::new()));
    }

    #[test]
    fn a_bad_file_is_refused_with_line_and_reason() {
        let error = why("verdict = \"blocked\"", "verdict = \"bloked\"");
        assert_eq!((error.file.as_str(), error.line), ("vendor.toml", 2));
        assert!(error.to_string().contains("\"bloked\" is no verdict: ok, needs_option or blocked is"));
        assert_eq!(why("criu = \"<4.1\"", "criu = <4.1").line, 5);
        assert!(why("pidfd\"]", "pidfds\"]").why.contains("known are"));
        assert!(why("{fd}", "{fds}").why.contains("no fact is called \"fds\""));
        assert!(why("kinds", "kind").why.contains("unknown field"));
        assert!(why("remedy = \"newer\"\n", "").why.contains("a remedy"));
        assert!(why("criu = \"<4.1\"", "unless = [\"lock\"]").why.contains("no option"));
        assert!(why("\"blocked\"", "\"needs_option\"").why.contains("the option that would help"));
        assert!(why("criu = \"<4.1\"", "when = { of_thread = 3 }").why.contains("true or false"));
    }
}
