//! Which cgroup hierarchy tells containers apart, and which path an id stands for.

use std::{
    fs, io, mem,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{DirEntryExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why no hierarchy can be used.
#[derive(Debug, Error)]
pub enum HierarchyError {
    /// The list of mounts can't be read.
    #[error("read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    /// No cgroup filesystem that containers could be told apart by.
    #[error(
        "no cgroup v2 hierarchy and no v1 hierarchy of the controllers memory, pids, cpu or devices is mounted as a whole: \
         mount one (mount -t cgroup2 cgroup2 /sys/fs/cgroup), and in a container use the host's cgroup namespace"
    )]
    None,
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    root: PathBuf,
    controller: Option<String>,
}

/// v1 controllers by which every container runtime separates containers, the surest first.
const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "devices"];

impl Hierarchy {
    /// The v2 hierarchy mounted at `root`.
    pub fn unified(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), controller: None }
    }

    /// The v1 hierarchy of a controller mounted at `root`.
    pub fn v1(root: impl Into<PathBuf>, controller: impl Into<String>) -> Self {
        Self { root: root.into(), controller: Some(controller.into()) }
    }

    /// Chooses a hierarchy. Where v1 controllers are mounted (v1 or hybrid), runtimes use them, and the unified tree may be
    /// flat; so v2 is taken only without them.
    ///
    /// # Errors
    /// When none is mounted.
    pub fn find() -> Result<Self, HierarchyError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(HierarchyError::Mounts)?;
        Self::choose(&mounts).ok_or(HierarchyError::None)
    }

    fn choose(mountinfo: &str) -> Option<Self> {
        let mounts: Vec<Mount<'_>> = mountinfo.lines().filter_map(Mount::parse).collect();
        let v1 = |controller: &&str| {
            let found = mounts.iter().find(|m| {
                m.kind == "cgroup"
                    && m.root == "/"
                    && m.options.split(',').any(|option| option == *controller)
            })?;
            Some(Self::v1(found.at, *controller))
        };
        CONTROLLERS.iter().find_map(v1).or_else(|| {
            let unified = mounts.iter().find(|m| m.kind == "cgroup2" && m.root == "/")?;
            Some(Self::unified(unified.at))
        })
    }

    /// The v1 controller, or `None` for the v2 hierarchy.
    #[must_use]
    pub fn controller(&self) -> Option<&str> {
        self.controller.as_deref()
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every cgroup: id and path from the hierarchy's root.
    #[must_use]
    pub fn list(&self) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        if let Ok(meta) = fs::metadata(&self.root) {
            found.push((meta.ino(), "/".to_owned()));
        }
        let mut pending = vec![self.root.clone()];
        while let Some(dir) = pending.pop() {
            // A cgroup that goes meanwhile has nothing to list.
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|ty| ty.is_dir()) {
                    let path = entry.path();
                    if let Some(name) = self.relative(&path) {
                        found.push((entry.ino(), name));
                    }
                    pending.push(path);
                }
            }
        }
        found
    }

    /// The path of a cgroup, from its id: a kernfs file handle holds nothing but the id (Linux 5.5).
    ///
    /// # Errors
    /// `NotFound` when the cgroup has gone; whatever `open_by_handle_at(2)` says otherwise.
    pub fn path_of(&self, id: u64) -> io::Result<String> {
        let dir = self.open(id)?;
        let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
        self.relative(&path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn open(&self, id: u64) -> io::Result<OwnedFd> {
        /// enum fid_type, include/linux/exportfs.h
        const FILEID_KERNFS: i32 = 0xfe;
        #[repr(C)]
        struct Handle {
            head: libc::file_handle,
            id: [u8; 8],
        }
        let root = fs::File::open(&self.root)?;
        // SAFETY: a handle is plain data.
        let mut handle: Handle = unsafe { mem::zeroed() };
        handle.head.handle_bytes = 8;
        handle.head.handle_type = FILEID_KERNFS;
        handle.id = id.to_ne_bytes();
        // SAFETY: the handle is followed by the bytes that it says it has, and both live through the call.
        let fd = unsafe {
            libc::open_by_handle_at(
                root.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            let error = io::Error::last_os_error();
            let gone = error.raw_os_error() == Some(libc::ESTALE);
            return Err(if gone { io::ErrorKind::NotFound.into() } else { error });
        }
        // SAFETY: the call made this fd, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn relative(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix(&self.root).ok()?.to_string_lossy();
        // The kernel appends this to the path of a removed directory; a directory may also be called so.
        let gone = rest.ends_with(" (deleted)") && !path.exists();
        (!gone).then(|| format!("/{rest}"))
    }
}

/// One line of `/proc/PID/mountinfo`, see proc(5).
struct Mount<'a> {
    root: &'a str,
    at: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let mut right = right.split(' ');
        let kind = right.next()?;
        Some(Self { root: left.next()?, at: left.next()?, kind, options: right.nth(1)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
        31 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
        32 31 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw\n\
        33 31 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        34 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

    #[test]
    fn v2_alone() {
        assert_eq!(Hierarchy::choose(V2), Some(Hierarchy::unified("/sys/fs/cgroup")));
    }

    #[test]
    fn hybrid_takes_a_controller() {
        assert_eq!(Hierarchy::choose(HYBRID), Some(Hierarchy::v1("/sys/fs/cgroup/pids", "pids")));
    }

    #[test]
    fn a_mount_of_a_sub_cgroup_is_not_the_hierarchy() {
        let inside = V2.replace(" / /sys", " /docker/1 /sys");
        assert_eq!(Hierarchy::choose(&inside), None);
        assert_eq!(Hierarchy::choose(""), None);
    }

    #[test]
    fn ids_and_paths_agree_on_this_machine() {
        let Ok(hierarchy) = Hierarchy::find() else { return };
        for (id, path) in hierarchy.list().into_iter().take(20) {
            match hierarchy.path_of(id) {
                Ok(found) => assert_eq!(found, path),
                // Not root, or the cgroup has gone.
                Err(error) => {
                    assert!(matches!(
                        error.kind(),
                        io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound
                    ));
                }
            }
        }
        assert_eq!(
            hierarchy.path_of(u64::MAX).map_err(
                |e| e.kind() == io::ErrorKind::PermissionDenied || e.kind() == io::ErrorKind::NotFound
            ),
            Err(true)
        );
    }
}
