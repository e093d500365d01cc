//! Opens files by their handles. rustix has no call for this.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use rustix::fs::OFlags;

/// include/linux/exportfs.h: MAX_HANDLE_SZ
const MAX_BYTES: usize = 128;

/// include/linux/fs.h: struct file_handle
#[repr(C)]
struct Handle {
    length: u32,
    kind: i32,
    bytes: [u8; MAX_BYTES],
}

/// Opens a file by its handle. `kind` is the handle's type (include/linux/exportfs.h: enum
/// fid_type), and `mount` is any file on the same filesystem.
///
/// # Errors
/// `ESTALE` when the file doesn't exist any more; otherwise, the error of `open_by_handle_at(2)`.
pub(crate) fn open(mount: BorrowedFd<'_>, kind: i32, bytes: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let mut handle = Handle { length: bytes.len() as u32, kind, bytes: [0; MAX_BYTES] };
    handle.bytes.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
    let flags = (flags | OFlags::CLOEXEC).bits();
    // SAFETY: the kernel reads `length` bytes of the handle, which has as many: more were refused
    // above.
    let fd =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const handle, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this fd for this call, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_handle_that_is_too_long_is_refused() {
        let root = std::fs::File::open("/").unwrap();
        let error = open(root.as_fd(), 1, &[0; MAX_BYTES + 1], OFlags::PATH).unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (io::ErrorKind::InvalidInput, None));
    }
}
