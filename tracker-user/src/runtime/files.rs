//! Reading what runtimes, and users, wrote: never more than expected, and nothing that a read could wait for.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::directory::{CONTAINERS, USERS_CONTAINERS};

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(file: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(file).ok()?;
        // The time of the inode, which nobody can set.
        Some(Self { inode: meta.ino(), size: meta.size(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

/// What may be read of one place at a time: whoever fills it isn't to keep others waiting. What is too much is read the next time.
#[derive(Debug)]
pub(super) struct Budget {
    /// Containers that are kept, and directories of containers that are looked at.
    pub(super) containers: usize,
    pub(super) bytes: u64,
}

impl Budget {
    /// Of what is root's.
    pub(super) fn machine() -> Self {
        Self { containers: CONTAINERS, bytes: u64::MAX }
    }

    /// Of what is a user's. A container's file has some 10 KiB.
    pub(super) fn user() -> Self {
        Self { containers: USERS_CONTAINERS, bytes: 4 << 20 }
    }

    /// A regular file of at most this size.
    pub(super) fn read(&mut self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let bytes = read(path, limit.min(self.bytes))?;
        self.bytes -= bytes.len() as u64;
        Ok(bytes)
    }
}

fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // A pipe in its place would have nobody at the other end.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    // Nothing is read of what is too large, nor what it has grown by since.
    if meta.len() > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(meta.len()).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The paths that a pattern stands for, in which `*` is every directory.
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

/// More directories aren't looked at in one: whoever has it may make as many as there is room for.
const MOST: usize = 10_000;

/// The directories in one. Links in it aren't followed.
pub(super) fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let entries = entries.take(MOST).flatten();
    entries.filter(|e| e.file_type().is_ok_and(|ty| ty.is_dir())).map(|e| e.path()).collect()
}

/// Whether it is a user's, who makes it lead elsewhere.
pub(super) fn is_users_link(path: &Path) -> bool {
    user_of(path).is_some() && fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())
}

/// The user whose directory below `/run/user` a path is in.
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
