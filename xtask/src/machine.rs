//! What the machine must have, and how to install it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{
    cache,
    command::{fetch, must, output},
};

/// Returns whether this is root.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid == "0")
}

/// Returns a command that runs as root, by sudo if this isn't root.
pub(crate) fn as_root(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

/// Mounts tracefs where tracepoints are looked up, if it isn't mounted.
pub(crate) fn mount_tracefs() -> anyhow::Result<()> {
    const TRACEFS: &str = "/sys/kernel/tracing";
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(TRACEFS) && words.next() == Some("tracefs")
    });
    if mounted { Ok(()) } else { must(as_root("mount").args(["-t", "tracefs", "tracefs", TRACEFS])) }
}

/// Returns the path of a program that is in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// A package of the system's package manager that isn't there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Package {
    /// Installed as usual.
    Install(&'static str),
    /// Only unpacked into the cache. If it were installed, it would start a server, or conflict
    /// with what is installed.
    Extract(&'static str),
}

/// The directory of unpacked packages in the cache.
const PACKAGES: &str = "packages";

impl Package {
    fn name(self) -> &'static str {
        match self {
            Self::Install(name) | Self::Extract(name) => name,
        }
    }
}

/// Returns whether a Debian package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|s| s == "installed")
}

/// Installs packages, or says which are missing if it may not install.
pub(crate) fn install(packages: &[Package], may: bool) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = packages.iter().map(|p| p.name()).collect();
    if !may {
        bail!("these packages are needed: {} (without --no-install they are installed)", names.join(" "));
    }
    if find("apt-get").is_none() {
        bail!(
            "these Debian packages are needed, or what they hold: {}; apt-get isn't here to install them",
            names.join(" ")
        );
    }
    eprintln!("installing by apt-get: {}", names.join(" "));
    fetch(as_root("apt-get").args(["update", "-q"]))?;
    let installed: Vec<&str> =
        packages.iter().filter(|p| matches!(p, Package::Install(_))).map(|p| p.name()).collect();
    if !installed.is_empty() {
        let mut apt = as_root("env");
        apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q"]);
        fetch(apt.arg("--no-install-recommends").args(installed))?;
    }
    for package in packages {
        if let Package::Extract(package) = package {
            extract(package)?;
        }
    }
    Ok(())
}

/// Returns the directory of an unpacked package, if it is there: of the version that was added
/// last.
pub(crate) fn unpacked(package: &str) -> anyhow::Result<Option<PathBuf>> {
    cache::newest(PACKAGES, &format!("{package}_"))
}

/// Returns the path of a program in an unpacked package.
pub(crate) fn find_in(package: &str, program: &str) -> anyhow::Result<Option<PathBuf>> {
    let Some(dir) = unpacked(package)? else { return Ok(None) };
    let places = PROGRAM_DIRS.map(|place| dir.join(place).join(program));
    Ok(places.into_iter().find(|file| file.exists()))
}

/// The directories of programs in packages.
pub(crate) const PROGRAM_DIRS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];

/// Downloads a package that the system's suites have, and unpacks it into the cache.
fn extract(package: &str) -> anyhow::Result<()> {
    let uris = output(Command::new("apt-get").args(["download", "--print-uris", "-qq", package]))?;
    let file =
        uris.split_whitespace().nth(1).with_context(|| format!("apt-get tells no file of {package}"))?;
    cache::get_or_make(PACKAGES, file.trim_end_matches(".deb"), |dir| {
        unpack(Command::new("apt-get"), package, dir)
    })
    .map(drop)
}

/// Downloads a package by an `apt-get`, and unpacks it into a directory. Nothing else is left
/// there.
pub(crate) fn unpack(mut apt_get: Command, package: &str, dir: &Path) -> anyhow::Result<()> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fetch(apt_get.args(["download", "-q", package]).current_dir(dir))?;
    let files = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let deb = files.into_iter().find(|file| file.extension().is_some_and(|ext| ext == "deb"));
    let deb = deb.with_context(|| format!("apt-get download left no package in {}", dir.display()))?;
    must(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir).stdin(Stdio::null()))?;
    fs::remove_file(&deb).with_context(|| format!("remove {}", deb.display()))
}
