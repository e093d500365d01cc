//! An emulated machine, and its watchdog.
//!
//! It has two serial ports, each a file here: the kernel writes to the first, programs write to the
//! second, so that their lines aren't mixed.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;

pub(super) const QEMU: &str = "qemu-system-x86_64";

/// The memory that is enough for most machines, in MiB.
pub(super) const MEMORY: u32 = 1024;

/// How often a line shows that a machine goes on.
const PROGRESS: Duration = Duration::from_secs(5);

/// How many machines may run at a time.
const AT_A_TIME: usize = 2;

/// How many run.
static RUNNING: Mutex<usize> = Mutex::new(0);

/// Notified when one has ended.
static ENDED: Condvar = Condvar::new();

/// The right to run a machine, until this is dropped.
pub(super) struct Turn(());

/// Waits until one more machine may run.
pub(super) fn turn() -> Turn {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let all_run = |running: &mut usize| *running >= AT_A_TIME;
    *ENDED.wait_while(running, all_run).unwrap_or_else(PoisonError::into_inner) += 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// A machine that is to be started.
pub(super) struct Machine<'a> {
    pub(super) vmlinuz: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) processors: u32,
    /// Its memory in MiB.
    pub(super) memory: u32,
    /// A file system for `/dev/vda`. The machine can't write to it.
    pub(super) disk: Option<&'a Path>,
    /// Additional kernel parameters.
    pub(super) parameters: &'a str,
    /// The file for the kernel's output.
    pub(super) console: &'a Path,
    /// The file for the programs' output.
    pub(super) output: &'a Path,
    /// How long it may be silent.
    pub(super) silence: Duration,
    /// How long it may take.
    pub(super) total: Duration,
}

impl Machine<'_> {
    /// Runs the machine to its end, or until a deadline. In that case returns which one. Now and
    /// then calls `progress` with the output so far.
    pub(super) fn run(&self, progress: impl Fn(&str)) -> anyhow::Result<Option<String>> {
        for file in [self.output, self.console] {
            fs::write(file, "").with_context(|| format!("write {}", file.display()))?;
        }
        let start = Instant::now();
        let mut machine = Running(self.qemu().spawn().with_context(|| format!("start {QEMU}"))?);
        let (mut size, mut grown, mut shown) = (0, Instant::now(), Instant::now());
        while machine.0.try_wait().context("wait for QEMU")?.is_none() {
            let now: u64 = [self.output, self.console]
                .iter()
                .filter_map(|file| Some(fs::metadata(file).ok()?.len()))
                .sum();
            if now != size {
                (size, grown) = (now, Instant::now());
            }
            if grown.elapsed() > self.silence {
                return Ok(Some(format!("silent for {} s", self.silence.as_secs())));
            }
            if start.elapsed() > self.total {
                return Ok(Some(format!("not finished within {} s", self.total.as_secs())));
            }
            if shown.elapsed() > PROGRESS {
                progress(&read(self.output)?);
                shown = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(None)
    }

    fn qemu(&self) -> Command {
        // In emulation, mitigations cost much and protect nothing. Without random addresses, QEMU
        // can reuse its translation from an earlier start of a program: most starts take less than
        // half as long.
        let parameters =
            format!("console=ttyS0 quiet panic=-1 mitigations=off norandmaps {}", self.parameters);
        // It ends with this program, however that ends.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", QEMU]);
        // No cmpxchg16b: QEMU before 8.0 corrupts flags when it emulates that, and Linux 6.12 then
        // panics.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "Nehalem,-cx16"])
            .args(["-m", &self.memory.to_string()])
            .args(["-smp", &self.processors.to_string()])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", self.console.display())])
            .args(["-serial", &format!("file:{}", self.output.display())])
            .arg("-kernel")
            .arg(self.vmlinuz)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", &parameters])
            .stdin(Stdio::null());
        if let Some(disk) = self.disk {
            let drive = format!("file={},format=raw,if=virtio,readonly=on", disk.display());
            qemu.args(["-drive", &drive]);
        }
        qemu
    }
}

/// A process that ends when this value is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a log. A crash may have left any bytes in it.
pub(super) fn read(file: &Path) -> anyhow::Result<String> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
}
