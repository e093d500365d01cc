//! Holds every kind of file open, in every state that decides whether CRIU can dump it.
//!
//! `fdfixture list` lists the fixtures, one JSON object a line. `fdfixture hold NAME` makes one,
//! prints `ready PID`, and waits to be killed. PID is the process to be dumped. If the machine
//! lacks something that the fixture needs, it prints `no REASON`.
//!
//! Whoever starts this must kill its descendants too: some are helpers that no dump includes.

mod anon;
mod bpf;
mod devices;
mod files;
mod inet;
mod mounts;
mod namespaces;
mod notify;
mod os;
mod pipes;
mod process;
mod sockets;
mod tree;
mod tty;
mod unix;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};
use serde_json::json;

/// Holds files open, for CRIU to dump
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print every fixture, one a line
    List,
    /// Make a fixture, say `ready PID` or `no REASON`, and wait to be killed
    Hold {
        /// Which
        name: String,
    },
}

/// Options for a dump.
type Options = &'static [&'static str];

/// A state of a process.
struct Fixture {
    /// The name, as `kind.state`.
    name: &'static str,
    about: &'static str,
    /// A dump is made without options, and one more with each of these, which may change the
    /// outcome.
    options: &'static [Options],
    make: Make,
}

enum Make {
    /// The process that makes it is the one to be dumped.
    Here(fn() -> io::Result<()>),
    /// The process to be dumped is another one, which this function makes. It returns the pid.
    There(fn() -> io::Result<i64>),
}

/// Makes a fixture of a state that the process itself gets into.
fn here(name: &'static str, about: &'static str, make: fn() -> io::Result<()>) -> Fixture {
    Fixture { name, about, options: &[], make: Make::Here(make) }
}

/// Makes a fixture of another process's state. The function returns that process's pid.
fn there(name: &'static str, about: &'static str, make: fn() -> io::Result<i64>) -> Fixture {
    Fixture { name, about, options: &[], make: Make::There(make) }
}

impl Fixture {
    /// Adds dumps with each of these options.
    fn with(self, options: &'static [Options]) -> Self {
        Self { options, ..self }
    }

    fn make(&self) -> io::Result<i64> {
        match self.make {
            Make::Here(make) => make().map(|()| std::process::id().into()),
            Make::There(make) => make(),
        }
    }
}

fn fixtures() -> Vec<Fixture> {
    let of_each = [
        vec![here("nothing.open", "nothing but /dev/null as standard input and output", || Ok(()))],
        anon::fixtures(),
        bpf::fixtures(),
        notify::fixtures(),
        files::fixtures(),
        mounts::fixtures(),
        devices::fixtures(),
        tty::fixtures(),
        pipes::fixtures(),
        unix::fixtures(),
        inet::fixtures(),
        sockets::fixtures(),
        namespaces::fixtures(),
        tree::fixtures(),
    ];
    of_each.into_iter().flatten().collect()
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::List => {
            for Fixture { name, about, options, .. } in fixtures() {
                println!("{}", json!({"name": name, "about": about, "options": options}));
            }
            ExitCode::SUCCESS
        }
        Command::Hold { name } => {
            let Err(error) = hold(&name);
            println!("no {error}");
            ExitCode::FAILURE
        }
    }
}

fn hold(name: &str) -> io::Result<std::convert::Infallible> {
    let fixture = fixtures().into_iter().find(|fixture| fixture.name == name);
    let fixture = fixture.ok_or_else(|| io::Error::other(format!("there is no fixture {name}")))?;
    os::fresh_directory()?;
    process::dumped(libc::STDOUT_FILENO.into(), || fixture.make())
}
