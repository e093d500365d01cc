//! `cargo xtask bench check`: measures how long a verdict takes.

use std::{
    io::{BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::{expect_ok, print_header, print_row};

#[derive(clap::Args)]
pub(super) struct Check {
    /// Processes of the tree
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    processes: u32,

    /// How often it is checked
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

const BAR: Duration = Duration::from_millis(50);

/// What each process has open besides its standard streams: files that programs in containers
/// usually have.
const FILES: [&str; 12] = [
    "eventfd", "epoll", "timerfd", "signalfd", "pidfd", "tcp", "udp", "unix", "netlink", "memfd", "null",
    "dir",
];

pub(super) fn run(args: &Check, binaries: &Path) -> anyhow::Result<()> {
    let fixture = Fixture::start(&binaries.join("fdzoo"), args.processes)?;
    let fds = args.processes as usize * (FILES.len() + 3);
    println!("{} processes with {fds} fds, {} runs of a release build", args.processes, args.runs);
    println!("check: fdtracker check pid:N -o json, from its start to its end\n");
    print_header();
    let target = format!("pid:{}", fixture.0.id());
    let mut times = Vec::new();
    for _ in 0..args.runs {
        let mut check = Command::new(binaries.join("fdtracker"));
        check.args(["check", &target, "--criu", "4.2.1", "-o", "json"]).stdin(Stdio::null());
        let start = Instant::now();
        let output = check.output().context("start fdtracker")?;
        times.push(start.elapsed());
        let code = output.status.code();
        ensure!(code.is_some_and(|code| code != 2), "{}", String::from_utf8_lossy(&output.stderr));
    }
    print_row("check", times, Some(BAR));
    Ok(())
}

/// A process with children. All have the same files open, and end when their standard input is
/// closed.
struct Fixture(Child);

impl Fixture {
    fn start(fdzoo: &Path, processes: u32) -> anyhow::Result<Self> {
        let mut command = Command::new(fdzoo);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut fixture = Self(child.with_context(|| format!("start {}", fdzoo.display()))?);
        let answers = fixture.0.stdout.take().context("its standard output")?;
        let mut answers = BufReader::new(answers);
        let opens = FILES.iter().map(|kind| format!("open {kind}"));
        let forks = (1..processes).map(|_| "fork".to_owned());
        for line in opens.chain(forks) {
            let mut commands = fixture.0.stdin.as_ref().context("its standard input")?;
            writeln!(commands, "{line}")?;
            expect_ok(&mut answers)?;
        }
        Ok(fixture)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
