//! `cargo xtask desktop`: tests the case that this project began with, with the real programs:
//! XFCE, TightVNC and IBus in a container.
//!
//! Its tests have names with `desktop::`. They run on this machine with the CRIUs that run on any
//! kernel, and in a guest with the oldest CRIU, which doesn't. `cargo xtask test --everything` runs
//! both.

mod document;
mod root;

pub(crate) use self::document::FILE as DOCUMENT;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, bail};

use super::{
    criu,
    guest::{self, Guest, Run},
    initramfs,
    kernels::Kernel,
    qemu, report, run_until_good,
};
use crate::{machine::Package, paths::target, test, whole};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write docs/case-vnc.md, which tells the case with what came out
    #[arg(long)]
    write_docs: bool,

    /// Run in the emulated machine only
    #[arg(long, conflicts_with = "write_docs")]
    guest: bool,

    /// Refuse to install or download anything; say what is needed instead
    #[arg(long)]
    no_install: bool,
}

/// The beginning of the tests' names.
pub(crate) const TESTS: &str = "desktop::";

/// The versions of CRIU that run on this machine.
const HERE: [&str; 2] = ["4.1.1", "4.2.1"];

/// The version that needs a kernel of its time.
const IN_A_GUEST: &str = "3.17.1";

/// The variable that names the file to which tests add a line of JSON for each result.
const RECORD: &str = "FDTRACKER_DESKTOP_RECORD";

/// The variable that names the container's root.
const ROOT: &str = "FDTRACKER_DESKTOP_ROOT";

/// The variable that names the directory of CRIUs. Each is in a directory that is named after its
/// version.
const CRIUS: &str = "FDTRACKER_CRIUS";

/// The memory of the desktop's guest in MiB. It needs more than most guests.
const MEMORY: u32 = 2560;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let commit = args.write_docs.then(whole::commit).transpose()?;
    test::provide(needed_packages()?, args.no_install)?;
    let record = new_record()?;
    if !args.guest {
        prepare(args.no_install)?;
        let choice = test::Choice { filter: Some(TESTS), desktop: true };
        test::integration_with(&choice, |command| record_in(command, &record))?;
    }
    let guest = prepare_guest(args.no_install)?.run()?;
    if let Some(commit) = commit {
        write_document(&record, &guest, &commit)?;
    }
    eprintln!("the desktop is as fdtracker says: {} s", start.elapsed().as_secs());
    Ok(())
}

/// Runs only the tests on this machine.
pub(crate) fn run_here(no_install: bool) -> anyhow::Result<()> {
    test::provide(needed_packages()?, no_install)?;
    prepare(no_install)?;
    test::integration(&test::Choice { filter: Some(TESTS), desktop: true }).map(drop)
}

/// Runs only the guest.
pub(crate) fn run_guest(no_install: bool) -> anyhow::Result<()> {
    test::provide(needed_packages()?, no_install)?;
    prepare_guest(no_install)?.run().map(drop)
}

/// Writes the page of the case from the records of tests here and in a guest.
pub(super) fn write_document(record: &Path, guest: &Run, commit: &str) -> anyhow::Result<()> {
    document::write(&qemu::read(record)?, &qemu::read(&guest.tests)?, commit)
}

/// Makes an empty file for the tests' records.
pub(crate) fn new_record() -> anyhow::Result<PathBuf> {
    let record = dir()?.join("record.jsonl");
    fs::write(&record, "").with_context(|| format!("write {}", record.display()))?;
    Ok(record)
}

/// Makes tests record their results.
pub(crate) fn record_in(command: &mut Command, record: &Path) {
    command.env(RECORD, record);
}

/// Returns the packages that must be installed first.
pub(crate) fn needed_packages() -> anyhow::Result<Vec<Package>> {
    Ok(criu::needed_packages()?.into_iter().chain(root::missing_package()).collect())
}

/// Returns the directory of what is made for these tests and isn't in the cache.
fn dir() -> anyhow::Result<PathBuf> {
    let dir = target()?.join("desktop");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}

/// Returns the directory of the CRIUs that run on this machine.
fn crius() -> anyhow::Result<PathBuf> {
    Ok(dir()?.join("criu"))
}

/// Makes what the tests need on this machine.
pub(crate) fn prepare(no_install: bool) -> anyhow::Result<()> {
    root::make(!no_install)?;
    // CRIUs of earlier runs may be there.
    let _ = fs::remove_dir_all(crius()?);
    for version in HERE {
        let criu = criu::get(version, !no_install)?;
        criu.install(&crius()?.join(criu.release()))?;
    }
    Ok(())
}

/// Tells tests where these things are.
pub(crate) fn tell(tests: &mut Command) -> anyhow::Result<()> {
    tests.env(ROOT, root::make(false)?).env(CRIUS, crius()?);
    Ok(())
}

/// The guest that runs the tests with the CRIU of the first report.
pub(super) struct Prepared {
    kernel: Kernel,
    disk: PathBuf,
    initramfs: PathBuf,
    dir: PathBuf,
}

/// Makes what the guest needs.
pub(super) fn prepare_guest(no_install: bool) -> anyhow::Result<Prepared> {
    let dir = dir()?;
    let criu = criu::get(IN_A_GUEST, !no_install)?;
    let (mut kernel, modules) = criu::kernel_of(IN_A_GUEST, !no_install)?;
    // Other guests with this kernel run other tests.
    kernel.row.name = "desktop";
    let disk = root::disk(&root::make(!no_install)?)?;
    let initramfs = dir.join("initramfs");
    write(&initramfs, &criu, &modules)?;
    Ok(Prepared { kernel, disk, initramfs, dir })
}

impl Prepared {
    /// Runs the guest when its turn has come. It must pass.
    pub(super) fn run(&self) -> anyhow::Result<Run> {
        let _turn = qemu::turn();
        let run = run_until_good(&Guest {
            kernel: &self.kernel,
            feeder: "kprobe",
            initramfs: &self.initramfs,
            left_out: Vec::new(),
            // One processor, for the same reason as in CRIU's other guests.
            processors: 1,
            memory: MEMORY,
            disk: Some(&self.disk),
            // A session of some twenty programs takes minutes to start, and more beside another
            // guest.
            patience: 4 * guest::PATIENCE,
            dir: &self.dir,
        })?;
        if !run.log.is_good() {
            bail!("{}\n{}", report::verdict(&run), report::tails(&run)?);
        }
        Ok(run)
    }
}

/// Writes the guest's root.
fn write(file: &Path, criu: &criu::Criu, modules: &Path) -> anyhow::Result<()> {
    let tests = initramfs::tests()?;
    let told = [format!("{RECORD}=/record"), format!("{ROOT}=/desktop"), format!("{CRIUS}=/crius")];
    let run = [tests.1.as_str(), "--color", "never", TESTS].map(str::to_owned);
    let command: Vec<String> = ["env".to_owned()].into_iter().chain(told).chain(run).collect();
    let mut archive = criu::start(&command, modules)?;
    criu.add(&mut archive, criu::PLACE)?;
    // The tests look for it here.
    criu.add(&mut archive, &format!("/crius/{}", criu.release()))?;
    criu::add(&mut archive, initramfs::programs()?.into_iter().chain([tests]).collect(), file)?;
    initramfs::finish(archive, file)
}
