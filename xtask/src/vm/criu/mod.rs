//! `cargo xtask criu`: what CRIU itself makes of every fixture, in versions that no one machine has.
//!
//! Each version runs on a kernel of its time, in a guest whose root is a tmpfs: CRIU can't work on the root that a kernel unpacks.

mod document;
mod explained;
mod modules;
mod packages;
mod results;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::builder::PossibleValuesParser;

pub(super) use self::packages::Criu;
use self::results::Results;
use super::{
    cpio::Archive,
    in_parallel,
    initramfs::{self, read},
    kernels::{self, Kernel, plain},
    missing_packages,
    qemu::{self, Machine},
};
use crate::{
    command::{output, workspace},
    machine::{Package, find, install},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run this version of CRIU only; may be repeated
    #[arg(long = "criu", value_parser = PossibleValuesParser::new(MATRIX.map(|row| row.name)))]
    versions: Vec<String>,

    /// Run on this kernel, not on the one that is of the version's time
    #[arg(long, value_parser = PossibleValuesParser::new(kernels::MATRIX.map(|row| row.name)))]
    kernel: Option<String>,

    /// Run this fixture only, or those whose name starts with this and a dot; may be repeated
    #[arg(long = "fixture")]
    fixtures: Vec<String>,

    /// Only dump, without running `fdtracker check` before and comparing
    #[arg(long)]
    no_check: bool,

    /// Write docs/criu-support.md, which shows what came out
    #[arg(long, conflicts_with_all = ["versions", "kernel", "fixtures", "no_check"])]
    write_docs: bool,

    /// Refuse to install or download anything; say what is needed instead
    #[arg(long)]
    no_install: bool,
}

impl Args {
    /// Every fixture with every version, and compared.
    pub(crate) fn everything(no_install: bool) -> Self {
        let (versions, fixtures) = (Vec::new(), Vec::new());
        Self { versions, kernel: None, fixtures, no_check: false, write_docs: false, no_install }
    }
}

/// A version of CRIU, and the kernel that it runs on.
struct Row {
    name: &'static str,
    /// What its package's version starts with.
    series: &'static str,
    /// The Debian suite that has it.
    suite: &'static str,
    kernel: &'static str,
}

/// The oldest doesn't start on kernels that are newer than 6.12 (CRIU: `vdso.c`), so that each has the kernel of its suite.
const MATRIX: [Row; 3] = [
    Row { name: "3.17.1", series: "3.17.1", suite: "bookworm", kernel: "6.1" },
    Row { name: "4.1.1", series: "4.1.1", suite: "trixie", kernel: "6.12" },
    Row { name: "4.2.1", series: "4.2.1", suite: "sid", kernel: "7" },
];

/// What makes file systems: by its path, as only root's `PATH` leads there.
pub(super) const MKFS: &str = "/sbin/mkfs.ext4";

/// What runs containers, and what CRIU packs their tmpfs with. They are in packages of the same names.
const NEEDED_IN_GUESTS: [&str; 2] = ["runc", "tar"];

/// Where a guest has CRIU.
pub(super) const PLACE: &str = "/criu";

/// How long a guest may be silent. A dump that hangs is ended before.
const SILENCE: Duration = Duration::from_secs(240);

/// How long a guest may take.
const TOTAL: Duration = Duration::from_secs(60 * 60);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    install(&needed_packages()?, !args.no_install)?;
    let dir = workspace()?.join("target/vm");
    let results = dir.join("criu");
    fs::create_dir_all(&results).with_context(|| format!("make {}", results.display()))?;
    let is_wanted =
        |row: &&Row| args.versions.is_empty() || args.versions.iter().any(|name| name == row.name);
    let rows: Vec<&Row> = MATRIX.iter().filter(is_wanted).collect();
    // apt's lists are for one at a time; of guests, each has one processor.
    let trials =
        rows.into_iter().map(|row| Trial::prepare(row, args, &dir)).collect::<anyhow::Result<Vec<_>>>()?;
    let all = in_parallel(&trials, |trial| trial.run(args, &dir))?;
    for results in &all {
        eprint!("{}", results.summary());
    }
    if args.write_docs {
        document::write(&all)?;
    }
    let bad: Vec<&str> = all.iter().filter(|results| !results.is_good()).map(Results::name).collect();
    if !bad.is_empty() {
        bail!(
            "not all went well with CRIU {}; logs and results are in {}",
            bad.join(", "),
            results.display()
        );
    }
    eprintln!("fdtracker check says what CRIU says: {} s", start.elapsed().as_secs());
    Ok(())
}

/// What must be installed before guests can run.
pub(crate) fn needed_packages() -> anyhow::Result<Vec<Package>> {
    let mut needed = missing_packages()?;
    for (program, package) in [("xz", "xz-utils"), ("zstd", "zstd")] {
        if find(program).is_none() {
            needed.push(Package::Install(package));
        }
    }
    needed.extend(NEEDED_IN_GUESTS.into_iter().filter(|name| find(name).is_none()).map(Package::Install));
    if !Path::new(MKFS).exists() {
        needed.push(Package::Install("e2fsprogs"));
    }
    Ok(needed)
}

/// A version of CRIU, with a kernel to run on.
struct Trial {
    name: String,
    criu: Criu,
    kernel: Kernel,
    modules: PathBuf,
}

impl Trial {
    /// Downloads what it needs.
    fn prepare(row: &Row, args: &Args, dir: &Path) -> anyhow::Result<Self> {
        let criu = packages::get(row, &dir.join("criu"), !args.no_install)?;
        let (name, on) = chosen(row, args.kernel.as_deref());
        let (kernel, modules) = kernels::with_modules(&on, dir, !args.no_install)?;
        Ok(Self { name, criu, kernel, modules })
    }

    /// Boots a guest, and writes what came of it.
    fn run(&self, args: &Args, dir: &Path) -> anyhow::Result<Results> {
        let Self { name, criu, kernel, modules } = self;
        let file = |what: &str| dir.join("criu").join(format!("{name}.{what}"));
        let initramfs = file("initramfs");
        write(&initramfs, criu, modules, !args.no_check, &args.fixtures)?;
        let mut results = boot(name, criu, kernel, &initramfs, &file)?;
        if results.ended_badly() {
            eprint!("{}", results.summary());
            eprintln!("booting again");
            results = boot(name, criu, kernel, &initramfs, &file)?;
        }
        // What moves between a check and a dump may come out otherwise once. What disagrees twice disagrees.
        let again = results.to_repeat();
        if !again.is_empty() {
            eprint!("{}", results.summary());
            eprintln!("booting again for {}", again.join(", "));
            write(&initramfs, criu, modules, !args.no_check, &again)?;
            let again = boot(name, criu, kernel, &initramfs, &|what| file(&format!("again.{what}")))?;
            results = results.and(again);
        }
        let table = file("json");
        fs::write(&table, results.json()?).with_context(|| format!("write {}", table.display()))?;
        eprintln!("wrote {}", table.display());
        Ok(results)
    }
}

/// What results are called, and which kernel they are of.
fn chosen(row: &Row, kernel: Option<&str>) -> (String, kernels::Row) {
    match kernels::MATRIX.into_iter().find(|other| Some(other.name) == kernel) {
        Some(other) => (format!("{}-on-{}", row.name, other.name), other),
        None => (row.name.to_owned(), plain(row.kernel)),
    }
}

fn boot(
    name: &str,
    criu: &Criu,
    kernel: &Kernel,
    initramfs: &Path,
    file: &impl Fn(&str) -> PathBuf,
) -> anyhow::Result<Results> {
    eprintln!("booting {} with criu {}", kernel.row.name, criu.version);
    let start = Instant::now();
    let (console, output) = (file("console.log"), file("results.log"));
    let machine = Machine {
        vmlinuz: &kernel.vmlinuz,
        initramfs,
        // With several, a processor may run into an instruction that another is replacing, which QEMU doesn't emulate well.
        processors: 1,
        memory: qemu::MEMORY,
        disk: None,
        parameters: &format!("oops=panic {}", kernel.row.parameters),
        console: &console,
        output: &output,
        silence: SILENCE,
        total: TOTAL,
    };
    let killed = machine.run(|output| {
        let (done, all) = results::progress(output);
        eprintln!("criu {name}: {done} of {all} dumps after {} s", start.elapsed().as_secs());
    })?;
    let (output, console) = (qemu::read(&output)?, qemu::read(&console)?);
    Ok(Results::read(name, &criu.version, &output, &console, killed, start.elapsed()))
}

/// Writes the guest's root.
fn write(file: &Path, criu: &Criu, modules: &Path, check: bool, fixtures: &[String]) -> anyhow::Result<()> {
    let check = check.then(|| "--check".to_owned());
    let program = ["fdconform", "--results", initramfs::OUTPUT].map(str::to_owned);
    let command: Vec<String> = program.into_iter().chain(check).chain(fixtures.iter().cloned()).collect();
    let mut archive = start(&command, modules)?;
    criu.add(&mut archive, PLACE)?;
    archive.file("/disk.img", disk(&file.with_extension("disk"))?)?;
    let programs = initramfs::programs()?;
    add(&mut archive, programs, file)?;
    initramfs::finish(archive, file)
}

/// The root of a guest that has all that CRIU needs, and that runs this command.
pub(super) fn start(command: &[String], modules: &Path) -> anyhow::Result<Archive> {
    let mut archive = initramfs::start(include_str!("init.sh"), command)?;
    for (number, (name, data)) in modules::get(modules)?.into_iter().enumerate() {
        archive.file(&format!("/modules/{number:03}-{name}"), data)?;
    }
    Ok(archive)
}

/// Adds programs, those that every such guest needs, and their libraries.
pub(super) fn add(
    archive: &mut Archive,
    mut programs: Vec<(PathBuf, String)>,
    file: &Path,
) -> anyhow::Result<()> {
    for program in NEEDED_IN_GUESTS {
        let found = find(program).with_context(|| format!("find {program}"))?;
        programs.push((found, format!("/bin/{program}")));
    }
    initramfs::add(archive, &programs, &file.with_extension("stripped"))
}

/// A version of CRIU.
pub(super) fn get(version: &str, dir: &Path, may_download: bool) -> anyhow::Result<Criu> {
    packages::get(row(version)?, &dir.join("criu"), may_download)
}

/// The kernel of its time, and the directory of its modules.
pub(super) fn kernel_of(version: &str, dir: &Path, may_download: bool) -> anyhow::Result<(Kernel, PathBuf)> {
    kernels::with_modules(&plain(row(version)?.kernel), dir, may_download)
}

fn row(version: &str) -> anyhow::Result<&'static Row> {
    let row = MATRIX.iter().find(|row| row.name == version);
    row.with_context(|| format!("no CRIU {version} in the matrix"))
}

/// A small file system that is empty.
fn disk(scratch: &Path) -> anyhow::Result<Vec<u8>> {
    const SIZE: u64 = 2 << 20;
    let file = fs::File::create(scratch).with_context(|| format!("make {}", scratch.display()))?;
    file.set_len(SIZE).with_context(|| format!("make {}", scratch.display()))?;
    // A journal takes half of it.
    output(Command::new(MKFS).args(["-q", "-O", "^has_journal"]).arg(scratch))?;
    let data = read(scratch)?;
    fs::remove_file(scratch).with_context(|| format!("remove {}", scratch.display()))?;
    Ok(data)
}
