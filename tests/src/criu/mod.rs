//! CRIU itself as the oracle: what it says in its log, and whether `check` predicted that.

mod check;
mod log;

use std::{fs, io, path::PathBuf};

use caps::{CapSet, Capability};

pub use self::{
    check::agrees,
    log::{Line, Log},
};

/// A CRIU that `cargo xtask desktop` has installed.
#[derive(Clone, Debug)]
pub struct Criu {
    /// Its version.
    pub version: String,
    /// The program that starts it.
    pub program: PathBuf,
}

impl Criu {
    /// Returns all of them, the oldest first.
    pub fn all() -> Vec<Self> {
        let dir = std::env::var_os("FDTRACKER_CRIUS").unwrap_or_default();
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let found = entries.filter_map(|entry| {
            let version = entry.file_name().to_str()?.to_owned();
            // The path is used in a container too, so it must not have `..` in it.
            let program = entry.path().join("criu").canonicalize().ok()?;
            Some(Self { version, program })
        });
        let mut all: Vec<Self> = found.collect();
        all.sort_by(|a, b| a.version.cmp(&b.version));
        all
    }
}

/// The system's limit of open files for a process, lowered to this process's own limit while this
/// value lives.
///
/// CRIU raises its limit to the system's (CRIU: `rlimit_unlimit_nofile`). For that it needs a
/// capability that root doesn't have everywhere; without it CRIU would dump nothing.
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
