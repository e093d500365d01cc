//! What a process has open, fd by fd.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use rustix::fs::{AtFlags, OFlags};
use thiserror::Error;

use super::{
    epoll, kinds,
    parse::{self, FdInfo, LockKind},
    paths,
    processes::{Seen, list_dir},
    sockets,
    surroundings::Surroundings,
    sys::{self, Status},
    terminals, watches,
};
use crate::verdict::{
    Facts, FileKind, fact,
    tree::{File, Relation},
    word::{HugePages, Leads, LockHolder},
};

/// Looks at the open files of one process.
pub(super) struct Looker<'a> {
    pub(super) seen: &'a Seen,
    pub(super) around: &'a mut Surroundings,
    /// `/proc/PID/fd`
    dir: fs::File,
    fds: Vec<u32>,
    /// For duplicates of sockets, when the first is met.
    process: Option<OwnedFd>,
    /// Inodes of what is open, when an epoll asks.
    inodes: Option<BTreeMap<u32, u64>>,
    /// Files on their way through a socket that was just looked at.
    pub(super) sent: Vec<File>,
}

/// Why there is no duplicate of a socket.
#[derive(Debug, Error)]
pub(super) enum DuplicateError {
    #[error("pidfd_open: {0}")]
    Open(io::Error),
    #[error("it has ended")]
    Ended,
    #[error("pidfd_getfd: {0}")]
    Duplicate(io::Error),
}

/// A file that is being looked at.
pub(super) struct Open {
    pub(super) fd: u32,
    pub(super) link: String,
    pub(super) status: Status,
    pub(super) magic: u64,
}

/// How often a file is looked at again that was replaced meanwhile.
const TRIES: usize = 3;

impl<'a> Looker<'a> {
    /// Lists a process's fds.
    pub(super) fn new(seen: &'a Seen, around: &'a mut Surroundings) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("list its fds: {error}"));
        let mut fds = list_dir(seen.dir.as_fd(), "fd").map_err(named)?;
        fds.sort_unstable();
        let dir = sys::open(seen.dir.as_fd(), c"fd", OFlags::RDONLY | OFlags::DIRECTORY).map_err(named)?;
        Ok(Self { seen, around, dir, fds, process: None, inodes: None, sent: Vec::new() })
    }

    /// Looks at all of them. An error: the process has ended.
    pub(super) fn look(&mut self, files: &mut Vec<File>) -> io::Result<()> {
        for fd in std::mem::take(&mut self.fds) {
            files.extend(self.file(fd)?);
            files.append(&mut self.sent);
        }
        Ok(())
    }

    /// A file; `None` if it was closed meanwhile.
    fn file(&mut self, fd: u32) -> io::Result<Option<File>> {
        let mut last = None;
        for _ in 0..TRIES {
            let file = match self.try_file(fd) {
                Ok(file) => file,
                Err(error) if is_gone(&error) && self.seen.is_alive() => return Ok(None),
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) => return Ok(Some(unreadable(fd, String::new(), &error.to_string()))),
            };
            // A path that leads elsewhere: it may be that of a file that was closed while its fd was used again.
            let is_sure = file.kind != FileKind::Unreadable
                && file.facts.get(fact::LEADS).is_none_or(|leads| leads == Leads::Same);
            if is_sure || last.as_ref() == Some(&file) {
                return Ok(Some(file));
            }
            last = Some(file);
        }
        Ok(Some(unreadable(fd, String::new(), "it was replaced again and again while it was looked at")))
    }

    fn try_file(&mut self, fd: u32) -> io::Result<File> {
        let name = fd.to_string();
        let link = sys::read_link(self.dir.as_fd(), &name)?;
        // No path begins like this (net/socket.c:sockfs_dname).
        if link.starts_with("socket:[") {
            return Ok(sockets::look(self, fd, &link));
        }
        let open = self.open(fd, &name, link)?;
        Ok(self.look_at(&open))
    }

    fn open(&mut self, fd: u32, name: &str, link: String) -> io::Result<Open> {
        let status = sys::status(self.dir.as_fd(), name, AtFlags::empty())?;
        let pid = self.seen.process.pid;
        let magic = self.around.magic(status.mount, || format!("/proc/{pid}/fd/{fd}"))?;
        Ok(Open { fd, link, status, magic })
    }

    fn look_at(&mut self, open: &Open) -> File {
        let Some(kind) = kinds::of_file(&open.status, open.magic, &open.link, self.around.memory) else {
            let why = format!("no kind of file is known that looks like this (filesystem {:#x})", open.magic);
            return unreadable(open.fd, open.link.clone(), &why);
        };
        let mut file = File {
            fd: Some(open.fd),
            kind,
            link: open.link.clone(),
            facts: basics(&open.status),
            relations: Vec::new(),
        };
        self.details(open, &mut file);
        file
    }

    fn details(&mut self, open: &Open, file: &mut File) {
        match file.kind {
            FileKind::File | FileKind::Directory | FileKind::Symlink | FileKind::MemDevice => {
                self.with_path(open, file);
            }
            FileKind::Fifo => {
                self.with_path(open, file);
                self.pipe(open, file);
            }
            FileKind::Pipe => self.pipe(open, file),
            FileKind::MemfdSecret => self.mount(open, file),
            FileKind::Mqueue => {
                self.mount(open, file);
                file.facts.set(fact::LINKS, i64::from(open.status.links));
            }
            FileKind::Memfd if open.magic == kinds::HUGETLB_FS => {
                self.mount(open, file);
                file.facts.set_some(fact::HUGE_PAGES, self.huge_pages(open));
            }
            FileKind::Memfd => file.facts.set(fact::HUGE_PAGES, HugePages::NotUsed),
            FileKind::Tty => {
                self.mount(open, file);
                self.o_path(open, file);
                terminals::look(self, open, file);
            }
            // The name of a socket, not a socket.
            FileKind::Unix => self.o_path(open, file),
            FileKind::Namespace => {
                let namespace = parse::namespace(&open.link);
                file.relations.extend(namespace.map(|(name, id)| Relation::Namespace(name.to_owned(), id)));
            }
            FileKind::Epoll => epoll::look(self, open, file),
            FileKind::Inotify | FileKind::Fanotify => watches::look(self, open, file),
            FileKind::Pidfd | FileKind::Timerfd | FileKind::BpfMap => self.anonymous(open, file),
            _ => {}
        }
    }

    fn o_path(&mut self, open: &Open, file: &mut File) {
        let flags = self.fdinfo_or_why(open.fd, file).and_then(|info| info.flags);
        file.facts.set_some(fact::O_PATH, flags.map(|flags| flags & i64::from(libc::O_PATH) != 0));
    }

    /// A file that has a path, a mount, and may have locks.
    fn with_path(&mut self, open: &Open, file: &mut File) {
        self.mount(open, file);
        paths::look(self.around, &open.status, open.magic, &open.link, file);
        if !self.around.may_be_locked(open.status.inode, open.magic == kinds::OVERLAY) {
            file.facts.set(fact::LOCK, LockHolder::None);
            return;
        }
        let pid = i64::from(self.seen.process.pid);
        let Some(info) = self.fdinfo_or_why(open.fd, file) else { return };
        // A lock is shown where its owner has the file (fs/locks.c:__show_fd_locks), who is this process therefore, whoever it was
        // that took it: that may have been a parent, for `flock`.
        match info.locks.first() {
            None => file.facts.set(fact::LOCK, LockHolder::None),
            Some(LockKind::OpenFile) => file.relations.push(Relation::Lock(-1)),
            Some(_) => file.relations.push(Relation::Lock(pid)),
        }
    }

    /// The mount by whose id CRIU looks.
    fn mount(&mut self, open: &Open, file: &mut File) {
        let mount = open.status.mount.and_then(|mount| i64::try_from(mount).ok());
        let mount = mount.or_else(|| self.fdinfo_or_why(open.fd, file).and_then(|info| info.mount));
        file.facts.set_some(fact::MOUNT_ID, mount);
        file.relations.extend(mount.map(Relation::Mount));
    }

    /// Whether CRIU could get a page as large as this file's, by which it learns what such files look like
    /// (kerndat.c:kerndat_hugetlb_dev).
    fn huge_pages(&self, open: &Open) -> Option<HugePages> {
        let file = fs::metadata(format!("/proc/{}/fd/{}", self.seen.process.pid, open.fd)).ok()?;
        let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", file.blksize() / 1024);
        let number = |name: &str| -> Option<i64> {
            fs::read_to_string(format!("{pool}/{name}")).ok()?.trim().parse().ok()
        };
        let free = number("free_hugepages")? - number("resv_hugepages")?;
        let more = number("nr_overcommit_hugepages")? - number("surplus_hugepages")?;
        Some(if free > 0 || more > 0 { HugePages::Free } else { HugePages::NoneFree })
    }

    fn pipe(&mut self, open: &Open, file: &mut File) {
        let Some(flags) = self.fdinfo_or_why(open.fd, file).and_then(|info| info.flags) else { return };
        let has = |flag: i32| flags & i64::from(flag) != 0;
        file.facts.set(fact::O_PATH, has(libc::O_PATH));
        file.facts.set(fact::PACKETS, has(libc::O_DIRECT));
        let is_readable = flags & i64::from(libc::O_ACCMODE) != i64::from(libc::O_WRONLY);
        if is_readable && !has(libc::O_PATH) {
            file.relations.push(Relation::ReadablePipe(open.status.inode));
        } else {
            // No data is taken from this end (pipes.c:dump_one_pipe).
            file.facts.set(fact::PIPES, 0);
        }
    }

    fn anonymous(&mut self, open: &Open, file: &mut File) {
        let Some(info) = self.fdinfo_or_why(open.fd, file) else { return };
        file.facts.set_some(fact::CLOCK, info.clock);
        file.facts.set_some(fact::MAP_TYPE, info.map_type);
        if file.kind == FileKind::Pidfd {
            // PIDFD_THREAD, include/uapi/linux/pidfd.h
            let of_thread = info.flags.map(|flags| flags & i64::from(libc::O_EXCL) != 0);
            file.facts.set_some(fact::OF_THREAD, of_thread);
            file.relations.extend(info.pid.map(Relation::Target));
        }
    }

    /// What the file says of itself; if it can't be read, why is noted.
    pub(super) fn fdinfo_or_why(&mut self, fd: u32, file: &mut File) -> Option<FdInfo> {
        match self.seen.read(&format!("fdinfo/{fd}")) {
            Ok(text) => Some(FdInfo::parse(&text)),
            Err(error) => {
                file.facts.set(fact::WHY, format!("read its fdinfo: {error}").into());
                None
            }
        }
    }

    /// Duplicates a socket.
    pub(super) fn duplicate_socket(&mut self, fd: u32) -> Result<OwnedFd, DuplicateError> {
        let process = match self.process.take() {
            Some(process) => process,
            None => {
                let process = sys::open_process(self.seen.process.pid).map_err(DuplicateError::Open)?;
                // The number could be another's by now; from here on it is this one's as long as the handle is.
                if !self.seen.is_alive() {
                    return Err(DuplicateError::Ended);
                }
                process
            }
        };
        let process = self.process.insert(process);
        sys::duplicate_socket(process.as_fd(), fd).map_err(DuplicateError::Duplicate)
    }

    /// The inodes of all that is open.
    pub(super) fn inodes(&mut self) -> &BTreeMap<u32, u64> {
        let dir = &self.dir;
        self.inodes.get_or_insert_with(|| {
            let inode =
                |fd: u32| Some((fd, sys::status(dir.as_fd(), fd.to_string(), AtFlags::empty()).ok()?.inode));
            list_dir(dir.as_fd(), ".").unwrap_or_default().into_iter().filter_map(inode).collect()
        })
    }
}

/// Whether an error says that what was looked at is no more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// A file of which only this much is known.
pub(super) fn unreadable(fd: u32, link: String, why: &str) -> File {
    let mut facts = Facts::default();
    facts.set(fact::WHY, why.to_owned().into());
    File { fd: Some(fd), kind: FileKind::Unreadable, link, facts, relations: Vec::new() }
}

/// What is known of every file.
pub(super) fn basics(status: &Status) -> Facts {
    let mut facts = Facts::default();
    facts.set(fact::MODE, i64::from(status.mode));
    facts.set_some(fact::INODE, i64::try_from(status.inode).ok());
    if matches!(status.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
        let (major, minor) = status.is_device;
        facts.set(fact::DEVICE, format!("{major}:{minor}").into());
        facts.set(fact::MAJOR, i64::from(major));
        facts.set(fact::MINOR, i64::from(minor));
    }
    facts
}
