//! Reloads the configuration on SIGHUP, and changes what can be changed in a running agent. If it
//! is wrong, nothing is changed.

use std::time::Duration;

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use super::{
    args::Command,
    load::{self, Loaded, LogLevel},
    service,
};
use crate::{
    agent::{Agent, Pace},
    config::{Invocation, Settings},
    error::chain,
    verdict::Judge,
};
use tracing::level_filters::LevelFilter;

/// Reloads the configuration on SIGHUP.
pub(super) struct Reloads {
    hangup: Signal,
    invocation: Invocation,
    /// The settings that the agent runs with.
    running: Settings,
    log: LogLevel,
}

/// A configuration that was checked.
struct Valid {
    settings: Settings,
    pace: Pace,
    judge: Judge,
    level: LevelFilter,
}

/// A reload that takes longer is waiting for something that doesn't answer.
const PATIENCE: Duration = Duration::from_secs(30);

impl Reloads {
    /// Catches SIGHUP, so that it doesn't end the program.
    ///
    /// # Errors
    /// When the signal can't be caught.
    pub(super) fn catch(running: Settings, log: LogLevel) -> anyhow::Result<Self> {
        let hangup = signal(SignalKind::hangup()).context("catch signals")?;
        Ok(Self { hangup, invocation: Invocation::of_this_process(), running, log })
    }

    /// Reloads at every SIGHUP. Never ends.
    pub(super) async fn run(mut self, agent: &Agent) -> std::convert::Infallible {
        loop {
            if self.hangup.recv().await.is_none() {
                return std::future::pending().await;
            }
            service::reloading();
            let invocation = self.invocation.clone();
            // Reloading runs CRIU to ask for its version, and a file system may be slow.
            let read = tokio::task::spawn_blocking(move || read(&invocation));
            let result = match timeout(PATIENCE, read).await {
                Ok(read) => read.unwrap_or_else(|panic| Err(panic.into())),
                Err(_) => Err(anyhow::anyhow!("reading it takes longer than {PATIENCE:?}")),
            };
            let is_ok = result.is_ok();
            let noted = agent.state.tell(move |state| state.note_reload(is_ok)).await;
            let result = result.and_then(|valid| Ok(noted.map(|()| valid)?));
            match result {
                Ok(valid) => self.apply(agent, valid).await,
                Err(error) => {
                    let error = chain(error);
                    tracing::error!(error, "the configuration is wrong: the old one stays");
                    service::ready(&format!(
                        "{}; a wrong configuration was not applied: {error}",
                        at_work(agent)
                    ));
                }
            }
        }
    }

    async fn apply(&mut self, agent: &Agent, valid: Valid) {
        let Valid { settings, pace, judge, level } = valid;
        settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let changed = self.running.changed(&settings);
        let (live, others): (Vec<&str>, Vec<&str>) =
            changed.into_iter().partition(|name| load::is_live(name));
        tracing::info!(changed = ?live, "the configuration was reloaded");
        if !others.is_empty() {
            tracing::warn!(settings = ?others, "these take effect only when the agent is restarted");
        }
        self.log.set(level);
        if let Err(error) = agent.change(pace, judge).await {
            tracing::error!(error = %chain(error), "apply the configuration");
        }
        self.running.adopt(&settings, load::is_live);
        tracing::info!("verdicts are about {}", agent.state.judge().profile());
        service::ready(&at_work(agent));
    }
}

/// Describes in one line what the agent does.
pub(super) fn at_work(agent: &Agent) -> String {
    let how = if agent.state.is_live() { "counting live" } else { "counting at intervals" };
    format!("{how}; verdicts are about {}", agent.state.judge().profile())
}

fn read(invocation: &Invocation) -> anyhow::Result<Valid> {
    let Loaded { cli, settings } = load::load(invocation)?;
    let level = cli.log_level();
    match (cli.command, settings) {
        (Command::Agent(args), Some(settings)) => {
            Ok(Valid { settings, pace: args.counting.pace(), judge: load::check(&args)?, level })
        }
        _ => anyhow::bail!("the command line isn't the agent's any more"),
    }
}
