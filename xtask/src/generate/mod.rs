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

use anyhow::{Context as _, ensure};

use crate::{
    command::{cargo, must},
    paths::workspace,
};

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
    let stale = stale()?;
    if args.check {
        let paths: Vec<&str> = stale.iter().map(|file| file.path).collect();
        ensure!(paths.is_empty(), "not as generated: {} (cargo xtask gen makes them)", paths.join(", "));
        return Ok(());
    }
    for Generated { path, text } in stale {
        let file = workspace()?.join(path);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        eprintln!("wrote {path}");
    }
    references()
}

/// Files that aren't what they must be.
fn stale() -> anyhow::Result<Vec<Generated>> {
    let root = workspace()?;
    let mut files = rules::files(&root)?;
    files.extend(dashboards::files()?);
    files.retain(|file| !fs::read_to_string(root.join(file.path)).is_ok_and(|found| found == file.text));
    Ok(files)
}

/// Lists of metrics and flags are made where these are defined: by the tests that compare them.
fn references() -> anyhow::Result<()> {
    let tests = ["test", "--quiet", "--locked", "--package", "tracker-user", "--lib", "reference"];
    must(cargo()?.env("FDTRACKER_WRITE_DOCS", "1").args(tests))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_current() {
        run(&Args { check: true }).unwrap();
    }
}
