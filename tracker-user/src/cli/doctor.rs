//! `fdtracker doctor`.

use std::process::ExitCode;

use serde::Serialize;

use super::{
    args::{self, LsFormat},
    output,
};
use crate::{
    bpf::{Finding, Status, findings},
    inspect::limits,
    verdict::VersionSource,
};

/// The document that `doctor -o json` prints.
#[derive(Serialize)]
struct Report {
    ok: bool,
    findings: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    status: &'static str,
    detail: String,
}

/// Reports what inspections can see: those of `check`, and the agent's.
fn details() -> Finding {
    const NAME: &str = "details";
    let limits = limits();
    if limits.is_empty() {
        return Finding {
            name: NAME,
            status: Status::Ok,
            detail: "all that verdicts depend on can be seen".into(),
        };
    }
    let detail = format!("what depends on these is unknown: {}", limits.join(", "));
    Finding { name: NAME, status: Status::Warn, detail }
}

pub(super) fn run(args: &args::Doctor) -> anyhow::Result<ExitCode> {
    let mut found = findings();
    found.push(details());
    found.push(match args.judging.profile() {
        Ok(profile) => {
            let assumed = profile.source == VersionSource::Assumed;
            let status = if assumed { Status::Warn } else { Status::Ok };
            Finding { name: "CRIU", status, detail: profile.to_string() }
        }
        Err(error) => Finding { name: "CRIU", status: Status::Fail, detail: format!("{error:#}") },
    });
    let ok = found.iter().all(|finding| finding.status != Status::Fail);
    let row = |f: Finding| Row {
        name: f.name,
        status: f.status.name(),
        detail: super::one_line(&anyhow::Error::msg(f.detail)),
    };
    let findings: Vec<Row> = found.into_iter().map(row).collect();
    match args.output {
        LsFormat::Json => output::json(&Report { ok, findings })?,
        LsFormat::Table => {
            let rows = findings.into_iter().map(|row| vec![row.name.into(), row.status.into(), row.detail]);
            output::table(&["CHECK", "STATUS", "DETAIL"], rows)?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
