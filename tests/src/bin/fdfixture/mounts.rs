//! Files on mounts that CRIU doesn't find, or that another mount covers; overlays.

use std::fs::{self, File};

use fdtracker_tests::{kinds::close, sys::call};

use crate::{
    Fixture, here,
    os::{self, directory, file, keep, overlay, path, tmpfs},
    process::outside,
};

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = mounts();
    all.extend(overlays());
    all.extend(kinds());
    all
}

macro_rules! kind {
    ($name:literal, $kind:literal) => {
        here(concat!("fs.", $name), concat!("the root of a file system of kind ", $name), || {
            let at = directory("mounted")?;
            os::mount($kind, &at, "")?;
            File::open(at).map(keep).map(drop)
        })
    };
}

/// Lists file systems whose contents come from the kernel alone. CRIU knows some of them, and skips
/// some (CRIU: `filesystems.c`).
fn kinds() -> Vec<Fixture> {
    vec![
        kind!("ramfs", c"ramfs"),
        kind!("hugetlbfs", c"hugetlbfs"),
        kind!("proc", c"proc"),
        kind!("sysfs", c"sysfs"),
        kind!("cgroup2", c"cgroup2"),
        kind!("devtmpfs", c"devtmpfs"),
        kind!("devpts", c"devpts"),
        kind!("mqueue", c"mqueue"),
        kind!("bpf", c"bpf"),
        kind!("tracefs", c"tracefs"),
        kind!("debugfs", c"debugfs"),
        kind!("securityfs", c"securityfs"),
        kind!("configfs", c"configfs"),
        kind!("pstore", c"pstore"),
        kind!("binfmt_misc", c"binfmt_misc"),
        kind!("fusectl", c"fusectl"),
        here("fs.hugetlbfs_file", "a file of huge pages", || {
            let at = directory("mounted")?;
            os::mount(c"hugetlbfs", &at, "")?;
            File::create(at.join("file")).map(keep).map(drop)
        }),
        here("fs.cgroup1", "the root of a hierarchy of the old kind", || {
            let at = directory("mounted")?;
            os::mount(c"cgroup", &at, "none,name=fdfixture")?;
            File::open(at).map(keep).map(drop)
        }),
        here("fs.disk_ghost", "a file without a name on a disk, of a little more than 1 MiB", || {
            let at = os::disk()?.join("ghost");
            fs::write(&at, vec![b'x'; 1100 << 10])?;
            keep(File::open(&at)?);
            fs::remove_file(at)
        })
        .with(&[&["--ghost-limit", "4M"]]),
    ]
}

fn mounts() -> Vec<Fixture> {
    vec![
        here("mount.tmpfs", "a file on another tmpfs", || {
            File::create(tmpfs("mounted")?.join("file")).map(keep).map(drop)
        }),
        here("mount.disk", "a file on a disk", || File::create(os::disk()?.join("file")).map(keep).map(drop)),
        here("file.overmounted", "a file on a mount that another mount covers", || {
            let at = tmpfs("mounted")?;
            keep(File::create(at.join("file"))?);
            os::mount(c"tmpfs", &at, "")
        }),
        here("file.covered_directory", "a file in a directory that a mount covers", || {
            let at = directory("covered")?;
            keep(file("covered/file", 10)?);
            os::mount(c"tmpfs", &at, "")
        }),
        here("file.covered_file", "a file that another file is mounted on", || {
            keep(file("file", 10)?);
            drop(file("other", 10)?);
            os::bind_mount(&path("other"), &path("file"))
        }),
        here("file.bind_mounted", "a file of a directory that is mounted twice", || {
            let (first, second) = (directory("first")?, directory("second")?);
            drop(file("first/file", 10)?);
            os::bind_mount(&first, &second)?;
            File::open(second.join("file")).map(keep).map(drop)
        }),
        here("file.detached_mount", "a file on a mount that was taken out of the tree", || {
            let at = tmpfs("mounted")?;
            keep(File::create(at.join("file"))?);
            os::umount(&at)
        }),
        here("file.foreign_mount", "a file on a mount of another mount namespace", || {
            let helper = outside(|| {
                call(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()])?;
                let private = libc::MS_REC | libc::MS_PRIVATE;
                call(libc::SYS_mount, &[0, c"/".as_ptr() as i64, 0, private as i64, 0])?;
                File::create(tmpfs("foreign")?.join("file")).map(drop)
            })?;
            let at = format!("/proc/{helper}/root{}", path("foreign/file").display());
            File::open(at).map(keep).map(drop)
        }),
        here("file.fsmount", "the root of a mount that is nowhere", || {
            const FSCONFIG_CMD_CREATE: i64 = 6;
            let context = fdtracker_tests::kinds::open("fscontext")?;
            call(libc::SYS_fsconfig, &[context, FSCONFIG_CMD_CREATE, 0, 0, 0])?;
            call(libc::SYS_fsmount, &[context, 0, 0])?;
            close(context);
            Ok(())
        }),
        here("file.open_tree", "a copy of a mount, which is nowhere", || {
            const OPEN_TREE_CLONE: i64 = 1;
            let from = c"/tmp".as_ptr() as i64;
            call(libc::SYS_open_tree, &[libc::AT_FDCWD.into(), from, OPEN_TREE_CLONE]).map(drop)
        }),
        here("file.open_tree_in_place", "a mount's place", || {
            let from = c"/tmp".as_ptr() as i64;
            call(libc::SYS_open_tree, &[libc::AT_FDCWD.into(), from, 0]).map(drop)
        }),
    ]
}

fn overlays() -> Vec<Fixture> {
    vec![
        here("overlay.lower", "a file of an overlay's lower layer", || {
            File::open(overlay()?.join("lower")).map(keep).map(drop)
        }),
        here("overlay.upper", "a file of an overlay's upper layer", || {
            File::create(overlay()?.join("upper")).map(keep).map(drop)
        }),
        here("overlay.upper_ghost", "one without a name", || {
            let at = overlay()?.join("upper");
            keep(File::create(&at)?);
            fs::remove_file(at)
        }),
        here("overlay.lower_deleted", "a file of the lower layer that was deleted", || {
            let at = overlay()?.join("lower");
            keep(File::open(&at)?);
            fs::remove_file(at)
        })
        .with(&[&["--link-remap"]]),
        here(
            "overlay.lower_rewritten",
            "a file of the lower layer that was written to since it was opened",
            || {
                let at = overlay()?.join("lower");
                keep(File::open(&at)?);
                fs::write(at, "upper")
            },
        ),
        here("overlay.directory", "a directory of an overlay", || File::open(overlay()?).map(keep).map(drop)),
    ]
}
