//! The contents of a guest: busybox, the tests, what the tests start, and their libraries.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::{BUSYBOX, cpio::Archive};
use crate::{
    build::{self, Executable},
    command::output,
    machine::find_in,
};

/// The port to which a guest writes the output of its programs.
pub(super) const OUTPUT: &str = "/dev/ttyS1";

/// The directory of what was built. Tests find the programs beside themselves.
const BUILD: &str = "/build";

const INIT: &str = include_str!("init.sh");

/// Builds the tests, and writes an initramfs whose first process runs them with these arguments.
pub(super) fn write(file: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let mut archive = start(INIT, arguments)?;
    let mut binaries = programs()?;
    binaries.push(tests()?);
    add(&mut archive, &binaries, &file.with_extension("stripped"))?;
    finish(archive, file)
}

/// Returns an archive with a first process, and the arguments that it passes on.
pub(super) fn start(init: &str, arguments: &[String]) -> anyhow::Result<Archive> {
    let mut archive = Archive::default();
    for dir in ["/proc", "/sys", "/tmp", "/run"] {
        archive.directory(dir)?;
    }
    archive.char_device("/dev/console", 5, 1)?;
    let busybox = find_in(BUSYBOX.0, BUSYBOX.1)?.context("busybox isn't in the cache")?;
    archive.file("/bin/busybox", read(&busybox)?)?;
    archive.file("/init", init.into())?;
    archive.file("/arguments", lines(arguments)?.into())?;
    Ok(archive)
}

/// Adds programs of this machine, each at its place, with the libraries that they need.
pub(super) fn add(
    archive: &mut Archive,
    binaries: &[(PathBuf, String)],
    scratch: &Path,
) -> anyhow::Result<()> {
    let mut libraries = BTreeSet::new();
    for (binary, place) in binaries {
        libraries.extend(libraries_of(binary));
        archive.file(place, stripped(binary, scratch)?)?;
    }
    for library in libraries {
        archive.file(&library, read(Path::new(&library))?)?;
    }
    Ok(())
}

/// Writes the archive.
pub(super) fn finish(archive: Archive, file: &Path) -> anyhow::Result<()> {
    let data = archive.finish()?;
    eprintln!("initramfs: {} MB", data.len() / 1_000_000);
    fs::write(file, data).with_context(|| format!("write {}", file.display()))
}

fn lines(arguments: &[String]) -> anyhow::Result<String> {
    if let Some(argument) = arguments.iter().find(|argument| argument.contains('\n')) {
        bail!("{argument:?} has more than one line");
    }
    Ok(arguments.iter().map(|argument| format!("{argument}\n")).collect())
}

/// Builds all programs, and returns their paths here and in the guest.
pub(super) fn programs() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let placed = |Executable { name, path, .. }| (path, format!("{BUILD}/{name}"));
    Ok(build::programs()?.into_iter().map(placed).collect())
}

/// Does the same for the tests.
pub(super) fn tests() -> anyhow::Result<(PathBuf, String)> {
    Ok((build::integration()?.path, format!("{BUILD}/deps/integration")))
}

/// Returns the paths of the shared libraries that a program needs.
fn libraries_of(program: &Path) -> Vec<String> {
    // It fails for a program without libraries.
    let listed = output(Command::new("ldd").arg(program)).unwrap_or_default();
    listed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

/// Returns a program without debugging information, which is most of it.
fn stripped(program: &Path, copy: &Path) -> anyhow::Result<Vec<u8>> {
    output(Command::new("strip").arg("--strip-debug").arg("-o").arg(copy).arg(program))?;
    let data = read(copy)?;
    fs::remove_file(copy).with_context(|| format!("remove {}", copy.display()))?;
    Ok(data)
}

pub(super) fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}
