//! The capabilities that the agent uses, and why. Once its probes are attached it gives up all
//! others, so that an attacker who takes over the agent has no more than it needs.

use std::{collections::HashSet, io};

use caps::{CapSet, Capability, errors::CapsError};
use thiserror::Error;

use crate::proc::Status;

/// A capability that the agent uses, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The capability.
    pub capability: Capability,
    /// When it is needed.
    pub need: Need,
    /// What it is needed for.
    pub reason: &'static str,
    /// What happens if it is missing.
    pub without: &'static str,
}

/// When a capability is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It is needed to start.
    Start,
    /// It is needed for inspections.
    Inspections,
    /// It is needed only where another one is missing.
    Instead,
}

const STARTS_NOT: &str = "it doesn't start, and says so";

/// All capabilities that the agent uses. It keeps those that it needs to start, too: kernels before
/// 5.18 require `CAP_BPF` and `CAP_PERFMON` for every call on BPF objects, the probe for fanotify
/// is attached late, and cgroups, runtimes' files and watched files are opened all the time.
pub const USES: [Use; 8] = [
    Use {
        capability: Capability::CAP_BPF,
        need: Need::Start,
        reason: "load BPF programs and maps",
        without: STARTS_NOT,
    },
    Use {
        capability: Capability::CAP_PERFMON,
        need: Need::Start,
        reason: "attach them to probes, and read kernel memory",
        without: STARTS_NOT,
    },
    Use {
        capability: Capability::CAP_DAC_READ_SEARCH,
        need: Need::Start,
        reason: "read tracefs, and find a cgroup by its id",
        without: STARTS_NOT,
    },
    Use {
        capability: Capability::CAP_SYS_PTRACE,
        need: Need::Inspections,
        reason: "the files of other users' processes",
        without: "counts are exact all the same; verdicts are unknown but for kinds that no CRIU dumps",
    },
    Use {
        capability: Capability::CAP_CHECKPOINT_RESTORE,
        need: Need::Instead,
        reason: "which files are mapped, without `CAP_SYS_ADMIN`",
        without: "of a mapped file only the name is known",
    },
    Use {
        capability: Capability::CAP_SYS_ADMIN,
        need: Need::Inspections,
        reason: "mounts and unix peers in containers",
        without: "mounts, overmounted files and unix peers in containers are unknown: none is said to be ok",
    },
    Use {
        capability: Capability::CAP_SYS_CHROOT,
        need: Need::Inspections,
        reason: "mounts in containers",
        without: "mounts in containers are unknown",
    },
    Use {
        capability: Capability::CAP_NET_ADMIN,
        need: Need::Inspections,
        reason: "which network namespace a socket is in",
        without: "`check` says \"it depends on what isn't known\" of some sockets",
    },
];

/// Returns those that are needed for this, and that this process doesn't have in effect.
///
/// # Errors
/// When `/proc/self/status` can't be read.
pub fn missing(need: Need) -> io::Result<Vec<Use>> {
    Ok(missing_from(need, Status::own()?.capabilities))
}

fn missing_from(need: Need, effective: u64) -> Vec<Use> {
    let has = |capability: Capability| effective & capability.bitmask() != 0;
    // These two were parts of CAP_SYS_ADMIN once.
    let stands_in = |capability| matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
    let is_there = |capability| has(capability) || stands_in(capability) && has(Capability::CAP_SYS_ADMIN);
    USES.into_iter().filter(|used| used.need == need && !is_there(used.capability)).collect()
}

/// Why capabilities can't be given up.
#[derive(Debug, Error)]
#[error("give up capabilities ({set})")]
pub struct PrivilegesError {
    set: &'static str,
    source: CapsError,
}

/// Gives up all capabilities except these, permanently: for this thread, and for threads and
/// processes that it starts from now on. Of these it keeps those that it has.
///
/// # Errors
/// When the kernel refuses.
pub fn keep(only: &[Capability]) -> Result<(), PrivilegesError> {
    let error = |set| move |source| PrivilegesError { set, source };
    let only: HashSet<Capability> = only.iter().copied().collect();
    // A program that is executed from now on gains nothing from its owner or its file. Every kernel
    // since 3.5 supports this.
    let _ = rustix::thread::set_no_new_privs(true);
    let has = |set, name| caps::read(None, set).map_err(error(name));
    // Without CAP_SETPCAP the bounding set stays, but no capability can be gained from it any more.
    if has(CapSet::Effective, "effective")?.contains(&Capability::CAP_SETPCAP) {
        for capability in has(CapSet::Bounding, "bounding")?.difference(&only) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(error("bounding"))?;
        }
    }
    // The order matters: what isn't permitted can't be in effect.
    for (set, name) in [
        (CapSet::Ambient, "ambient"),
        (CapSet::Inheritable, "inheritable"),
        (CapSet::Effective, "effective"),
        (CapSet::Permitted, "permitted"),
    ] {
        let kept = has(set, name)?.intersection(&only).copied().collect();
        caps::set(None, set, &kept).map_err(error(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let names = |mask: u64| -> Vec<_> {
            missing_from(Need::Start, mask).iter().map(|used| used.capability.to_string()).collect()
        };
        assert_eq!(names(u64::MAX), [""; 0]);
        assert_eq!(names(0), ["CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH"]);
        assert_eq!(names(1 << 21), ["CAP_DAC_READ_SEARCH"]);
        assert_eq!(names(1 << 39 | 1 << 2), ["CAP_PERFMON"]);
    }

    /// `cargo xtask gen` rewrites the table.
    #[test]
    fn the_reference_is_up_to_date() {
        let row = |used: &Use| format!("| `{}` | {} | {} |\n", used.capability, used.reason, used.without);
        let table: String = USES.iter().map(row).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let document = std::fs::read_to_string(path).unwrap();
        let head = "| capability | what for | without it |\n|---|---|---|\n";
        let (before, rest) = document.split_once(head).unwrap();
        let (_, after) = rest.split_once("\n\n").unwrap();
        let made = format!("{before}{head}{table}\n{after}");
        if std::env::var_os("FDTRACKER_WRITE_DOCS").is_some() {
            std::fs::write(path, made).unwrap();
        } else {
            assert_eq!(document, made, "cargo xtask gen rewrites it");
        }
    }

    #[test]
    fn a_thread_keeps_what_it_is_told_to_and_has() {
        let kept = std::thread::spawn(|| {
            let before = caps::read(None, CapSet::Permitted).unwrap();
            keep(&[Capability::CAP_SYS_PTRACE]).unwrap();
            let sets = [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted];
            for set in sets {
                let kept = caps::read(None, set).unwrap();
                assert!(kept.iter().all(|cap| *cap == Capability::CAP_SYS_PTRACE), "{set:?}: {kept:?}");
            }
            let had = before.contains(&Capability::CAP_SYS_PTRACE);
            assert_eq!(caps::read(None, CapSet::Permitted).unwrap().len(), usize::from(had));
        });
        kept.join().unwrap();
    }
}
