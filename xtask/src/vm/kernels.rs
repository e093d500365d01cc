//! The kernels that the tests run on: Debian's kernels for virtual machines.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::debian::Archive;
use crate::cache;

/// A row of the matrix.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Its name.
    pub(super) name: &'static str,
    /// The beginning of its kernel's release.
    series: &'static str,
    /// Additional kernel parameters.
    pub(super) parameters: &'static str,
    /// Several processors only where they show what one can't: races, in the newest and the oldest.
    pub(super) processors: u32,
}

pub(super) const fn plain(series: &'static str) -> Row {
    Row { name: series, series, parameters: "", processors: 1 }
}

/// Newest, long-term and old stable kernels, and one that preempts its own code wherever it may, as
/// desktops do. The newest take longest, so they come first.
pub(super) const MATRIX: [Row; 6] = [
    Row { processors: 2, ..plain("7") },
    Row { name: "7+preempt=full", parameters: "preempt=full", processors: 2, ..plain("7") },
    plain("6.18"),
    plain("6.12"),
    plain("6.1"),
    Row { processors: 2, ..plain("5.10") },
];

/// The suites that have them.
const SUITES: &[&str] = &["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports"];

/// A kernel that can be booted.
pub(super) struct Kernel {
    pub(super) row: Row,
    pub(super) vmlinuz: PathBuf,
}

/// Returns the newest kernel of each row. Downloads those that aren't in the cache.
pub(super) fn get(rows: &[Row], may_download: bool) -> anyhow::Result<Vec<Kernel>> {
    let archive = Archive::open("kernels", SUITES, may_download)?;
    let names = names(&archive)?;
    let get = |row: &Row| {
        let vmlinuz = download(&archive, &package(&names, row)?)?;
        Ok(Kernel { row: *row, vmlinuz })
    };
    rows.iter().map(get).collect()
}

/// Returns the newest kernel of a row, and the directory of its modules.
pub(super) fn with_modules(row: &Row, may_download: bool) -> anyhow::Result<(Kernel, PathBuf)> {
    let archive = Archive::open("kernels", SUITES, may_download)?;
    let package = package(&names(&archive)?, row)?;
    let vmlinuz = download(&archive, &package)?;
    // If the kernel is in a package `linux-binary`, its modules are in another package.
    let package = package.replace("linux-binary-", "linux-modules-");
    let unpacked = archive.unpacked(&[package], "modules")?;
    let modules = unpacked.into_iter().next().context("the modules' package has no file")?;
    Ok((Kernel { row: *row, vmlinuz }, modules))
}

fn names(archive: &Archive) -> anyhow::Result<Vec<String>> {
    archive.names("^linux-(image|binary)-[0-9].*-cloud-amd64$")
}

fn package(names: &[String], row: &Row) -> anyhow::Result<String> {
    newest(names, row.series).with_context(|| format!("no kernel {} in {}", row.series, SUITES.join(", ")))
}

fn download(archive: &Archive, package: &str) -> anyhow::Result<PathBuf> {
    let file = archive.file_name(package)?;
    eprintln!("kernel: {file}");
    cache::get_or_make("vmlinuz", file.trim_end_matches(".deb"), |vmlinuz| {
        let unpacked = vmlinuz.with_extension("unpacked");
        archive.unpack(package, &unpacked)?;
        let image = find_image(&unpacked).with_context(|| format!("no vmlinuz in {file}"))?;
        fs::rename(&image, vmlinuz)
            .with_context(|| format!("move {} to {}", image.display(), vmlinuz.display()))?;
        fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))
    })
}

/// Finds the kernel in an unpacked package: in `/boot`, or beside its modules.
fn find_image(root: &Path) -> Option<PathBuf> {
    let below = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_image =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    let boot = below(root.join("boot")).find(is_image);
    boot.or_else(|| {
        below(root.join("usr/lib/modules")).map(|dir| dir.join("vmlinuz")).find(|path| path.exists())
    })
}

/// Returns the package with the newest kernel of a series.
fn newest(packages: &[String], series: &str) -> Option<String> {
    let releases = packages.iter().filter_map(|package| release(package));
    let of_series =
        releases.filter(|release| release.strip_prefix(series).is_some_and(|rest| rest.starts_with('.')));
    let newest = of_series.max_by_key(|release| numbers(release))?;
    // If there is a package `linux-binary`, it has the kernel, and `linux-image` only depends on
    // it.
    let names = ["binary", "image"].map(|part| format!("linux-{part}-{newest}-cloud-amd64"));
    names.into_iter().find(|name| packages.contains(name))
}

/// Returns the release in a package's name, as far as it distinguishes kernels.
fn release(package: &str) -> Option<&str> {
    let rest = package.strip_prefix("linux-image-").or_else(|| package.strip_prefix("linux-binary-"))?;
    rest.strip_suffix("-cloud-amd64")
}

/// Returns the numbers by which releases are ordered: 6.12.9 comes before 6.12.10.
fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_newest_of_a_series_is_chosen() {
        let packages = names(&[
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-60-cloud-amd64-dbg",
            "linux-image-6.12.95+deb12.1-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-image-cloud-amd64",
        ]);
        assert_eq!(newest(&packages, "6.1").as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(newest(&packages, "6.12").as_deref(), Some("linux-image-6.12.117+deb13-cloud-amd64"));
        assert_eq!(newest(&packages, "7").as_deref(), Some("linux-binary-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest(&packages, "5.10"), None);
    }

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        assert!(numbers("6.12.9+deb13") < numbers("6.12.10+deb13"));
        assert!(numbers("6.12.90+deb12") < numbers("6.12.90+deb12.1"));
    }

    #[test]
    fn rows_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = MATRIX.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), MATRIX.len());
    }
}
