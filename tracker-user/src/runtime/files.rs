//! Reads files that runtimes and users wrote: never more than expected, and nothing that a read
//! could block on.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::directory::{CONTAINERS, USERS_CONTAINERS};

/// A mark of a file's version: it changes when the file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(file: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(file).ok()?;
        // The inode's change time, which nobody can set.
        Some(Self { inode: meta.ino(), size: meta.size(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

/// How much may be read in one place at a time, so that whoever fills it can't delay others. The
/// rest is read the next time.
#[derive(Debug)]
pub(super) struct Budget {
    /// The most containers that are kept, and the most directories of containers that are read.
    pub(super) containers: usize,
    pub(super) bytes: u64,
}

impl Budget {
    /// Returns the budget for places that belong to root.
    pub(super) fn machine() -> Self {
        Self { containers: CONTAINERS, bytes: u64::MAX }
    }

    /// Returns the budget for places that belong to a user. A container's file has about 10 KiB.
    pub(super) fn user() -> Self {
        Self { containers: USERS_CONTAINERS, bytes: 4 << 20 }
    }

    /// Reads a regular file of at most this size.
    ///
    /// # Errors
    /// When it can't be read, is no regular file, or is larger than the limit or the rest of the
    /// budget.
    pub(super) fn read(&mut self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let bytes = read(path, limit.min(self.bytes))?;
        self.bytes -= bytes.len() as u64;
        Ok(bytes)
    }
}

fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // If there is a pipe in its place, nobody is at the other end, and opening it must not block.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    // A file that is too large isn't read at all. What was appended since isn't read either.
    if meta.len() > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(meta.len()).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the paths that a pattern stands for; `*` is every directory.
pub(super) fn expand(pattern: &str) -> Vec<PathBuf> {
    match pattern.split_once("/*") {
        None => vec![pattern.into()],
        Some((parent, rest)) => {
            let rest = rest.trim_start_matches('/');
            let join = |dir: PathBuf| if rest.is_empty() { dir } else { dir.join(rest) };
            subdirs(Path::new(parent)).into_iter().map(join).collect()
        }
    }
}

/// The most entries that are read of one directory, because its owner may make any number of them.
const MOST: usize = 10_000;

/// Returns the directories in a directory. Symbolic links aren't followed.
pub(super) fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let entries = entries.take(MOST).flatten();
    entries.filter(|e| e.file_type().is_ok_and(|ty| ty.is_dir())).map(|e| e.path()).collect()
}

/// Whether this is a symbolic link that a user made, so that it may lead anywhere.
pub(super) fn is_users_link(path: &Path) -> bool {
    user_of(path).is_some() && fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())
}

/// Returns the user whose directory below `/run/user` contains the path.
pub(super) fn user_of(path: &Path) -> Option<u32> {
    path.strip_prefix("/run/user").ok()?.iter().next()?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    #[test]
    fn only_files_of_a_sane_size_are_read() {
        let dir = std::env::temp_dir().join(format!("fdtracker-files-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (file, pipe, link) = (dir.join("file"), dir.join("pipe"), dir.join("link"));
        fs::write(&file, "12345").unwrap();
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let found = (read(&file, 5), read(&file, 4), read(&pipe, 5), read(&link, 5), read(&dir, 5));
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found.0.unwrap(), b"12345");
        assert_eq!(found.1.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(found.2.is_err() && found.3.is_err() && found.4.is_err());
    }

    #[test]
    fn whose_directory() {
        assert_eq!(user_of(Path::new("/run/user/1000/podman/podman.sock")), Some(1000));
        assert_eq!(user_of(Path::new("/run/podman/podman.sock")), None);
    }
}
