//! One guest: a kernel that runs the tests in QEMU.
//!
//! It has two serial ports, each a file here: the kernel and the programs under test write to the first, the test harness to the
//! second, so that nothing gets between a test's name and its outcome.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    kernels::{Kernel, Row},
    log::Log,
};

pub(super) const QEMU: &str = "qemu-system-x86_64";

/// How often it is shown that a guest goes on.
const PROGRESS: Duration = Duration::from_secs(30);

/// How long a guest may be silent.
const SILENCE: Duration = Duration::from_secs(240);

/// How long a guest may take.
const TOTAL: Duration = Duration::from_secs(20 * 60);

/// How much longer than elsewhere tests wait here: every instruction is emulated.
const PATIENCE: &str = "4";

/// Operations in a run of the stress test.
const STRESS_OPERATIONS: &str = "60000";

/// The guest that is to be started.
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) feeder: &'static str,
    pub(super) initramfs: &'a Path,
    /// Where the logs go.
    pub(super) dir: &'a Path,
}

/// A guest that has ended.
pub(super) struct Run {
    pub(super) row: Row,
    pub(super) feeder: &'static str,
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
        for file in [&tests, &console] {
            fs::write(file, "").with_context(|| format!("write {}", file.display()))?;
        }
        let start = Instant::now();
        let child = self.qemu(&tests, &console).spawn().with_context(|| format!("start {QEMU}"))?;
        let killed = self.watch(Running(child), start, &tests, &console)?;
        let took = start.elapsed();
        let log = Log::read(&read(&tests)?, &read(&console)?, killed);
        Ok(Run { row: self.kernel.row, feeder: self.feeder, log, took, tests, console })
    }

    /// Waits for the end, or says which deadline passed.
    fn watch(
        &self,
        mut guest: Running,
        start: Instant,
        tests: &Path,
        console: &Path,
    ) -> anyhow::Result<Option<String>> {
        let (mut size, mut grown, mut shown) = (0, Instant::now(), Instant::now());
        while guest.0.try_wait().context("wait for QEMU")?.is_none() {
            let now: u64 =
                [tests, console].iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum();
            if now != size {
                (size, grown) = (now, Instant::now());
            }
            if grown.elapsed() > SILENCE {
                return Ok(Some(format!("silent for {} s", SILENCE.as_secs())));
            }
            if start.elapsed() > TOTAL {
                return Ok(Some(format!("not finished within {} s", TOTAL.as_secs())));
            }
            if shown.elapsed() > PROGRESS {
                let ran = Log::read(&read(tests)?, "", None).tests.len();
                eprintln!(
                    "{} with {}: {ran} tests after {} s",
                    self.kernel.row.name,
                    self.feeder,
                    start.elapsed().as_secs()
                );
                shown = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(None)
    }

    fn qemu(&self, tests: &Path, console: &Path) -> Command {
        // An oops is a failure, whatever it was that oopsed. Emulated, mitigations cost much and protect nothing.
        let parameters = format!(
            "console=ttyS0 quiet panic=-1 oops=panic panic_on_warn=1 mitigations=off {} FDTRACKER_FEEDER={} \
             FDTRACKER_TEST_PATIENCE={PATIENCE} FDTRACKER_STRESS_OPS={STRESS_OPERATIONS}",
            self.kernel.row.parameters, self.feeder
        );
        let mut qemu = Command::new(QEMU);
        // Without cmpxchg16b, because QEMU before 8.0 corrupts flags when it emulates that: Linux 6.12 then panics.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "Nehalem,-cx16", "-smp", "2", "-m", "1024"])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-serial", &format!("file:{}", tests.display())])
            .arg("-kernel")
            .arg(&self.kernel.vmlinuz)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &parameters])
            .stdin(Stdio::null());
        qemu
    }
}

/// A process that doesn't outlive this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The text of a log, in which a crash may have left anything.
pub(super) fn read(file: &Path) -> anyhow::Result<String> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
}
