//! `cargo xtask criu`: finds out what CRIU itself does with every fixture, in versions that no
//! single machine has.
//!
//! Each version runs in a guest with a kernel of its time. The guest's root is a tmpfs, because
//! CRIU can't work on the root that a kernel unpacks.

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

pub(crate) use self::document::FILE as DOCUMENT;
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
    command::output,
    machine::{Package, find, install},
    paths,
    test::tries,
    whole,
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

    /// Fixtures about which all versions agree. Each of these runs with one version only.
    #[arg(skip)]
    shared: Vec<String>,

    /// The commit that is tested, if the document is to name it.
    #[arg(skip)]
    commit: Option<String>,
}

impl Args {
    /// Returns arguments for every fixture with every version, compared with `check`. The document
    /// is written if there is a commit.
    pub(crate) fn everything(commit: Option<String>, no_install: bool) -> Self {
        let (versions, fixtures, shared) = (Vec::new(), Vec::new(), Vec::new());
        let write_docs = commit.is_some();
        Self { versions, kernel: None, fixtures, no_check: false, write_docs, no_install, shared, commit }
    }

    /// Returns the same, but fixtures about which all versions said the same the last time run with
    /// one version only.
    pub(crate) fn each_where_they_differ(no_install: bool) -> anyhow::Result<Self> {
        Ok(Self { shared: document::agreed()?, ..Self::everything(None, no_install) })
    }
}

/// A version of CRIU, and its kernel.
struct Row {
    name: &'static str,
    /// The beginning of its package's version.
    series: &'static str,
    /// The Debian suite that has the package.
    suite: &'static str,
    kernel: &'static str,
}

/// The oldest CRIU doesn't start on kernels newer than 6.12 (CRIU: `vdso.c`), so each has the
/// kernel of its suite.
const MATRIX: [Row; 3] = [
    Row { name: "3.17.1", series: "3.17.1", suite: "bookworm", kernel: "6.1" },
    Row { name: "4.1.1", series: "4.1.1", suite: "trixie", kernel: "6.12" },
    Row { name: "4.2.1", series: "4.2.1", suite: "sid", kernel: "7" },
];

/// The program that makes file systems. It is named by its path, because only root's `PATH`
/// includes that.
pub(super) const MKFS: &str = "/sbin/mkfs.ext4";

/// The program that runs containers, and the one with which CRIU packs their tmpfs. They are in
/// packages of the same names.
const NEEDED_IN_GUESTS: [&str; 2] = ["runc", "tar"];

/// The directory of CRIU in a guest.
pub(super) const PLACE: &str = "/criu";

/// How long a guest may be silent. A dump that hangs is ended earlier.
const SILENCE: Duration = Duration::from_mins(4);

/// How long a guest may take.
const TOTAL: Duration = Duration::from_hours(1);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let commit = match &args.commit {
        None if args.write_docs => Some(whole::commit()?),
        commit => commit.clone(),
    };
    install(&needed_packages()?, !args.no_install)?;
    let results = paths::vm()?.join("criu");
    fs::create_dir_all(&results).with_context(|| format!("make {}", results.display()))?;
    let is_wanted =
        |row: &&Row| args.versions.is_empty() || args.versions.iter().any(|name| name == row.name);
    let rows: Vec<&Row> = MATRIX.iter().filter(is_wanted).collect();
    // Only one process may use apt's lists at a time. Guests have one processor each.
    let trials = rows
        .into_iter()
        .enumerate()
        .map(|(number, row)| Trial::prepare(number, row, args))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let all = in_parallel(&trials, |trial| trial.run(args, &results))?;
    for results in &all {
        eprint!("{}", results.summary());
    }
    let mut bad = Vec::new();
    for (trial, results) in trials.iter().zip(&all).filter(|(_, results)| !results.is_good()) {
        if trial.criu.is_wanted {
            bad.push(results.name());
        } else {
            // A suite may go on to a release that the rules don't know yet. That is reported, but
            // isn't the fault of a change, so the run doesn't fail.
            tries::note(
                &format!("criu {}", results.name()),
                "nobody asked for this release: its disagreements count for nothing",
            );
        }
    }
    if !bad.is_empty() {
        bail!(
            "not all went well with CRIU {}; logs and results are in {}",
            bad.join(", "),
            results.display()
        );
    }
    match commit {
        Some(commit) if trials.iter().all(|trial| trial.criu.is_wanted) => document::write(&all, &commit)?,
        Some(_) => eprintln!("{DOCUMENT} isn't written: it is about the releases that the rules know"),
        None => {}
    }
    eprintln!("fdtracker check says what CRIU says: {} s", start.elapsed().as_secs());
    Ok(())
}

/// Returns the packages that must be installed before guests can run.
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

/// A version of CRIU, with a kernel.
struct Trial {
    name: String,
    criu: Criu,
    kernel: Kernel,
    modules: PathBuf,
    /// Fixtures that run with another version.
    left_out: Vec<String>,
}

impl Trial {
    /// Downloads what it needs.
    fn prepare(number: usize, row: &Row, args: &Args) -> anyhow::Result<Self> {
        let criu = packages::get(row, !args.no_install)?;
        let (name, on) = chosen(criu.release(), row, args.kernel.as_deref());
        let (kernel, modules) = kernels::with_modules(&on, !args.no_install)?;
        // The commit decides which version runs these fixtures.
        let turn = whole::turn();
        let is_left_out = |place: &usize| (place + turn) % MATRIX.len() != number;
        let shared = args.shared.iter().enumerate().filter(|(place, _)| is_left_out(place));
        let left_out = shared.map(|(_, fixture)| fixture.clone()).collect();
        Ok(Self { name, criu, kernel, modules, left_out })
    }

    /// Boots a guest, and writes its results.
    fn run(&self, args: &Args, dir: &Path) -> anyhow::Result<Results> {
        let Self { name, criu, kernel, modules, left_out } = self;
        let file = |what: &str| dir.join(format!("{name}.{what}"));
        let initramfs = file("initramfs");
        let write = |fixtures: &[String]| {
            let skipped = left_out.iter().flat_map(|name| ["--skip".to_owned(), name.clone()]);
            let check = (!args.no_check).then(|| "--check".to_owned());
            let arguments = check.into_iter().chain(skipped).chain(fixtures.iter().cloned());
            write(&initramfs, criu, modules, arguments.collect())
        };
        write(&args.fixtures)?;
        let mut results = boot(name, criu, kernel, &initramfs, &file)?;
        if results.ended_badly() {
            eprint!("{}", results.summary());
            tries::note(&format!("criu {name}"), "its guest ended badly");
            results = boot(name, criu, kernel, &initramfs, &file)?;
        }
        // Something may change between a check and a dump, so one difference is allowed. A second
        // difference is a failure.
        let again = results.to_repeat();
        if !again.is_empty() {
            eprint!("{}", results.summary());
            tries::note(
                &format!("criu {name}: {}", again.join(", ")),
                "missing, or not as foretold, the first time",
            );
            write(&again)?;
            let again = boot(name, criu, kernel, &initramfs, &|what| file(&format!("again.{what}")))?;
            results = results.and(again);
        }
        let table = file("json");
        fs::write(&table, results.json()?).with_context(|| format!("write {}", table.display()))?;
        eprintln!("wrote {}", table.display());
        Ok(results)
    }
}

/// Returns the name of the results, and the kernel that they are for.
fn chosen(release: &str, row: &Row, kernel: Option<&str>) -> (String, kernels::Row) {
    match kernels::MATRIX.into_iter().find(|other| Some(other.name) == kernel) {
        Some(other) => (format!("{release}-on-{}", other.name), other),
        None => (release.to_owned(), plain(row.kernel)),
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
        // With several processors, one may execute an instruction that another is replacing. QEMU
        // doesn't emulate that well.
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
fn write(file: &Path, criu: &Criu, modules: &Path, arguments: Vec<String>) -> anyhow::Result<()> {
    let program = ["fdconform", "--results", initramfs::OUTPUT].map(str::to_owned);
    let command: Vec<String> = program.into_iter().chain(arguments).collect();
    let mut archive = start(&command, modules)?;
    criu.add(&mut archive, PLACE)?;
    archive.file("/disk.img", disk(&file.with_extension("disk"))?)?;
    let programs = initramfs::programs()?;
    add(&mut archive, programs, file)?;
    initramfs::finish(archive, file)
}

/// Returns the root of a guest that has all that CRIU needs and runs this command.
pub(super) fn start(command: &[String], modules: &Path) -> anyhow::Result<Archive> {
    let mut archive = initramfs::start(include_str!("init.sh"), command)?;
    for (number, (name, data)) in modules::get(modules)?.into_iter().enumerate() {
        archive.file(&format!("/modules/{number:03}-{name}"), data)?;
    }
    Ok(archive)
}

/// Adds programs, those that every such guest needs, and the libraries of all.
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

/// Returns a version of CRIU.
pub(super) fn get(version: &str, may_download: bool) -> anyhow::Result<Criu> {
    packages::get(row(version)?, may_download)
}

/// Returns the kernel of its time, and the directory of its modules.
pub(super) fn kernel_of(version: &str, may_download: bool) -> anyhow::Result<(Kernel, PathBuf)> {
    kernels::with_modules(&plain(row(version)?.kernel), may_download)
}

fn row(version: &str) -> anyhow::Result<&'static Row> {
    let row = MATRIX.iter().find(|row| row.name == version);
    row.with_context(|| format!("no CRIU {version} in the matrix"))
}

/// Makes a small, empty file system.
fn disk(scratch: &Path) -> anyhow::Result<Vec<u8>> {
    const SIZE: u64 = 2 << 20;
    let file = fs::File::create(scratch).with_context(|| format!("make {}", scratch.display()))?;
    file.set_len(SIZE).with_context(|| format!("make {}", scratch.display()))?;
    // A journal would take half of the space.
    output(Command::new(MKFS).args(["-q", "-O", "^has_journal"]).arg(scratch))?;
    let data = read(scratch)?;
    fs::remove_file(scratch).with_context(|| format!("remove {}", scratch.display()))?;
    Ok(data)
}
