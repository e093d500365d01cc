//! A server that a test starts, and ends.

use std::{
    fs::{self, File},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{deadline, sys::wait_within, try_eventually};

/// A running server.
pub(super) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it, with a log, and waits until it answers at its socket.
    pub(super) fn start(command: Command, log: &Path, socket: &Path) -> Self {
        Self::try_start(command, log, socket).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Does the same, or returns what is wrong.
    pub(super) fn try_start(mut command: Command, log: &Path, socket: &Path) -> Result<Self, String> {
        let log_file = File::options().create(true).append(true).open(log);
        let spawned = log_file
            .and_then(|file| command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn());
        let mut daemon = Self { child: spawned.map_err(|error| format!("start {command:?}: {error}"))? };
        try_eventually("the server listens", || match daemon.child.try_wait() {
            // It will never listen.
            Ok(Some(status)) => Ok(Err(format!("the server ended with {status}:\n{}", read(log)))),
            _ => UnixStream::connect(socket)
                .map(|_| Ok(()))
                .map_err(|error| format!("{error}:\n{}", read(log))),
        })??;
        Ok(daemon)
    }
}

fn read(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

impl Drop for Daemon {
    /// Asks it to end, so that it ends what it started. Kills it only if it doesn't end.
    fn drop(&mut self) {
        // SAFETY: the child hasn't been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        if !matches!(wait_within(&mut self.child, deadline()), Ok(None)) {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
