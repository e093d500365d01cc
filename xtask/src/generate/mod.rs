//! `cargo xtask gen`: files that are made from others, so that nothing is written twice.
//!
//! - `rules`: the alert rules' forms for Kubernetes;
//! - `dashboards`, of `panels`: Grafana's.
//!
//! The lists of metrics and flags are made by unit tests of the agent, which it runs.

mod dashboards;
mod panels;
mod rules;

use std::fs;

use anyhow::{Context as _, bail};

use crate::command::{cargo, must, workspace};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if a file isn't what it would be
    #[arg(long)]
    pub(crate) check: bool,
}

/// A file in the workspace, and what it must hold.
struct Generated {
    path: &'static str,
    text: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let root = workspace()?;
    let mut files = rules::files(&root)?;
    files.extend(dashboards::files()?);
    let mut stale = Vec::new();
    for Generated { path, text } in files {
        let file = root.join(path);
        if fs::read_to_string(&file).is_ok_and(|found| found == text) {
            continue;
        }
        if args.check {
            stale.push(path);
        } else {
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            eprintln!("wrote {path}");
        }
    }
    if !args.check {
        references()?;
    }
    if stale.is_empty() {
        Ok(())
    } else {
        bail!("not as generated: {} (cargo xtask gen makes them)", stale.join(", "))
    }
}

/// Lists of metrics and flags are made where these are defined: by the tests that compare them.
fn references() -> anyhow::Result<()> {
    let tests = ["test", "--quiet", "--locked", "--package", "tracker-user", "--lib", "reference"];
    must(cargo()?.env("FDTRACKER_WRITE_DOCS", "1").args(tests))
}
