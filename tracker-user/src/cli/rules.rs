//! `fdtracker rules`: what each release of CRIU does with each kind.

use std::{collections::BTreeMap, process::ExitCode};

use serde::Serialize;

use super::{
    args::{self, RulesFormat},
    output,
};
use crate::{
    criu::CriuRunner,
    verdict::{CriuVersion, Facts, FileKind, Judge, KNOWN_VERSIONS, Reason, Verdict},
};

/// What the releases do with one kind.
#[derive(Serialize)]
struct Row {
    kind: FileKind,
    /// By release: `ok`, `blocked`, or `depends`.
    criu: BTreeMap<String, &'static str>,
    /// The reasons why some release doesn't dump a file of this kind.
    reasons: Vec<Reason>,
}

pub(super) fn run(args: &args::Rules) -> anyhow::Result<ExitCode> {
    let judge = args.judging.judge(CriuRunner::default())?;
    let versions: Vec<CriuVersion> = match args.judging.criu {
        Some(version) => vec![version],
        None => KNOWN_VERSIONS.to_vec(),
    };
    let judges: Vec<Judge> =
        versions.iter().map(|version| judge.with_profile(judge.profile().with_version(*version))).collect();
    let rows: Vec<Row> = FileKind::ALL.iter().map(|kind| Row::new(*kind, &judges)).collect();
    match args.output {
        RulesFormat::Json => output::json(&rows)?,
        RulesFormat::Table => output::table(&header(&versions, false), rows.iter().map(Row::cells))?,
        RulesFormat::Markdown => print!("{}", markdown(&versions, &rows)),
    }
    Ok(ExitCode::SUCCESS)
}

fn header(versions: &[CriuVersion], markdown: bool) -> Vec<String> {
    let head = |text: &str| if markdown { text.to_lowercase() } else { text.to_owned() };
    let versions = versions.iter().map(CriuVersion::to_string);
    [head("KIND")].into_iter().chain(versions).chain([head("REASONS")]).collect()
}

fn markdown(versions: &[CriuVersion], rows: &[Row]) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = header(versions, true);
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    let rows = rows.iter().map(|row| line(row.cells()));
    [line(head), rule].into_iter().chain(rows).collect()
}

impl Row {
    fn new(kind: FileKind, judges: &[Judge]) -> Self {
        let mut reasons = Vec::new();
        for rule in judges
            .iter()
            .flat_map(|judge| judge.rules().of_kind(kind).filter(|r| r.is_about(judge.profile())))
        {
            if rule.verdict != Verdict::Ok && !reasons.contains(&rule.reason) {
                reasons.push(rule.reason.clone());
            }
        }
        let verdict = |judge: &Judge| match judge.worst(kind, &Facts::default()) {
            Verdict::Ok => "ok",
            Verdict::Blocked => "blocked",
            Verdict::NeedsOption | Verdict::Unknown => "depends",
        };
        let criu = judges.iter().map(|judge| (judge.profile().version.to_string(), verdict(judge))).collect();
        Self { kind, criu, reasons }
    }

    fn cells(&self) -> Vec<String> {
        let verdicts = self.criu.values().map(|verdict| (*verdict).to_owned());
        let reasons: Vec<&str> = self.reasons.iter().map(Reason::as_str).collect();
        [self.kind.to_string()].into_iter().chain(verdicts).chain([reasons.join(", ")]).collect()
    }
}
