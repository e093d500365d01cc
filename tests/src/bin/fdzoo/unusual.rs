//! Fills and empties slots in ways that no system call's result shows: by io_uring, by reading from
//! fanotify, by another process.

use std::{
    ffi::CString,
    io, ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use libc::c_int;

use fdtracker_tests::{
    kinds::{close, open, path},
    sys::{address, call, map},
};

use super::{Answer, one};

/// Opens a character device by `IORING_OP_OPENAT`.
pub(super) fn uring_open() -> Answer {
    const OPENAT: u64 = 18;
    let path = c"/dev/fuse";
    // opcode, flags, ioprio, fd; off; addr; len, open_flags
    one(uring(&[OPENAT | (libc::AT_FDCWD as u32 as u64) << 32, 0, path.as_ptr() as u64, 0]))
}

/// Closes an fd by `IORING_OP_CLOSE`.
pub(super) fn uring_close(fd: c_int) -> Answer {
    const CLOSE: u64 = 19;
    uring(&[CLOSE | u64::from(fd as u32) << 32]).map(|_| vec![])
}

/// Makes a ring, has it do one request, and returns the result.
fn uring(request: &[u64]) -> Result<i64, io::Error> {
    const GETEVENTS: i64 = 1;
    let mut params = [0_u32; 30];
    let ring = call(libc::SYS_io_uring_setup, &[4, params.as_mut_ptr() as i64])?;
    let done: Result<i32, io::Error> = (|| {
        let rings = map(ring, 0, 4096)?;
        let requests = map(ring, 0x1000_0000, 4096)?.cast::<u64>();
        // sq_off: head, tail, mask, entries, flags, dropped, array; 80 bytes in, cq_off: …, cqes
        let at = |offset: u32| rings.wrapping_add(offset as usize).cast::<u32>();
        // SAFETY: the kernel says where these are in the pages that it has mapped.
        unsafe {
            for (i, word) in request.iter().enumerate() {
                requests.add(i).write_volatile(*word);
            }
            at(params[16]).write_volatile(0);
            AtomicU32::from_ptr(at(params[11])).store(1, Ordering::Release);
        }
        call(libc::SYS_io_uring_enter, &[ring, 1, 1, GETEVENTS, 0, 0])?;
        // SAFETY: as above; the result is the third word of the first completion.
        let result = unsafe { at(params[25] + 8).read_volatile() } as i32;
        // A ring that stays mapped would be counted as a hidden file.
        for page in [rings.cast(), requests.cast::<u8>()] {
            call(libc::SYS_munmap, &[page as i64, 4096])?;
        }
        Ok(result)
    })();
    close(ring);
    match done? {
        error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
        result => Ok(result.into()),
    }
}

/// Makes a fanotify group that reports pidfds (Linux 5.15).
pub(super) fn fanotify_watch() -> Answer {
    const REPORT_PIDFD: i64 = 0x80;
    const MARK_ADD: i64 = 1;
    const OPEN: i64 = 0x20;
    let group = call(libc::SYS_fanotify_init, &[REPORT_PIDFD, libc::O_RDONLY.into()])?;
    let path = watched();
    let made = call(
        libc::SYS_openat,
        &[libc::AT_FDCWD.into(), path.as_ptr() as i64, i64::from(libc::O_CREAT | libc::O_WRONLY), 0o600],
    )?;
    close(made);
    call(libc::SYS_fanotify_mark, &[group, MARK_ADD, OPEN, libc::AT_FDCWD.into(), path.as_ptr() as i64])?;
    Ok(vec![group])
}

/// Opens the watched file, and reads the event. Answers the pidfd that came with it.
pub(super) fn fanotify_event(group: c_int) -> Answer {
    close(path(&watched())?);
    let event = [0_u8; 256];
    call(libc::SYS_read, &[group.into(), address(&event), 256])?;
    // SAFETY: the call has filled the array behind the compiler's back.
    let event = unsafe { ptr::from_ref(&event).read_volatile() };
    let word = |at: usize| i32::from_ne_bytes([event[at], event[at + 1], event[at + 2], event[at + 3]]);
    // struct fanotify_event_metadata: …, fd, pid; then an info record: its head, the pidfd.
    close(word(16).into());
    call(libc::SYS_unlink, &[watched().as_ptr() as i64])?;
    Ok(vec![word(28).into()])
}

fn watched() -> CString {
    let path = std::env::temp_dir().join(format!("fdzoo-{}", std::process::id()));
    CString::new(path.into_os_string().into_encoded_bytes()).unwrap_or_default()
}

/// Has a supervisor put an eventfd into the table of a thread that waits in a system call. Answers
/// the fd there.
pub(super) fn seccomp_addfd() -> Answer {
    let (say, said) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let listener = notify_getppid();
        let stop = listener.is_err();
        let _ = say.send(listener);
        if !stop {
            // SAFETY: the call has no precondition. It returns when the supervisor answers.
            unsafe { libc::getppid() };
        }
    });
    let listener = said.recv().map_err(io::Error::other)??;
    let result = supervise(listener);
    let _ = thread.join();
    close(listener);
    one(result)
}

/// Makes every `getppid` of this thread wait for a supervisor. Returns the fd on which the
/// supervisor is asked.
fn notify_getppid() -> Result<i64, io::Error> {
    const SET_MODE_FILTER: i64 = 1;
    const NEW_LISTENER: i64 = 8;
    let filter = |code: u64, jump: u64, k: u64| code | jump << 16 | k << 32;
    // Load the number; if it is getppid, USER_NOTIF, else ALLOW.
    let code = [
        filter(0x20, 0, 0),
        filter(0x15, 0x0100, libc::SYS_getppid as u64),
        filter(0x06, 0, 0x7fc0_0000),
        filter(0x06, 0, 0x7fff_0000),
    ];
    let program: [u64; 2] = [4, address(&code) as u64];
    call(libc::SYS_seccomp, &[SET_MODE_FILTER, NEW_LISTENER, address(&program)])
}

fn supervise(listener: i64) -> Result<i64, io::Error> {
    const RECV: i64 = 0xc050_2100;
    const SEND: i64 = 0xc018_2101;
    const ADDFD: i64 = 0x4018_2103;
    let mut request = [0_u64; 10];
    call(libc::SYS_ioctl, &[listener, RECV, request.as_mut_ptr() as i64])?;
    let id = request[0];
    let source = open("eventfd")?;
    // struct seccomp_notif_addfd: id; flags, srcfd; newfd, newfd_flags
    let add = [id, (source as u64) << 32, 0];
    let added = call(libc::SYS_ioctl, &[listener, ADDFD, address(&add)]);
    close(source);
    // struct seccomp_notif_resp: id, val, error and flags
    let answer = [id, 1, 0];
    call(libc::SYS_ioctl, &[listener, SEND, address(&answer)])?;
    added
}
