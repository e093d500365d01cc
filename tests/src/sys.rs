//! System calls in the kernel's form, for fixtures that do what no library does.

use std::{
    ffi::c_long,
    io, mem,
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus},
    ptr,
    time::{Duration, Instant},
};

/// Returns the result of a system call.
///
/// # Errors
/// Returns the error from libc if the result is negative.
pub fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls the kernel. Arguments are integers, or addresses of values in this task's own memory that
/// outlive the call. Missing arguments are 0.
///
/// # Errors
/// What the kernel says.
pub fn call(number: c_long, args: &[i64]) -> io::Result<i64> {
    let arg = |i: usize| args.get(i).copied().unwrap_or(0);
    // SAFETY: callers pass integers, or addresses of values that live through the call.
    check(unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) })
}

/// Returns an address for [`call`].
pub fn address<T: ?Sized>(value: &T) -> i64 {
    ptr::from_ref(value).cast::<u8>() as i64
}

/// Calls `sendmsg` or `recvmsg` with one byte and the first `len` bytes of the control messages.
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

/// Maps this part of a file for reading and writing. The mapping is shared, and stays.
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

/// Waits for a process to end. Returns `None` if it hasn't ended within this time.
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

/// Makes a command the leader of a session of its own, as a container's first process is. Otherwise
/// CRIU would ask for `--shell-job`.
pub fn own_session(command: &mut Command) {
    // SAFETY: the call is safe after a fork.
    unsafe { command.pre_exec(|| check(libc::setsid().into()).map(drop)) };
}
