//! What is kept for the next run, and for other clones: tools that were built, packages, kernels,
//! roots of containers.
//!
//! It is in `$XDG_CACHE_HOME/fdtracker`, else in `~/.cache/fdtracker`: `KIND/NAME`, where the name
//! has the version. All of it may be deleted while nothing runs; it is made again when it is
//! needed. What has been used longest ago goes when there is too much.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;

use crate::{command::must, machine::as_root};

/// How large it may be after a run. All that one run needs is a third of this.
const MOST: u64 = 10 << 30;

/// By this other programs know that they needn't keep a copy of what is in a directory
/// (<https://bford.info/cachedir/>).
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# What `cargo xtask` of fdtracker keeps for its next run.\n";

/// Where it is.
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

/// A directory of one kind of things.
fn kind(kind: &str) -> anyhow::Result<PathBuf> {
    let dir = dir()?.join(kind);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}

/// One of them, if it is there; it counts as used now.
pub(crate) fn get(kind_name: &str, name: &str) -> anyhow::Result<Option<PathBuf>> {
    let path = kind(kind_name)?.join(name);
    if !path.exists() {
        return Ok(None);
    }
    touch(&path);
    Ok(Some(path))
}

/// The same, made if it isn't: `make` gets a path at which there is nothing, and which becomes this
/// one when all of it is there.
pub(crate) fn get_or_make(
    kind_name: &str,
    name: &str,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    if let Some(path) = get(kind_name, name)? {
        return Ok(path);
    }
    // Another clone's run may be at it.
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

/// Whether this run has put something into it: else there is nothing to bound.
static HAS_GROWN: AtomicBool = AtomicBool::new(false);

/// What a run was at when it was ended.
const UNFINISHED: &str = "unfinished";

/// The newest of a kind whose name begins so; it counts as used now.
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

/// Deletes one of them, if it is there.
pub(crate) fn forget(kind_name: &str, name: &str) -> anyhow::Result<()> {
    remove(&kind(kind_name)?.join(name))
}

/// Deletes what has been used longest ago, until the rest is small enough. What was used since then
/// stays: by this run, or by another.
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
        // Under its own name it would be taken for whole, if this were ended now.
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
    // A directory that root owns, nobody else may move.
    must(as_root("mv").arg("--no-target-directory").arg(from).arg(to))
}

/// Waits until no other run puts something into the cache, or deletes something. It ends with the
/// value.
fn lock() -> anyhow::Result<File> {
    const LOOK: Duration = Duration::from_secs(4);
    let path = dir()?.join("lock");
    let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    while lock.try_lock().is_err() {
        eprintln!("waiting for another run, which changes {}", dir()?.display());
        std::thread::sleep(LOOK);
    }
    Ok(lock)
}

/// What must go of these for the rest to be small enough: those used longest ago, and nothing that
/// was used since the start.
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
    // The root of a container has files of users that aren't this one.
    must(as_root("rm").args(["-rf", "--one-file-system"]).arg(path))
}

/// When it was used last.
fn used(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn touch(path: &Path) {
    // What can't be touched is only deleted too early.
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
