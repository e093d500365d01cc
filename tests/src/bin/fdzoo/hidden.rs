//! Files that stay open without an fd: by a mapping, by io_uring, in the queue of a unix socket.

use std::{io, ptr};

use libc::c_int;

use fdtracker_tests::{
    kinds::{self, close, pair, receive, send},
    sys::{address, call, map},
};

use super::{Answer, none, one};

/// Maps a page of a file, and answers the address.
pub(super) fn mmap(fd: c_int) -> Answer {
    // A new memfd has no bytes yet. For other files this call fails, which does no harm.
    let _ = call(libc::SYS_ftruncate, &[fd.into(), 4096]);
    map(fd.into(), 0, 4096).map(|at| vec![at as i64])
}

/// Unmaps that page.
pub(super) fn munmap(at: i64) -> Answer {
    none(call(libc::SYS_munmap, &[at, 4096]))
}

/// Registers a ring with this thread (Linux 5.18), and answers its index.
pub(super) fn register_ring(ring: c_int) -> Answer {
    const REGISTER_RING_FDS: i64 = 20;
    // struct io_uring_rsrc_update: offset (any), resv, data
    let mut update = [u64::from(u32::MAX), ring as u64];
    call(libc::SYS_io_uring_register, &[ring.into(), REGISTER_RING_FDS, update.as_mut_ptr() as i64, 1])?;
    // SAFETY: the call has filled the array behind the compiler's back.
    one(Ok(unsafe { update.as_ptr().read_volatile() } as u32 as i64))
}

/// Takes back a ring's registration, with another ring.
pub(super) fn unregister_ring(index: c_int) -> Answer {
    const UNREGISTER_RING_FDS: i64 = 21;
    let other = kinds::open("io_uring")?;
    let update = [index as u64, 0];
    let done = call(libc::SYS_io_uring_register, &[other, UNREGISTER_RING_FDS, address(&update), 1]);
    close(other);
    none(done)
}

/// Makes a ring that never has an fd (Linux 6.5). Answers its index.
pub(super) fn registered_only() -> Answer {
    const NO_MMAP: u32 = 1 << 14;
    const REGISTERED_FD_ONLY: u32 = 1 << 15;
    let mut params = [0_u32; 30];
    params[2] = NO_MMAP | REGISTERED_FD_ONLY;
    // sq_off.user_addr and cq_off.user_addr: where the kernel is to place requests and rings.
    for at in [18, 28] {
        let page = page()? as u64;
        (params[at], params[at + 1]) = (page as u32, (page >> 32) as u32);
    }
    one(call(libc::SYS_io_uring_setup, &[4, params.as_mut_ptr() as i64]))
}

fn page() -> Result<*mut libc::c_void, io::Error> {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, which stays.
    let at = unsafe { libc::mmap(ptr::null_mut(), 4096, access, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at) }
}

/// Registers a file with a ring: a direct descriptor.
pub(super) fn register_file(ring: c_int, fd: c_int) -> Answer {
    const REGISTER_FILES: i64 = 2;
    none(call(libc::SYS_io_uring_register, &[ring.into(), REGISTER_FILES, address(&fd), 1]))
}

/// Takes back the registration of all files.
pub(super) fn unregister_files(ring: c_int) -> Answer {
    const UNREGISTER_FILES: i64 = 3;
    none(call(libc::SYS_io_uring_register, &[ring.into(), UNREGISTER_FILES, 0, 0]))
}

/// Sends an fd to itself over a socket, and closes the sending end. Answers the end that can
/// receive it.
pub(super) fn send_only(fd: c_int) -> Answer {
    let (a, b) = pair()?;
    let sent = send(a, fd);
    close(a);
    sent?;
    Ok(vec![b])
}

/// Receives an fd that was sent.
pub(super) fn receive_only(socket: c_int) -> Answer {
    one(receive(socket.into()))
}

/// Sends an fd over a connection that isn't accepted. Answers the listener and the client.
pub(super) fn send_unaccepted(fd: c_int) -> Answer {
    let listener = kinds::open("unix")?;
    // An address without a name: the kernel chooses a number.
    let family: u16 = 1;
    call(libc::SYS_bind, &[listener, address(&family), 2])?;
    call(libc::SYS_listen, &[listener, 1])?;
    let (mut name, len) = ([0_u8; 110], 110_u32);
    call(libc::SYS_getsockname, &[listener, name.as_mut_ptr() as i64, address(&len)])?;
    // SAFETY: the call has filled the integer behind the compiler's back.
    let len = unsafe { ptr::from_ref(&len).read_volatile() };
    let client = kinds::open("unix")?;
    call(libc::SYS_connect, &[client, name.as_ptr() as i64, len.into()])?;
    send(client, fd)?;
    Ok(vec![listener, client])
}
