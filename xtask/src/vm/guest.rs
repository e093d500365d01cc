//! One guest that runs the tests: the kernel and the programs under test write to its console, the
//! test harness to its other port.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    kernels::{Kernel, Row},
    log::Log,
    qemu::{Machine, read},
};

/// How long a guest may take.
const TOTAL: Duration = Duration::from_mins(20);

/// How many times as long as elsewhere tests wait here: every instruction is emulated.
pub(super) const PATIENCE: u32 = 4;

/// How long it may be silent, for each time that tests wait as long as elsewhere: a test that waits
/// in vain must come to tell so.
const SILENCE: Duration = Duration::from_mins(1);

/// Operations in a run of the stress test.
const STRESS_OPERATIONS: &str = "20000";

/// The guest that is to be started.
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) feeder: &'static str,
    pub(super) initramfs: &'a Path,
    /// Tests that it leaves out, by the beginnings of their names.
    pub(super) left_out: Vec<&'static str>,
    pub(super) processors: u32,
    /// In MiB.
    pub(super) memory: u32,
    /// Its disk, if it has one.
    pub(super) disk: Option<&'a Path>,
    /// How many times as long as elsewhere tests wait here.
    pub(super) patience: u32,
    /// Where the logs go.
    pub(super) dir: &'a Path,
}

/// A guest that has ended.
pub(super) struct Run {
    pub(super) row: Row,
    pub(super) feeder: &'static str,
    pub(super) processors: u32,
    pub(super) log: Log,
    pub(super) took: Duration,
    /// What the test harness wrote.
    pub(super) tests: PathBuf,
    /// What the kernel and the programs under test wrote.
    pub(super) console: PathBuf,
}

impl Guest<'_> {
    /// Runs the guest to its end, or to a deadline.
    pub(super) fn run(&self) -> anyhow::Result<Run> {
        let file = |what| self.dir.join(format!("{}-{}.{what}.log", self.kernel.row.name, self.feeder));
        let (tests, console) = (file("tests"), file("console"));
        let start = Instant::now();
        let machine = Machine {
            vmlinuz: &self.kernel.vmlinuz,
            initramfs: self.initramfs,
            processors: self.processors,
            memory: self.memory,
            disk: self.disk,
            parameters: &self.parameters(),
            console: &console,
            output: &tests,
            silence: SILENCE * self.patience,
            total: TOTAL,
        };
        let killed = machine.run(|output| {
            let ran = Log::read(output, "", None).tests.len();
            let (name, seconds) = (self.kernel.row.name, start.elapsed().as_secs());
            eprintln!("{name} with {}: {ran} tests after {seconds} s", self.feeder);
        })?;
        let took = start.elapsed();
        let log = Log::read(&read(&tests)?, &read(&console)?, killed);
        let (row, feeder, processors) = (self.kernel.row, self.feeder, self.processors);
        Ok(Run { row, feeder, processors, log, took, tests, console })
    }

    /// What the kernel is told.
    fn parameters(&self) -> String {
        // An oops is a failure, whatever it was that oopsed. A processor may also hang where its
        // code is patched, and would for as long as the guest may take, as the kernel tells of it
        // all the time.
        format!(
            "oops=panic panic_on_warn=1 softlockup_panic=1 watchdog_thresh=30 {} FDTRACKER_FEEDER={} FDTRACKER_TEST_PATIENCE={} \
             FDTRACKER_STRESS_OPS={STRESS_OPERATIONS} LEFT_OUT={}",
            self.kernel.row.parameters,
            self.feeder,
            self.patience,
            self.left_out.join(",")
        )
    }
}
