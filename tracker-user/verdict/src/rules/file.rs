//! Reading files of rules. Every word is checked against the enums that verdicts are made with.

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{
    Rule,
    comparison::Versions,
    condition::Condition,
    error::{Expected, Problem, RuleError},
    message::Message,
    reader::{Fields, Located, unknown, wrong_type},
};
use crate::{FileKind, Pass, Verdict, facts::Fact, options::DumpOption};

/// The fields of a file.
pub(super) const FILE_FIELDS: &[&str] = &["rule"];

/// The fields of a rule.
pub(super) const RULE_FIELDS: &[&str] = &[
    "reason", "kinds", "pass", "criu", "kernel", "unless", "when", "verdict", "message", "remedy", "options",
    "source",
];

/// What a rule can come to. Unknown is what no rule decides.
pub(super) const VERDICTS: &[Verdict] = &[Verdict::Ok, Verdict::NeedsOption, Verdict::Blocked];

/// Reads the rules of a file. `name` is what errors call it.
///
/// # Errors
/// When it is malformed: the first thing that is wrong.
pub(super) fn parse(text: &str, name: &str) -> Result<Vec<Rule>, RuleError> {
    let error = |rule: Option<&str>, Located { at, problem }: Located| {
        let before = text.get(..at).unwrap_or(text);
        let line = 1 + before.matches('\n').count();
        RuleError { file: name.to_owned(), line, rule: rule.map(str::to_owned), problem }
    };
    let file = DeTable::parse(text).map_err(|toml| {
        let at = toml.span().map_or(0, |span| span.start);
        error(None, Located { at, problem: Problem::Toml(toml.message().to_owned()) })
    })?;
    let rules = list(file.get_ref()).map_err(|located| error(None, located))?;
    let read = |value: &Spanned<DeValue<'_>>| {
        let name = value.get_ref().get("reason").and_then(|reason| reason.get_ref().as_str());
        rule(value).map_err(|located| error(name, located))
    };
    rules.iter().map(read).collect()
}

/// Finds the rules of a file, unread.
fn list<'t>(file: &'t DeTable<'t>) -> Result<&'t [Spanned<DeValue<'t>>], Located> {
    let Some(rules) = Fields::new(file, 0, Expected::File)?.get("rule") else { return Ok(&[]) };
    let array = rules.get_ref().as_array().map(|array| &array[..]);
    array.ok_or_else(|| wrong_type("rule", "a list of tables: [[rule]]", rules))
}

fn rule(value: &Spanned<DeValue<'_>>) -> Result<Rule, Located> {
    let table = value.get_ref().as_table().ok_or_else(|| wrong_type("rule", "a table: [[rule]]", value))?;
    let fields = Fields::new(table, value.span().start, Expected::Rule)?;
    let reason = fields.parse("reason", |text| Ok(text.parse()?))?;
    let verdict = fields.must("verdict", fields.parse("verdict", verdict)?)?;
    let text = |name| fields.parse(name, Message::parse).map(Option::unwrap_or_default);
    let versions = |name| fields.parse(name, Versions::parse).map(Option::unwrap_or_default);
    let rule = Rule {
        reason: fields.must("reason", reason)?,
        kinds: fields.must("kinds", fields.list("kinds", kind)?)?,
        pass: fields.parse("pass", pass)?.unwrap_or(Pass::File),
        criu: versions("criu")?,
        kernel: versions("kernel")?,
        unless: fields.list("unless", option)?.unwrap_or_default(),
        when: fields.get("when").map_or(Ok(Vec::new()), conditions)?,
        verdict,
        message: text("message")?,
        remedy: text("remedy")?,
        options: fields.list("options", Message::parse)?.unwrap_or_default(),
        source: fields.must("source", fields.parse("source", |text| Ok(text.to_owned()))?)?,
    };
    complete(rule).map_err(|problem| fields.wrong(problem))
}

/// Adds what follows from the rest.
fn complete(mut rule: Rule) -> Result<Rule, Problem> {
    if rule.verdict != Verdict::Ok && (rule.message.is_empty() || rule.remedy.is_empty()) {
        return Err(Problem::NoMessage);
    }
    if rule.verdict == Verdict::NeedsOption && rule.options.is_empty() {
        let options = rule.unless.iter().map(|option| Message::of_text(option.to_string()));
        rule.options = options.collect();
        if rule.options.is_empty() {
            return Err(Problem::NoOption);
        }
    }
    Ok(rule)
}

fn conditions(value: &Spanned<DeValue<'_>>) -> Result<Vec<(Fact, Condition)>, Located> {
    let table = value.get_ref().as_table().ok_or_else(|| wrong_type("when", "a table of facts", value))?;
    let condition = |(name, value): (&Spanned<DeString<'_>>, &_)| {
        let fact = fact(name.get_ref()).map_err(|problem| problem.at(name))?;
        Ok((fact, Condition::read(fact, value)?))
    };
    table.iter().map(condition).collect()
}

/// Finds the fact that a rule names.
pub(super) fn fact(name: &str) -> Result<Fact, Problem> {
    Fact::from_name(name).ok_or_else(|| unknown(Expected::Fact, name))
}

fn kind(name: &str) -> Result<FileKind, Problem> {
    FileKind::from_name(name).ok_or_else(|| unknown(Expected::Kind, name))
}

fn pass(name: &str) -> Result<Pass, Problem> {
    Pass::from_name(name).ok_or_else(|| unknown(Expected::Pass, name))
}

fn verdict(name: &str) -> Result<Verdict, Problem> {
    let verdict = VERDICTS.iter().copied().find(|verdict| verdict.name() == name);
    verdict.ok_or_else(|| unknown(Expected::Verdict, name))
}

fn option(name: &str) -> Result<DumpOption, Problem> {
    DumpOption::from_name(name).ok_or_else(|| unknown(Expected::Option, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[rule]]
reason = "pidfd_unsupported"
kinds = [
    "pidfd",
]
criu = "<4.1"
verdict = "blocked"
message = "Can't dump file {fd}"
remedy = "newer"
source = "files.c:dump_one_file"
"#;

    #[test]
    fn a_good_file_is_read() {
        let rules = parse(GOOD, "vendor.toml").unwrap();
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].conditions(), "CRIU < 4.1");
        assert_eq!((rules[0].pass, rules[0].verdict), (Pass::File, Verdict::Blocked));
        assert_eq!(parse("", "empty.toml"), Ok(Vec::new()));
    }

    #[test]
    fn an_option_that_would_help_is_that_without_which_a_rule_matches() {
        let text = GOOD.replace("\"blocked\"", "\"needs_option\"\nunless = [\"tcp-close\"]");
        let rules = parse(&text, "vendor.toml").unwrap();
        assert_eq!(rules[0].options, [Message::of_text("--tcp-close".into())]);
    }

    /// What is replaced in the good file, by what; the line, and what is said of it.
    const BAD: &[(&str, &str, usize, &str)] = &[
        // Words.
        ("[[rule]]", "[[rules]]", 2, r#""rules" is no field of a file of rules; did you mean "rule"?"#),
        ("kinds", "kind", 4, r#""kind" is no field of a rule; did you mean "kinds"?"#),
        ("\"pidfd\"", "\"pidfds\"", 5, r#""pidfds" is no kind; did you mean "pidfd"?"#),
        ("criu", "pass = \"epol\"\ncriu", 7, r#""epol" is no pass; did you mean "epoll"?"#),
        ("\"blocked\"", "\"bloked\"", 8, r#""bloked" is no verdict; did you mean "blocked"?"#),
        ("\"blocked\"", "\"fine\"", 8, r#""fine" is no verdict; known are ok, needs_option, blocked"#),
        ("\"blocked\"", "\"unknown\"", 8, r#""unknown" is no verdict; known are ok, needs_option, blocked"#),
        (
            "criu",
            "unless = [\"tcp-close\", \"file-lock\"]\ncriu",
            7,
            r#""file-lock" is no option; did you mean "file-locks"?"#,
        ),
        (
            "criu = \"<4.1\"",
            "when.of_threads = true",
            7,
            r#""of_threads" is no fact; did you mean "of_thread"?"#,
        ),
        (
            "criu = \"<4.1\"",
            "when.target = [\n \"inside\",\n \"outsite\" ]",
            9,
            r#"target is never "outsite"; did you mean "outside"?"#,
        ),
        (
            "criu = \"<4.1\"",
            "when = { target = { not = \"here\" } }",
            7,
            r#"target is never "here"; known are reaped, inside, outside"#,
        ),
        (
            "criu = \"<4.1\"",
            "when = { target = { is = \"inside\" } }",
            7,
            r#""is" is no field of a condition; known are not"#,
        ),
        ("{fd}", "{fds}", 9, r#""fds" is no fact; did you mean "fd"?"#),
        ("newer", "close {inode:X}", 10, r#""X" is no form of a number; known are x, #x, 016x, o"#),
        ("source", "options = [\"--x {lnk}\"]\nsource", 11, r#""lnk" is no fact; did you mean "link"?"#),
        // Types.
        ("criu = \"<4.1\"", "when.of_thread = 3", 7, "of_thread is true or false, and not an integer"),
        ("criu = \"<4.1\"", "when.target = 3", 7, "target is a text, and not an integer"),
        (
            "criu = \"<4.1\"",
            "when.clock = [8, true]",
            7,
            r#"clock is a number, or a comparison such as ">= 64", and not true or false"#,
        ),
        ("criu = \"<4.1\"", "when = \"clock\"", 7, "when is a table of facts, and not a text"),
        ("criu = \"<4.1\"", "criu = 4.1", 7, "criu is a text, and not a float"),
        ("criu = \"<4.1\"", "unless = \"file-locks\"", 7, "unless is a list of texts, and not a text"),
        ("\"pidfd\"", "7", 5, "kinds is a list of texts, and not an integer"),
        ("newer", "close {link:x}", 10, r#"link is no number, and has no form "x""#),
        // Texts of a form of their own.
        ("<4.1", "4.1", 7, r#""4.1" is no range of versions, such as ">=4.1, <4.2""#),
        (
            "criu = \"<4.1\"",
            "when.clock = \"about 8\"",
            7,
            r#""about 8" is no comparison, such as ">= 64" or "> ghost_limit""#,
        ),
        ("{fd}", "{fd", 9, r#"a { without a } in "Can't dump file {fd""#),
        // What is missing.
        ("verdict = \"blocked\"\n", "", 2, "verdict is missing"),
        ("source = \"files.c:dump_one_file\"\n", "", 2, "source is missing"),
        ("remedy = \"newer\"\n", "", 2, "what isn't ok needs a message and a remedy"),
        (
            "\"blocked\"",
            "\"needs_option\"",
            2,
            "needs_option needs the option that would help: unless or options",
        ),
    ];

    #[test]
    fn a_bad_file_is_refused_with_line_and_reason() {
        for (from, to, line, what) in BAD {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let error = parse(&text, "vendor.toml").unwrap_err().to_string();
            let rule = if to.contains("[[rules]]") { "" } else { "rule \"pidfd_unsupported\": " };
            assert_eq!(error, format!("vendor.toml, line {line}: {rule}{what}"), "{to}");
        }
    }

    #[test]
    fn a_rule_without_a_proper_name_is_refused() {
        let error = |from: &str, to: &str| parse(&GOOD.replacen(from, to, 1), "x").unwrap_err().to_string();
        assert_eq!(
            error("pidfd_unsupported", "pidfd unsupported"),
            "x, line 3: rule \"pidfd unsupported\": \"pidfd unsupported\" is no reason: \
             that is a word of letters, digits and underscores"
        );
        assert_eq!(error("reason = \"pidfd_unsupported\"\n", ""), "x, line 2: reason is missing");
        assert_eq!(error("\"<4.1\"", "<4.1").split(": ").next(), Some("x, line 7"));
        assert_eq!(
            parse("rule = 3", "x").unwrap_err().to_string(),
            "x, line 1: rule is a list of tables: [[rule]], and not an integer"
        );
    }
}
