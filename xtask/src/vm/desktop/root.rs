//! The root of a container that has a desktop, of Debian's packages.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::{
    cache,
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

/// The kind of thing that a root is, in the cache.
const KIND: &str = "roots";

/// By what it is made of.
fn name() -> String {
    let mut hasher = DefaultHasher::new();
    (SUITE, PACKAGES, LEFT_OUT).hash(&mut hasher);
    format!("desktop-{SUITE}-{:016x}", hasher.finish())
}

fn disk_name() -> String {
    format!("{}.ext4", name())
}

/// Makes it, unless it is in the cache. Returns where it is.
pub(super) fn make(may_download: bool) -> anyhow::Result<PathBuf> {
    cache::get_or_make(KIND, &name(), |root| {
        if !may_download {
            bail!("the root of a desktop is needed (without --no-install {MAKER} makes it)");
        }
        // A disk that was made of another one would be another system.
        cache::forget(KIND, &disk_name())?;
        let mut maker = as_root(MAKER);
        maker.args(["--mode=root", "--variant=minbase", "--aptopt=APT::Sandbox::User \"root\""]);
        maker.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
        maker.arg(format!("--include={}", PACKAGES.join(",")));
        must(maker.arg(SUITE).arg(root).arg(site()?))
    })
}

/// The same as a file system in a file, for a guest's disk.
pub(super) fn disk(root: &Path) -> anyhow::Result<PathBuf> {
    cache::get_or_make(KIND, &disk_name(), |disk| {
        let used =
            output(as_root("du").args(["--summarize", "--block-size=1", "--one-file-system"]).arg(root))?;
        let used: u64 =
            used.split_whitespace().next().unwrap_or_default().parse().context("du tells no size")?;
        let file = fs::File::create(disk).with_context(|| format!("make {}", disk.display()))?;
        // What a file system has for itself goes with its size.
        file.set_len(used + used / 8 + ROOM).with_context(|| format!("make {}", disk.display()))?;
        must(as_root(MKFS).args(["-q", "-O", "^has_journal", "-d"]).arg(root).arg(disk))
    })
}
