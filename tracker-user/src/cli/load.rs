//! The command line, with what file and environment add to it; and how much is told on standard error.

use std::{io, path::PathBuf};

use clap::{Args, CommandFactory as _, FromArgMatches as _};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use super::{args, judging::Judging};
use crate::{
    config::{ConfigError, Settings, Source},
    verdict::Judge,
};

/// The subcommand that can be configured.
pub(super) const AGENT: &str = "agent";

/// Where the configuration is.
#[derive(Debug, Args)]
pub(super) struct Config {
    /// A TOML file whose keys are these flags, such as audit-interval = "30s"; it may be missing, unless it is named. Variables go
    /// before it, and flags before both
    #[arg(long = "config.file", value_name = "PATH", default_value = "/etc/fdtracker/fdtracker.toml")]
    config_file: PathBuf,

    /// Only check all of it, and print what it comes to
    #[arg(long = "config.check")]
    pub(super) config_check: bool,
}

/// A command line that was understood.
pub(super) struct Loaded {
    /// What was typed, or set elsewhere.
    pub(super) cli: args::Cli,
    /// Only of the agent.
    pub(super) settings: Option<Settings>,
}

/// Parses the command line, and reads what adds to it.
pub(super) fn load(source: &Source) -> Result<Loaded, ConfigError> {
    let mut parsed = source.parse(args::Cli::command(), AGENT)?;
    let cli = args::Cli::from_arg_matches_mut(&mut parsed.matches)?;
    Ok(Loaded { cli, settings: parsed.settings })
}

/// Checks what can be checked without starting anything: all that needs more than a look at one value.
pub(super) fn check(args: &args::Agent) -> anyhow::Result<Judge> {
    args.web.check()?;
    args.engine.judge()
}

/// Whether the agent can take over another value without being started anew.
pub(super) fn is_live(name: &str) -> bool {
    ["audit-interval", "judge-interval", "log-level"].contains(&name) || Judging::has_flag(name)
}

/// How much is told on standard error.
pub(super) struct LogLevel(reload::Handle<LevelFilter, Registry>);

impl LogLevel {
    /// Tells so much from now on.
    pub(super) fn to_stderr(level: LevelFilter) -> Self {
        let (level, handle) = reload::Layer::new(level);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
        tracing_subscriber::registry().with(level).with(lines).init();
        Self(handle)
    }

    /// Tells so much from now on.
    pub(super) fn set(&self, level: LevelFilter) {
        // An error means that nobody listens.
        let _ = self.0.reload(level);
    }
}
