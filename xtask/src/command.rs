//! Running other programs.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// The workspace.
pub(crate) fn workspace() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_owned).context("xtask is in the workspace")
}

/// Where tools are kept that the project installs for itself.
pub(crate) fn tools() -> anyhow::Result<PathBuf> {
    Ok(workspace()?.join("target/tools"))
}

/// `cargo` as it runs this program, in the workspace.
pub(crate) fn cargo() -> anyhow::Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()?);
    // What cargo has told this program about its package isn't so of others: ring's build script would take it for a change.
    let is_of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_package) {
            cargo.env_remove(name);
        }
    }
    Ok(cargo)
}

/// Runs a command that must work, and tells what takes long.
pub(crate) fn must(command: &mut Command) -> anyhow::Result<()> {
    const LONG: Duration = Duration::from_secs(10);
    let (shown, start) = (show(command), Instant::now());
    eprintln!("+ {shown}");
    let status = command.status().with_context(|| format!("start {shown}"))?;
    if start.elapsed() > LONG {
        eprintln!("took {} s: {shown}", start.elapsed().as_secs());
    }
    if status.success() { Ok(()) } else { bail!("{shown}: {status}") }
}

/// As [`must`], of what gets something from elsewhere: who is asked may be away for a moment.
pub(crate) fn fetch(command: &mut Command) -> anyhow::Result<()> {
    for pause in [10, 30] {
        match must(command) {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("{error:#}; trying again in {pause} s"),
        }
        std::thread::sleep(Duration::from_secs(pause));
    }
    must(command)
}

/// The standard output of a command that must work.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("start {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
