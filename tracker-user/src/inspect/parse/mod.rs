//! What `/proc` writes, read. Pure: text in, values out. What is missing, or not understood, is `None`, never an error: kernels differ.

mod fdinfo;
mod maps;
mod mountinfo;
mod stat;

pub(super) use fdinfo::{FdInfo, LockKind, Mark, Target, Watch};
pub(super) use maps::Mapping;
pub(super) use mountinfo::{Mount, overmounted};
pub(super) use stat::Stat;

/// The inodes that `/proc/locks` has locks of (fs/locks.c:lock_get_status). Filesystems differ in which device they say there.
pub(super) fn locked_inodes(text: &str) -> std::collections::BTreeSet<u64> {
    let inode = |line: &str| line.split_whitespace().find_map(inode_of);
    text.lines().filter_map(inode).collect()
}

/// The inode of `MAJOR:MINOR:INODE`.
fn inode_of(word: &str) -> Option<u64> {
    let mut parts = word.split(':');
    let (_major, _minor, inode) = (parts.next()?, parts.next()?, parts.next()?);
    inode.parse().ok().filter(|_| parts.next().is_none())
}

/// The number of a namespace, and its name, from a link such as `net:[4026531840]` (fs/nsfs.c:ns_dname).
pub(super) fn namespace(link: &str) -> Option<(&str, u64)> {
    let (name, rest) = link.split_once(":[")?;
    Some((name, rest.strip_suffix(']')?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_of_every_sort() {
        let text = "1: POSIX  ADVISORY  WRITE 2371 08:01:131095 0 EOF\n\
                    1: -> POSIX  ADVISORY  WRITE 2372 08:01:131095 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 912 00:1b:53 0 EOF\n\
                    3: OFDLCK ADVISORY  READ -1 fd:00:77 128 128\n\
                    4: LEASE  ACTIVE    READ 77 <none>:0 0 EOF\n";
        assert_eq!(locked_inodes(text).into_iter().collect::<Vec<_>>(), [53, 77, 131_095]);
        assert!(locked_inodes("").is_empty());
    }

    #[test]
    fn namespaces() {
        assert_eq!(namespace("net:[4026531840]"), Some(("net", 4_026_531_840)));
        assert_eq!(namespace("net:[x]"), None);
        assert_eq!(namespace("socket:[12]"), Some(("socket", 12)));
        assert_eq!(namespace("/net:[12"), None);
    }
}
