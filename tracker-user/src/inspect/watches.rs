//! Whether CRIU would find again what an inotify or a fanotify watches (fsnotify.c:check_open_handle, irmap.c).

use std::{
    collections::BTreeSet,
    fs::File as StdFile,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use rustix::fs::OFlags;
use thiserror::Error;

use super::{
    files::{Looker, Open},
    parse::{Mark, Mount, Watch},
    surroundings::{MountSpace, Surroundings},
    sys,
};
use crate::verdict::{fact, tree::File, word::Watches};

/// So many files are looked at under the hints, and no more: it is for a verdict that a person waits for.
const MAX_HINTED: usize = 100_000;

/// So deep, and no deeper: each level costs an fd.
const MAX_DEPTH: usize = 40;

/// The files under the hints: device and inode.
#[derive(Default)]
pub(super) struct Hints {
    found: BTreeSet<((u32, u32), u64)>,
    /// Something couldn't be listed.
    incomplete: bool,
}

/// Why it isn't known what becomes of a watch.
#[derive(Debug, Error)]
enum WatchError {
    #[error("open what is watched by its handle: not permitted (CAP_DAC_READ_SEARCH)")]
    NotPermitted,
    #[error("what is watched is on {0}, of which no file is opened")]
    Served(String),
    #[error("not all places could be listed where CRIU looks for watched files")]
    NotListed,
}

pub(super) fn look(looker: &mut Looker<'_>, open: &Open, file: &mut File) {
    let Some(info) = looker.fdinfo_or_why(open.fd, file) else { return };
    if info.incomplete {
        return file.facts.set(fact::WHY, "its fdinfo isn't understood".into());
    }
    for mark in &info.marks {
        match outcome(looker.around, mark) {
            Ok(Watches::Found) => {}
            // CRIU stops at the first.
            Ok(outcome) => return failed(file, mark, outcome),
            Err(why) => return file.facts.set(fact::WHY, why.to_string().into()),
        }
    }
    file.facts.set(fact::WATCHES, Watches::Found);
}

fn failed(file: &mut File, mark: &Mark, outcome: Watches) {
    file.facts.set(fact::WATCHES, outcome);
    match mark {
        Mark::Inode(watch) => {
            file.facts.set(fact::WATCH_DEVICE, i64::from(watch.device));
            file.facts.set_some(fact::WATCH_INODE, i64::try_from(watch.inode).ok());
        }
        Mark::Mount(id) => file.facts.set(fact::MOUNT_ID, *id),
        Mark::Filesystem => {}
    }
}

fn outcome(around: &mut Surroundings, mark: &Mark) -> Result<Watches, WatchError> {
    match mark {
        Mark::Filesystem => Ok(Watches::Found),
        Mark::Mount(id) => Ok(if around.space_of(*id).is_some() { Watches::Found } else { Watches::NoMount }),
        Mark::Inode(watch) => {
            let by_handle = by_handle(around, watch)?;
            if !matches!(by_handle, Watches::NoHandle | Watches::NoMount) {
                return Ok(by_handle);
            }
            is_hinted(around, watch).map(|hinted| if hinted { Watches::Found } else { by_handle })
        }
    }
}

/// Opens a watch's handle on each mount of its filesystem, as CRIU does; opened by `O_PATH`, so that nothing happens.
fn by_handle(around: &Surroundings, watch: &Watch) -> Result<Watches, WatchError> {
    let (mut is_mounted, mut is_open, mut in_memory) = (false, false, false);
    for (space, mount) in around.mounts_of(watch.device_numbers()) {
        is_mounted = true;
        in_memory |= matches!(mount.filesystem.as_str(), "tmpfs" | "devtmpfs");
        let Some((kind, bytes)) = &watch.handle else { continue };
        let Some(directory) = directory(space, mount)? else { continue };
        let opened = match sys::open_by_handle(directory.as_fd(), *kind, bytes) {
            Ok(opened) => opened,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return Err(WatchError::NotPermitted);
            }
            Err(_) => continue,
        };
        is_open = true;
        if has_path(space, opened.as_fd(), watch.inode) {
            return Ok(Watches::Found);
        }
    }
    Ok(match (is_mounted, is_open) {
        (false, _) => Watches::NoMount,
        (true, false) => Watches::NoHandle,
        // Inodes of a filesystem in memory don't outlive it.
        (true, true) if in_memory => Watches::NoPath,
        (true, true) => Watches::Found,
    })
}

/// Opens the directory where something is mounted; `None` if it is none, or can't be reached. Where that could wait for somebody
/// else, or mount something, it isn't tried.
fn directory(space: &MountSpace, mount: &Mount) -> Result<Option<StdFile>, WatchError> {
    if space.is_served((mount.major, mount.minor)) {
        return Err(WatchError::Served(mount.filesystem.clone()));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let opened = space.open(&mount.mountpoint, flags);
    Ok(opened.ok().map(StdFile::from))
}

/// Whether the path of an open file leads to this inode (fsnotify.c:alloc_openable).
fn has_path(space: &MountSpace, file: BorrowedFd<'_>, inode: u64) -> bool {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let Some(path) = path.ok().and_then(|path| path.to_str().map(str::to_owned)) else { return false };
    let found = space.open(&path, OFlags::PATH);
    found.and_then(|file| sys::status_of(file.as_fd())).is_ok_and(|status| status.inode == inode)
}

fn is_hinted(around: &mut Surroundings, watch: &Watch) -> Result<bool, WatchError> {
    if around.hints.is_none() {
        around.hints = Some(around.first_space.and_then(|number| around.space(number)).map_or_else(
            || Hints { incomplete: true, ..Hints::default() },
            |space| Hints::list(space, &around.scan),
        ));
    }
    let hints = around.hints.as_ref();
    match hints {
        Some(hints) if hints.found.contains(&(watch.device_numbers(), watch.inode)) => Ok(true),
        Some(hints) if !hints.incomplete => Ok(false),
        _ => Err(WatchError::NotListed),
    }
}

impl Hints {
    fn list(space: &MountSpace, scan: &BTreeSet<String>) -> Self {
        let mut hints = Self::default();
        hints.found.extend(sys::status_of(space.root.as_fd()).map(|status| (status.device, status.inode)));
        for hint in scan {
            match space.open(hint, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(file) => hints.add(space, file.as_fd(), MAX_DEPTH),
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
                Err(_) => hints.incomplete = true,
            }
        }
        hints
    }

    /// A file, and if it is a directory all that is in it. A symbolic link is itself.
    fn add(&mut self, space: &MountSpace, file: BorrowedFd<'_>, depth: usize) {
        let Ok(status) = sys::status_of(file) else { return };
        self.found.insert((status.device, status.inode));
        if status.mode & libc::S_IFMT != libc::S_IFDIR {
            return;
        }
        let is_too_much = depth == 0 || self.found.len() > MAX_HINTED || space.is_served(status.device);
        if is_too_much || self.directory(space, file, depth - 1).is_err() {
            self.incomplete = true;
        }
    }

    fn directory(&mut self, space: &MountSpace, directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        for entry in std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
            let name = entry?.file_name();
            match sys::open(directory, &name, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(file) => self.add(space, file.as_fd(), depth),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
