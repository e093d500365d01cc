//! Who is in the tree, in CRIU's order, and which of them share an fd table.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, BorrowedFd},
};

use rustix::fs::{Dir, DirEntry, OFlags};

use super::{
    InspectError, parse,
    parse::Stat,
    sys::{self, Compare},
    unreadable,
};
use crate::{
    error::SyscallError,
    proc::Status,
    verdict::tree::{Namespaces, Process},
};

/// A process that was found, and its directory in `/proc`: that is of this process, also when its number is another's.
pub(super) struct Seen {
    pub(super) process: Process,
    pub(super) dir: File,
    pub(super) stat: Stat,
    /// It has ended while it was looked at.
    pub(super) gone: bool,
}

impl Seen {
    /// Reads a file of the process's directory.
    pub(super) fn read(&self, path: &str) -> io::Result<String> {
        read(self.dir.as_fd(), path)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.read("stat").is_ok_and(|text| Stat::parse(&text).is_some_and(|stat| !stat.is_zombie()))
    }

    /// Whether it is still listed, alive or not.
    pub(super) fn is_there(&self) -> bool {
        self.read("stat").is_ok()
    }

    /// The number of a namespace that the process is in.
    pub(super) fn namespace(&self, name: &str) -> Option<u64> {
        self.process.namespaces.get(name).copied()
    }
}

/// Reads a whole file of `/proc`. Bytes that aren't UTF-8 are replaced.
pub(super) fn read(dir: BorrowedFd<'_>, path: &str) -> io::Result<String> {
    let mut file = sys::open(dir, path, OFlags::RDONLY)?;
    let mut bytes = Vec::with_capacity(4096);
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// The root and all that descends from it, each before its children.
pub(super) fn list(proc: &File, root: u32) -> Result<Vec<Seen>, InspectError> {
    let first = open(proc, root).map_err(|error| refused(root, error))?;
    if first.stat.is_kernel_thread() {
        return Err(InspectError::KernelThread(root));
    }
    // That a number is in /proc doesn't make it a process's.
    match first.read("status").map(|text| Status::parse(&text).tgid) {
        Ok(process) if process != 0 && process != root => {
            return Err(InspectError::Thread { thread: root, process });
        }
        _ => {}
    }
    let mut found = Vec::new();
    let mut known = BTreeSet::from([root]);
    let mut by_parent = None;
    let mut next = vec![first];
    while let Some(seen) = next.pop() {
        let (pid, mut children) = (seen.process.pid, Vec::new());
        for child in children_of(proc, &seen, &mut by_parent) {
            // A child that has gone is none.
            if let Some(mut child) = known.insert(child).then(|| open(proc, child).ok()).flatten() {
                child.process.parent = pid;
                children.push(child);
            }
        }
        found.push(seen);
        next.extend(children.into_iter().rev());
    }
    share_tables(&mut found);
    Ok(found)
}

fn refused(pid: u32, source: io::Error) -> InspectError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => InspectError::NoProcess(pid),
        _ => SyscallError::on("open", format_args!("/proc/{pid}"))(source).into(),
    }
}

fn open(proc: &File, pid: u32) -> io::Result<Seen> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let dir = sys::open(proc.as_fd(), pid.to_string(), flags)?;
    let text = read(dir.as_fd(), "stat")?;
    let stat =
        Stat::parse(&text).ok_or_else(|| io::Error::other(format!("stat of {pid} isn't understood")))?;
    let mut process = Process {
        pid,
        parent: stat.parent,
        comm: stat.comm.clone(),
        threads: numbers(dir.as_fd(), "task"),
        session: stat.session,
        state: stat.state,
        zombie: stat.is_zombie(),
        namespaces: namespaces(dir.as_fd()),
        ..Process::default()
    };
    process.traced = read(dir.as_fd(), "status").is_ok_and(|text| Status::parse(&text).tracer.is_some());
    if stat.is_headless() {
        unreadable(&mut process, "its first thread has ended, and others run: /proc shows no file of theirs");
    }
    Ok(Seen { process, dir, stat, gone: false })
}

/// Names that are numbers, in the order of the directory.
pub(super) fn numbers(dir: BorrowedFd<'_>, path: &str) -> Vec<u32> {
    list_dir(dir, path).unwrap_or_default()
}

/// As [`numbers`], or why it can't be read.
pub(super) fn list_dir(dir: BorrowedFd<'_>, path: &str) -> io::Result<Vec<u32>> {
    let opened = sys::open(dir, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let number = |entry: DirEntry| entry.file_name().to_str().ok()?.parse().ok();
    // An error on the way: the process has ended, and the list isn't whole.
    let entries = Dir::new(opened)?.collect::<Result<Vec<_>, _>>()?;
    Ok(entries.into_iter().filter_map(number).collect())
}

/// The namespaces of a process. What can't be read isn't there.
pub(super) fn namespaces(dir: BorrowedFd<'_>) -> Namespaces {
    const NAMES: [(&str, &std::ffi::CStr); 8] = [
        ("cgroup", c"ns/cgroup"),
        ("ipc", c"ns/ipc"),
        ("mnt", c"ns/mnt"),
        ("net", c"ns/net"),
        ("pid", c"ns/pid"),
        ("time", c"ns/time"),
        ("user", c"ns/user"),
        ("uts", c"ns/uts"),
    ];
    let number = |path| parse::namespace(&sys::read_link(dir, path).ok()?).map(|(_, number)| number);
    NAMES.iter().filter_map(|(name, path)| Some(((*name).to_owned(), number(*path)?))).collect()
}

/// In the order of the kernel's lists, which is CRIU's (proc_parse.c:parse_children).
fn children_of(proc: &File, seen: &Seen, by_parent: &mut Option<BTreeMap<u32, Vec<u32>>>) -> Vec<u32> {
    let mut children = Vec::new();
    let mut is_there = false;
    for thread in &seen.process.threads {
        if let Ok(text) = seen.read(&format!("task/{thread}/children")) {
            is_there = true;
            children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    if is_there || seen.process.threads.is_empty() {
        return children;
    }
    // A kernel without CONFIG_PROC_CHILDREN.
    let by_parent = by_parent.get_or_insert_with(|| {
        let mut all = BTreeMap::<u32, Vec<u32>>::new();
        for pid in numbers(proc.as_fd(), ".") {
            let text = read(proc.as_fd(), &format!("{pid}/stat")).unwrap_or_default();
            if let Some(stat) = Stat::parse(&text) {
                all.entry(stat.parent).or_default().push(pid);
            }
        }
        all
    });
    by_parent.get(&seen.process.pid).cloned().unwrap_or_default()
}

/// Finds out which processes share a table with one before them: the kernel orders tables, so that not all need comparing with all.
fn share_tables(found: &mut [Seen]) {
    let mut tables: Vec<u32> = Vec::new();
    for seen in found.iter_mut().filter(|seen| !seen.process.zombie && seen.process.unreadable.is_none()) {
        let mut failed = None;
        let pid = seen.process.pid;
        let place = tables.binary_search_by(|other| {
            sys::compare(*other, pid, Compare::Tables).unwrap_or_else(|error| {
                failed = Some(error);
                Ordering::Less
            })
        });
        match (place, failed) {
            (Ok(at), None) => seen.process.shares_files_with = tables.get(at).copied(),
            (Err(at), None) => tables.insert(at, pid),
            // Whoever has ended is left out later. Without `kcmp` each is looked at by itself: tables that are shared, twice.
            (_, Some(_)) => {}
        }
    }
}
