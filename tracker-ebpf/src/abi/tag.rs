//! What a slot holds, in one word.

use crate::Kind;

/// Which file fills a slot, and its [`Kind`]: the kind's index + 1 in the top byte, the address of
/// the `struct file` in the rest (the top byte of a kernel address is constant). 0 is a slot with
/// nothing to count.
///
/// One word, so that what is recorded of a slot changes as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Tag(pub u64);

impl Tag {
    /// A slot that holds nothing to count.
    pub const EMPTY: Self = Self(0);

    const FILE_BITS: u32 = 56;

    /// The tag of the file at this address, whose kind has this index.
    #[must_use]
    #[inline]
    pub const fn new(kind_index: u64, file: u64) -> Self {
        Self((kind_index + 1) << Self::FILE_BITS | file & ((1 << Self::FILE_BITS) - 1))
    }

    /// The file's identity for as long as it is open: its address without the top byte.
    #[must_use]
    #[inline]
    pub const fn file(self) -> u64 {
        self.0 & ((1 << Self::FILE_BITS) - 1)
    }

    /// The index of the file's kind. Out of range (`usize::MAX`) for an empty slot.
    #[must_use]
    #[inline]
    pub const fn kind_index(self) -> usize {
        ((self.0 >> Self::FILE_BITS) as usize).wrapping_sub(1)
    }

    /// The file's kind; `None` for an empty slot.
    #[must_use]
    pub fn kind(self) -> Option<Kind> {
        Kind::from_index(self.kind_index())
    }
}
