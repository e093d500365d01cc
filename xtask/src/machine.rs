//! What the machine must have, and how it comes to have it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::command::{fetch, must, output, tools};

/// Whether this is root.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid == "0")
}

/// A command that runs as root: by sudo, where this isn't root.
pub(crate) fn as_root(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

/// Mounts tracefs where it belongs, if it isn't: tracepoints are found there.
pub(crate) fn mount_tracefs() -> anyhow::Result<()> {
    const TRACEFS: &str = "/sys/kernel/tracing";
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(TRACEFS) && words.next() == Some("tracefs")
    });
    if mounted { Ok(()) } else { must(as_root("mount").args(["-t", "tracefs", "tracefs", TRACEFS])) }
}

/// Whether a program is in `PATH`, or among the project's tools.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = tools().ok().map(|dir| dir.join("bin"));
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A package of the system's package manager that isn't there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Package {
    /// Installed as usual.
    Install(&'static str),
    /// Only these programs are taken out of it, into the project's tools: installed, it would start a server.
    Extract { package: &'static str, programs: &'static [&'static str] },
}

impl Package {
    fn name(self) -> &'static str {
        match self {
            Self::Install(name) | Self::Extract { package: name, .. } => name,
        }
    }
}

/// Whether a Debian package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|s| s == "installed")
}

/// Installs packages, or says which if it may not.
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
        fetch(
            as_root("env")
                .args([
                    "DEBIAN_FRONTEND=noninteractive",
                    "apt-get",
                    "install",
                    "-y",
                    "-q",
                    "--no-install-recommends",
                ])
                .args(installed),
        )?;
    }
    for package in packages {
        if let Package::Extract { package, programs } = package {
            extract(package, programs)?;
        }
    }
    Ok(())
}

fn extract(package: &str, programs: &[&str]) -> anyhow::Result<()> {
    let dir = tools()?.join("packages").join(package);
    unpack(Command::new("apt-get"), package, &dir)?;
    let bin = tools()?.join("bin");
    fs::create_dir_all(&bin)?;
    for program in programs {
        let places = ["usr/bin", "usr/sbin", "bin"].map(|place| dir.join(place).join(program));
        let file = places.iter().find(|file| file.exists());
        copy(file.with_context(|| format!("{package} has no {program}"))?, &bin.join(program))?;
    }
    Ok(())
}

/// Downloads a package by an `apt-get`, and unpacks it into a directory, of which nothing else is left.
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

/// Copies a file.
pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
