//! The oracle: CRIU itself, what it says in its log, and whether that was foretold.

mod check;
mod log;

use std::{fs, io, path::PathBuf};

use caps::{CapSet, Capability};

pub use self::{
    check::agrees,
    log::{Line, Log},
};

/// A CRIU that `cargo xtask desktop` brought.
#[derive(Clone, Debug)]
pub struct Criu {
    /// Its version.
    pub version: String,
    /// What starts it.
    pub program: PathBuf,
}

impl Criu {
    /// All of them, the oldest first.
    pub fn all() -> Vec<Self> {
        let dir = std::env::var_os("FDTRACKER_CRIUS").unwrap_or_default();
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let found = entries.filter_map(|entry| {
            let version = entry.file_name().to_str()?.to_owned();
            // A path of this machine's is one in a container, too: so without `..`.
            let program = entry.path().join("criu").canonicalize().ok()?;
            Some(Self { version, program })
        });
        let mut all: Vec<Self> = found.collect();
        all.sort_by(|a, b| a.version.cmp(&b.version));
        all
    }
}

/// The most files that a process may have open, lowered to what this process may have, as long as this lives.
///
/// CRIU gives itself as many as there may be (CRIU: `rlimit_unlimit_nofile`), which takes a capability that root doesn't have everywhere;
/// then it would dump nothing.
pub struct FewerFiles(Option<String>);

impl FewerFiles {
    const MOST: &str = "/proc/sys/fs/nr_open";

    /// Lowers it, where that is needed.
    ///
    /// # Errors
    /// If it can't be read or written.
    pub fn lower() -> io::Result<Self> {
        let was = fs::read_to_string(Self::MOST)?;
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes one structure.
        crate::sys::check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }.into())?;
        let may_raise =
            caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).map_err(io::Error::other)?;
        if may_raise || was.trim().parse().is_ok_and(|most: u64| most <= limit.rlim_max) {
            return Ok(Self(None));
        }
        fs::write(Self::MOST, limit.rlim_max.to_string())?;
        Ok(Self(Some(was)))
    }
}

impl Drop for FewerFiles {
    fn drop(&mut self) {
        if let Some(was) = &self.0 {
            let _ = fs::write(Self::MOST, was);
        }
    }
}
