//! Mounts, and which of them are mounted over.

use std::collections::{BTreeMap, HashMap};

use crate::proc::{MountLine, mounts};

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::inspect) struct Mount {
    pub(in crate::inspect) id: i64,
    pub(in crate::inspect) parent: i64,
    pub(in crate::inspect) major: u32,
    pub(in crate::inspect) minor: u32,
    /// As seen from the root of its namespace.
    pub(in crate::inspect) mountpoint: String,
    /// The filesystem's type.
    pub(in crate::inspect) filesystem: String,
}

impl Mount {
    /// All mounts. Lines that aren't understood are left out.
    pub(in crate::inspect) fn parse(text: &str) -> Vec<Self> {
        mounts(text).map(Self::from).collect()
    }
}

impl From<MountLine<'_>> for Mount {
    fn from(line: MountLine<'_>) -> Self {
        Self {
            id: line.id,
            parent: line.parent,
            major: line.device.0,
            minor: line.device.1,
            mountpoint: line.mountpoint.into_owned(),
            filesystem: line.filesystem.to_owned(),
        }
    }
}

/// Whether something is mounted over each mount: on its own root, over where it is mounted, or over a mount that it is on
/// (mount.c:mnt_is_overmounted).
pub(in crate::inspect) fn overmounted(mounts: &[Mount]) -> BTreeMap<i64, bool> {
    let by_id: HashMap<i64, &Mount> = mounts.iter().map(|mount| (mount.id, mount)).collect();
    // Where each mount has how many others mounted on it.
    let mut on: HashMap<i64, HashMap<&str, usize>> = HashMap::new();
    for mount in mounts.iter().filter(|mount| mount.parent != mount.id) {
        *on.entry(mount.parent).or_default().entry(&mount.mountpoint).or_default() += 1;
    }
    let by_sibling = |mount: &Mount| {
        let others = on.get(&mount.parent);
        let count = |path: &str| others.and_then(|others| others.get(path)).copied().unwrap_or(0);
        by_id.contains_key(&mount.parent)
            && (count(&mount.mountpoint) > 1 || above(&mount.mountpoint).any(|path| count(path) > 0))
    };
    let by_child =
        |mount: &Mount| on.get(&mount.id).is_some_and(|on| on.contains_key(mount.mountpoint.as_str()));
    let mut covered = HashMap::new();
    for mount in mounts {
        cover(mount, &by_id, by_sibling, &mut covered);
    }
    let is_over = |mount: &Mount| by_child(mount) || covered.get(&mount.id) == Some(&true);
    mounts.iter().map(|mount| (mount.id, is_over(mount))).collect()
}

/// Learns of a mount, and of those that it is on, whether it or one of them is covered. What is known isn't asked again: a container
/// may nest mounts by the thousand. A list that was read while it changed may have circles.
fn cover<'a>(
    mount: &'a Mount,
    by_id: &HashMap<i64, &'a Mount>,
    is_covered: impl Fn(&Mount) -> bool,
    covered: &mut HashMap<i64, bool>,
) {
    let (mut chain, mut next) = (Vec::new(), Some(mount));
    while let Some(mount) =
        next.filter(|mount| !covered.contains_key(&mount.id) && chain.len() <= by_id.len())
    {
        chain.push(mount);
        next = by_id.get(&mount.parent).copied();
    }
    let mut is_below = next.and_then(|mount| covered.get(&mount.id).copied()).unwrap_or(false);
    for mount in chain.into_iter().rev() {
        is_below |= is_covered(mount);
        covered.insert(mount.id, is_below);
    }
}

/// The directories that a path is in: `/a/b` is in `/a` and `/`.
fn above(path: &str) -> impl Iterator<Item = &str> {
    let slashes = path.char_indices().filter(|(at, c)| *c == '/' && path.len() > at + 1);
    slashes.filter_map(|(at, _)| if at == 0 { Some("/") } else { path.get(..at) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "\
500 430 0:48 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/a:/b,upperdir=/u,workdir=/w
501 500 0:50 / /proc rw,nosuid - proc proc rw
502 500 0:51 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k
503 502 0:52 / /dev/pts rw - devpts devpts rw
504 500 8:1 /var/lib/my\\040volume /data\\134x rw shared:7 master:2 propagate_from:1 - ext4 /dev/sda1 rw
";

    fn over(text: &str) -> Vec<i64> {
        let over = overmounted(&Mount::parse(text));
        over.into_iter().filter_map(|(id, over)| over.then_some(id)).collect()
    }

    #[test]
    fn lines() {
        let mounts = Mount::parse(CONTAINER);
        assert_eq!(mounts.len(), 5);
        assert_eq!((mounts[0].filesystem.as_str(), mounts[0].minor), ("overlay", 48));
        assert_eq!((mounts[4].mountpoint.as_str(), mounts[4].filesystem.as_str()), ("/data\\x", "ext4"));
    }

    #[test]
    fn nothing_is_mounted_over() {
        assert_eq!(over(CONTAINER), [0; 0]);
    }

    #[test]
    fn mounted_over_its_root() {
        assert_eq!(over(&format!("{CONTAINER}510 504 0:60 / /data\\134x rw - tmpfs t rw\n")), [504]);
    }

    #[test]
    fn mounted_over_its_parent() {
        // On the root, over /dev, so /dev/pts isn't reached either.
        assert_eq!(over(&format!("{CONTAINER}510 500 0:60 / /dev rw - tmpfs t rw\n")), [502, 503, 510]);
        let text =
            format!("{CONTAINER}511 500 0:61 / /a/b rw - tmpfs t rw\n512 500 0:62 / /a rw - tmpfs t rw\n");
        assert_eq!(over(&text), [511]);
    }

    #[test]
    fn circles_end() {
        assert_eq!(over("1 2 0:1 / /a rw - x x rw\n2 1 0:1 / /b rw - x x rw\n"), [0; 0]);
        assert_eq!(over("1 1 0:1 / / rw - x x rw\n"), [0; 0]);
    }

    #[test]
    fn directories_above() {
        assert_eq!(above("/a/b").collect::<Vec<_>>(), ["/", "/a"]);
        assert_eq!(above("/a").collect::<Vec<_>>(), ["/"]);
        assert_eq!(above("/").count(), 0);
    }
}
