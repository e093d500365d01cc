//! `fdtracker explain`, and the meaning of an error in CRIU's log.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use serde::Serialize;

use super::{
    args::{self, LsFormat},
    output,
};
use crate::{
    criu::CriuRunner,
    verdict::{self, Cause, FileKind, Judge, Reason, Rule, Verdict, fact, rule_of},
};

pub(super) fn run(args: &args::Explain) -> anyhow::Result<ExitCode> {
    let judge = args.judging.judge(CriuRunner::default())?;
    let rules = rules_about(&judge, &args.what);
    if rules.is_empty() {
        anyhow::bail!(
            "nothing is known of {:?}: give a kind ({}), a reason (fdtracker rules lists them), or what CRIU's log says",
            args.what,
            FileKind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
        );
    }
    let rows: Vec<Row> = rules.iter().map(|rule| Row::new(rule, &judge)).collect();
    match args.output {
        LsFormat::Json => output::json(&rows)?,
        LsFormat::Table => print(&rows)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn rules_about<'a>(judge: &'a Judge, what: &str) -> Vec<&'a Rule> {
    if let Some(kind) = FileKind::from_name(what) {
        return judge.rules().of_kind(kind).collect();
    }
    let named: Vec<&Rule> = judge.rules().iter().filter(|rule| rule.reason == what).collect();
    if named.is_empty() {
        rule_of(judge.rules(), what).map(|(rule, _)| rule).into_iter().collect()
    } else {
        named
    }
}

/// A rule, as users see it.
#[derive(Serialize)]
struct Row {
    reason: Reason,
    kinds: Vec<&'static str>,
    when: String,
    verdict: Verdict,
    message: String,
    remedy: String,
    options: Vec<String>,
    source: String,
    /// Whether it applies to this CRIU and kernel.
    applies: bool,
}

impl Row {
    fn new(rule: &Rule, judge: &Judge) -> Self {
        let mut kinds: Vec<&str> = rule.kinds.iter().map(|kind| kind.name()).collect();
        kinds.sort_unstable();
        Self {
            reason: rule.reason.clone(),
            kinds,
            when: rule.conditions(),
            verdict: rule.verdict,
            message: rule.message.pattern(),
            remedy: rule.remedy.pattern(),
            options: rule.options.iter().map(verdict::Message::pattern).collect(),
            source: rule.source.clone(),
            applies: rule.is_about(judge.profile()),
        }
    }
}

fn print(rows: &[Row]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for row in rows {
        let when = if row.when.is_empty() { "always".to_owned() } else { row.when.clone() };
        let here = if row.applies { "" } else { " (not with this CRIU and kernel)" };
        writeln!(out, "{}: {}{here}", row.reason, row.verdict)?;
        let lines = [
            ("kinds", row.kinds.join(", ")),
            ("when", when),
            ("CRIU says", row.message.clone()),
            ("remedy", row.remedy.clone()),
            ("options", row.options.join(", ")),
            ("source", row.source.clone()),
        ];
        for (name, text) in lines.iter().filter(|(_, text)| !text.is_empty()) {
            writeln!(out, "  {name:<10} {text}")?;
        }
    }
    out.flush()
}

/// The meaning of an error in a log.
#[derive(Serialize)]
struct Explained {
    line: usize,
    message: String,
    pid: Option<u32>,
    comm: Option<String>,
    fd: Option<u32>,
    reason: Option<Reason>,
    verdict: Option<Verdict>,
    remedy: Option<String>,
    source: Option<String>,
}

/// Prints why a dump failed. The exit code is 3 if no rule is about it.
pub(super) fn cause(format: LsFormat, judge: &Judge, cause: &Cause) -> anyhow::Result<ExitCode> {
    let found = rule_of(judge.rules(), &cause.message);
    let fd = found.as_ref().and_then(|(_, facts)| {
        let fd = facts.iter().find(|(fact, _)| *fact == fact::FD)?;
        fd.1.parse().ok()
    });
    let rule = found.as_ref().map(|(rule, _)| *rule);
    let explained = Explained {
        line: cause.line,
        message: cause.message.clone(),
        pid: cause.pid,
        comm: cause.comm.clone(),
        fd,
        reason: rule.map(|rule| rule.reason.clone()),
        verdict: rule.map(|rule| rule.verdict),
        remedy: rule.map(|rule| rule.remedy.pattern()),
        source: rule.map(|rule| rule.source.clone()),
    };
    match format {
        LsFormat::Json => output::json(&explained)?,
        LsFormat::Table => print_cause(&explained)?,
    }
    let known = rule.is_some_and(|rule| rule.verdict != Verdict::Ok);
    Ok(ExitCode::from(if known { 1 } else { 3 }))
}

fn print_cause(cause: &Explained) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let who = match (&cause.comm, cause.pid) {
        (Some(comm), Some(pid)) => format!("{}[{pid}]", output::printable(comm)),
        _ => "no process in particular".to_owned(),
    };
    let fd = cause.fd.map(|fd| format!(", fd {fd}")).unwrap_or_default();
    writeln!(out, "line {}: {who}{fd}", cause.line)?;
    writeln!(out, "  CRIU says  {}", output::printable(&cause.message))?;
    let reason = cause.reason.as_ref().map_or("no rule is about this message", Reason::as_str);
    writeln!(out, "  reason     {reason}")?;
    for (name, text) in [("remedy", &cause.remedy), ("source", &cause.source)] {
        if let Some(text) = text {
            writeln!(out, "  {name:<10} {text}")?;
        }
    }
    out.flush()
}
