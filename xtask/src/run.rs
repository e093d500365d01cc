//! `cargo xtask run`: runs the agent in the foreground. Nothing must be set up.

use std::os::unix::process::CommandExt as _;

use anyhow::Context as _;

use crate::{
    build::executables,
    command::cargo,
    machine::{as_root, mount_tracefs},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to `fdtracker agent`; see `fdtracker agent --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    agent: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    eprintln!("building the agent (some two minutes the first time), then running it until Ctrl-C");
    let mut build = cargo()?;
    build.args(["build", "--release", "--locked", "--package", "tracker-user", "--bin", "fdtracker"]);
    let built = executables(&mut build)?;
    let binary = &built.first().context("cargo has built no fdtracker")?.path;
    mount_tracefs()?;
    let mut agent = as_root(binary);
    agent.args(["agent", "--live"]).args(&args.agent);
    // The agent replaces this program, so that signals reach it directly.
    Err(agent.exec()).with_context(|| format!("start {}", binary.display()))
}
