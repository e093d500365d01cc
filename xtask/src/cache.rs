//! Keeps things for the next run, and for other clones: tools that were built, packages, kernels,
//! roots of containers.
//!
//! The cache is in `$XDG_CACHE_HOME/fdtracker`, or else in `~/.cache/fdtracker`: `KIND/NAME`, where
//! the name includes the version. All of it may be deleted while nothing runs; it is made again
//! when it is needed. If it gets too large, what wasn't used for the longest time is deleted.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;

use crate::{command::must, machine::as_root};

/// The most that it may hold after a run. All that one run needs is a third of this.
const MOST: u64 = 10 << 30;

/// Tells backup programs that they needn't copy this directory (<https://bford.info/cachedir/>).
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# What `cargo xtask` of fdtracker keeps for its next run.\n";

/// Returns the cache's directory.
pub(crate) fn dir() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let dir = cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("fdtracker");
    if !dir.exists() {
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let tag = dir.join("CACHEDIR.TAG");
        fs::write(&tag, TAG).with_context(|| format!("write {}", tag.display()))?;
    }
    Ok(dir)
}

/// Returns the directory of one kind of things.
fn kind(kind: &str) -> anyhow::Result<PathBuf> {
    let dir = dir()?.join(kind);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}

/// Returns an entry if it is there, and marks it as used now.
pub(crate) fn get(kind_name: &str, name: &str) -> anyhow::Result<Option<PathBuf>> {
    let path = kind(kind_name)?.join(name);
    if !path.exists() {
        return Ok(None);
    }
    touch(&path);
    Ok(Some(path))
}

/// Returns an entry, and makes it if it isn't there. `make` gets a path where nothing is; what it
/// makes there is moved to the entry's path when it is complete.
pub(crate) fn get_or_make(
    kind_name: &str,
    name: &str,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    if let Some(path) = get(kind_name, name)? {
        return Ok(path);
    }
    // A run of another clone may be making it.
    let _lock = lock()?;
    if let Some(path) = get(kind_name, name)? {
        return Ok(path);
    }
    let (path, unfinished) = (kind(kind_name)?.join(name), kind(UNFINISHED)?.join(name));
    remove(&unfinished)?;
    make(&unfinished)?;
    place(&unfinished, &path)?;
    HAS_GROWN.store(true, Relaxed);
    Ok(path)
}

/// Whether this run has added something. If not, the cache can't be too large.
static HAS_GROWN: AtomicBool = AtomicBool::new(false);

/// The directory for entries that aren't complete. A run that was ended leaves them.
const UNFINISHED: &str = "unfinished";

/// Returns the newest entry of a kind whose name begins so, and marks it as used now.
pub(crate) fn newest(kind_name: &str, beginning: &str) -> anyhow::Result<Option<PathBuf>> {
    let entries = fs::read_dir(kind(kind_name)?)?.flatten().map(|entry| entry.path());
    let of_name = entries.filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(beginning))
    });
    let newest = of_name.max_by_key(|path| used(path));
    if let Some(path) = &newest {
        touch(path);
    }
    Ok(newest)
}

/// Deletes an entry, if it is there.
pub(crate) fn forget(kind_name: &str, name: &str) -> anyhow::Result<()> {
    remove(&kind(kind_name)?.join(name))
}

/// Deletes what wasn't used for the longest time, until the rest is small enough. Keeps all that
/// this run or another has used since that time.
pub(crate) fn prune(since: SystemTime) {
    if !HAS_GROWN.load(Relaxed) {
        return;
    }
    if let Err(error) = try_prune(since) {
        eprintln!("the cache isn't bounded now: {error:#}");
    }
}

fn try_prune(since: SystemTime) -> anyhow::Result<()> {
    let _lock = lock()?;
    let kinds = fs::read_dir(dir()?)?.flatten().filter(|entry| entry.path().is_dir());
    let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for kind in kinds {
        for entry in fs::read_dir(kind.path())?.flatten() {
            entries.push((used(&entry.path()), size(&entry.path()), entry.path()));
        }
    }
    for path in surplus(entries, MOST, since) {
        eprintln!("the cache is full: deleting {}", path.display());
        // It is moved first. If this program were ended meanwhile, the rest of it would be taken
        // for a complete entry.
        let gone = kind(UNFINISHED)?.join("deleted");
        remove(&gone)?;
        place(&path, &gone)?;
        remove(&gone)?;
    }
    Ok(())
}

/// Moves a file or directory.
fn place(from: &Path, to: &Path) -> anyhow::Result<()> {
    if fs::rename(from, to).is_ok() {
        return Ok(());
    }
    // Only root may move a directory that root owns.
    must(as_root("mv").arg("--no-target-directory").arg(from).arg(to))
}

/// Waits until no other run adds to the cache or deletes from it. The lock ends with the value.
fn lock() -> anyhow::Result<File> {
    const POLL: Duration = Duration::from_secs(4);
    let path = dir()?.join("lock");
    let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    while lock.try_lock().is_err() {
        eprintln!("waiting for another run, which changes {}", dir()?.display());
        std::thread::sleep(POLL);
    }
    Ok(lock)
}

/// Returns the entries to delete, so that the rest is small enough: those that weren't used for the
/// longest time, but none that was used since the start.
fn surplus(mut entries: Vec<(SystemTime, u64, PathBuf)>, most: u64, start: SystemTime) -> Vec<PathBuf> {
    let mut total: u64 = entries.iter().map(|(_, size, _)| size).sum();
    entries.sort();
    let mut gone = Vec::new();
    for (used, size, path) in entries {
        if total > most && used < start {
            total -= size;
            gone.push(path);
        }
    }
    gone
}

fn remove(path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // The root of a container has files of other users.
    must(as_root("rm").args(["-rf", "--one-file-system"]).arg(path))
}

/// Returns when an entry was used last.
fn used(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn touch(path: &Path) {
    // If this fails, the entry is only deleted too early.
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

fn size(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first_and_nothing_of_this_run() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let entries =
            || vec![(at(5), 4, PathBuf::from("new")), (at(1), 4, "old".into()), (at(3), 4, "middle".into())];
        assert!(surplus(entries(), 12, at(9)).is_empty());
        assert_eq!(surplus(entries(), 11, at(9)), [PathBuf::from("old")]);
        assert_eq!(surplus(entries(), 3, at(4)), [PathBuf::from("old"), "middle".into()]);
        assert!(surplus(entries(), 0, at(0)).is_empty());
    }
}
