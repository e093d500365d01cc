//! The root of a container with a desktop, from Debian's packages.

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

/// The program that makes the root.
const MAKER: &str = "mmdebstrap";

/// The programs of the first report, and what is needed to start and observe them.
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

/// Directories that no program reads.
const LEFT_OUT: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*"];

/// How much space is left free on a disk.
const ROOM: u64 = 64 << 20;

/// Returns the package that must be installed to make it, besides those of CRIU's guests.
pub(super) fn missing_package() -> Option<Package> {
    find(MAKER).is_none().then_some(Package::Install(MAKER))
}

/// The directory of roots in the cache.
const KIND: &str = "roots";

/// Returns a name that depends on the contents.
fn name() -> String {
    let mut hasher = DefaultHasher::new();
    (SUITE, PACKAGES, LEFT_OUT).hash(&mut hasher);
    format!("desktop-{SUITE}-{:016x}", hasher.finish())
}

fn disk_name() -> String {
    format!("{}.ext4", name())
}

/// Makes the root, unless it is in the cache. Returns its path.
pub(super) fn make(may_download: bool) -> anyhow::Result<PathBuf> {
    cache::get_or_make(KIND, &name(), |root| {
        if !may_download {
            bail!("the root of a desktop is needed (without --no-install {MAKER} makes it)");
        }
        // A disk that was made from another root would be another system.
        cache::forget(KIND, &disk_name())?;
        let mut maker = as_root(MAKER);
        maker.args(["--mode=root", "--variant=minbase", "--aptopt=APT::Sandbox::User \"root\""]);
        maker.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
        maker.arg(format!("--include={}", PACKAGES.join(",")));
        must(maker.arg(SUITE).arg(root).arg(site()?))
    })
}

/// Returns the root as a file system in a file, for a guest's disk.
pub(super) fn disk(root: &Path) -> anyhow::Result<PathBuf> {
    cache::get_or_make(KIND, &disk_name(), |disk| {
        let used =
            output(as_root("du").args(["--summarize", "--block-size=1", "--one-file-system"]).arg(root))?;
        let used: u64 =
            used.split_whitespace().next().unwrap_or_default().parse().context("du tells no size")?;
        let file = fs::File::create(disk).with_context(|| format!("make {}", disk.display()))?;
        // What a file system needs for itself grows with its size.
        file.set_len(used + used / 8 + ROOM).with_context(|| format!("make {}", disk.display()))?;
        must(as_root(MKFS).args(["-q", "-O", "^has_journal", "-d"]).arg(root).arg(disk))
    })
}
