//! The project's chores, one file each: `cargo xtask --help`.
//!
//! Every command that changes the machine is printed before it is run.

mod bench;
mod build;
mod build_ebpf;
mod cache;
mod command;
mod deny;
mod generate;
mod machine;
mod paths;
mod run;
mod test;
mod touched;
mod vm;
mod whole;

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{Parser, Subcommand};

/// fdtracker's chores
#[derive(Parser)]
#[command(name = "cargo xtask", subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build and run the agent in the foreground with its live view (asks for root by sudo)
    Run(run::Args),
    /// Install what the tests need, rebuild the BPF object and compare it, and run the tests of
    /// this machine
    Test(test::Args),
    /// Run what changes can have touched of other kernels, CRIU's conformance and the desktop
    Touched(touched::Args),
    /// Run the integration tests on other kernels, in emulated machines
    Vm(vm::Args),
    /// Have CRIU itself say what it makes of every fixture, in emulated machines
    Criu(vm::criu::Args),
    /// Have the desktop of the report tested: XFCE, TightVNC and IBus in a container, here and in
    /// an emulated machine
    Desktop(vm::desktop::Args),
    /// Measure how long the agent takes for what must be quick
    Bench(bench::Args),
    /// Make the files that are made from others: alert rules for Kubernetes, dashboards
    #[command(name = "gen")]
    Generate(generate::Args),
    /// Check licences, duplicates and origins of all that is linked, by deny.toml (needs
    /// cargo-deny)
    Deny(deny::Args),
    /// Build the BPF object from source into tracker-ebpf/prebuilt
    BuildEbpf(build_ebpf::Args),
}

/// How long an entry of the cache stays after its last use: another run may use it.
const PRUNED: Duration = Duration::from_hours(6);

fn main() -> ExitCode {
    let start = SystemTime::now();
    let result = match Cli::parse().task {
        Task::Run(args) => run::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Touched(args) => touched::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Criu(args) => vm::criu::run(&args),
        Task::Desktop(args) => vm::desktop::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Generate(args) => generate::run(&args),
        Task::Deny(args) => deny::run(&args),
        Task::BuildEbpf(args) => build_ebpf::run(&args),
    };
    cache::prune(start - PRUNED);
    match (result, test::tries::summary()) {
        (Ok(()), None) => ExitCode::SUCCESS,
        (Ok(()), Some(tries)) => {
            eprintln!("passed, but {tries}");
            ExitCode::SUCCESS
        }
        (Err(error), tries) => {
            eprintln!("xtask: {error:#}{}", tries.map_or_else(String::new, |tries| format!("; {tries}")));
            ExitCode::FAILURE
        }
    }
}
