//! The root of a container that has a desktop, of Debian's packages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{
    command::{must, output},
    machine::{Package, as_root, find},
    vm::{criu::MKFS, debian::site},
};

const SUITE: &str = "trixie";

/// What makes the root.
const MAKER: &str = "mmdebstrap";

/// The programs of the report, and what they need to be started and looked at.
const PACKAGES: [&str; 11] = [
    "dbus-x11",
    "ibus",
    "procps",
    "tightvncserver",
    "x11-utils",
    "xfce4-panel",
    "xfce4-session",
    "xfce4-settings",
    "xfdesktop4",
    "xfonts-base",
    "xfwm4",
];

/// What no program reads.
const LEFT_OUT: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*"];

/// How much room is left on a disk.
const ROOM: u64 = 64 << 20;

/// What must be installed to make it, besides what CRIU's guests need.
pub(super) fn missing_package() -> Option<Package> {
    find(MAKER).is_none().then_some(Package::Install(MAKER))
}

/// Makes it in a directory, unless it is there as it is wanted. Returns where it is.
pub(super) fn make(dir: &Path, may_download: bool) -> anyhow::Result<PathBuf> {
    let (root, made) = (dir.join("root"), dir.join("root.made"));
    let wanted = format!("{SUITE} {} without {}\n", PACKAGES.join(" "), LEFT_OUT.join(" "));
    if root.exists() && fs::read_to_string(&made).is_ok_and(|found| found == wanted) {
        return Ok(root);
    }
    if !may_download {
        bail!("the root of a desktop is needed (without --no-install {MAKER} makes it)");
    }
    let _ = fs::remove_file(&made);
    must(as_root("rm").args(["-rf", "--one-file-system"]).arg(&root))?;
    let mut maker = as_root(MAKER);
    maker.args(["--mode=root", "--variant=minbase", "--aptopt=APT::Sandbox::User \"root\""]);
    maker.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    maker.arg(format!("--include={}", PACKAGES.join(",")));
    must(maker.arg(SUITE).arg(&root).arg(site()?))?;
    fs::write(&made, wanted).with_context(|| format!("write {}", made.display()))?;
    Ok(root)
}

/// The same as a file system in a file, for a guest's disk.
pub(super) fn disk(root: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let (disk, unfinished) = (dir.join("root.ext4"), dir.join("root.ext4.unfinished"));
    let made = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if made(&disk).is_some_and(|age| Some(age) > made(&dir.join("root.made"))) {
        return Ok(disk);
    }
    let used = output(as_root("du").args(["--summarize", "--block-size=1", "--one-file-system"]).arg(root))?;
    let used: u64 = used.split_whitespace().next().unwrap_or_default().parse().context("du tells no size")?;
    let file = fs::File::create(&unfinished).with_context(|| format!("make {}", unfinished.display()))?;
    // What a file system has for itself goes with its size.
    file.set_len(used + used / 8 + ROOM).with_context(|| format!("make {}", unfinished.display()))?;
    must(
        as_root(MKFS)
            .args(["-q", "-O", "^has_journal", "-d"])
            .arg(root)
            .arg(&unfinished)
            .stdout(std::process::Stdio::null()),
    )?;
    fs::rename(&unfinished, &disk)
        .with_context(|| format!("move {} to {}", unfinished.display(), disk.display()))?;
    Ok(disk)
}
