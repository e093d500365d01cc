//! One guest that runs the tests. The kernel and the programs under test write to its console, the
//! test harness writes to its other port.

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

/// How much longer than elsewhere tests wait here: every instruction is emulated.
pub(super) const PATIENCE: u32 = 4;

/// How long it may be silent; this is multiplied by the patience. A test that waits in vain must
/// have the time to say so.
const SILENCE: Duration = Duration::from_mins(1);

/// Operations in a run of the stress test.
const STRESS_OPERATIONS: &str = "20000";

/// A guest that is to be started.
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) feeder: &'static str,
    pub(super) initramfs: &'a Path,
    /// Tests that don't run in it, by the beginnings of their names.
    pub(super) left_out: Vec<&'static str>,
    pub(super) processors: u32,
    /// Its memory in MiB.
    pub(super) memory: u32,
    /// Its disk, if it has one.
    pub(super) disk: Option<&'a Path>,
    /// How much longer than elsewhere tests wait here.
    pub(super) patience: u32,
    /// The directory for the logs.
    pub(super) dir: &'a Path,
}

/// A guest that has ended.
pub(super) struct Run {
    pub(super) row: Row,
    pub(super) feeder: &'static str,
    pub(super) processors: u32,
    pub(super) log: Log,
    pub(super) took: Duration,
    /// The test harness's output.
    pub(super) tests: PathBuf,
    /// The output of the kernel and the programs under test.
    pub(super) console: PathBuf,
}

impl Guest<'_> {
    /// Runs the guest to its end, or until a deadline.
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

    /// Returns the kernel's parameters.
    fn parameters(&self) -> String {
        // An oops is a failure, whatever caused it. A processor may also hang where its code is
        // patched. The kernel reports that again and again, so that the guest would never be
        // silent, and would hang until its time is over.
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
