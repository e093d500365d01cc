//! Integration tests: real kernel events, real containers. They need root; `cargo xtask test`
//! installs what else they need.
//!
//! One agent serves most tests of a worker: the kernel takes seconds to detach one.

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
mod harness;
mod hidden;
mod inspect;
mod life_cycle;
mod names;
mod privileges;
mod restart;
mod stress;
mod web;

use std::{
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
};

use fdtracker_tests::Agent;

use self::harness::{Needs, Test, Tests, test, test_or_skip};

fn main() -> ExitCode {
    let alone = [
        stress::tests(),
        restart::tests(),
        life_cycle::tests(),
        hidden::tests(),
        exporter::tests(),
        check::tests(),
        cli::tests(),
        inspect::tests(),
        containers::tests(),
        documents::tests(),
        desktop::tests(),
        harness::bystanders(),
    ];
    let beside = [
        alerts::tests(),
        dashboards::tests(),
        deploy::tests(),
        web::tests(),
        config::tests(),
        names::tests(),
        privileges::tests(),
        engines::tests(),
        harness::tests(),
        harness::probes(),
    ];
    let tests = Tests {
        alone: alone.into_iter().flatten().collect(),
        beside: beside.into_iter().flatten().collect(),
    };
    // Rust doesn't drop statics, so the agent is ended here.
    let end_agent = || drop(AGENT.lock().unwrap_or_else(PoisonError::into_inner).take());
    harness::main(tests, end_agent)
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
