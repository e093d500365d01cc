//! Freezes a process tree during an inspection, so that all facts are of the same moment. Uses the
//! cgroup freezer, and thaws on every way out.
//!
//! A separate process thaws. It waits for the end of this one, and so works even if this one is
//! killed.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use thiserror::Error;

use crate::{error::SyscallError, target::TargetTree};

/// The hidden command that runs as the process that thaws.
pub const COMMAND: &str = "thaw";

/// How long the kernel may take to freeze everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a tree can't be frozen.
#[derive(Debug, Error)]
pub enum FreezeError {
    /// The tree has no freezer.
    #[error(
        "{0} has no cgroup of its own that could be frozen; without --freeze, facts may be of different moments"
    )]
    NoCgroup(String),
    /// Other processes would be frozen, too.
    #[error("the cgroup {} also holds processes that aren't inspected (process {pid}): it isn't frozen", .dir.display())]
    Shared {
        /// The cgroup.
        dir: PathBuf,
        /// One of the other processes.
        pid: u32,
    },
    /// It didn't freeze in time.
    #[error("the cgroup {} didn't freeze within {PATIENCE:?} (a process may wait for a device), and was thawed", .dir.display())]
    Late {
        /// The cgroup.
        dir: PathBuf,
    },
    /// A call failed.
    #[error(transparent)]
    Call(#[from] SyscallError),
}

/// A cgroup's freezer, of v2 or v1.
#[derive(Clone, Debug)]
struct Freezer {
    dir: PathBuf,
    /// Whether it is v1's, with `freezer.state`.
    v1: bool,
}

/// A cgroup that is frozen. When dropped, it is thawed.
#[derive(Debug)]
pub struct Frozen {
    freezer: Freezer,
    /// The process that thaws; `None` if somebody else froze the cgroup before.
    thawer: Option<Child>,
}

impl Frozen {
    /// Freezes the cgroup of a tree.
    ///
    /// # Errors
    /// When the tree has no cgroup of its own, or the kernel refuses.
    pub fn freeze(target: &TargetTree) -> Result<Self, FreezeError> {
        let freezer = Freezer::of(target)?;
        if freezer.is_frozen() {
            return Ok(Self { freezer, thawer: None });
        }
        // The thawing process must run before anything is frozen.
        let thawer = freezer.thawer()?;
        let frozen = Self { freezer, thawer: Some(thawer) };
        frozen.freezer.write(true)?;
        let start = Instant::now();
        while !frozen.freezer.is_frozen() {
            if start.elapsed() > PATIENCE {
                return Err(FreezeError::Late { dir: frozen.freezer.dir.clone() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(frozen)
    }

    /// Thaws the cgroup, and waits until it is thawed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(mut self) -> Result<(), FreezeError> {
        self.end();
        if self.freezer.is_frozen() && self.thawer.is_some() { self.freezer.write(false) } else { Ok(()) }
    }

    fn end(&mut self) {
        if let Some(thawer) = &mut self.thawer {
            // The process waits for the end of its input.
            drop(thawer.stdin.take());
            let _ = thawer.wait();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.end();
    }
}

impl Freezer {
    /// Finds the freezer of a tree's cgroup.
    fn of(target: &TargetTree) -> Result<Self, FreezeError> {
        let path = format!("/proc/{}/cgroup", target.root);
        let text = fs::read_to_string(&path).map_err(SyscallError::on("read", &path))?;
        let freezer =
            Self::find(&text).ok_or_else(|| FreezeError::NoCgroup(format!("process {}", target.root)))?;
        let own = std::process::id();
        for pid in freezer.pids() {
            // All processes in a container's cgroup belong to the container.
            let foreign = target.container.is_none() && !target.pids.contains(&pid) && pid != target.root;
            if foreign || pid == own {
                return Err(FreezeError::Shared { dir: freezer.dir, pid });
            }
        }
        Ok(freezer)
    }

    /// Finds the freezer from `/proc/PID/cgroup`, where v2's hierarchy has number 0, and v1's a
    /// name. `None` for the root cgroup, which can't be frozen.
    fn find(text: &str) -> Option<Self> {
        let path = |wanted: &dyn Fn(&str, &str) -> bool| {
            let line = |line: &str| {
                let mut parts = line.splitn(3, ':');
                let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
                (wanted(id, controllers) && path != "/").then(|| path.trim_start_matches('/').to_owned())
            };
            text.lines().find_map(line)
        };
        let v2 = path(&|id, _| id == "0").and_then(|path| {
            let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
            roots
                .iter()
                .map(|root| Path::new(root).join(&path))
                .find(|dir| dir.join("cgroup.freeze").exists())
        });
        let v1 = || {
            let path = path(&|_, controllers| controllers.split(',').any(|name| name == "freezer"))?;
            Some(Path::new("/sys/fs/cgroup/freezer").join(path))
                .filter(|dir| dir.join("freezer.state").exists())
        };
        v2.map(|dir| Self { dir, v1: false }).or_else(|| v1().map(|dir| Self { dir, v1: true }))
    }

    fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
    }

    fn file(&self) -> PathBuf {
        self.dir.join(if self.v1 { "freezer.state" } else { "cgroup.freeze" })
    }

    fn word(&self, freeze: bool) -> &'static str {
        match (self.v1, freeze) {
            (true, true) => "FROZEN",
            (true, false) => "THAWED",
            (false, true) => "1",
            (false, false) => "0",
        }
    }

    fn write(&self, freeze: bool) -> Result<(), FreezeError> {
        let file = self.file();
        Ok(fs::write(&file, self.word(freeze)).map_err(SyscallError::on("write", file.display()))?)
    }

    fn is_frozen(&self) -> bool {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        if self.v1 {
            read("freezer.state").trim() == "FROZEN"
        } else {
            read("cgroup.events").lines().any(|line| line == "frozen 1")
        }
    }

    fn thawer(&self) -> Result<Child, FreezeError> {
        let program = "/proc/self/exe";
        let mut command = Command::new(program);
        command.arg(COMMAND).arg(self.file()).arg(self.word(false));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // A terminal's Ctrl-C ends all processes in the foreground, and the process that thaws must
        // outlive it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(command.spawn().map_err(SyscallError::on("start", program))?)
    }
}

/// Waits for the end of standard input, and then writes a word to a file. This is what the thawing
/// process does.
///
/// # Errors
/// When the file can't be written.
pub fn thaw_later(file: &Path, word: &str) -> io::Result<()> {
    let _ = io::stdin().lock().read_to_end(&mut Vec::new());
    fs::write(file, word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_no_freezer() {
        assert!(Freezer::find("0::/\n4:freezer:/\n").is_none());
        assert!(Freezer::find("").is_none());
        assert!(Freezer::find("garbage\n::\n").is_none());
    }
}
