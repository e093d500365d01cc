//! `cargo xtask vm`: runs the integration tests on other kernels than this machine's.
//!
//! Kernels come from Debian and run in QEMU. It emulates the processor, so that this works wherever
//! QEMU does. The guest's root is an archive that this program writes: busybox, the tests and what
//! they start.

mod cpio;
pub(crate) mod criu;
mod debian;
pub(crate) mod desktop;
mod document;
mod guest;
mod initramfs;
mod kernels;
mod log;
mod qemu;
mod report;

use std::{fs, path::Path, process::Command, thread::ScopedJoinHandle, time::Instant};

use anyhow::{Context as _, bail};
use clap::builder::PossibleValuesParser;

use self::{
    guest::{Guest, Run},
    kernels::{Kernel, MATRIX, Row},
    qemu::QEMU,
};
use crate::{
    command::output,
    machine::{Package, find, find_in, install},
    paths::{self, workspace},
    test::tries,
    whole,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run on this kernel only; may be repeated
    #[arg(long = "kernel", value_parser = PossibleValuesParser::new(MATRIX.map(|row| row.name)))]
    kernels: Vec<String>,

    /// Run with this feeder only
    #[arg(long, value_parser = PossibleValuesParser::new(FEEDERS))]
    feeder: Option<String>,

    /// Refuse to install or download anything; say what is needed instead
    #[arg(long)]
    no_install: bool,

    /// Write docs/compatibility.md, which shows what came out
    #[arg(long, conflicts_with_all = ["kernels", "feeder", "tests"])]
    write_docs: bool,

    /// Arguments for the tests, such as the part of a name, instead of what is chosen for guests
    #[arg(last = true)]
    tests: Vec<String>,

    /// Which guests there are.
    #[arg(skip)]
    guests: Guests,

    /// The commit that is tested, if the document is to name it.
    #[arg(skip)]
    commit: Option<String>,
}

/// Which kernels and feeders have guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Guests {
    /// Every kernel with each feeder.
    #[default]
    All,
    /// Every kernel with kprobes, and the newest and the oldest with tracepoints.
    Few,
    /// The newest and the oldest with each feeder.
    Ends,
}

impl Guests {
    fn has(self, row: &Row, feeder: &str) -> bool {
        let is_end = [MATRIX.first(), MATRIX.last()].into_iter().flatten().any(|end| end.name == row.name);
        match self {
            Self::All => true,
            Self::Few => is_end || feeder == "kprobe",
            Self::Ends => is_end,
        }
    }
}

impl Args {
    /// Returns arguments for all guests. The document is written if there is a commit.
    pub(crate) fn everything(commit: Option<String>, no_install: bool) -> Self {
        let write_docs = commit.is_some();
        let (kernels, feeder, tests, guests) = (Vec::new(), None, Vec::new(), Guests::All);
        Self { kernels, feeder, no_install, write_docs, tests, guests, commit }
    }

    /// Returns arguments for a few guests, enough to show most effects of a change of the BPF
    /// programs.
    pub(crate) fn few(no_install: bool) -> Self {
        Self { guests: Guests::Few, ..Self::everything(None, no_install) }
    }

    /// Returns arguments for fewer guests, enough to show most effects of a change of the programs'
    /// loader.
    pub(crate) fn ends(no_install: bool) -> Self {
        Self { guests: Guests::Ends, ..Self::everything(None, no_install) }
    }
}

/// The feeders. Every guest tests one.
const FEEDERS: [&str; 2] = ["kprobe", "tracepoint"];

/// Tests that guests don't run. Some compare files with the sources. Some take long, and give the
/// same result on every kernel. Some need programs or kernel modules that guests don't have, or
/// only CRIU's guests have.
const LEFT_OUT: &[&str] = &[
    "alerts::",
    "config::",
    "dashboards::",
    "deploy::",
    "desktop::",
    "documents::",
    "engines::",
    "harness::",
    "inspect::",
    "web::",
    "names::",
    "privileges::",
    "containers::tail_tells_what_it_missed",
    "restart::without_room",
    "restart::leaves_nothing",
];

/// More tests that a kernel's second guest doesn't run. A second guest has the tracepoint feeder,
/// or the same kernel with another preemption mode. Tests that depend on no probe and no race have
/// passed in the first guest already; and some of the stress tests are enough.
const SHOWN_BY_ANOTHER: &[&str] = &[
    "check::",
    "cli::",
    "exporter::",
    "hidden::",
    "stress::events_are_lost",
    "stress::too_many_tables",
    "stress::two_agents",
];

/// The document.
pub(crate) const DOCUMENT: &str = "docs/compatibility.md";

/// Compares with CRIU, also for the desktop in a guest. Writes the documents if there are a commit
/// and the records of the desktop tests on this machine.
pub(crate) fn compare(written: Option<(&str, &Path)>, no_install: bool) -> anyhow::Result<()> {
    let commit = written.map(|(commit, _)| commit.to_owned());
    install(&desktop::needed_packages()?, !no_install)?;
    // Only one process may use apt's lists at a time.
    let desktop = desktop::prepare_guest(no_install)?;
    let guest = std::thread::scope(|scope| {
        let desktop = scope.spawn(|| desktop.run());
        let criu = criu::run(&criu::Args::everything(commit, no_install));
        match (joined(desktop), criu) {
            (Err(desktop), Err(criu)) => bail!("{desktop:#}\n{criu:#}"),
            (desktop, criu) => criu.and(desktop),
        }
    })?;
    written.map_or(Ok(()), |(commit, record)| desktop::write_document(record, &guest, commit))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let commit = match &args.commit {
        None if args.write_docs => Some(whole::commit()?),
        commit => commit.clone(),
    };
    install(&missing_packages()?, !args.no_install)?;
    let dir = paths::vm()?;
    let logs = dir.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
    let kernels = kernels::get(&rows(&args.kernels), !args.no_install)?;
    let initramfs = dir.join("initramfs");
    initramfs::write(&initramfs, &args.tests)?;

    let mut feeders = FEEDERS.to_vec();
    feeders.retain(|feeder| args.feeder.as_ref().is_none_or(|wanted| wanted == feeder));
    let mut pairs: Vec<(&Kernel, &'static str)> =
        kernels.iter().flat_map(|kernel| feeders.iter().map(move |feeder| (kernel, *feeder))).collect();
    pairs.retain(|(kernel, feeder)| args.guests.has(&kernel.row, feeder));
    let runs = run_all(&pairs, &initramfs, &logs, &args.tests)?;
    let bad: Vec<&Run> = runs.iter().filter(|run| !run.log.is_good()).collect();
    for run in &bad {
        eprint!("{}", report::tails(run)?);
    }
    for run in &runs {
        eprintln!("{}", report::verdict(run));
    }
    if !bad.is_empty() {
        bail!("{} of {} guests failed; their logs are in {}", bad.len(), runs.len(), logs.display());
    }
    if let Some(commit) = commit {
        write_document(&runs, &commit)?;
    }
    eprintln!("all {} guests passed in {} s", runs.len(), start.elapsed().as_secs());
    Ok(())
}

fn write_document(runs: &[Run], commit: &str) -> anyhow::Result<()> {
    let version = output(Command::new(QEMU).arg("--version"))?;
    let qemu = version.lines().next().unwrap_or_default().replace("emulator version ", "");
    let text = document::document(runs, commit, &qemu, LEFT_OUT, SHOWN_BY_ANOTHER);
    fs::write(workspace()?.join(DOCUMENT), text).with_context(|| format!("write {DOCUMENT}"))?;
    eprintln!("wrote {DOCUMENT}");
    Ok(())
}

/// The shell and tools of guests: a package, and the program in it.
const BUSYBOX: (&str, &str) = ("busybox-static", "busybox");

/// Returns the packages that must be installed before guests can run.
pub(crate) fn missing_packages() -> anyhow::Result<Vec<Package>> {
    let mut packages = Vec::new();
    if find(QEMU).is_none() {
        packages.push(Package::Install("qemu-system-x86"));
    }
    // A busybox in PATH may need libraries.
    if find_in(BUSYBOX.0, BUSYBOX.1)?.is_none() {
        packages.push(Package::Extract(BUSYBOX.0));
    }
    Ok(packages)
}

fn rows(names: &[String]) -> Vec<Row> {
    MATRIX.into_iter().filter(|row| names.is_empty() || names.iter().any(|name| name == row.name)).collect()
}

/// Returns the tests that a guest doesn't run: none if tests were chosen, else see [`LEFT_OUT`] and
/// [`SHOWN_BY_ANOTHER`].
fn left_out(row: &Row, feeder: &str, chosen: &[String]) -> Vec<&'static str> {
    if !chosen.is_empty() {
        return Vec::new();
    }
    let is_second = feeder == "tracepoint" || !row.parameters.is_empty();
    LEFT_OUT.iter().chain(SHOWN_BY_ANOTHER.iter().filter(|_| is_second)).copied().collect()
}

/// Runs a guest for each kernel and feeder, and shows each result as soon as it is known.
fn run_all(
    pairs: &[(&Kernel, &'static str)],
    initramfs: &Path,
    dir: &Path,
    chosen: &[String],
) -> anyhow::Result<Vec<Run>> {
    let guests: Vec<Guest<'_>> = pairs
        .iter()
        .map(|(kernel, feeder)| Guest {
            kernel,
            feeder,
            initramfs,
            left_out: left_out(&kernel.row, feeder, chosen),
            // One processor is enough with tracepoints: if this machine has no kprobes, it tests
            // them with several.
            processors: if *feeder == "tracepoint" { 1 } else { kernel.row.processors },
            memory: qemu::MEMORY,
            disk: None,
            patience: guest::PATIENCE,
            dir,
        })
        .collect();
    in_parallel(&guests, run_until_good)
}

/// Runs a guest. Runs it once more if it fails, or up to twice more if its kernel fails.
fn run_until_good(guest: &Guest<'_>) -> anyhow::Result<Run> {
    eprintln!("booting {} with the {} feeder", guest.kernel.row.name, guest.feeder);
    let (mut panics, mut failures) = (0, 0);
    loop {
        let run = guest.run()?;
        eprintln!("{}", report::verdict(&run));
        // An emulated kernel now and then panics or hangs where it patches its own code. When this
        // machine is busy, a guest may have no CPU for seconds, for which no deadline is long
        // enough. If it happens again, it is a failure.
        let (tries, most) = if run.log.kernel_failed() { (&mut panics, 3) } else { (&mut failures, 2) };
        *tries += 1;
        if run.log.is_good() || *tries >= most {
            return Ok(run);
        }
        eprint!("{}", report::tails(&run)?);
        let name = format!("{} with the {} feeder", guest.kernel.row.name, guest.feeder);
        eprintln!("booting {name} again");
        tries::note(&name, &report::why(&run.log));
    }
}

/// Does something with a machine for each of these, in parallel as far as machines may run. Starts
/// with the first. Returns the results in the same order.
fn in_parallel<T: Sync, R: Send>(
    all: &[T],
    work: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |item| {
            let turn = qemu::turn();
            scope.spawn(move || {
                let _turn = turn;
                work(item)
            })
        };
        let started: Vec<_> = all.iter().map(start).collect();
        started.into_iter().map(joined).collect()
    })
}

/// Returns the result of a thread, or resumes its panic.
fn joined<R>(thread: ScopedJoinHandle<'_, R>) -> R {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
