//! What the processes of a tree share with each other and with others, each thing read once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{fs::OFlags, thread::LinkNameSpaceType};

use super::{
    kinds, netlink,
    parse::{self, Mount, Stat},
    processes::{Seen, namespaces, numbers, read},
    sys, unix,
    watches::Hints,
};
use crate::verdict::tree::{Mounts, Namespaces};

/// A mount namespace.
pub(super) struct MountSpace {
    /// Its root, which processes may have left (`chroot`).
    pub(super) root: OwnedFd,
    pub(super) mounts: Vec<Mount>,
    overmounted: BTreeMap<i64, bool>,
    /// Where filesystems are mounted that somebody else serves, who may not answer.
    served: Vec<(String, (u32, u32))>,
}

impl MountSpace {
    /// Opens a path, as seen from the namespace's root. Who serves a filesystem isn't asked: any process may do that in a
    /// container, and keep the asker waiting.
    pub(super) fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let is_below = |place: &str| {
            path.strip_prefix(place.trim_end_matches('/')).is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        let cached = self.served.iter().any(|(place, _)| is_below(place));
        sys::open_in_root(self.root.as_fd(), path, flags, cached)
    }

    /// Whether files with this device are served by somebody else.
    pub(super) fn is_served(&self, device: (u32, u32)) -> bool {
        self.served.iter().any(|(_, served)| *served == device)
    }
}

/// Whether a filesystem of this type waits for a process that serves it.
fn waits(filesystem: &str) -> bool {
    filesystem == "autofs"
        || filesystem == "fuse"
        || filesystem.starts_with("fuse.")
        || filesystem == "fuseblk"
}

/// The terminals that sessions have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Session {
    pub(super) session: u32,
    pub(super) foreground: i64,
}

/// What is known beyond single processes.
pub(super) struct Surroundings {
    proc: File,
    /// The device of memory files: that of one of this process's own (kerndat.c:kerndat_get_shmemdev).
    pub(super) memory: Option<(u32, u32)>,
    /// Magic numbers of filesystems, by a mount of each.
    magics: HashMap<u64, u64>,
    spaces: BTreeMap<u64, MountSpace>,
    unknown_spaces: BTreeSet<u64>,
    /// The network namespaces of unix sockets, by inode, when the look began.
    pub(super) listed: BTreeMap<u64, u64>,
    /// Files that a path was found to lead to: by the mount and the link, device and inode.
    pub(super) found: HashMap<(i64, String), ((u32, u32), u64)>,
    /// Inodes that have locks. `None`: it isn't known which.
    locked: Option<BTreeSet<u64>>,
    /// Sessions by their terminal's device, when somebody asks.
    sessions: Option<BTreeMap<u64, Session>>,
    /// What CRIU finds where it looks for watched files, by the root's mount namespace.
    pub(super) hints: Option<Hints>,
    /// Where it looks.
    pub(super) scan: BTreeSet<String>,
    /// The root's mount namespace.
    pub(super) first_space: Option<u64>,
    /// Packet sockets of a network namespace: whether CRIU can't restore their memberships.
    packets: BTreeMap<u64, Option<BTreeMap<u64, bool>>>,
    unreadable: Vec<String>,
}

impl Surroundings {
    pub(super) fn new(proc: File, scan: BTreeSet<String>) -> Self {
        let memory = sys::memory_file().and_then(|file| sys::status_of(file.as_fd()));
        let locked = read(proc.as_fd(), "locks").ok().map(|text| parse::locked_inodes(&text));
        Self {
            proc,
            memory: memory.ok().map(|status| status.device),
            magics: HashMap::new(),
            spaces: BTreeMap::new(),
            unknown_spaces: BTreeSet::new(),
            listed: BTreeMap::new(),
            found: HashMap::new(),
            locked,
            sessions: None,
            hints: None,
            scan,
            first_space: None,
            packets: BTreeMap::new(),
            unreadable: Vec::new(),
        }
    }

    /// The namespaces of this process.
    pub(super) fn host(&self) -> Namespaces {
        sys::open(self.proc.as_fd(), c"self", OFlags::RDONLY | OFlags::DIRECTORY)
            .map(|me| namespaces(me.as_fd()))
            .unwrap_or_default()
    }

    /// Reads the mounts of the namespace that a process is in.
    pub(super) fn know(&mut self, seen: &Seen) {
        let Some(number) = seen.namespace("mnt").filter(|_| !seen.process.zombie) else { return };
        self.first_space.get_or_insert(number);
        if self.spaces.contains_key(&number) || self.unknown_spaces.contains(&number) {
            return;
        }
        match mount_space(self.proc.as_fd(), seen.dir.as_fd(), number) {
            Ok(space) => {
                let magic =
                    |mount: &Mount| Some((u64::try_from(mount.id).ok()?, kinds::magic(&mount.filesystem)));
                self.magics.extend(space.mounts.iter().filter_map(magic));
                self.spaces.insert(number, space);
            }
            // Another process may be in it too.
            Err(_) if !seen.is_alive() => {}
            Err(error) => {
                self.unknown_spaces.insert(number);
                self.cannot(format!("mounts of mount namespace {number}: {error}"));
            }
        }
    }

    /// Notes a place that can't be read.
    pub(super) fn cannot(&mut self, why: String) {
        self.unreadable.push(why);
    }

    pub(super) fn unreadable(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unreadable)
    }

    /// Whether something is mounted over mounts, by namespace.
    pub(super) fn mounts(&self) -> BTreeMap<u64, Mounts> {
        let of = |space: &MountSpace| Mounts { overmounted: space.overmounted.clone() };
        self.spaces.iter().map(|(number, space)| (*number, of(space))).collect()
    }

    /// A mount namespace that is known.
    pub(super) fn space(&self, number: u64) -> Option<&MountSpace> {
        self.spaces.get(&number)
    }

    /// The mount namespace that a mount is in.
    pub(super) fn space_of(&self, mount: i64) -> Option<&MountSpace> {
        self.spaces.values().find(|space| space.overmounted.contains_key(&mount))
    }

    /// All mounts of a filesystem.
    pub(super) fn mounts_of(&self, device: (u32, u32)) -> impl Iterator<Item = (&MountSpace, &Mount)> {
        let all = self.spaces.values().flat_map(|space| space.mounts.iter().map(move |mount| (space, mount)));
        all.filter(move |(_, mount)| (mount.major, mount.minor) == device)
    }

    /// Whether a mount is one of those that CRIU would know, and nothing is mounted over it.
    pub(super) fn is_plain(&self, mount: i64) -> bool {
        self.space_of(mount).is_some_and(|space| space.overmounted.get(&mount) == Some(&false))
    }

    /// The magic number of the filesystem of a file that was opened on this mount. A mount of no namespace that is known is most
    /// likely the kernel's own.
    pub(super) fn magic(&mut self, mount: Option<u64>, path: impl FnOnce() -> String) -> io::Result<u64> {
        if let Some(magic) = mount.and_then(|mount| self.magics.get(&mount)) {
            return Ok(*magic);
        }
        let magic = sys::filesystem(&path())?;
        if let Some(mount) = mount {
            self.magics.insert(mount, magic);
        }
        Ok(magic)
    }

    /// Whether there may be a lock on a file with this inode.
    pub(super) fn may_be_locked(&self, inode: u64, overlay: bool) -> bool {
        // What overlayfs says in /proc/locks isn't what it says to stat(2), on some kernels (fs/overlayfs/inode.c:ovl_map_ino).
        self.locked.as_ref().is_none_or(|locked| locked.contains(&inode) || overlay && !locked.is_empty())
    }

    /// Whether a packet socket has memberships that CRIU can't restore. It must be of the namespace that the process is in.
    pub(super) fn memberships(&mut self, seen: &Seen, namespace: Option<u64>, inode: u64) -> Option<bool> {
        let own = seen.namespace("net")?;
        if namespace.is_some_and(|namespace| namespace != own) {
            return None;
        }
        let packets =
            self.packets.entry(own).or_insert_with(|| unix::ask(seen, netlink::packet_sockets).ok());
        packets.as_ref()?.get(&inode).copied()
    }

    /// The session that a terminal controls; `None` if there is none.
    pub(super) fn session(&mut self, terminal: u64) -> Option<Session> {
        let proc = &self.proc;
        let sessions = self.sessions.get_or_insert_with(|| {
            let stats = numbers(proc.as_fd(), ".")
                .into_iter()
                .filter_map(|pid| Stat::parse(&read(proc.as_fd(), &format!("{pid}/stat")).ok()?));
            let on = stats.filter(|stat| stat.terminal != 0);
            on.map(|s| (s.terminal, Session { session: s.session, foreground: s.foreground })).collect()
        });
        sessions.get(&terminal).copied()
    }
}

/// Reads a mount namespace from inside, where no `chroot` of a process hides anything.
fn mount_space(proc: BorrowedFd<'_>, process: BorrowedFd<'_>, number: u64) -> io::Result<MountSpace> {
    let read_here = || {
        let root = sys::open_root()?;
        Ok((root, read(proc, "thread-self/mountinfo")?))
    };
    let own = sys::open(proc, c"self", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let (root, text) = if namespaces(own.as_fd()).get("mnt") == Some(&number) {
        read_here()?
    } else {
        let namespace = sys::open(process, c"ns/mnt", OFlags::RDONLY)?;
        sys::in_namespace(namespace.as_fd(), LinkNameSpaceType::Mount, read_here)?
    };
    let mut mounts = Mount::parse(&text);
    // Left out by CRIU, so that files on it are on no mount (filesystems.c:tracefs_parse).
    mounts.retain(|mount| mount.filesystem != "tracefs");
    let served = mounts.iter().filter(|mount| waits(&mount.filesystem));
    let served = served.map(|mount| (mount.mountpoint.clone(), (mount.major, mount.minor))).collect();
    Ok(MountSpace { root, overmounted: parse::overmounted(&mounts), served, mounts })
}
