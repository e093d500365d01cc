//! What all tasks of the fixture have in common: one mapping, and fds above the range that they play in.
//!
//! An fd leads to each of these, because an fd outlives exec.

use std::{
    io, ptr,
    sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use fdtracker_tests::sys::{address, call};
use libc::{c_int, pid_t};

/// The fds that tasks play with: few, so that they get in each other's way. Those below are taken.
pub const FIRST: c_int = 20;
/// The last of them: the soft limit of open files keeps the kernel from giving others.
pub const LAST: c_int = 79;
/// [`Shared`].
pub const MEMORY: c_int = 100;
/// A pair of sockets through which all tasks pass fds.
pub const LINK: [c_int; 2] = [101, 102];
/// The cgroups' `cgroup.procs`.
pub const CGROUPS: c_int = 110;

/// As many workers as there can be.
pub const MAX_WORKERS: usize = 64;
/// Linux: `PID_MAX_LIMIT`.
const MAX_TASKS: usize = 1 << 22;

/// The state of the whole.
#[repr(C)]
pub struct Shared {
    /// Goes up when work begins; tasks without work wait for that.
    epoch: AtomicU32,
    /// How many threads a worker begins with.
    pub threads: AtomicU32,
    /// How many cgroups there are.
    pub cgroups: AtomicU32,
    /// Operations that are still to be done.
    budget: AtomicI64,
    /// Operations done so far.
    pub done: AtomicU64,
    /// The workers' pids.
    pub workers: [AtomicI32; MAX_WORKERS],
    /// By thread id; pages that nobody touches take no memory.
    tasks: [Cell; MAX_TASKS],
}

#[repr(C)]
struct Cell {
    /// The last epoch that the task is done with.
    parked: AtomicU32,
    /// The process whose table it was born to share, or 0.
    owner: AtomicI32,
}

impl Shared {
    /// Makes the memory that [`Shared::get`] maps.
    pub fn make() -> io::Result<&'static Self> {
        let fd = call(libc::SYS_memfd_create, &[c"fdstress".as_ptr() as i64, 0, 0, 0, 0])?;
        call(libc::SYS_ftruncate, &[fd, size_of::<Self>() as i64, 0, 0, 0])?;
        move_fd(fd, MEMORY)?;
        Self::get()
    }

    /// Maps the memory.
    pub fn get() -> io::Result<&'static Self> {
        // SAFETY: a new mapping, which is never unmapped.
        let memory = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), size_of::<Self>(), access, libc::MAP_SHARED, MEMORY, 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the file is as large as the structure, of which all bytes may be 0, and all of it is atomic.
        Ok(unsafe { &*memory.cast::<Self>() })
    }

    /// Lets tasks do so many operations more.
    pub fn begin(&self, operations: i64) {
        self.budget.store(operations, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
        let _ =
            call(libc::SYS_futex, &[address(&self.epoch), libc::FUTEX_WAKE.into(), i32::MAX.into(), 0, 0]);
    }

    /// Now.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(SeqCst)
    }

    /// Whether all operations have been handed out.
    pub fn is_spent(&self) -> bool {
        self.budget.load(SeqCst) <= 0
    }

    /// Takes one operation to do, if there is one left.
    pub fn take(&self) -> bool {
        let left = !self.is_spent() && self.budget.fetch_sub(1, SeqCst) > 0;
        if left {
            self.done.fetch_add(1, SeqCst);
        }
        left
    }

    /// The calling task begins, and shares the table of this process, or has one that is nobody else's (0).
    pub fn enter(&self, owner: pid_t) {
        let cell = self.cell(tid());
        cell.parked.store(0, SeqCst);
        cell.owner.store(owner, SeqCst);
    }

    /// Waits until this epoch is over. Nothing can happen in the calling task meanwhile.
    pub fn park(&self, epoch: u32) {
        let parked = &self.cell(tid()).parked;
        parked.store(epoch, SeqCst);
        while self.epoch() == epoch {
            let wait = [address(&self.epoch), libc::FUTEX_WAIT.into(), epoch.into(), 0, 0];
            let _ = call(libc::SYS_futex, &wait);
        }
        parked.store(0, SeqCst);
    }

    /// Whether a task waits for this epoch to be over.
    pub fn is_parked(&self, tid: pid_t, epoch: u32) -> bool {
        self.cell(tid).parked.load(SeqCst) == epoch
    }

    /// The process whose table a task was born to share.
    pub fn owner(&self, tid: pid_t) -> Option<pid_t> {
        Some(self.cell(tid).owner.load(SeqCst)).filter(|owner| *owner != 0)
    }

    /// A task has ended, and its id may be another's soon.
    pub fn left(&self, tid: pid_t) {
        self.cell(tid).parked.store(0, SeqCst);
    }

    fn cell(&self, tid: pid_t) -> &Cell {
        &self.tasks[tid as usize % MAX_TASKS]
    }
}

/// Puts a file into another slot.
pub fn move_fd(from: i64, to: c_int) -> io::Result<()> {
    call(libc::SYS_dup3, &[from, to.into(), 0, 0, 0])?;
    call(libc::SYS_close, &[from, 0, 0, 0, 0])?;
    Ok(())
}

/// The calling task's id. (What libc remembers isn't right in a child that libc knows nothing of.)
pub fn tid() -> pid_t {
    call(libc::SYS_gettid, &[0; 5]).unwrap_or(0) as pid_t
}

/// The calling process's id.
pub fn pid() -> pid_t {
    call(libc::SYS_getpid, &[0; 5]).unwrap_or(0) as pid_t
}

/// Random numbers, of which the seed tells all: splitmix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below this.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of the fds that tasks play with.
    pub fn fd(&mut self) -> i64 {
        i64::from(FIRST) + self.below((LAST - FIRST + 1) as u64) as i64
    }
}
