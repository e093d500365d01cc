//! System calls as the kernel has them, for fixtures that do what no library does.

use std::{
    ffi::c_long,
    io, mem,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus},
    ptr,
    time::{Duration, Instant},
};

/// The result of a system call.
///
/// # Errors
/// When it is negative: what libc says of it.
pub fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A system call of integers, and of addresses of what outlives it, in this task's own memory. Arguments that aren't given are 0.
///
/// # Errors
/// What the kernel says.
pub fn call(number: c_long, args: &[i64]) -> io::Result<i64> {
    let arg = |i: usize| args.get(i).copied().unwrap_or(0);
    // SAFETY: callers pass integers, or addresses of values that live through the call.
    check(unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) })
}

/// For [`call`].
pub fn address<T: ?Sized>(value: &T) -> i64 {
    ptr::from_ref(value).cast::<u8>() as i64
}

/// `sendmsg`, or `recvmsg`: one byte, and the first `len` bytes of the control messages.
///
/// # Errors
/// What the kernel says.
pub fn message<T>(number: c_long, socket: i64, control: &mut [T], len: usize, flags: i64) -> io::Result<i64> {
    assert!(len <= mem::size_of_val(control));
    let mut byte = [0_u8];
    let mut data = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: a message header is plain data.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut data;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = len;
    call(number, &[socket, address(&header), flags])
}

/// Maps this part of a file, for good, to read and write, and shared with who else maps it.
///
/// # Errors
/// What the kernel says.
pub fn map(fd: i64, offset: i64, len: usize) -> Result<*mut u8, io::Error> {
    // SAFETY: a new mapping, which stays.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd as libc::c_int,
            offset,
        )
    };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast()) }
}

/// Waits for a process to end. `None`: it hasn't, within this time.
///
/// # Errors
/// If it can't be waited for.
pub fn wait_within(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        let status = child.try_wait()?;
        if status.is_some() || start.elapsed() > limit {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has a command lead a session of its own, as the first process of a container does: else CRIU would want `--shell-job`.
pub fn own_session(command: &mut Command) {
    // SAFETY: the call is safe after a fork.
    unsafe { command.pre_exec(|| check(libc::setsid().into()).map(drop)) };
}
