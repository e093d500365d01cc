//! Whether a file is still where it was opened (files-reg.c:check_path_remap).

use std::os::fd::AsFd as _;

use rustix::fs::OFlags;

use super::{
    kinds,
    surroundings::Surroundings,
    sys::{self, Status},
};
use crate::verdict::{
    fact,
    tree::{File, Relation},
    word::{Filesystem, Leads},
};

/// Learns it of a file whose mount is among its relations.
pub(super) fn look(around: &mut Surroundings, status: &Status, magic: u64, link: &str, file: &mut File) {
    let facts = &mut file.facts;
    facts.set(fact::LINKS, i64::from(status.links));
    facts.set_some(fact::SIZE, i64::try_from(status.size).ok());
    facts.set_some(fact::ALLOCATED, i64::try_from(status.blocks.saturating_mul(512)).ok());
    facts.set(fact::FILESYSTEM, kinds::filesystem(magic));
    facts.set(fact::IDENTITY, identity(status).into());
    // CRIU doesn't ask where the path of a deleted file leads, nor of one in /proc.
    if status.links == 0 || kinds::filesystem(magic) == Filesystem::Proc {
        return;
    }
    if kinds::filesystem(magic) == Filesystem::Nfs && is_silly_renamed(link) {
        // There it is for as long as it is open: CRIU takes it for one that has no name (nfs_silly_rename).
        facts.set(fact::LEADS, Leads::Nowhere);
        return;
    }
    let mount_of = |relation: &Relation| if let Relation::Mount(id) = relation { Some(*id) } else { None };
    let Some(mount) = file.relations.iter().find_map(mount_of) else { return };
    let (known, place) = ((status.device, status.inode), (mount, link.to_owned()));
    // Processes of a tree have many files in common.
    if around.found.get(&place) == Some(&known) {
        facts.set(fact::LEADS, Leads::Same);
        return;
    }
    // CRIU refuses a file whose mount it doesn't know before it looks at the path.
    let Some(space) = around.space_of(mount) else { return };
    let is_link = status.mode & libc::S_IFMT == libc::S_IFLNK;
    let mut flags = OFlags::PATH;
    flags.set(OFlags::NOFOLLOW, is_link);
    match space.open(link, flags).and_then(|file| sys::status_of(file.as_fd())) {
        Ok(found) if (found.device, found.inode) == known => {
            facts.set(fact::LEADS, Leads::Same);
            around.found.insert(place, known);
        }
        Ok(found) => {
            facts.set(fact::LEADS, Leads::Other);
            facts.set(fact::LEADS_TO, identity(&found).into());
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => facts.set(fact::LEADS, Leads::Nowhere),
        Err(error) => facts.set(fact::WHY, format!("look where its path leads: {error}").into()),
    }
}

/// As CRIU prints it: both cut to 32 bits.
fn identity(status: &Status) -> String {
    let (major, minor) = status.device;
    format!("{}:{}", libc::makedev(major, minor) as u32, status.inode as u32)
}

/// `.nfs` and 24 hexadecimal digits (files-reg.c:is_sillyrename_name).
fn is_silly_renamed(link: &str) -> bool {
    const DIGITS: usize = 24;
    let name = link.rsplit('/').next().unwrap_or_default();
    let digits = name.strip_prefix(".nfs").and_then(|rest| rest.get(..DIGITS));
    digits.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silly_names() {
        assert!(is_silly_renamed("/home/.nfs000000000a3f21c400000012"));
        assert!(!is_silly_renamed("/home/.nfs0000"));
        assert!(!is_silly_renamed("/home/.nfsx00000000a3f21c400000012"));
        assert!(!is_silly_renamed("/home/x"));
    }

    #[test]
    fn identities_are_as_stat_has_them() {
        let status = Status { device: (8, 1), inode: 0x1_0000_0007, ..Status::default() };
        assert_eq!(identity(&status), "2049:7");
    }
}
