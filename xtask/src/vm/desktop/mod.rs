//! `cargo xtask desktop`: the case that started it all, with the real programs: XFCE, TightVNC and IBus in a container.
//!
//! Its tests are those called `desktop::`. They run on this machine, with the CRIUs that run on any kernel; and in a guest with the oldest
//! one, which doesn't. `cargo xtask test` runs both.

mod document;
mod root;

use std::{
    fs,
    path::{Path, PathBuf},
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
use crate::{
    command::{must, workspace},
    machine::Package,
    test,
};

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

/// The tests, by the beginning of their names.
pub(crate) const TESTS: &str = "desktop::";

/// The versions of CRIU that run here.
const HERE: [&str; 2] = ["4.1.1", "4.2.1"];

/// The one that needs a kernel of its time.
const IN_A_GUEST: &str = "3.17.1";

/// What tests add what they saw to, a line of JSON each.
const RECORD: &str = "FDTRACKER_DESKTOP_RECORD";

/// A desktop takes more memory than what most guests run, in MiB.
const MEMORY: u32 = 2560;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    test::install_programs(needed_packages()?, args.no_install)?;
    prepare(args.no_install)?;
    let record = dir()?.join("record.jsonl");
    fs::write(&record, "").with_context(|| format!("write {}", record.display()))?;
    test::build()?;
    if !args.guest {
        must(test::integration(&[TESTS.to_owned()])?.env(RECORD, &record))?;
    }
    let guest = prepare_guest(args.no_install)?.run()?;
    if args.write_docs {
        document::write(&qemu::read(&record)?, &qemu::read(&guest.tests)?)?;
    }
    eprintln!("the desktop is as fdtracker says: {} s", start.elapsed().as_secs());
    Ok(())
}

/// What must be installed before.
pub(crate) fn needed_packages() -> anyhow::Result<Vec<Package>> {
    Ok(criu::needed_packages()?.into_iter().chain(root::missing_package()).collect())
}

/// Where the tests look for all of it.
fn dir() -> anyhow::Result<PathBuf> {
    Ok(workspace()?.join("target/desktop"))
}

/// Makes what the tests need on this machine.
pub(crate) fn prepare(no_install: bool) -> anyhow::Result<()> {
    let dir = dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    root::make(&dir, !no_install)?;
    for version in HERE {
        let criu = criu::get(version, &workspace()?.join("target/vm"), !no_install)?;
        criu.install(&dir.join("criu").join(version))?;
    }
    Ok(())
}

/// The guest that runs the tests with the CRIU of the report.
pub(super) struct Prepared {
    kernel: Kernel,
    disk: PathBuf,
    initramfs: PathBuf,
    dir: PathBuf,
}

/// Makes what it needs.
pub(super) fn prepare_guest(no_install: bool) -> anyhow::Result<Prepared> {
    let (dir, vm) = (dir()?, workspace()?.join("target/vm"));
    let criu = criu::get(IN_A_GUEST, &vm, !no_install)?;
    let (mut kernel, modules) = criu::kernel_of(IN_A_GUEST, &vm, !no_install)?;
    // Other guests of the kernel have other tests.
    kernel.row.name = "desktop";
    let disk = root::disk(&dir.join("root"), &dir)?;
    let initramfs = dir.join("initramfs");
    write(&initramfs, &criu, &modules)?;
    Ok(Prepared { kernel, disk, initramfs, dir })
}

impl Prepared {
    /// Runs it, when its turn has come. It must pass.
    pub(super) fn run(&self) -> anyhow::Result<Run> {
        let _turn = qemu::turn();
        let run = run_until_good(&Guest {
            kernel: &self.kernel,
            feeder: "kprobe",
            initramfs: &self.initramfs,
            left_out: Vec::new(),
            // As with CRIU's other guests.
            processors: 1,
            memory: MEMORY,
            disk: Some(&self.disk),
            // A session of some twenty programs takes minutes to start, beside another guest even more.
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
    let (_, test) = tests.first().context("there are no tests")?;
    let command = ["env", &format!("{RECORD}=/record"), test, "--color", "never", TESTS];
    let mut archive = criu::start(&command.map(str::to_owned), modules)?;
    criu.add(&mut archive, criu::PLACE)?;
    // Where the tests look for it.
    criu.add(&mut archive, &format!("/target/desktop/criu/{IN_A_GUEST}"))?;
    criu::add(&mut archive, initramfs::programs()?.into_iter().chain(tests).collect(), file)?;
    initramfs::finish(archive, file)
}
