//! What the agent gives up once its probes are attached: whoever gets hold of it then has no more than it needs.

use std::collections::HashSet;

use caps::{CapSet, Capability, errors::CapsError};
use thiserror::Error;

/// What the agent uses after its probes are attached.
///
/// - `CAP_BPF`, `CAP_PERFMON`: kernels before 5.18 want them for every call on BPF objects; the probe for fanotify is attached late.
/// - `CAP_DAC_READ_SEARCH`: a cgroup by its id, the state of runtimes, what is watched.
/// - `CAP_SYS_PTRACE`, `CAP_CHECKPOINT_RESTORE`: the files and the mappings of others' processes.
/// - `CAP_SYS_ADMIN`, `CAP_SYS_CHROOT`, `CAP_NET_ADMIN`: the mounts and the network of containers.
pub const USED: [Capability; 8] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_CHECKPOINT_RESTORE,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_NET_ADMIN,
];

/// Why capabilities can't be given up.
#[derive(Debug, Error)]
#[error("give up capabilities ({set})")]
pub struct PrivilegesError {
    set: &'static str,
    source: CapsError,
}

/// Gives up all capabilities but these, for good: for this thread, and threads and processes that it starts from now on. Of these it
/// keeps those that it has.
///
/// # Errors
/// When the kernel refuses.
pub fn keep(only: &[Capability]) -> Result<(), PrivilegesError> {
    let error = |set| move |source| PrivilegesError { set, source };
    let only: HashSet<Capability> = only.iter().copied().collect();
    // SAFETY: the call has no memory to do with. What is executed from now on gains nothing by its owner or its file.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let has = |set, name| caps::read(None, set).map_err(error(name));
    // Without CAP_SETPCAP the bounding set stays: nothing can be gained by it any more.
    if has(CapSet::Effective, "effective")?.contains(&Capability::CAP_SETPCAP) {
        for capability in has(CapSet::Bounding, "bounding")?.difference(&only) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(error("bounding"))?;
        }
    }
    // In this order: what isn't permitted can't be in effect.
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
