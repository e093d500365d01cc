//! `cargo xtask gen`: makes files from other files, so that nothing is written twice.
//!
//! - `rules`: the alert rules in the forms for Kubernetes;
//! - `dashboards`, from `panels`: Grafana's dashboards.
//!
//! Unit tests of the agent make the lists of metrics and flags; this command runs them.

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

/// A file in the workspace, and the text that it must have.
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

/// Returns the files that don't have the text that they must have.
fn stale() -> anyhow::Result<Vec<Generated>> {
    let root = workspace()?;
    let mut files = rules::files(&root)?;
    files.extend(dashboards::files()?);
    files.retain(|file| !fs::read_to_string(root.join(file.path)).is_ok_and(|found| found == file.text));
    Ok(files)
}

/// Makes the lists of metrics and flags. The tests that compare them do it.
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
