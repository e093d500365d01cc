//! CRIU from a Debian suite, with the libraries of the same suite, separate from this machine's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use object::{
    Endianness,
    elf::{DT_NEEDED, FileHeader64},
    read::elf::{Dyn as _, FileHeader as _},
};

use super::Row;
use crate::{
    cache,
    vm::{cpio::Archive as Cpio, debian::Archive, initramfs::read},
};

/// The program that loads libraries.
const LOADER: &str = "ld-linux-x86-64.so.2";

/// A CRIU with all that it needs.
pub(in crate::vm) struct Criu {
    /// The version of its package.
    pub(in crate::vm) version: String,
    /// Whether its series is the wanted one, which the rules know.
    pub(in crate::vm) is_wanted: bool,
    /// The directory with the program and its libraries, which have the names that it asks for.
    dir: PathBuf,
}

/// The directory of CRIUs in the cache.
const KIND: &str = "criu";

/// The program, beside its libraries.
const PROGRAM: &str = "criu.bin";

/// Returns the CRIU of a suite. If the suite has gone on to another series than the row's, returns
/// the last one of that series that is in the cache, or else the suite's new one.
pub(super) fn get(row: &Row, may_download: bool) -> anyhow::Result<Criu> {
    // The package's version is CRIU's version, a dash, and more.
    let series = format!("{}-", row.series);
    let from_suite = from_suite(row, may_download);
    match from_suite {
        Ok(criu) if criu.version.starts_with(&series) => {
            eprintln!("criu {}: {} of {}", row.name, criu.version, row.suite);
            return Ok(criu);
        }
        _ => {}
    }
    let suite_has = match &from_suite {
        Ok(criu) => format!("{} has {} now", row.suite, criu.version),
        Err(error) => format!("{} can't be asked: {error:#}", row.suite),
    };
    if let Some(dir) = cache::newest(KIND, &series)? {
        let version = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        eprintln!("criu {}: {version}, which was kept: {suite_has}", row.name);
        return Ok(Criu { version, is_wanted: true, dir });
    }
    eprintln!("criu {}: {suite_has}; it is taken in its place", row.name);
    from_suite.map(|criu| Criu { is_wanted: false, ..criu })
}

/// Returns what the suite has now.
fn from_suite(row: &Row, may_download: bool) -> anyhow::Result<Criu> {
    let archive = Archive::open(&format!("criu-{}", row.suite), &[row.suite], may_download)?;
    let file = archive.file_name("criu")?;
    let version = file.split('_').nth(1).unwrap_or_default().to_owned();
    let dir = cache::get_or_make(KIND, &version, |dir| gather(&archive, dir))?;
    Ok(Criu { version, is_wanted: true, dir })
}

/// Downloads the program and its libraries into a directory.
fn gather(archive: &Archive, dir: &Path) -> anyhow::Result<()> {
    let packages = dir.with_extension("packages");
    let unpacked: Vec<PathBuf> = packages_of_criu(archive)?
        .iter()
        .map(|package| {
            let to = packages.join(package);
            archive.unpack(package, &to).map(|()| to)
        })
        .collect::<anyhow::Result<_>>()?;
    let places = ["usr/sbin/criu", "usr/bin/criu", "sbin/criu"];
    let program = unpacked.iter().flat_map(|root| places.map(|at| root.join(at))).find(|at| at.exists());
    let program = program.context("the package criu has no criu")?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let mut files = libraries(&program, &unpacked)?;
    files.insert(PROGRAM.into(), program);
    for (name, file) in files {
        let to = dir.join(name);
        fs::copy(&file, &to).with_context(|| format!("copy {} to {}", file.display(), to.display()))?;
    }
    fs::remove_dir_all(&packages).with_context(|| format!("remove {}", packages.display()))
}

/// Returns CRIU's package and those of the libraries that it needs, directly or through others.
fn packages_of_criu(archive: &Archive) -> anyhow::Result<Vec<String>> {
    let (mut found, mut new) = (BTreeSet::new(), vec!["criu".to_owned()]);
    while !new.is_empty() {
        let needed = archive.needs(&new)?;
        found.extend(new);
        // Packages that aren't libraries are for CRIU's other programs.
        let needed = needed.into_iter().filter(|name| name.starts_with("lib") && !found.contains(name));
        new = needed.collect::<BTreeSet<_>>().into_iter().collect();
    }
    Ok(found.into_iter().collect())
}

/// Finds the libraries that a program needs in unpacked packages.
fn libraries(program: &Path, roots: &[PathBuf]) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    const DIRS: [&str; 5] =
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "lib64", "usr/lib"];
    let place = |name: &str| {
        roots.iter().flat_map(|root| DIRS.map(|dir| root.join(dir).join(name))).find(|at| at.exists())
    };
    let mut found = BTreeMap::new();
    let mut waiting = needed(program)?;
    waiting.push(LOADER.into());
    while let Some(name) = waiting.pop() {
        if found.contains_key(&name) {
            continue;
        }
        let at = place(&name).with_context(|| format!("no {name} in the packages that criu needs"))?;
        waiting.extend(needed(&at)?);
        found.insert(name, at);
    }
    Ok(found)
}

/// Returns the libraries that a program or library asks for.
fn needed(file: &Path) -> anyhow::Result<Vec<String>> {
    let data = read(file)?;
    let read = || -> object::Result<Vec<String>> {
        let data = data.as_slice();
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let Some((entries, strings)) = sections.dynamic(endian, data)? else { return Ok(Vec::new()) };
        let strings = sections.strings(endian, data, strings)?;
        let entries = entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED);
        entries
            .map(|entry| Ok(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned()))
            .collect()
    };
    read().with_context(|| format!("read {}", file.display()))
}

impl Criu {
    /// Adds it to a guest's root at a place.
    pub(in crate::vm) fn add(&self, archive: &mut Cpio, place: &str) -> anyhow::Result<()> {
        for (name, data) in self.files(place)? {
            archive.file(&format!("{place}/{name}"), data)?;
        }
        Ok(())
    }

    /// Writes it into a directory of this machine.
    pub(in crate::vm) fn install(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let place = dir.to_str().with_context(|| format!("{} isn't text", dir.display()))?;
        for (name, data) in self.files(place)? {
            let file = dir.join(name);
            fs::write(&file, data).with_context(|| format!("write {}", file.display()))?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("change the mode of {}", file.display()))?;
        }
        Ok(())
    }

    /// Returns all its files for one directory. The one called `criu` is a script that starts it
    /// with its own libraries.
    fn files(&self, place: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let script =
            format!("#!/bin/sh\nexec {place}/{LOADER} --library-path {place} {place}/{PROGRAM} \"$@\"\n");
        let mut files = vec![("criu".to_owned(), script.into_bytes())];
        for entry in fs::read_dir(&self.dir).with_context(|| format!("read {}", self.dir.display()))? {
            let entry = entry?;
            files.push((entry.file_name().to_string_lossy().into_owned(), read(&entry.path())?));
        }
        Ok(files)
    }

    /// Returns CRIU's own version, without the package's: `4.2.1` for `4.2.1-1+b1`.
    pub(in crate::vm) fn release(&self) -> &str {
        self.version.split('-').next().unwrap_or_default()
    }
}
