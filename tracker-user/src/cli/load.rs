//! Reads the command line, and the values that the file and the environment add; sets how much is
//! logged.

use std::{io, path::PathBuf};

use clap::{Args, CommandFactory as _, FromArgMatches as _};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use super::{args, judging::Judging};
use crate::{
    config::{ConfigError, Invocation, Settings},
    verdict::Judge,
};

/// The subcommand that can be configured.
pub(super) const AGENT: &str = "agent";

/// The configuration's flags.
#[derive(Debug, Args)]
pub(super) struct Config {
    /// A TOML file whose keys are these flags, such as audit-interval = "30s"; it may be missing,
    /// unless this flag names it. Variables have priority over it, and flags over both
    #[arg(long = "config.file", value_name = "PATH", default_value = "/etc/fdtracker/fdtracker.toml")]
    config_file: PathBuf,

    /// Only check the configuration, and print all values
    #[arg(long = "config.check")]
    pub(super) config_check: bool,
}

/// A command line that was parsed.
pub(super) struct Loaded {
    /// The values, from the command line or elsewhere.
    pub(super) cli: args::Cli,
    /// The settings, if the command is the agent.
    pub(super) settings: Option<Settings>,
}

/// Parses the command line, and reads the file and the environment.
///
/// # Errors
/// When one of them is wrong, or the file can't be read.
pub(super) fn load(invocation: &Invocation) -> Result<Loaded, ConfigError> {
    let mut parsed = invocation.parse(args::Cli::command(), AGENT)?;
    let cli = args::Cli::from_arg_matches_mut(&mut parsed.matches)?;
    Ok(Loaded { cli, settings: parsed.settings })
}

/// Checks what can be checked without starting anything: everything that needs more than one value.
///
/// # Errors
/// When something is wrong.
pub(super) fn check(args: &args::Agent) -> anyhow::Result<Judge> {
    args.web.check()?;
    args.counting.judge()
}

/// Whether the agent can change this value without a restart.
pub(super) fn is_live(name: &str) -> bool {
    ["audit-interval", "judge-interval", "log-level"].contains(&name) || Judging::has_flag(name)
}

/// How much is logged on standard error.
pub(super) struct LogLevel(reload::Handle<LevelFilter, Registry>);

impl LogLevel {
    /// Starts to log on standard error, up to this level.
    pub(super) fn to_stderr(level: LevelFilter) -> Self {
        let (level, handle) = reload::Layer::new(level);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
        tracing_subscriber::registry().with(level).with(lines).init();
        Self(handle)
    }

    /// Changes the level.
    pub(super) fn set(&self, level: LevelFilter) {
        // An error means that nothing is logged any more.
        let _ = self.0.reload(level);
    }
}
