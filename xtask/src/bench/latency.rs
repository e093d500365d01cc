//! `cargo xtask bench latency`: how late `tail` shows an event.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{command::must, machine::mount_tracefs};

#[derive(clap::Args)]
pub(super) struct Latency {
    /// Containers that there are besides the one in which events happen
    #[arg(long, default_value_t = 1_000)]
    containers: usize,

    /// Events a second
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,

    /// How long each figure is taken
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// How often each figure is taken
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Another fdtracker to measure by turns with this one, such as that of the release before
    #[arg(long, value_name = "PROGRAM")]
    against: Vec<PathBuf>,
}

pub(super) fn run(args: &Latency, binaries: &Path) -> anyhow::Result<()> {
    mount_tracefs()?;
    println!("{} events a second in one of {} containers", args.events, args.containers + 1);
    println!("latency: from the probe in the kernel to the line of `tail -o json`, read");
    println!("scrapes: of /metrics. The bar: p99 within 1 ms, also with 10 scrapes a second\n");
    let programs = std::iter::once(binaries.join("fdtracker")).chain(args.against.iter().cloned());
    let mut command = Command::new(binaries.join("fdlatency"));
    for number in [args.containers.to_string(), args.events.to_string()] {
        command.arg(number);
    }
    command.arg(args.seconds.to_string()).arg(args.rounds.to_string());
    for (number, program) in programs.enumerate() {
        println!("program {}: {}", number + 1, program.display());
        command.arg(program);
    }
    must(&mut command)
}
