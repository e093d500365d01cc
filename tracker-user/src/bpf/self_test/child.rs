//! The self-test's process: does the steps that it is told, and says what is open.
//!
//! It keeps no file open but the pipes to its parent and what the steps open.

use std::{
    io::{self, BufRead as _, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::Command,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    cmsg_space,
    event::pause,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
    process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid},
};

use super::{Answer, COMMAND, Open, Step};

/// Where `dup2` and `F_DUPFD` put their copies, out of the way of the rest.
const FAR: RawFd = 200;

/// Answers the parent until it says nothing more. `inherited` is what an earlier image of this
/// process left open.
///
/// # Errors
/// When the parent can't be read, or answered.
pub fn run(inherited: &[i64]) -> io::Result<()> {
    let open = match inherited {
        [eventfds, pidfds] => Open { eventfds: *eventfds, pidfds: *pidfds },
        _ => Open::default(),
    };
    let mut subject = Subject { open, ..Subject::default() };
    if inherited.is_empty() {
        // Whoever started the agent may have left it files that would be counted.
        call(libc::SYS_close_range, [3, i64::from(u32::MAX), 0])?;
    } else {
        println!("{}", subject.answer());
    }
    for line in io::stdin().lock().lines() {
        let Some(step) = Step::from_name(line?.trim()) else { continue };
        match subject.walk(step) {
            Ok(()) => println!("{}", subject.answer()),
            Err(error) => println!("{}", Answer::Skipped(error.to_string())),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Subject {
    /// What one table holds.
    open: Open,
    eventfd: Option<OwnedFd>,
    pidfd: Option<OwnedFd>,
    /// Copies that are closed one by one.
    copies: Vec<OwnedFd>,
    threads: Vec<TableThread>,
    child: Option<Pid>,
}

/// A thread with a table of its own.
struct TableThread {
    open: Open,
    /// Dropped to let the thread end.
    end: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Subject {
    /// What is open, in all tables.
    fn answer(&self) -> Answer {
        let mut open = self.open;
        let copied = self.child.map(|_| self.open);
        for more in self.threads.iter().map(|thread| thread.open).chain(copied) {
            open.eventfds += more.eventfds;
            open.pidfds += more.pidfds;
        }
        let pids = std::iter::once(std::process::id())
            .chain(self.child.map(|pid| pid.as_raw_pid() as u32))
            .collect();
        Answer::Open { open, pids }
    }

    fn walk(&mut self, step: Step) -> io::Result<()> {
        match step {
            Step::Open => {
                self.eventfd = Some(owned(call(libc::SYS_eventfd2, [0, 0, 0])?));
                self.open.eventfds += 1;
            }
            Step::Pidfd => {
                self.pidfd = Some(owned(call(libc::SYS_pidfd_open, [std::process::id().into(), 0, 0])?));
                self.open.pidfds += 1;
            }
            Step::Dup => {
                let copy = call(libc::SYS_dup, [fd(self.eventfd.as_ref()), 0, 0])?;
                self.copies.push(owned(copy));
                self.open.eventfds += 1;
            }
            Step::DupFd => {
                call(libc::SYS_fcntl, [fd(self.eventfd.as_ref()), libc::F_DUPFD.into(), FAR.into()])?;
                self.open.eventfds += 1;
            }
            Step::Dup2 => {
                let to = i64::from(FAR) + 1;
                // Standard input: nothing to count.
                call(libc::SYS_dup3, [0, to, 0])?;
                call(libc::SYS_dup3, [fd(self.eventfd.as_ref()), to, 0])?;
                self.open.eventfds += 1;
            }
            Step::Dup2Over => {
                call(libc::SYS_dup3, [fd(self.pidfd.as_ref()), i64::from(FAR) + 1, 0])?;
                self.open.eventfds -= 1;
                self.open.pidfds += 1;
            }
            Step::Receive => {
                let eventfd = self.eventfd.as_ref().ok_or(io::ErrorKind::NotFound)?;
                self.copies.push(pass(eventfd.as_fd())?);
                self.open.eventfds += 1;
            }
            Step::GetFd => {
                let copy =
                    call(libc::SYS_pidfd_getfd, [fd(self.pidfd.as_ref()), fd(self.eventfd.as_ref()), 0])?;
                self.copies.push(owned(copy));
                self.open.eventfds += 1;
            }
            Step::Close => {
                self.copies.pop();
                self.open.eventfds -= 1;
            }
            Step::CloseRange => {
                call(libc::SYS_close_range, [FAR.into(), i64::from(FAR) + 1, 0])?;
                self.open.eventfds -= 1;
                self.open.pidfds -= 1;
            }
            Step::Unshare => self.thread(self.open, [libc::SYS_unshare, libc::CLONE_FILES.into(), 0, 0])?,
            Step::CloseRangeUnshare => {
                const CLOSE_RANGE_UNSHARE: i64 = 2;
                let pidfd = fd(self.pidfd.as_ref());
                let open = Open { pidfds: self.open.pidfds - 1, ..self.open };
                self.thread(open, [libc::SYS_close_range, pidfd, pidfd, CLOSE_RANGE_UNSHARE])?;
            }
            Step::ThreadExit => {
                for TableThread { end, thread, .. } in self.threads.drain(..) {
                    drop(end);
                    thread.join().map_err(|_| io::Error::other("a thread failed"))?;
                }
                alone()?;
            }
            Step::Fork => self.child = Some(fork()?),
            Step::Kill => self.kill()?,
            Step::Exec => return Err(self.exec()),
            // The parent says nothing more.
            Step::Exit => {}
        }
        Ok(())
    }

    /// A thread that does a system call which gives it a table of its own, and then waits.
    fn thread(&mut self, open: Open, [number, a, b, c]: [i64; 4]) -> io::Result<()> {
        let (end, ended) = mpsc::channel::<()>();
        let (say, said) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _ = say.send(call(number, [a, b, c]));
            let _ = ended.recv();
        });
        said.recv().map_err(io::Error::other)??;
        self.threads.push(TableThread { open, end, thread });
        Ok(())
    }

    fn kill(&mut self) -> io::Result<()> {
        let Some(pid) = self.child.take() else { return Ok(()) };
        // The child hasn't been waited for, so the pid is its own.
        kill_process(pid, Signal::KILL)?;
        waitpid(Some(pid), WaitOptions::empty())?;
        Ok(())
    }

    /// Becomes another image of this program, which answers. Returns only if that fails.
    fn exec(&mut self) -> io::Error {
        if let Err(error) =
            call(libc::SYS_fcntl, [fd(self.eventfd.as_ref()), libc::F_SETFD.into(), libc::FD_CLOEXEC.into()])
        {
            return error;
        }
        // `pidfd_open` always sets close-on-exec.
        let open = [self.open.eventfds - 1, self.open.pidfds - i64::from(self.pidfd.is_some())];
        Command::new("/proc/self/exe").arg(COMMAND).args(open.map(|n| n.to_string())).exec()
    }
}

/// Waits until the kernel has let go of all other threads: `join` returns before their tables are
/// closed.
fn alone() -> io::Result<()> {
    const DEADLINE: Duration = Duration::from_secs(10);
    let start = Instant::now();
    while std::fs::read_dir("/proc/self/task")?.count() > 1 {
        if start.elapsed() > DEADLINE {
            return Err(io::Error::other("a thread doesn't end"));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// A child that has begun to run, and waits for its end. (Without raw tracepoints its table is
/// counted when `fork` returns in it.)
fn fork() -> io::Result<Pid> {
    let (mut reader, mut writer) = io::pipe()?;
    // SAFETY: the child calls nothing that isn't safe after a fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let _ = writer.write_all(&[0]);
        loop {
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            pause();
        }
    }
    check(pid.into())?;
    drop(writer);
    reader.read_exact(&mut [0])?;
    Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Sends an fd to itself, and returns what was received.
fn pass(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (from, to) = UnixStream::pair()?;
    let mut room = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let (mut sent, fds) = (SendAncillaryBuffer::new(&mut room), [fd]);
    sent.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&from, &[IoSlice::new(&[0])], &mut sent, SendFlags::empty())?;
    let mut room = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut received = RecvAncillaryBuffer::new(&mut room);
    recvmsg(&to, &mut [IoSliceMut::new(&mut [0])], &mut received, RecvFlags::empty())?;
    let fd = |message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    };
    received.drain().find_map(fd).ok_or_else(|| io::Error::other("no fd was received"))
}

fn fd(file: Option<&OwnedFd>) -> i64 {
    file.map_or(-1, |file| file.as_raw_fd().into())
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: a system call has just returned the fd, and nobody else closes it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

fn call(number: i64, [a, b, c]: [i64; 3]) -> io::Result<i64> {
    // SAFETY: callers pass integers only.
    check(unsafe { libc::syscall(number, a, b, c) })
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
