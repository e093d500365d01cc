//! All processes that this process has started, directly or through others, and how to end them.

use std::{
    fs, io,
    time::{Duration, Instant},
};

/// Makes this process the parent of all orphans among its descendants.
///
/// # Errors
/// What the kernel says.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: the call takes integers.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    crate::sys::check(done.into()).map(drop)
}

/// Kills all descendants of this process, and waits for their end, up to this limit. Returns those
/// that are left: a process may wait in the kernel for good.
pub fn end_all(limit: Duration) -> Vec<i32> {
    let start = Instant::now();
    loop {
        let pids = kill_all();
        if pids.is_empty() || start.elapsed() > limit {
            return pids;
        }
        // Nothing here waits for one process after the other: the end of a traced process isn't
        // reported while its tracer lives.
        for pid in pids {
            reap(pid);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills all descendants of this process, and returns them. They may have started others just
/// before. No other code may reap meanwhile.
pub fn kill_all() -> Vec<i32> {
    let pids = descendants();
    for pid in &pids {
        // SAFETY: the process descends from this one, where nobody reaps now: the pid is its own.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    pids
}

/// Reaps a child if it has ended; -1 means any child. Returns its pid and its status as `wait`
/// gives it.
pub fn reap(pid: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the status is one integer of this function's.
    let pid = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Returns all processes that this one has started, directly or through others.
fn descendants() -> Vec<i32> {
    let processes: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![std::process::id() as i32];
    let mut at = 0;
    while let Some(above) = found.get(at).copied() {
        found.extend(processes.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        at += 1;
    }
    found.into_iter().skip(1).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The line is `PID (NAME) STATE PARENT …`. The name may contain anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
