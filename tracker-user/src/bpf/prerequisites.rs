//! What a machine must offer, each with what to do where it doesn't. The start checks it, `doctor`
//! shows it.

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{Feeder, HiddenPlace, Kernel, Sizes, trials};
use crate::{
    error::chain,
    host::{self, KernelVersion},
    privileges::{self, Need, Use},
    runtime::Hierarchy,
};

/// Where tracefs belongs.
const TRACEFS: &str = "/sys/kernel/tracing";

/// Where it is found too, on machines that mount debugfs.
const DEBUGFS_TRACING: &str = "/sys/kernel/debug/tracing";

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
const KPROBE_PMU: &str = "/sys/bus/event_source/devices/kprobe";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// The oldest kernel with all that the probes use: `BPF_PROG_TEST_RUN` of raw tracepoints.
const OLDEST: KernelVersion = KernelVersion { major: 5, minor: 10 };

/// Something that must be there isn't. The message says what to do.
#[derive(Debug, Error)]
pub enum Missing {
    /// The kernel is too old.
    #[error("kernel {0} is too old: fdtracker needs Linux {OLDEST} or newer")]
    Kernel(KernelVersion),
    /// The kernel's version isn't known.
    #[error("can't tell the kernel's version (is /proc mounted?)")]
    KernelVersion(#[source] io::Error),
    /// A capability is missing.
    #[error("{} is missing, to {}: run fdtracker as root, or give it the capability", .0.capability, .0.reason)]
    Capability(Use),
    /// The capabilities aren't known.
    #[error("can't tell this process's capabilities (is /proc mounted?)")]
    Capabilities(#[source] io::Error),
    /// The kernel has no type information.
    #[error(
        "{KERNEL_BTF} isn't there: the kernel was built without CONFIG_DEBUG_INFO_BTF; use one that has it"
    )]
    Btf(#[source] io::Error),
    /// The kernel hides its memory.
    #[error(
        "the kernel is locked down (lockdown=confidentiality), so that BPF programs can't read its memory: boot with \
         lockdown=integrity or without lockdown"
    )]
    Lockdown,
    /// The agent sees only some processes.
    #[error(
        "this isn't the initial pid namespace, so that other processes can't be seen: run fdtracker with the host's \
         (hostPID: true, --pid=host)"
    )]
    PidNamespace,
    /// tracefs isn't mounted.
    #[error("tracefs is not mounted: mount -t tracefs tracefs {TRACEFS}")]
    Tracefs,
    /// The kernel has no kprobes.
    #[error(
        "{KPROBE_PMU} isn't there: the kernel was built without CONFIG_KPROBE_EVENTS, which the kprobe feeder needs"
    )]
    Kprobes,
    /// The kernel has no function of this name.
    #[error("this kernel has no function {0}")]
    Function(&'static str),
    /// tracefs has no syscalls.
    #[error(
        "{0} isn't there: the kernel was built without CONFIG_FTRACE_SYSCALLS, which the tracepoint feeder needs"
    )]
    SyscallEvents(PathBuf),
}

/// Checks everything that the auditor needs, and returns the kernel's version.
///
/// # Errors
/// The first thing that is missing.
pub fn check() -> Result<KernelVersion, Missing> {
    let kernel = kernel()?;
    capabilities()?;
    kernel_btf()?;
    lockdown()?;
    pid_namespace()?;
    Ok(kernel)
}

fn kernel() -> Result<KernelVersion, Missing> {
    let kernel = host::running_kernel().map_err(Missing::KernelVersion)?;
    if kernel < OLDEST { Err(Missing::Kernel(kernel)) } else { Ok(kernel) }
}

fn capabilities() -> Result<(), Missing> {
    let missing = privileges::missing(Need::Start).map_err(Missing::Capabilities)?;
    missing.first().map_or(Ok(()), |cap| Err(Missing::Capability(*cap)))
}

/// The kernel's type information.
pub(super) fn kernel_btf() -> Result<Vec<u8>, Missing> {
    fs::read(KERNEL_BTF).map_err(Missing::Btf)
}

fn lockdown() -> Result<(), Missing> {
    // Not there: no lockdown, or securityfs isn't mounted; then the kernel itself will tell.
    let locked = fs::read_to_string(LOCKDOWN).is_ok_and(|modes| modes.contains("[confidentiality]"));
    if locked { Err(Missing::Lockdown) } else { Ok(()) }
}

fn pid_namespace() -> Result<(), Missing> {
    /// include/linux/proc_ns.h: PROC_PID_INIT_INO
    const INITIAL: u64 = 0xefff_fffc;
    let initial = fs::metadata("/proc/self/ns/pid").is_ok_and(|ns| ns.ino() == INITIAL);
    if initial { Ok(()) } else { Err(Missing::PidNamespace) }
}

/// The mounted tracefs: every feeder needs it.
pub(super) fn tracefs() -> Result<PathBuf, Missing> {
    let roots = [TRACEFS, DEBUGFS_TRACING].into_iter().map(PathBuf::from);
    roots.into_iter().find(|root| root.join("events").is_dir()).ok_or(Missing::Tracefs)
}

/// Where the events of system calls are: the tracepoint feeder needs them.
pub(super) fn syscall_events() -> Result<PathBuf, Missing> {
    let syscalls = tracefs()?.join("events/syscalls");
    if syscalls.is_dir() { Ok(syscalls) } else { Err(Missing::SyscallEvents(syscalls)) }
}

/// kprobes, and the function that empties slots: the kprobe feeder needs them.
pub(super) fn kprobe(function: &'static str) -> Result<(), Missing> {
    if !Path::new(KPROBE_PMU).exists() {
        return Err(Missing::Kprobes);
    }
    // What isn't even among the names needn't be tried.
    let name = CString::new(function).unwrap_or_default().into_bytes_with_nul();
    let known = kernel_btf()?.windows(name.len()).any(|window| window == name);
    if known { Ok(()) } else { Err(Missing::Function(function)) }
}

/// How a finding of `doctor` is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Ok,
    /// The agent runs, but with a limit.
    Warn,
    /// The agent can't run.
    Fail,
}

impl Status {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of `doctor`.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was checked.
    pub name: &'static str,
    /// How to take it.
    pub status: Status,
    /// What was found, and what to do about it.
    pub detail: String,
}

impl Finding {
    fn new(name: &'static str, status: Status, detail: impl Into<String>) -> Self {
        Self { name, status, detail: detail.into() }
    }

    fn of<T>(name: &'static str, result: Result<T, Missing>, detail: impl FnOnce(T) -> String) -> Self {
        match result {
            Ok(value) => Self::new(name, Status::Ok, detail(value)),
            Err(missing) => Self::new(name, Status::Fail, missing.to_string()),
        }
    }
}

/// Checks everything, and at last tries it: what loads and attaches is what works.
#[must_use]
pub fn findings() -> Vec<Finding> {
    let mut found = vec![
        Finding::of("kernel", kernel(), |kernel| format!("Linux {kernel}")),
        Finding::of("capabilities", capabilities(), |()| "all that are needed".into()),
        Finding::of("BTF", kernel_btf(), |btf| format!("{KERNEL_BTF}, {} KiB", btf.len() / 1024)),
        Finding::of("lockdown", lockdown(), |()| "kernel memory can be read".into()),
        Finding::of("tracefs", tracefs(), |root| root.display().to_string()),
        Finding::of("pid namespace", pid_namespace(), |()| "the initial one".into()),
    ];
    let hierarchy = Hierarchy::find();
    found.push(match &hierarchy {
        Ok(hierarchy) => {
            let version = hierarchy.controller().map_or("v2".into(), |name| format!("v1, controller {name}"));
            Finding::new("cgroups", Status::Ok, format!("{} ({version})", hierarchy.root().display()))
        }
        Err(error) => Finding::new("cgroups", Status::Fail, error.to_string()),
    });
    match hierarchy {
        Ok(hierarchy) if found.iter().all(|finding| finding.status != Status::Fail) => {
            found.extend(feeders(&hierarchy));
            found.push(hidden_places(&hierarchy));
        }
        _ => found.push(Finding::new("feeder", Status::Fail, "none: see above")),
    }
    found
}

/// Which places the hidden scan covers.
fn hidden_places(hierarchy: &Hierarchy) -> Finding {
    const NAME: &str = "hidden fds";
    let sizes = Sizes { tables: 1, slots: 1, ring: 4096 };
    let kernel = match Kernel::load(hierarchy, sizes, Feeder::None) {
        Ok((kernel, _)) => kernel,
        Err(error) => return Finding::new(NAME, Status::Fail, chain(error)),
    };
    let names =
        |places: Vec<HiddenPlace>| places.iter().map(HiddenPlace::to_string).collect::<Vec<_>>().join(", ");
    let unscannable = kernel.unscannable_places();
    if unscannable.is_empty() {
        return Finding::new(
            NAME,
            Status::Ok,
            format!("looked for at audits: {}", names(HiddenPlace::ALL.to_vec())),
        );
    }
    let why: Vec<_> = unscannable.iter().map(|(place, why)| format!("{place} ({why})")).collect();
    Finding::new(NAME, Status::Warn, format!("not looked for on this kernel: {}", why.join(", ")))
}

/// Every feeder with what its self-test found, and the one that the agent would choose.
fn feeders(hierarchy: &Hierarchy) -> Vec<Finding> {
    let trials = trials(hierarchy);
    let chosen = trials.iter().find(|trial| trial.passed()).map(|trial| trial.feeder);
    let mut found: Vec<Finding> = trials
        .iter()
        .map(|trial| {
            let status = if trial.passed() { Status::Ok } else { Status::Warn };
            Finding::new("self-test", status, trial.to_string())
        })
        .collect();
    found.push(match chosen {
        Some(feeder) => Finding::new("feeder", Status::Ok, format!("{feeder}: counts are live")),
        None => Finding::new(
            "feeder",
            Status::Warn,
            "none passes its self-test: counts are those of the last audit, not live",
        ),
    });
    found
}
