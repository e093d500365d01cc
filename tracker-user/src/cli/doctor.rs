//! `fdtracker doctor`.

use std::process::ExitCode;

use serde::Serialize;

use super::{
    args::{self, LsFormat},
    output,
};
use crate::{
    bpf::{Finding, Status, findings},
    criu, host,
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

pub(super) fn run(args: &args::Doctor) -> anyhow::Result<ExitCode> {
    let mut found = findings();
    if let Ok(kernel) = host::KernelVersion::running() {
        let profile = criu::profile(args.criu, kernel);
        let status = if args.criu.is_none() && profile.source == crate::verdict::Source::Assumed {
            Status::Warn
        } else {
            Status::Ok
        };
        found.push(Finding { name: "CRIU", status, detail: profile.to_string() });
    }
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
