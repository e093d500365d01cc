//! A process that opens, copies, passes and closes file descriptors on command. It reads one
//! command per line from standard input, and writes one answer per line to standard output.
//!
//! An answer is `ok [NUMBER…]`, or `no REASON` if the kernel lacks what was asked for.

mod hidden;
mod unusual;

use std::{
    ffi::CString,
    io::{self, BufRead as _, Write as _},
    mem, ptr,
};

use fdtracker_tests::{
    kinds::{close, open, pair, receive, send},
    sys::{address, call, check, message},
};
use libc::{c_int, pid_t};

type Answer = Result<Vec<i64>, io::Error>;

fn main() {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match run(&words) {
            Ok(numbers) => numbers.iter().fold("ok".to_owned(), |text, n| format!("{text} {n}")),
            Err(error) => format!("no {error}"),
        };
        println!("{answer}");
        if words == ["quit"] {
            return;
        }
    }
}

fn run(words: &[&str]) -> Answer {
    let number = |at: usize| -> Result<c_int, io::Error> {
        words
            .get(at)
            .and_then(|w| w.parse().ok())
            .ok_or_else(|| io::Error::other(format!("bad command {words:?}")))
    };
    match words.first().copied().unwrap_or_default() {
        "pid" => Ok(vec![std::process::id().into()]),
        "open" => one(open(words.get(1).copied().unwrap_or_default())),
        "open_many" => none(open_many(words.get(1).copied().unwrap_or_default(), number(2)?)),
        "open_path" => one(open_path(words.get(1).copied().unwrap_or_default())),
        "close" => none(call(libc::SYS_close, &[number(1)?.into()])),
        "dup" => one(call(libc::SYS_dup, &[number(1)?.into()])),
        "dup2" => one(call(libc::SYS_dup3, &[number(1)?.into(), number(2)?.into(), 0])),
        "dupfd" => {
            one(call(libc::SYS_fcntl, &[number(1)?.into(), libc::F_DUPFD_CLOEXEC.into(), number(2)?.into()]))
        }
        "close_range" => {
            none(call(libc::SYS_close_range, &[number(1)?.into(), number(2)?.into(), number(3)?.into()]))
        }
        "cloexec" => {
            none(call(libc::SYS_fcntl, &[number(1)?.into(), libc::F_SETFD.into(), libc::FD_CLOEXEC.into()]))
        }
        "open_unseen" => open_unseen(),
        "close_unseen" => close_unseen(number(1)?),
        "getfd" => getfd(number(1)?),
        "pass" => pass(number(1)?),
        "clone_pidfd" => clone_pidfd(),
        "peerpidfd" => peer_pidfd(),
        "scm_pidfd" => scm_pidfd(),
        "fork" => fork(),
        "vfork_exec" => vfork_exec(),
        "sharer" => sharer(number(1)?),
        "kill" => kill(number(1)?),
        "thread_unshare" => thread(|| call(libc::SYS_unshare, &[libc::CLONE_FILES.into()])),
        "thread_close_range" => {
            let (first, last) = (number(1)?, number(2)?);
            thread(move || {
                const CLOSE_RANGE_UNSHARE: i64 = 2;
                call(libc::SYS_close_range, &[first.into(), last.into(), CLOSE_RANGE_UNSHARE])
            })
        }
        "exec" => exec(),
        "uring_open" => unusual::uring_open(),
        "uring_close" => unusual::uring_close(number(1)?),
        "fanotify_watch" => unusual::fanotify_watch(),
        "fanotify_event" => unusual::fanotify_event(number(1)?),
        "seccomp_addfd" => unusual::seccomp_addfd(),
        "mmap" => hidden::mmap(number(1)?),
        "munmap" => hidden::munmap(words.get(1).and_then(|w| w.parse().ok()).unwrap_or(-1)),
        "register_ring" => hidden::register_ring(number(1)?),
        "unregister_ring" => hidden::unregister_ring(number(1)?),
        "registered_only" => hidden::registered_only(),
        "register_file" => hidden::register_file(number(1)?, number(2)?),
        "unregister_files" => hidden::unregister_files(number(1)?),
        "send" => hidden::send_only(number(1)?),
        "receive" => hidden::receive_only(number(1)?),
        "send_unaccepted" => hidden::send_unaccepted(number(1)?),
        "churn" => churn(number(1)?),
        "quit" => Ok(vec![]),
        _ => Err(io::Error::other(format!("unknown command {words:?}"))),
    }
}

fn one(result: Result<i64, io::Error>) -> Answer {
    result.map(|n| vec![n])
}

fn none(result: Result<i64, io::Error>) -> Answer {
    result.map(|_| vec![])
}

/// Opens a path with O_PATH, so that no driver of a device is called.
fn open_path(path: &str) -> io::Result<i64> {
    let path = CString::new(path).map_err(io::Error::other)?;
    call(
        libc::SYS_openat,
        &[libc::AT_FDCWD.into(), address(&path.as_bytes_with_nul()[0]), libc::O_PATH.into()],
    )
}

/// Opens that many files of a kind. Raises the limit of open files as far as it may.
fn open_many(kind: &str, count: c_int) -> Result<i64, io::Error> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through both calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    (0..count).try_for_each(|_| open(kind).map(drop)).map(|()| 0)
}

/// Opens an eventfd by the 32-bit system call gate. Syscall tracepoints don't fire there (kernel:
/// `ARCH_TRACE_IGNORE_COMPAT_SYSCALLS`), so that the probes miss it.
fn open_unseen() -> Answer {
    one(compat(323, 0))
}

/// Closes an fd by the same gate.
fn close_unseen(fd: c_int) -> Answer {
    none(compat(6, fd.into()))
}

fn compat(number: i64, argument: i64) -> Result<i64, io::Error> {
    let mut result = number;
    // SAFETY: these calls take integers, and the gate changes no other register. LLVM keeps `rbx`
    // for itself, so it is swapped.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {argument}",
            "int 0x80",
            "xchg rbx, {argument}",
            argument = inout(reg) argument => _,
            inout("rax") result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    let result = i64::from(result as i32);
    if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(result) }
}

/// Copies a file out of its own table by `pidfd_getfd`.
fn getfd(fd: c_int) -> Answer {
    let me = open("pidfd")?;
    let got = call(libc::SYS_pidfd_getfd, &[me, fd.into(), 0]);
    close(me);
    one(got)
}

const PASSCRED_PIDFD: c_int = 76;

/// Sends an fd to itself over a socket.
fn pass(fd: c_int) -> Answer {
    let (a, b) = pair()?;
    send(a, fd)?;
    let received = receive(b);
    close(a);
    close(b);
    one(received)
}

/// Receives a pidfd of the sender with a message, by `SCM_PIDFD`.
fn scm_pidfd() -> Answer {
    let (a, b) = pair()?;
    call(libc::SYS_setsockopt, &[b, 1, PASSCRED_PIDFD.into(), address(&1_u32), 4])?;
    let mut control = [0_u64; 8];
    message(libc::SYS_sendmsg, a, &mut control, 0, 0)?;
    let mut control = [0_u64; 8];
    message(libc::SYS_recvmsg, b, &mut control, 64, 0)?;
    close(a);
    close(b);
    Ok(vec![(control[2] as u32).into()])
}

/// Asks a socket pair for the peer's pidfd by `SO_PEERPIDFD`.
fn peer_pidfd() -> Answer {
    const SO_PEERPIDFD: i64 = 77;
    let (a, b) = pair()?;
    let fd = -1 as c_int;
    let len = 4_u32;
    let got = call(libc::SYS_getsockopt, &[a, 1, SO_PEERPIDFD, address(&fd), address(&len)]);
    close(a);
    close(b);
    got?;
    // SAFETY: the call has filled the integer behind the compiler's back.
    Ok(vec![unsafe { ptr::from_ref(&fd).read_volatile() }.into()])
}

/// Makes a child by `clone3(CLONE_PIDFD)` that ends at once. Answers the pidfd.
fn clone_pidfd() -> Answer {
    let fd = -1 as c_int;
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, …
    let args: [u64; 11] = [0x1000, address(&fd) as u64, 0, 0, libc::SIGCHLD as u64, 0, 0, 0, 0, 0, 0];
    let pid = call(libc::SYS_clone3, &[address(&args), 88])?;
    if pid == 0 {
        // SAFETY: the child does nothing else.
        unsafe { libc::_exit(0) };
    }
    wait(pid as pid_t);
    // SAFETY: the call has filled the integer behind the compiler's back.
    Ok(vec![unsafe { ptr::from_ref(&fd).read_volatile() }.into()])
}

/// Makes a child that waits to be killed.
fn fork() -> Answer {
    // SAFETY: this process has one thread, and the child only waits.
    let pid = check(unsafe { libc::fork() }.into())?;
    if pid == 0 {
        linger();
    }
    Ok(vec![pid])
}

/// Makes a child that executes this program again. It waits for commands, which never come.
fn vfork_exec() -> Answer {
    let child = std::process::Command::new("/proc/self/exe")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let pid = child.id();
    // It ends when its standard input is closed, at the latest with this process.
    mem::forget(child);
    Ok(vec![pid.into()])
}

/// Makes a process that shares this table (`CLONE_FILES`), opens this many eventfds in it, and
/// waits to be killed.
fn sharer(count: c_int) -> Answer {
    extern "C" fn child(count: *mut libc::c_void) -> c_int {
        for _ in 0..count as usize {
            let _ = open("eventfd");
        }
        linger();
    }
    let stack = vec![0_u8; 64 * 1024].leak();
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_FILES | libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: the stack is leaked, so the child has it for good.
    let pid =
        check(unsafe { libc::clone(child, top.cast(), flags, count as usize as *mut libc::c_void) }.into())?;
    Ok(vec![pid])
}

fn linger() -> ! {
    // SAFETY: the call has no precondition. It makes this process end with its parent, whatever
    // happens to the test.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        // SAFETY: the call has no precondition.
        unsafe { libc::pause() };
    }
}

fn kill(pid: pid_t) -> Answer {
    // SAFETY: the pid is of a child that this process made and has not waited for.
    check(unsafe { libc::kill(pid, libc::SIGKILL) }.into())?;
    wait(pid);
    Ok(vec![])
}

fn wait(pid: pid_t) {
    // SAFETY: the status isn't asked for. Children made by `clone` are waited for too.
    unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
}

/// Runs this in a thread, and waits for its end.
fn thread(f: impl FnOnce() -> Result<i64, io::Error> + Send + 'static) -> Answer {
    let result = std::thread::spawn(f).join().map_err(|_| io::Error::other("panicked"))?;
    none(result)
}

/// Executes this program again. It continues to read commands.
fn exec() -> Answer {
    println!("ok");
    io::stdout().flush()?;
    let error = std::os::unix::process::CommandExt::exec(&mut std::process::Command::new("/proc/self/exe"));
    Err(error)
}

/// Opens and closes a pidfd and an eventfd, this many times.
fn churn(times: c_int) -> Answer {
    for _ in 0..times {
        close(open("pidfd")?);
        close(open("eventfd")?);
    }
    Ok(vec![])
}
