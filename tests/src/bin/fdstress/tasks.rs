//! Tasks. They change their tables until all operations are done, and now and then make, kill or
//! move other tasks.
//!
//! Children are made by bare system calls, so libc's locks may stay locked for ever in them. Until
//! they exec, they don't allocate, and start no threads.

use std::{
    arch::asm,
    ffi::{CStr, CString},
    io, process, ptr,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    thread,
};

use fdtracker_tests::sys::{address, call};
use libc::{c_int, pid_t};

use crate::{
    shared::{CGROUPS, FIRST, LAST, Rng, Shared, pid},
    slots,
};

const CLONE_PIDFD: i64 = 0x1000;
const CLOSE_RANGE_UNSHARE: i64 = 2;

/// The most children that a task has at a time, by its depth: children have few, and grandchildren
/// none.
const MOST_KIDS: [usize; 3] = [2, 1, 0];

/// The most threads with tables of their own that a process has at a time.
const MOST_STRAYS: u32 = 2;

static STRAYS: AtomicU32 = AtomicU32::new(0);

/// What a task is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// One of a worker's threads. It works as long as the process lives.
    Worker,
    /// A process that a task made. It works for a while, and then waits to be killed, or ends.
    Child,
    /// A thread with a table of its own. It ends in the same ways as a child.
    Stray,
}

/// The calling thread, and what it has made.
struct Task {
    shared: &'static Shared,
    rng: Rng,
    role: Role,
    depth: usize,
    /// Whether this process may allocate, and start threads.
    whole: bool,
    /// Children that haven't been waited for, so that no other process can have their pids.
    kids: [pid_t; 2],
}

/// Works as a worker in a process of its own: `fdstress work SEED PARENT` after exec.
pub fn work(shared: &'static Shared, parent: pid_t, seed: u64) -> ! {
    born(shared, parent, 0);
    for thread in 1..u64::from(shared.threads.load(SeqCst)) {
        // This fails while another thread execs (kernel: `copy_fs`).
        let _ = thread::Builder::new().spawn(move || {
            shared.enter(0);
            Task::new(shared, seed ^ (thread << 32), Role::Worker, 0, true).live();
        });
    }
    Task::new(shared, seed, Role::Worker, 0, true).live();
    process::exit(0)
}

/// Works as a child that has exec'd: `fdstress child SEED PARENT`.
pub fn grow_up(shared: &'static Shared, parent: pid_t, seed: u64) -> ! {
    born(shared, parent, 0);
    Task::new(shared, seed, Role::Child, 1, true).live();
    process::exit(0)
}

/// Prepares a new process, before anything else: it is killed when its parent dies of whatever
/// cause.
fn born(shared: &Shared, parent: pid_t, owner: pid_t) {
    let _ = call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG.into(), libc::SIGKILL.into(), 0, 0, 0]);
    if call(libc::SYS_getppid, &[0; 5]).ok() != Some(parent.into()) {
        exit();
    }
    shared.enter(owner);
}

/// Ends this process with all its threads.
fn exit() -> ! {
    // SAFETY: nothing is to be tidied up.
    unsafe { libc::_exit(0) }
}

impl Task {
    fn new(shared: &'static Shared, seed: u64, role: Role, depth: usize, whole: bool) -> Self {
        Self { shared, rng: Rng(seed), role, depth, whole, kids: [0; 2] }
    }

    fn live(&mut self) {
        loop {
            let epoch = self.shared.epoch();
            let most = if self.role == Role::Worker { u64::MAX } else { 20 + self.rng.below(200) };
            let mut played = 0;
            while played < most && self.shared.take() {
                self.play();
                played += 1;
            }
            if played == most && self.rng.percent(40) {
                return self.end_kids();
            }
            self.shared.park(epoch);
        }
    }

    fn play(&mut self) {
        match self.rng.below(10_000) {
            0..150 => self.fork(),
            150..200 => self.fork_sharing(),
            200..225 => self.spawn(),
            225..265 => self.stray(),
            265..335 => self.end_kid(),
            335..339 => self.migrate(),
            339..341 if self.role == Role::Worker => self.exec(),
            341..342 if self.depth == 0 => exit(),
            342..350 if self.role == Role::Child => {
                let _ = call(libc::SYS_unshare, &[libc::CLONE_FILES.into(), 0, 0, 0, 0]);
            }
            _ => slots::play(self.shared, &mut self.rng),
        }
    }

    /// Returns a free place for a child.
    fn room(&self) -> Option<usize> {
        self.kids.iter().take(MOST_KIDS[self.depth]).position(|kid| *kid == 0)
    }

    /// Makes a child with a copy of the table, by one of the three calls.
    fn fork(&mut self) {
        let pidfd = if self.rng.percent(30) { CLONE_PIDFD } else { 0 };
        self.child(pidfd);
    }

    /// Makes a child that shares the table.
    fn fork_sharing(&mut self) {
        self.child(libc::CLONE_FILES.into());
    }

    fn child(&mut self, flags: i64) {
        let Some(room) = self.room() else { return };
        let (parent, seed, way) = (pid(), self.rng.next(), self.rng.below(3));
        let made = match way {
            0 if flags == 0 => call(libc::SYS_fork, &[0; 5]),
            0 | 1 => clone(flags),
            _ => clone3(flags),
        };
        match made {
            Ok(0) => {
                let owner = if flags & i64::from(libc::CLONE_FILES) != 0 { parent } else { 0 };
                born(self.shared, parent, owner);
                Self::new(self.shared, seed, Role::Child, self.depth + 1, false).live();
                exit();
            }
            Ok(kid) => self.kids[room] = kid as pid_t,
            Err(_) => {}
        }
    }

    /// Makes a child by vfork and exec. It goes on as [`grow_up`].
    fn spawn(&mut self) {
        let Some(room) = self.room() else { return };
        if !self.whole {
            return;
        }
        let arguments = Arguments::new("child", self.rng.next(), pid());
        // SAFETY: the strings outlive the call.
        let kid = unsafe { vfork_exec(arguments.path(), &arguments.pointers()) };
        if kid > 0 {
            self.kids[room] = kid as pid_t;
        }
    }

    /// Execs while all threads live. They end, the table stays.
    fn exec(&mut self) {
        // SAFETY: the call has no precondition.
        let arguments = Arguments::new("work", self.rng.next(), unsafe { libc::getppid() });
        // The new program opens its libraries, for which some slots must be free.
        let _ = call(libc::SYS_close_range, &[(LAST - 5).into(), LAST.into(), 0, 0, 0]);
        let pointers = arguments.pointers();
        let args = [arguments.path().as_ptr() as i64, pointers.as_ptr() as i64, 0, 0, 0];
        let _ = call(libc::SYS_execve, &args);
    }

    /// Starts a thread with a table of its own, by one of the two calls.
    fn stray(&mut self) {
        if !self.whole {
            return;
        }
        if STRAYS.fetch_add(1, SeqCst) >= MOST_STRAYS {
            STRAYS.fetch_sub(1, SeqCst);
            return;
        }
        let (shared, depth) = (self.shared, self.depth);
        let mut rng = Rng(self.rng.next());
        // This fails while another thread execs (kernel: `copy_fs`).
        let started = thread::Builder::new().spawn(move || {
            shared.enter(0);
            let unshared = if rng.percent(50) {
                call(libc::SYS_unshare, &[libc::CLONE_FILES.into(), 0, 0, 0, 0])
            } else {
                slots::close_range(&mut rng, CLOSE_RANGE_UNSHARE)
            };
            if unshared.is_ok() {
                Self::new(shared, rng.next(), Role::Stray, depth, true).live();
            }
            STRAYS.fetch_sub(1, SeqCst);
        });
        if started.is_err() {
            STRAYS.fetch_sub(1, SeqCst);
        }
    }

    /// Moves this process, or a child of it that is at work, to one of the cgroups.
    fn migrate(&mut self) {
        let whom = self.kids[self.rng.below(2) as usize];
        let cgroup = self.rng.below(self.shared.cgroups.load(SeqCst).into());
        migrate(cgroup as c_int, whom);
    }

    /// Kills a child, whatever it is doing.
    fn end_kid(&mut self) {
        let kid = self.rng.below(2) as usize;
        self.end(kid);
    }

    fn end_kids(&mut self) {
        for kid in 0..self.kids.len() {
            self.end(kid);
        }
    }

    fn end(&mut self, kid: usize) {
        let kid = std::mem::take(&mut self.kids[kid]);
        if kid != 0 {
            let _ = call(libc::SYS_kill, &[kid.into(), libc::SIGKILL.into(), 0, 0, 0]);
            let _ = call(libc::SYS_wait4, &[kid.into(), 0, libc::__WALL.into(), 0, 0]);
            self.shared.left(kid);
        }
    }
}

/// Moves a process (0: the caller) to a cgroup.
pub fn migrate(cgroup: c_int, whom: pid_t) {
    // Writes digits without allocating. There must be no 0 in front: the kernel would read an octal
    // number (kernel: `kstrtoint`).
    let mut text = [b'0'; 10];
    let (mut first, mut rest) = (text.len(), whom);
    while rest > 0 || first == text.len() {
        first -= 1;
        text[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let text = &text[first..];
    let _ =
        call(libc::SYS_write, &[(CGROUPS + cgroup).into(), text.as_ptr() as i64, text.len() as i64, 0, 0]);
}

fn clone(flags: i64) -> io::Result<i64> {
    let mut pidfd: c_int = -1;
    call(libc::SYS_clone, &[flags | i64::from(libc::SIGCHLD), 0, (&raw mut pidfd) as i64, 0, 0])
}

fn clone3(flags: i64) -> io::Result<i64> {
    let mut pidfd: c_int = -1;
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let args: [i64; 8] = [flags, (&raw mut pidfd) as i64, 0, 0, libc::SIGCHLD.into(), 0, 0, 0];
    call(libc::SYS_clone3, &[address(&args), 64, 0, 0, 0])
}

/// A command line for [`work`] or [`grow_up`].
struct Arguments([CString; 4]);

impl Arguments {
    fn new(role: &str, seed: u64, parent: pid_t) -> Self {
        let words = ["/proc/self/exe".to_owned(), role.to_owned(), seed.to_string(), parent.to_string()];
        Self(words.map(|word| CString::new(word).unwrap_or_default()))
    }

    fn path(&self) -> &CStr {
        &self.0[0]
    }

    fn pointers(&self) -> [*const libc::c_char; 5] {
        let [a, b, c, d] = self.0.each_ref().map(|word| word.as_ptr());
        [a, b, c, d, ptr::null()]
    }
}

/// Calls the real `vfork`, and `execve` in the child. Returns to the parent what vfork returns.
///
/// # Safety
/// `argv` holds pointers to strings, and a null pointer.
unsafe fn vfork_exec(path: &CStr, argv: &[*const libc::c_char; 5]) -> i64 {
    let mut result = libc::SYS_vfork;
    // SAFETY: until it has exec'd or exited, the child runs in this process's memory and on its
    // stack; it writes to neither. The parent goes on only after that. In it the kernel has changed
    // no register but these.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov eax, {execve}",
            "xor edx, edx",
            "syscall",
            "mov edi, 127",
            "mov eax, {exit}",
            "syscall",
            "2:",
            execve = const libc::SYS_execve,
            exit = const libc::SYS_exit_group,
            inout("rax") result,
            inout("rdi") path.as_ptr() => _,
            inout("rsi") argv.as_ptr() => _,
            out("rdx") _, out("rcx") _, out("r11") _,
        );
    }
    result
}

/// Sets a worker's slots and priority at its start.
///
/// All slots below [`FIRST`] are taken, and the kernel gives none above [`LAST`]. The priority is
/// low, because the processes that check must get a CPU beside so many tasks that never rest.
pub fn fence() -> io::Result<()> {
    let null = call(libc::SYS_openat, &[libc::AT_FDCWD.into(), c"/dev/null".as_ptr() as i64, 2, 0, 0])?;
    for fd in (0..FIRST).filter(|fd| *fd != libc::STDERR_FILENO && i64::from(*fd) != null) {
        call(libc::SYS_dup3, &[null, fd.into(), 0, 0, 0])?;
    }
    let most = libc::rlimit { rlim_cur: LAST as u64 + 1, rlim_max: 1024 };
    call(libc::SYS_setrlimit, &[libc::RLIMIT_NOFILE.into(), address(&most), 0, 0, 0])?;
    call(libc::SYS_setpriority, &[libc::PRIO_PROCESS.into(), 0, 10, 0, 0])?;
    Ok(())
}
