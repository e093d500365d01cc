//! Integration tests: real kernel events, real containers. They need root; `cargo xtask test` installs what else they need.
//!
//! One agent serves most tests: the kernel takes seconds to detach one.

mod alerts;
mod check;
mod cli;
mod config;
mod containers;
mod dashboards;
mod deploy;
mod desktop;
mod documents;
mod engines;
mod exporter;
mod hidden;
mod inspect;
mod life_cycle;
mod names;
mod privileges;
mod restart;
mod stress;
mod web;

use std::{
    process::{Command, ExitCode, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use fdtracker_tests::Agent;
use libtest_mimic::{Arguments, Completion, Trial};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Tests watch one agent and one host.
    arguments.test_threads = Some(1);
    let trials = [
        check::trials(),
        cli::trials(),
        config::trials(),
        life_cycle::trials(),
        hidden::trials(),
        inspect::trials(),
        containers::trials(),
        names::trials(),
        engines::trials(),
        exporter::trials(),
        web::trials(),
        alerts::trials(),
        dashboards::trials(),
        restart::trials(),
        privileges::trials(),
        deploy::trials(),
        desktop::trials(),
        stress::trials(),
        documents::trials(),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials.into_iter().flatten().collect());
    // Statics aren't dropped.
    drop(AGENT.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

/// What a test needs besides the fixture.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing.
    Nobody,
    /// Root, to load BPF programs and make cgroups.
    Root,
    /// Root, and these programs.
    Programs(&'static [&'static str]),
}

/// A test that is skipped, with the reason, where it can't run.
fn test(name: &'static str, needs: Needs, run: fn()) -> Trial {
    test_or_skip(name, needs, move || {
        run();
        Ok(())
    })
}

/// A test that finds out only on the way that it can't run here, and why.
fn test_or_skip(
    name: &'static str,
    needs: Needs,
    run: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        let ran = missing(needs).map_or_else(run, Err);
        Ok(ran.map_or_else(Completion::ignored_with, |()| Completion::Completed))
    })
}

fn missing(needs: Needs) -> Option<String> {
    // SAFETY: the call has no precondition.
    if needs != Needs::Nobody && unsafe { libc::geteuid() } != 0 {
        return Some("not root".into());
    }
    let Needs::Programs(programs) = needs else { return None };
    let absent = programs.iter().find(|program| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    absent.map(|program| format!("{program} is not installed (cargo xtask test installs it)"))
}

static AGENT: Mutex<Option<Agent>> = Mutex::new(None);

/// The agent that tests share. It judges for CRIU 4.0, which dumps no pidfd, and audits often.
struct SharedAgent(MutexGuard<'static, Option<Agent>>);

impl std::ops::Deref for SharedAgent {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        self.0.as_ref().expect("the agent was started")
    }
}

fn agent() -> SharedAgent {
    let mut agent = AGENT.lock().unwrap_or_else(PoisonError::into_inner);
    let often = ["--audit-interval", "200ms", "--judge-interval", "200ms"];
    agent.get_or_insert_with(|| Agent::start(&[&["--criu", "4.0"][..], &often].concat()));
    SharedAgent(agent)
}
