//! `cargo xtask bench`: measures on this machine what the product promises about time.
//!
//! A figure that is worse than promised is marked, but nothing fails: the machine may be busy.

mod audit;
mod check;
mod latency;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::ChildStdout,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use crate::{build::executables, command::cargo, machine::is_root};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Measure how long a start and an audit take, with many fds open (as root)
    Audit(audit::Audit),
    /// Measure how long `fdtracker check` takes for a tree of processes (as root)
    Check(check::Check),
    /// Measure how late `fdtracker tail` shows an event, with many containers and scrapes (as root)
    Latency(latency::Latency),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(is_root(), "only root can inspect all processes: sudo -E env PATH=\"$PATH\" cargo xtask bench …");
    let build = ["build", "--release", "--locked", "--bins", "--package"];
    let built = executables(cargo()?.args(build).args(["tracker-user", "--package", "fdtracker-tests"]))?;
    let binaries =
        built.first().and_then(|program| program.path.parent()).context("cargo has built nothing")?;

    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?;
    println!("Linux {}, {cpus} CPUs, load {}", kernel.trim(), load()?);
    match &args.what {
        What::Audit(args) => audit::run(args, binaries)?,
        What::Check(args) => check::run(args, binaries)?,
        What::Latency(args) => latency::run(args, binaries)?,
    }
    println!("\nload {} at the end", load()?);
    Ok(())
}

fn load() -> anyhow::Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(load.split(' ').next().unwrap_or_default().to_owned())
}

fn print_header() {
    println!("{:<22}{:>12}{:>12}{:>12}{:>14}", "figure", "median", "worst", "bar", "median / bar");
}

fn print_row(figure: &str, mut times: Vec<Duration>, bar: Option<Duration>) {
    times.sort();
    let (Some(median), Some(worst)) = (times.get(times.len() / 2), times.last()) else { return };
    let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    print!("{figure:<22}{:>12}{:>12}", ms(*median), ms(*worst));
    match bar {
        Some(bar) => {
            let missed = if *median > bar { "  missed" } else { "" };
            println!("{:>12}{:>14.2}{missed}", ms(bar), median.as_secs_f64() / bar.as_secs_f64());
        }
        None => println!(),
    }
}

/// Reads one answer of the fixture, which must be `ok`.
fn expect_ok(answers: &mut BufReader<ChildStdout>) -> anyhow::Result<()> {
    let mut line = String::new();
    answers.read_line(&mut line)?;
    ensure!(line.starts_with("ok"), "fdzoo can't hold such fds: {}", line.trim());
    Ok(())
}
