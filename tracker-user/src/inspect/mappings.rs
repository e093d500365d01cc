//! What a process has mapped that a dump stops at (proc_parse.c:handle_vma), before it looks at any fd.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use rustix::fs::{AtFlags, OFlags};
use tracker_ebpf::Kind;

use super::{
    files::{basics, is_gone},
    kinds,
    parse::Mapping,
    paths,
    processes::Seen,
    surroundings::Surroundings,
    sys::{self, Status},
};
use crate::verdict::{
    Facts, FileKind, fact,
    tree::{File, Relation},
    word::{Leads, LockHolder},
};

/// The fd that CRIU's messages have for a mapped file (files.h:FD_DESC_INVALID).
const NO_FD: i64 = -3;

/// Adds the mappings of a process that can't be dumped, or may not be, each file once. An error: the process has ended, or can't be read.
pub(super) fn look(seen: &Seen, around: &mut Surroundings, files: &mut Vec<File>) -> io::Result<()> {
    let named = |error: io::Error| {
        if is_gone(&error) { error } else { io::Error::other(format!("read its maps: {error}")) }
    };
    let text = seen.read("maps").map_err(named)?;
    let directory =
        sys::open(seen.dir.as_fd(), c"map_files", OFlags::RDONLY | OFlags::DIRECTORY).map_err(named)?;
    let mut known = BTreeSet::new();
    for mapping in Mapping::parse(&text) {
        if known.insert((mapping.major, mapping.minor, mapping.inode, mapping.name.clone())) {
            files.extend(file(seen, around, directory.as_fd(), &mapping));
        }
    }
    Ok(())
}

fn file(
    seen: &Seen,
    around: &mut Surroundings,
    directory: BorrowedFd<'_>,
    mapping: &Mapping,
) -> Option<File> {
    let name = mapping.name.as_str();
    match name {
        "[uprobes]" => return Some(mapped(FileKind::UprobesMapped, mapping, Facts::default())),
        _ if mapping.inode == 0 && name.starts_with('[') => return None,
        // The ring of asynchronous I/O, and packet sockets' rings, are dumped.
        _ if name.starts_with("/[aio]") || name.starts_with("socket:[") => return None,
        // Huge pages are (mem.c:vma_entry_can_be_lazy, memfd.c:is_memfd), by a mount of the kernel's own.
        _ if name.starts_with("/anon_hugepage") || name.starts_with("/SYSV") => return None,
        _ => {}
    }
    let path = mapping.file_name();
    let status = match sys::status(directory, path.as_str(), AtFlags::empty()) {
        Ok(status) => status,
        // It was unmapped, or has no file.
        Err(error) if is_gone(&error) => return None,
        // Not permitted (CAP_CHECKPOINT_RESTORE): only the name says something.
        Err(error) => return by_name(mapping, &format!("look at what is mapped: {error}")),
    };
    let pid = seen.process.pid;
    let magic = around.magic(status.mount, || format!("/proc/{pid}/map_files/{path}")).ok()?;
    match kinds::of_file(&status, magic, name, around.memory)? {
        FileKind::File => regular(around, mapping, &status, magic),
        FileKind::Memfd => None,
        FileKind::MemDevice if status.is_device == (1, 5) => None,
        kind => {
            let mut file = mapped(as_mapped(kind), mapping, basics(&status));
            file.facts.set_some(fact::MOUNT_ID, status.mount.and_then(|mount| i64::try_from(mount).ok()));
            Some(file)
        }
    }
}

/// A mapped file is dumped as one that is open. Of the many that nothing is wrong with, nothing is said.
fn regular(around: &mut Surroundings, mapping: &Mapping, status: &Status, magic: u64) -> Option<File> {
    let mount = status.mount.and_then(|mount| i64::try_from(mount).ok());
    let mut file = mapped(FileKind::File, mapping, basics(status));
    file.facts.set_some(fact::MOUNT_ID, mount);
    file.facts.set(fact::LOCK, LockHolder::None);
    file.relations.extend(mount.map(Relation::Mount));
    paths::look(around, status, magic, &mapping.name, &mut file);
    let is_plain = mount.is_some_and(|mount| around.is_plain(mount));
    let is_there = status.links > 0 && file.facts.get(fact::LEADS).is_none_or(|leads| leads == Leads::Same);
    (!is_plain || !is_there).then_some(file)
}

fn by_name(mapping: &Mapping, why: &str) -> Option<File> {
    let kind = match mapping.name.as_str() {
        "/secretmem (deleted)" => FileKind::MemfdSecretMapped,
        name if name.starts_with("anon_inode:") => as_mapped(kinds::anonymous(name)),
        name if name.starts_with("/dev/") && !name.starts_with("/dev/zero") => FileKind::Unreadable,
        _ => return None,
    };
    let mut facts = Facts::default();
    facts.set(fact::WHY, why.to_owned().into());
    Some(mapped(kind, mapping, facts))
}

/// What a file of this kind is that is mapped.
fn as_mapped(kind: FileKind) -> FileKind {
    kind.counted().map_or(Kind::OtherMapped, Kind::mapped).into()
}

fn mapped(kind: FileKind, mapping: &Mapping, mut facts: Facts) -> File {
    facts.set(fact::FD, NO_FD);
    facts.set_some(fact::ADDRESS, i64::try_from(mapping.start).ok());
    facts.set_some(fact::ADDRESS_END, i64::try_from(mapping.end).ok());
    File { fd: None, kind, link: mapping.name.clone(), facts, relations: Vec::new() }
}
