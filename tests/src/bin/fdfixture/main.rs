//! Processes that hold every kind of file in every state that decides whether CRIU can dump it.
//!
//! `fdfixture list` names them, one JSON object a line; `fdfixture hold NAME` makes one, says on its standard output `ready PID`, and
//! waits to be killed. That PID is the process to be dumped. Where the machine doesn't have what is needed, it says `no REASON`.
//!
//! Whoever starts this must kill its descendants too: some are helpers that no dump takes.

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

/// Options of a dump.
type Options = &'static [&'static str];

/// A state in which a process can be.
struct Fixture {
    /// `kind.state`
    name: &'static str,
    about: &'static str,
    /// Besides a dump without any, with which options another may go otherwise.
    options: &'static [Options],
    make: Make,
}

enum Make {
    /// The process that makes it is the one to be dumped.
    Here(fn() -> io::Result<()>),
    /// One that it makes is, with this pid.
    There(fn() -> io::Result<i64>),
}

/// A state that the process itself gets into.
fn here(name: &'static str, about: &'static str, make: fn() -> io::Result<()>) -> Fixture {
    Fixture { name, about, options: &[], make: Make::Here(make) }
}

/// A state of another process, whose pid this returns.
fn there(name: &'static str, about: &'static str, make: fn() -> io::Result<i64>) -> Fixture {
    Fixture { name, about, options: &[], make: Make::There(make) }
}

impl Fixture {
    /// Has a dump with each of these options, too.
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
