//! The command line: commands and flags (`args`), one file for each command, and how things are
//! printed (`output`).
//!
//! Exit codes: 0 as expected; 1 if `doctor` found something missing, or `check` a blocker; 2 for an
//! error; 3 if `check` can't tell. A closed pipe ends a command quietly.

mod agent;
mod args;
mod check;
mod doctor;
mod explain;
mod judging;
mod load;
mod ls;
mod output;
#[cfg(test)]
mod reference;
mod reload;
mod rules;
mod runtimes;
mod service;
mod tail;
mod values;
mod web;

use std::{io, process::ExitCode, time::Duration};

use anyhow::Context as _;
pub use args::Cli;
use args::Command;
use load::{Loaded, LogLevel};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::{ConfigError, Invocation},
    host,
};

/// Parses the command line and runs it.
#[must_use]
pub fn main() -> ExitCode {
    match load::load(&Invocation::of_this_process()).map_err(ended_by_clap).map_err(Into::into).and_then(run)
    {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fdtracker: {}", one_line(&error));
            ExitCode::from(2)
        }
    }
}

/// Lets clap print help and usage, which ends the program.
fn ended_by_clap(error: ConfigError) -> ConfigError {
    match error {
        ConfigError::Usage(error) => error.exit(),
        error => error,
    }
}

/// How long the end of the program waits for threads that are at work.
const LAST_WAIT: Duration = Duration::from_secs(5);

fn run(Loaded { cli, settings }: Loaded) -> anyhow::Result<ExitCode> {
    let log = LogLevel::to_stderr(cli.log_level());
    if let Command::SelfTest { inherited } = &cli.command {
        // This must happen before the event loop starts, because its fds would be counted.
        crate::bpf::self_test_child(inherited).context("walk the self-test")?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Thaw { file, word } = &cli.command {
        crate::freeze::thaw_later(file, word).with_context(|| format!("thaw: write {}", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    if matches!(cli.command, Command::Agent(_)) {
        // Only this thread handles events, so it doesn't give way.
        runtime.on_thread_start(host::give_way);
    }
    let runtime = runtime.enable_all().build().context("start the event loop")?;
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Agent(args) => agent::run(*args, settings, log).await,
            Command::Tail(args) => tail::run(args).await,
            Command::Ls(args) => ls::run(args).await,
            Command::Check(args) => check::run(&args).await,
            Command::Explain(args) => explain::run(&args),
            Command::Rules(args) => rules::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            // These two are done above.
            Command::SelfTest { .. } | Command::Thaw { .. } => Ok(ExitCode::SUCCESS),
        }
    });
    // A thread may wait for a file system that doesn't answer.
    runtime.shutdown_timeout(LAST_WAIT);
    ended
}

/// Formats an error and its causes, without the log of the kernel's verifier, which fills pages.
fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let (message, log) = text.split_once(" Verifier output:").unwrap_or((&text, ""));
    if log.is_empty() {
        message.to_owned()
    } else {
        tracing::debug!("the kernel's verifier says:{log}");
        format!("{message} (--log-level debug shows the verifier's log)")
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(closed))
}

/// The signals with which the user, or the system, ends a command. Once they are caught, the
/// command cleans up before it ends.
struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl EndSignals {
    fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("catch signals");
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_log_is_cut_off() {
        let error = anyhow::anyhow!("load: refused. Verifier output: 0: R1=ctx()\n1: ...");
        assert_eq!(one_line(&error), "load: refused. (--log-level debug shows the verifier's log)");
        assert_eq!(one_line(&anyhow::anyhow!("a").context("b")), "b: a");
    }

    #[test]
    fn only_a_closed_pipe_is_quiet() {
        let error = |kind| anyhow::Error::from(io::Error::from(kind)).context("write");
        assert!(is_closed_pipe(&error(io::ErrorKind::BrokenPipe)));
        assert!(!is_closed_pipe(&error(io::ErrorKind::PermissionDenied)));
    }
}
