//! inotify and fanotify watches, on the file systems that decide whether CRIU finds the watched
//! file again.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use fdtracker_tests::{kinds::open, sys::call};

use crate::{
    Fixture, here,
    os::{self, directory, disk, file, keep, overlay, path, zoo},
};

fn inotify(on: impl AsRef<Path>) -> io::Result<i64> {
    const MODIFY: i64 = 0x2;
    const CREATE: i64 = 0x100;
    let group = open("inotify")?;
    call(libc::SYS_inotify_add_watch, &[group, os::c(on)?.as_ptr() as i64, MODIFY | CREATE])?;
    Ok(group)
}

/// Watches for opens by `fanotify_mark`, with this kind of mark.
fn fanotify(on: impl AsRef<Path>, mark: i64) -> io::Result<()> {
    const ADD: i64 = 1;
    const OPEN: i64 = 0x20;
    let group = open("fanotify")?;
    let path = os::c(on)?;
    call(libc::SYS_fanotify_mark, &[group, ADD | mark, OPEN, libc::AT_FDCWD.into(), path.as_ptr() as i64])
        .map(drop)
}

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = inotifies();
    all.extend(inotifies_without_a_path());
    all.extend(fanotifies());
    all
}

fn inotifies() -> Vec<Fixture> {
    vec![
        here("inotify.empty", "without any watch", || zoo("inotify")),
        here("inotify.tmpfs", "watches a directory on a tmpfs", || inotify(directory("watched")?).map(drop)),
        here("inotify.tmpfs_file", "watches a file on a tmpfs", || {
            drop(file("watched", 1)?);
            inotify(path("watched")).map(drop)
        }),
        here("inotify.queued", "with an event that nobody has read", || {
            let watched = directory("watched")?;
            inotify(&watched)?;
            drop(file("watched/new", 1)?);
            Ok(())
        }),
        here("inotify.disk", "watches a directory on a disk", || {
            let watched = disk()?.join("watched");
            fs::create_dir(&watched)?;
            inotify(watched).map(drop)
        }),
        here("inotify.overlay", "watches a directory on an overlay", || {
            let watched = overlay()?.join("watched");
            fs::create_dir(&watched)?;
            inotify(watched).map(drop)
        }),
        here("inotify.overlay_file", "watches a file of an overlay's lower layer", || {
            inotify(overlay()?.join("lower")).map(drop)
        }),
        here("inotify.overlay_root", "watches an overlay's root", || inotify(overlay()?).map(drop))
            .with(&[&["--irmap-scan-path", "/tmp"]]),
        here("inotify.proc", "watches /proc", || inotify("/proc").map(drop)),
        here("inotify.sysfs", "watches /sys", || inotify("/sys").map(drop)),
        here("inotify.cgroup", "watches a cgroup", || inotify("/sys/fs/cgroup").map(drop)),
        here("inotify.dev", "watches /dev", || inotify("/dev").map(drop)),
        here("inotify.etc", "watches /etc, where CRIU looks for watched files", || inotify("/etc").map(drop)),
    ]
}

fn inotifies_without_a_path() -> Vec<Fixture> {
    vec![
        here("inotify.tmpfs_unlinked", "watches a file on a tmpfs that has no name any more", || {
            keep(file("watched", 1)?);
            inotify(path("watched"))?;
            fs::remove_file(path("watched"))
        }),
        here("inotify.disk_unlinked", "watches a file on a disk that has no name any more", || {
            let watched = disk()?.join("watched");
            keep(File::create(&watched)?);
            inotify(&watched)?;
            fs::remove_file(watched)
        }),
        here("inotify.tmpfs_renamed", "watches a file on a tmpfs that has another name now", || {
            drop(file("watched", 1)?);
            inotify(path("watched"))?;
            fs::rename(path("watched"), path("renamed"))
        }),
        here("inotify.overmounted", "watches a directory that something was mounted on", || {
            inotify(directory("watched")?)?;
            os::tmpfs("watched").map(drop)
        }),
        here(
            "inotify.detached_mount",
            "watches a directory of a mount that was taken out of the tree",
            || {
                let at = os::tmpfs("mounted")?;
                inotify(&at)?;
                keep(File::open(&at)?);
                os::umount(&at)
            },
        ),
    ]
}

fn fanotifies() -> Vec<Fixture> {
    const MOUNT: i64 = 0x10;
    const FILESYSTEM: i64 = 0x100;
    vec![
        here("fanotify.empty", "without any mark", || zoo("fanotify")),
        here("fanotify.tmpfs", "marks a directory on a tmpfs", || fanotify(directory("watched")?, 0)),
        here("fanotify.mount", "marks a mount", || fanotify("/tmp", MOUNT)),
        here("fanotify.filesystem", "marks a file system", || fanotify("/tmp", FILESYSTEM)),
        here("fanotify.overlay", "marks a directory on an overlay", || fanotify(overlay()?, 0)),
        here("fanotify.proc", "marks /proc", || fanotify("/proc", 0)),
        here("fanotify.disk", "marks a directory on a disk", || fanotify(disk()?, 0)),
        here("fanotify.detached_mount", "marks a mount that was taken out of the tree", || {
            let at = os::tmpfs("mounted")?;
            fanotify(&at, MOUNT)?;
            keep(File::open(&at)?);
            os::umount(&at)
        }),
    ]
}
