//! Finds the fd tables of processes. Threads share one, and so may processes; but either may have
//! one of its own.

use std::{cmp::Ordering, fs, path::PathBuf};

/// A task: `/proc/PID/task/TID`.
#[derive(Clone, Copy)]
struct Task {
    pid: u32,
    tid: u32,
}

/// Returns, for each table of these processes, the directory in `/proc` that lists its files.
pub(crate) fn tables(pids: impl IntoIterator<Item = u32>) -> Vec<PathBuf> {
    // One task for each table, in the kernel's order of tables.
    let mut found: Vec<Task> = Vec::new();
    for task in pids.into_iter().flat_map(tasks) {
        // A task that has ended can't be compared, and has nothing open.
        if let Err(at) = found.binary_search_by(|other| compare(*other, task)) {
            found.insert(at, task);
        }
    }
    found.iter().map(|Task { pid, tid }| format!("/proc/{pid}/task/{tid}/fd").into()).collect()
}

fn tasks(pid: u32) -> impl Iterator<Item = Task> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(move |thread| Some(Task { pid, tid: thread.file_name().to_str()?.parse().ok()? }))
}

fn compare(a: Task, b: Task) -> Ordering {
    const KCMP_FILES: i32 = 2;
    // SAFETY: the call takes integers.
    match unsafe { libc::syscall(libc::SYS_kcmp, a.tid, b.tid, KCMP_FILES, 0, 0) } {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        2 => Ordering::Greater,
        _ if a.pid == b.pid => Ordering::Equal,
        _ => a.pid.cmp(&b.pid),
    }
}
