//! Reads a `files_struct`: its slots, and which of them are in use.

use tracker_ebpf::{MAX_SCANNED_FDS, Tag};

use crate::{
    file_kind::{NOT_COUNTED, kind_of},
    kernel::{
        Ptr,
        layout::{FdTable, File, Files, OFF_FDT_FD, OFF_FDT_MAX_FDS, OFF_FDT_OPEN_FDS, OFF_FILES_FDT},
    },
};

/// Words of the bitmap of open fds that make a block, and blocks that make a table. The verifier
/// walks a loop turn by turn, so one loop over all words would be too long for it; functions that
/// don't inline it verifies once.
pub(crate) const WORDS: u32 = 16;
pub(crate) const BLOCKS: u32 = MAX_SCANNED_FDS / 64 / WORDS;

#[inline(always)]
fn fd_table(files: u64) -> Ptr<FdTable> {
    Ptr::<Files>::new(files).follow(&OFF_FILES_FDT)
}

/// The file in a slot; null if there is none.
#[inline(always)]
pub(crate) fn file_at(files: u64, fd: u32) -> Ptr<File> {
    let table = fd_table(files);
    if fd >= table.read(&OFF_FDT_MAX_FDS) {
        return Ptr::new(0);
    }
    table.follow(&OFF_FDT_FD).element(fd.into()).target()
}

/// What a file is; [`Tag::EMPTY`] if it isn't counted.
#[inline(always)]
pub(crate) fn tag_of(file: Ptr<File>) -> Tag {
    match kind_of(file) {
        NOT_COUNTED => Tag::EMPTY,
        kind => Tag::new(kind, file.address()),
    }
}

/// What the kernel holds in a slot now.
#[inline(always)]
pub(crate) fn read_slot(files: u64, fd: u32) -> Tag {
    Tag(slot_tag(files, fd))
}

/// A function of its own, because the classifier's outcomes multiply what follows them for the
/// verifier.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn slot_tag(files: u64, fd: u32) -> u64 {
    let file = file_at(files, fd);
    if file.is_null() { Tag::EMPTY.0 } else { tag_of(file).0 }
}

/// How many fds a table has room for.
#[inline(always)]
pub(crate) fn max_fds(files: u64) -> u32 {
    fd_table(files).read(&OFF_FDT_MAX_FDS)
}

/// Which of the fds `word * 64 ..` are open.
///
/// The bitmap is a superset of the slots that hold a file: `alloc_fd` sets the bit first.
#[inline(always)]
pub(crate) fn open_fds(files: u64, word: u32) -> u64 {
    if word * 64 >= max_fds(files) {
        return 0;
    }
    fd_table(files).follow(&OFF_FDT_OPEN_FDS).element(word.into()).load()
}
