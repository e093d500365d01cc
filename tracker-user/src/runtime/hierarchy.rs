//! Finds the cgroup hierarchy that separates containers, and the path of a cgroup's id in it.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{DirEntryExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::fs::OFlags;
use thiserror::Error;

use super::{claims::Rank, path::candidates};
use crate::{
    error::SyscallError,
    file_handle,
    proc::{self, MountLine},
};

/// Why no hierarchy can be used.
#[derive(Debug, Error)]
pub enum HierarchyError {
    /// The list of mounts can't be read.
    #[error(transparent)]
    Mounts(#[from] SyscallError),
    /// Only a part of each hierarchy is visible. Paths there aren't those that runtimes use.
    #[error(
        "only a part of the cgroup hierarchy can be seen here, in which containers have other paths: use the host's cgroup \
         namespace (docker, podman: --cgroupns=host; Kubernetes: privileged: true; unshare: without --cgroup)"
    )]
    Part,
    /// No mounted cgroup file system separates containers.
    #[error(
        "no cgroup v2 hierarchy and no v1 hierarchy of the controllers memory, pids, cpu or devices is mounted as a whole: \
         mount one (mount -t cgroup2 cgroup2 /sys/fs/cgroup), or in a container mount the host's /sys/fs/cgroup"
    )]
    None,
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    root: PathBuf,
    controller: Option<String>,
}

/// A list of all cgroups at one moment.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// When the list was begun.
    pub(super) listed: Instant,
    /// Ids, and paths relative to the hierarchy's root.
    pub(super) paths: Vec<(u64, String)>,
}

/// The id of the root cgroup of every hierarchy: kernfs (`fs/kernfs/dir.c`) numbers from 1.
const ROOT: u64 = 1;

/// The v1 controllers that all container runtimes use, the most reliable first.
const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "devices"];

impl Hierarchy {
    /// Returns the v2 hierarchy that is mounted at `root`.
    pub fn unified(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), controller: None }
    }

    /// Returns the v1 hierarchy of a controller that is mounted at `root`.
    pub fn v1(root: impl Into<PathBuf>, controller: impl Into<String>) -> Self {
        Self { root: root.into(), controller: Some(controller.into()) }
    }

    /// Chooses a hierarchy. Where v1 controllers are mounted (v1 or hybrid), runtimes use them, and
    /// the v2 hierarchy may have no cgroups of containers. So v2 is chosen only if there is no v1.
    ///
    /// # Errors
    /// When none is mounted.
    pub fn find() -> Result<Self, HierarchyError> {
        let mounts = proc::own_mountinfo().map_err(SyscallError::on("read", "/proc/self/mountinfo"))?;
        Self::choose(&mounts, |at| fs::metadata(at).is_ok_and(|meta| meta.ino() == ROOT))
    }

    /// Chooses from the mounts. In a cgroup namespace, mountinfo shows the namespace's own root as
    /// `/`, too, so `is_whole` must check the mount point itself.
    fn choose(mountinfo: &str, is_whole: impl Fn(&str) -> bool) -> Result<Self, HierarchyError> {
        let is_cgroup = |m: &MountLine<'_>| matches!(m.filesystem, "cgroup" | "cgroup2");
        let mounts: Vec<MountLine<'_>> = proc::mounts(mountinfo).filter(is_cgroup).collect();
        let whole: Vec<&MountLine<'_>> = mounts.iter().filter(|mount| is_whole(&mount.mountpoint)).collect();
        let v1 = |controller: &&str| {
            let has = |m: &&&MountLine<'_>| m.filesystem == "cgroup" && m.option(controller).is_some();
            whole.iter().find(has).map(|found| Self::v1(&*found.mountpoint, *controller))
        };
        let v2 = || whole.iter().find(|m| m.filesystem == "cgroup2").map(|m| Self::unified(&*m.mountpoint));
        CONTROLLERS.iter().find_map(v1).or_else(v2).ok_or(if mounts.len() > whole.len() {
            HierarchyError::Part
        } else {
            HierarchyError::None
        })
    }

    /// Returns the v1 controller, or `None` for the v2 hierarchy.
    #[must_use]
    pub fn controller(&self) -> Option<&str> {
        self.controller.as_deref()
    }

    /// Returns where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the user who owns a cgroup.
    pub(super) fn user_of(&self, path: &str) -> Option<u32> {
        fs::metadata(self.root.join(path.trim_start_matches('/'))).ok().map(|meta| meta.uid())
    }

    /// Returns how good a cgroup's claim to the id in its name is.
    pub(super) fn rank_of(&self, path: &str) -> Rank {
        let meta = fs::metadata(self.root.join(path.trim_start_matches('/'))).ok();
        Rank {
            is_gone: meta.is_none(),
            depth: candidates(path).count(),
            is_users: meta.as_ref().is_some_and(|meta| meta.uid() != 0),
            number: meta.map_or(0, |meta| meta.ino()),
        }
    }

    /// Lists all cgroups. Takes some milliseconds if there are a thousand.
    #[must_use]
    pub fn list(&self) -> Cgroups {
        let listed = Instant::now();
        let mut found = Vec::new();
        if let Ok(meta) = fs::metadata(&self.root) {
            found.push((meta.ino(), "/".to_owned()));
        }
        let mut pending = vec![self.root.clone()];
        while let Some(dir) = pending.pop() {
            // A cgroup that is removed meanwhile has nothing to list.
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
        Cgroups { listed, paths: found }
    }

    /// Returns the path of a cgroup from its id. A kernfs file handle contains nothing but the id.
    ///
    /// # Errors
    /// `NotFound` when the cgroup has gone; otherwise, the error of `open_by_handle_at(2)`.
    ///
    /// # Minimum kernel
    /// Linux 5.5.
    pub fn path_of(&self, id: u64) -> io::Result<String> {
        let dir = self.open(id)?;
        let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
        self.relative(&path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn open(&self, id: u64) -> io::Result<OwnedFd> {
        /// enum fid_type, include/linux/exportfs.h
        const FILEID_KERNFS: i32 = 0xfe;
        let root = fs::File::open(&self.root)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        file_handle::open(root.as_fd(), FILEID_KERNFS, &id.to_ne_bytes(), flags).map_err(|error| {
            let gone = error.kind() == io::ErrorKind::StaleNetworkFileHandle;
            if gone { io::ErrorKind::NotFound.into() } else { error }
        })
    }

    fn relative(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix(&self.root).ok()?.to_string_lossy();
        // The kernel appends this to the path of a removed directory. A directory's real name may
        // also end so.
        let gone = rest.ends_with(" (deleted)") && !path.exists();
        (!gone).then(|| format!("/{rest}"))
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
        assert_eq!(Hierarchy::choose(V2, |_| true).unwrap(), Hierarchy::unified("/sys/fs/cgroup"));
    }

    #[test]
    fn hybrid_takes_a_controller() {
        let found = Hierarchy::choose(HYBRID, |_| true).unwrap();
        assert_eq!(found, Hierarchy::v1("/sys/fs/cgroup/pids", "pids"));
    }

    #[test]
    fn a_mount_of_a_part_is_not_the_hierarchy() {
        let error = Hierarchy::choose(V2, |_| false).unwrap_err();
        assert!(error.to_string().contains("--cgroupns=host"), "{error}");
        assert!(matches!(Hierarchy::choose("", |_| true), Err(HierarchyError::None)));
        // The whole hierarchy beside a part, as in a container that is given the host's.
        let both = format!("{V2}{}", V2.replace("/sys/fs", "/host/sys/fs"));
        let found = Hierarchy::choose(&both, |at| at.starts_with("/host")).unwrap();
        assert_eq!(found.root(), Path::new("/host/sys/fs/cgroup"));
    }

    #[test]
    fn ids_and_paths_agree_on_this_machine() {
        let Ok(hierarchy) = Hierarchy::find() else { return };
        for (id, path) in hierarchy.list().paths.into_iter().take(20) {
            match hierarchy.path_of(id) {
                Ok(found) => assert_eq!(found, path),
                // The test doesn't run as root, or the cgroup has gone.
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
