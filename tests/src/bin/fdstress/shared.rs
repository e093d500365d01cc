//! What all tasks of the fixture share: one mapping, and fds above the range that they play with.
//!
//! Each of these is reached by an fd, because an fd outlives exec.

use std::{
    io, ptr,
    sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use fdtracker_tests::sys::{address, call};
use libc::{c_int, pid_t};

/// The first of the fds that tasks play with. They are few, so that tasks get in each other's way.
/// All below are taken.
pub const FIRST: c_int = 20;
/// The last of them. The soft limit of open files keeps the kernel from giving higher ones.
pub const LAST: c_int = 79;
/// The fd of [`Shared`].
pub const MEMORY: c_int = 100;
/// A pair of sockets through which all tasks pass fds.
pub const LINK: [c_int; 2] = [101, 102];
/// The first fd of the cgroups' `cgroup.procs` files.
pub const CGROUPS: c_int = 110;

/// The highest number of workers.
pub const MAX_WORKERS: usize = 64;
/// Linux: `PID_MAX_LIMIT`.
const MAX_TASKS: usize = 1 << 22;

/// The state that all tasks share.
#[repr(C)]
pub struct Shared {
    /// Goes up when work begins. Tasks without work wait for that.
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
    /// One cell for each thread id. Pages that nobody uses take no memory.
    tasks: [Cell; MAX_TASKS],
}

#[repr(C)]
struct Cell {
    /// The last epoch that the task has finished.
    parked: AtomicU32,
    /// The process whose table it was made to share, or 0.
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
        // SAFETY: the file is as large as the structure. All bytes of that may be 0, and all its
        // fields are atomic.
        Ok(unsafe { &*memory.cast::<Self>() })
    }

    /// Lets tasks do this many more operations.
    pub fn begin(&self, operations: i64) {
        self.budget.store(operations, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
        let _ =
            call(libc::SYS_futex, &[address(&self.epoch), libc::FUTEX_WAKE.into(), i32::MAX.into(), 0, 0]);
    }

    /// Returns the current epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(SeqCst)
    }

    /// Returns whether all operations have been handed out.
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

    /// Registers the calling task. It shares the table of the process `owner`, or, if that is 0,
    /// has a table of its own.
    pub fn enter(&self, owner: pid_t) {
        let cell = self.cell(tid());
        cell.parked.store(0, SeqCst);
        cell.owner.store(owner, SeqCst);
    }

    /// Waits until this epoch is over. The calling task does nothing meanwhile.
    pub fn park(&self, epoch: u32) {
        let parked = &self.cell(tid()).parked;
        parked.store(epoch, SeqCst);
        while self.epoch() == epoch {
            let wait = [address(&self.epoch), libc::FUTEX_WAIT.into(), epoch.into(), 0, 0];
            let _ = call(libc::SYS_futex, &wait);
        }
        parked.store(0, SeqCst);
    }

    /// Returns whether a task waits for this epoch to end.
    pub fn is_parked(&self, tid: pid_t, epoch: u32) -> bool {
        self.cell(tid).parked.load(SeqCst) == epoch
    }

    /// Returns the process whose table a task was made to share.
    pub fn owner(&self, tid: pid_t) -> Option<pid_t> {
        Some(self.cell(tid).owner.load(SeqCst)).filter(|owner| *owner != 0)
    }

    /// Forgets a task that has ended: another may get its id soon.
    pub fn left(&self, tid: pid_t) {
        self.cell(tid).parked.store(0, SeqCst);
    }

    fn cell(&self, tid: pid_t) -> &Cell {
        &self.tasks[tid as usize % MAX_TASKS]
    }
}

/// Moves a file to another slot.
pub fn move_fd(from: i64, to: c_int) -> io::Result<()> {
    call(libc::SYS_dup3, &[from, to.into(), 0, 0, 0])?;
    call(libc::SYS_close, &[from, 0, 0, 0, 0])?;
    Ok(())
}

/// Returns the calling task's id. (libc remembers one, but that is wrong in a child that libc
/// doesn't know.)
pub fn tid() -> pid_t {
    call(libc::SYS_gettid, &[0; 5]).unwrap_or(0) as pid_t
}

/// Returns the calling process's id.
pub fn pid() -> pid_t {
    call(libc::SYS_getpid, &[0; 5]).unwrap_or(0) as pid_t
}

/// Random numbers that depend only on the seed: splitmix64.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// Returns the next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below this.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Returns true this many times in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// Returns one of the fds that tasks play with.
    pub fn fd(&mut self) -> i64 {
        i64::from(FIRST) + self.below((LAST - FIRST + 1) as u64) as i64
    }
}
