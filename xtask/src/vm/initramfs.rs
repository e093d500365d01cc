//! What a guest has: busybox, the tests, what the tests start, and their libraries.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::cpio::Archive;
use crate::command::{cargo, output, tools};

/// Where a guest tells what its programs say.
pub(super) const OUTPUT: &str = "/dev/ttyS1";

/// Where the guest has the build's directory: tests find the programs beside themselves.
const BUILD: &str = "/target/debug";

const INIT: &str = include_str!("init.sh");

/// Builds the tests, and writes an initramfs whose first process runs them with these arguments.
pub(super) fn write(file: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let mut archive = start(INIT, arguments)?;
    let binaries: Vec<_> = programs()?.into_iter().chain(tests()?).collect();
    add(&mut archive, &binaries, &file.with_extension("stripped"))?;
    finish(archive, file)
}

/// An archive with a first process, to which it leaves its arguments.
pub(super) fn start(init: &str, arguments: &[String]) -> anyhow::Result<Archive> {
    let mut archive = Archive::default();
    for dir in ["/proc", "/sys", "/tmp", "/run"] {
        archive.directory(dir)?;
    }
    archive.char_device("/dev/console", 5, 1)?;
    archive.file("/bin/busybox", read(&tools()?.join("bin/busybox"))?)?;
    archive.file("/init", init.into())?;
    archive.file("/arguments", lines(arguments)?.into())?;
    Ok(archive)
}

/// Adds programs of this machine's, each to its place, and the libraries that they need.
pub(super) fn add(
    archive: &mut Archive,
    binaries: &[(PathBuf, String)],
    scratch: &Path,
) -> anyhow::Result<()> {
    let mut libraries = BTreeSet::new();
    for (binary, place) in binaries {
        libraries.extend(libraries_of(binary)?);
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

/// Builds all programs, and tells where they are and where they belong.
pub(super) fn programs() -> anyhow::Result<Vec<(PathBuf, String)>> {
    const PACKAGES: [&str; 4] = ["--package", "tracker-user", "--package", "fdtracker-tests"];
    let programs = executables(cargo()?.args(["build", "--locked", "--bins"]).args(PACKAGES))?;
    Ok(programs.into_iter().map(|(name, path)| (path, format!("{BUILD}/{name}"))).collect())
}

/// Builds the tests, likewise.
pub(super) fn tests() -> anyhow::Result<Vec<(PathBuf, String)>> {
    let tests = executables(cargo()?.args([
        "test",
        "--locked",
        "--no-run",
        "--package",
        "fdtracker-tests",
        "--test",
        "integration",
    ]))?;
    let tests = tests.into_iter().filter(|(name, _)| name == "integration");
    Ok(tests.map(|(name, path)| (path, format!("{BUILD}/deps/{name}"))).collect())
}

/// Name and path of every program that a command of cargo's makes.
fn executables(cargo: &mut Command) -> anyhow::Result<Vec<(String, PathBuf)>> {
    // cargo shows its progress on standard error.
    let messages = output(cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit()))?;
    let message = |line: &str| -> Option<(String, PathBuf)> {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message.get("target")?.get("name")?.as_str()?;
        Some((name.to_owned(), message.get("executable")?.as_str()?.into()))
    };
    Ok(messages.lines().filter_map(message).collect())
}

/// The shared libraries that a program needs, by their paths.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<String>> {
    let listed = output(Command::new("ldd").arg(program))?;
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}

/// A program without what only debuggers read, which is most of it.
fn stripped(program: &Path, copy: &Path) -> anyhow::Result<Vec<u8>> {
    output(Command::new("strip").arg("--strip-debug").arg("-o").arg(copy).arg(program))?;
    let data = read(copy)?;
    fs::remove_file(copy).with_context(|| format!("remove {}", copy.display()))?;
    Ok(data)
}

pub(super) fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}
