//! The program `criu`: where it is, its version, and how it was built.

use std::{
    env, fs,
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;

use crate::verdict::{CriuVersion, Facts, fact};

/// How long to wait for the version, which CRIU prints within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much is read of what the program prints.
const MOST: u64 = 64 << 10;

/// Finds the `criu` in `PATH`. Root's `PATH` may lack `/usr/sbin`, so that is searched, too.
pub(super) fn find() -> Option<PathBuf> {
    in_path("criu").or_else(|| Some(PathBuf::from("/usr/sbin/criu")).filter(|path| path.is_file()))
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Why a program's version isn't known.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It can't be run, or doesn't end.
    #[error(transparent)]
    Run(#[from] io::Error),
    /// It is no CRIU.
    #[error("--version tells no version")]
    NoVersion,
}

/// Returns the version that a program prints.
///
/// # Errors
/// When it can't be run, or tells none.
pub(super) fn version(program: &Path) -> Result<CriuVersion, ProgramError> {
    parse(&ask(program, PATIENCE)?).ok_or(ProgramError::NoVersion)
}

/// Returns what the program prints within this time. Afterwards the program has ended, and so has
/// what it started in its process group.
fn ask(program: &Path, patience: Duration) -> io::Result<String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.process_group(0).spawn()?;
    let printed = printed(child.stdout.take(), patience);
    // The group is the child's, which hasn't been waited for, so nobody else has its number. The
    // group may already be empty.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    child.wait()?;
    printed
}

/// Reads on a thread of its own, because a blocked read can't be given up.
fn printed(output: Option<ChildStdout>, patience: Duration) -> io::Result<String> {
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let mut bytes = Vec::new();
        let read = output.map_or(Ok(0), |output| output.take(MOST).read_to_end(&mut bytes));
        // An error means that nobody waits any more.
        drop(sender.send(read.map(|_| String::from_utf8_lossy(&bytes).into_owned())));
    };
    thread::Builder::new().name("criu".into()).spawn(read)?;
    receiver.recv_timeout(patience).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("--version takes longer than {patience:?}")))
    })
}

fn parse(output: &str) -> Option<CriuVersion> {
    output.lines().find_map(|line| line.strip_prefix("Version:"))?.trim().parse().ok()
}

/// The directories where distributions put plugins (`plugin.h:CR_PLUGIN_DEFAULT`).
const PLUGINS: [&str; 4] =
    ["/usr/lib/criu", "/usr/lib64/criu", "/usr/local/lib/criu", "/usr/lib/x86_64-linux-gnu/criu"];

/// Finds out how a program was built, and which plugins exist.
pub(super) fn learn(program: &Path, facts: &mut Facts) {
    // The binary contains the name of the library that it needs, or its messages if it is linked
    // in.
    let binary = fs::read(program).ok();
    facts.set_some(fact::LIBBPF, binary.map(|binary| contains(&binary, b"libbpf")));
    let plugin = |name: &str| PLUGINS.iter().any(|dir| Path::new(dir).join(name).exists());
    facts.set(fact::CUDA_PLUGIN, plugin("cuda_plugin.so") && in_path("cuda-checkpoint").is_some());
    facts.set(fact::AMDGPU_PLUGIN, plugin("amdgpu_plugin.so"));
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn reads_what_criu_prints() {
        assert_eq!(parse("Version: 4.1.1\nGitID: v4.1.1\n"), Some(CriuVersion::new(4, 1, 1)));
        assert_eq!(parse("Version: 3.17.1\n"), Some(CriuVersion::new(3, 17, 1)));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn one_that_hangs_is_ended_with_what_it_has_started() {
        let dir = env::temp_dir().join(format!("fdtracker-criu-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (program, pids) = (dir.join("criu"), dir.join("pids"));
        let text = format!("#!/bin/sh\nsleep 1000 & echo $$ $! > {}; wait", pids.display());
        // Another process writes the file: one that is forked meanwhile would have it open for
        // writing, and it couldn't be executed.
        let mut make = Command::new("sh");
        make.args(["-c", "printf %s \"$1\" > \"$2\" && chmod +x \"$2\"", "sh"]);
        assert!(make.arg(text).arg(&program).status().unwrap().success());
        let error = ask(&program, Duration::from_secs(3)).unwrap_err();
        let pids = fs::read_to_string(pids).unwrap();
        fs::remove_dir_all(dir).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let [shell, sleep] = pids.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{pids}") };
        assert!(!Path::new("/proc").join(shell).exists());
        // It was killed, too, but nobody has waited for it. Its adoptive parent may reap it at any
        // time.
        let has_ended = || {
            let state = fs::read_to_string(format!("/proc/{sleep}/status")).unwrap_or_default();
            state.is_empty() || state.contains("State:\tZ") || state.contains("State:\tX")
        };
        let start = Instant::now();
        while !has_ended() {
            assert!(start.elapsed() < PATIENCE, "{sleep} runs");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_isnt_criu_is_told() {
        assert!(version(Path::new("/bin/true")).is_err());
        assert!(version(Path::new("/nonexistent/criu")).is_err());
    }
}
