//! Runs many tasks that use a few fds all at once: they open, copy, pass, steal and close them,
//! fork, exec, share and unshare tables, change cgroups, and are killed in the middle of it.
//!
//! `fdstress SEED WORKERS THREADS CGROUP…` reads commands from standard input, one per line, and
//! writes one answer per line to standard output.
//!
//! - `run N`: N operations. The answer, `ok N`, comes at a *quiescent point*: every task in the
//!   cgroups waits, tables don't change, and tasks that share a table are in one cgroup.
//! - `workers N`: so many workers from now on. The answer comes at a quiescent point, too.
//!
//! What each task does follows from the seed alone. The scheduler decides when it does it, and so
//! what happens in the end: a seed names a mixture of operations, not one exact run.

mod shared;
mod slots;
mod tasks;

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead as _},
    path::{Path, PathBuf},
    ptr,
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use fdtracker_tests::sys::{address, call};
use libc::{c_int, pid_t};

use crate::shared::{CGROUPS, LINK, MAX_WORKERS, Rng, Shared, move_fd, pid};

/// If nothing happens for so long, something hangs, and the answer says what.
const PATIENCE: Duration = Duration::from_secs(60);

/// The average number of operations from one worker's death to the next.
const KILL_EVERY: u64 = 4_000;

fn main() -> Result<(), String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| -> Result<u64, String> {
        let number = words.get(at).and_then(|word| word.parse().ok());
        number.ok_or_else(|| format!("bad arguments {words:?}"))
    };
    let mapped = || Shared::get().map_err(|error| error.to_string());
    match words.first().map(String::as_str) {
        Some("work") => tasks::work(mapped()?, number(2)? as pid_t, number(1)?),
        Some("child") => tasks::grow_up(mapped()?, number(2)? as pid_t, number(1)?),
        _ => {}
    }
    let dirs: Vec<PathBuf> = words.iter().skip(3).map(PathBuf::from).collect();
    let mut herd = Herd::new(number(0)?, number(1)?, number(2)?, dirs).map_err(|error| error.to_string())?;
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match herd.obey(&line) {
            Ok(operations) => println!("ok {operations}"),
            Err(reason) => println!("no {reason}"),
        }
    }
    // The workers end with this process.
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Worker {
    /// A child that hasn't been waited for, or 0.
    pid: pid_t,
    /// How many workers had this place before.
    generation: u64,
}

/// A thread of a worker, or of a process that comes from one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Thread {
    /// `None` if the kernel has begun to hide the process, which exits.
    cgroup: Option<usize>,
    pid: pid_t,
    tid: pid_t,
}

struct Herd {
    shared: &'static Shared,
    seed: u64,
    rng: Rng,
    workers: Vec<Worker>,
    dirs: Vec<PathBuf>,
}

impl Herd {
    fn new(seed: u64, workers: u64, threads: u64, dirs: Vec<PathBuf>) -> io::Result<Self> {
        let shared = Shared::make()?;
        shared.threads.store(threads as u32, SeqCst);
        shared.cgroups.store(dirs.len() as u32, SeqCst);
        let pair = [0 as c_int; 2];
        call(libc::SYS_socketpair, &[libc::AF_UNIX.into(), libc::SOCK_DGRAM.into(), 0, address(&pair), 0])?;
        // SAFETY: the call has filled the array behind the compiler's back.
        let pair = unsafe { ptr::from_ref(&pair).read_volatile() };
        for (from, to) in pair.into_iter().zip(LINK) {
            move_fd(from.into(), to)?;
        }
        for (dir, to) in dirs.iter().zip(CGROUPS..) {
            let file = fs::File::options().write(true).open(dir.join("cgroup.procs"))?;
            move_fd(std::os::fd::IntoRawFd::into_raw_fd(file).into(), to)?;
        }
        tasks::migrate(0, 0);
        // Orphans become children of this process, so that no zombie is left.
        call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER.into(), 1, 0, 0, 0])?;
        let mut herd = Self { shared, seed, rng: Rng(seed), workers: Vec::new(), dirs };
        herd.resize(workers as usize);
        Ok(herd)
    }

    fn obey(&mut self, line: &str) -> Result<u64, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = words.get(1).and_then(|word| word.parse().ok());
        match (words.first(), number) {
            (Some(&"run"), Some(operations)) => self.run(operations),
            (Some(&"workers"), Some(workers)) => {
                self.resize(workers as usize);
                self.settle().map(|()| workers)
            }
            _ => Err(format!("unknown command {line:?}")),
        }
    }

    fn resize(&mut self, workers: usize) {
        for worker in self.workers.iter().skip(workers) {
            kill(worker.pid);
        }
        self.workers.resize(workers.min(MAX_WORKERS), Worker::default());
    }

    fn run(&mut self, operations: u64) -> Result<u64, String> {
        let before = self.shared.done.load(SeqCst);
        self.shared.begin(operations as i64);
        let mut progress = (before, Instant::now());
        let mut kill_at = before + self.rng.below(2 * KILL_EVERY);
        while !self.shared.is_spent() {
            self.reap();
            self.fill();
            let done = self.shared.done.load(SeqCst);
            if done >= kill_at {
                let victim = self.rng.below(self.workers.len() as u64) as usize;
                kill(self.workers[victim].pid);
                kill_at = done + self.rng.below(2 * KILL_EVERY);
            }
            if progress.0 != done {
                progress = (done, Instant::now());
            }
            if progress.1.elapsed() > PATIENCE {
                return Err(format!("nothing has happened for {PATIENCE:?}: {}", self.restless()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.settle()?;
        Ok(self.shared.done.load(SeqCst) - before)
    }

    /// Starts the workers that are missing.
    fn fill(&mut self) {
        let parent = pid();
        for (i, worker) in self.workers.iter_mut().enumerate().filter(|(_, worker)| worker.pid == 0) {
            worker.generation += 1;
            let seed = Rng(self.seed ^ ((i as u64) << 48) ^ (worker.generation << 32)).next();
            // SAFETY: this process has one thread.
            worker.pid = unsafe { libc::fork() };
            if worker.pid == 0 {
                if tasks::fence().is_ok() {
                    tasks::work(self.shared, parent, seed);
                }
                std::process::exit(1);
            }
            self.shared.workers[i].store(worker.pid, SeqCst);
        }
    }

    /// Reaps the children that have ended, orphans among them.
    fn reap(&mut self) {
        loop {
            // SAFETY: the status isn't asked for.
            let ended = unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
            if ended <= 0 {
                return;
            }
            self.shared.left(ended);
            for worker in self.workers.iter_mut().filter(|worker| worker.pid == ended) {
                worker.pid = 0;
            }
        }
    }

    /// Waits until everything is at rest, and puts tasks that share a table into one cgroup.
    fn settle(&mut self) -> Result<(), String> {
        let start = Instant::now();
        let mut last = Vec::new();
        loop {
            self.reap();
            let all = self.everybody();
            // The lists must be the same twice: a task that was alive and at work at the first
            // reading shows itself by the second.
            let rest = all == last && all.iter().all(|thread| self.is_at_rest(thread));
            if rest && !self.unite(&all) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("at work after {PATIENCE:?}: {}", self.restless()));
            }
            last = all;
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Moves each process that was made to share a table to the cgroup of the table's owner.
    /// Returns whether any was moved: then others that share a table with it may have to follow.
    fn unite(&self, all: &[Thread]) -> bool {
        let mut moved = false;
        for sharer in all.iter().filter(|thread| thread.pid == thread.tid) {
            let owner = self.shared.owner(sharer.pid);
            let owner = all.iter().find(|thread| Some(thread.pid) == owner).and_then(|owner| owner.cgroup);
            if let Some(cgroup) = owner.filter(|cgroup| sharer.cgroup.is_some_and(|other| other != *cgroup)) {
                tasks::migrate(cgroup as c_int, sharer.pid);
                moved = true;
            }
        }
        moved
    }

    /// Returns all threads that come from this process. It doesn't use the cgroups' lists: from
    /// some point of a process's exit on they don't show it, and the kernel kills its children only
    /// later (kernel: `forget_original_parent`).
    fn everybody(&self) -> Vec<Thread> {
        let cgroups = self.cgroups();
        let mut all = Vec::new();
        let mut parents = vec![pid()];
        while let Some(parent) = parents.pop() {
            let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
            for tid in threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()) {
                if parent != pid() {
                    all.push(Thread { cgroup: cgroups.get(&parent).copied(), pid: parent, tid });
                }
                let children = format!("/proc/{parent}/task/{tid}/children");
                let children = fs::read_to_string(children).unwrap_or_default();
                parents.extend(children.split_whitespace().filter_map(|child| child.parse::<pid_t>().ok()));
            }
        }
        all
    }

    /// Returns the cgroup of each process.
    fn cgroups(&self) -> HashMap<pid_t, usize> {
        let lists =
            self.dirs.iter().map(|dir| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default());
        let pids = |list: String| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>();
        lists
            .enumerate()
            .flat_map(|(cgroup, list)| pids(list).into_iter().map(move |pid| (pid, cgroup)))
            .collect()
    }

    /// Returns whether a thread only waits for more operations, with no signal pending that kills
    /// it; or has ended.
    fn is_at_rest(&self, thread: &Thread) -> bool {
        const PF_EXITING: u64 = 4;
        const KILLED: u64 = 1 << (libc::SIGKILL - 1);
        let path = format!("/proc/{}/task/{}/stat", thread.pid, thread.tid);
        let stat = fs::read_to_string(path).unwrap_or_default();
        let Some((_, stat)) = stat.rsplit_once(") ") else { return true };
        let field = |at: usize| stat.split(' ').nth(at).and_then(|word| word.parse().ok()).unwrap_or(0_u64);
        let (flags, pending) = (field(6), field(28));
        match stat.chars().next() {
            Some('Z' | 'X') => true,
            Some('S') if flags & PF_EXITING == 0 && pending & KILLED == 0 => {
                self.shared.is_parked(thread.tid, self.shared.epoch())
            }
            _ => false,
        }
    }

    /// Returns which tasks are at work, and at what.
    fn restless(&self) -> String {
        let all = self.everybody();
        let restless = all.iter().filter(|thread| !self.is_at_rest(thread)).map(|thread| {
            let of = |name: &str| {
                let path = format!("/proc/{}/task/{}/{name}", thread.pid, thread.tid);
                fs::read_to_string(Path::new(&path)).unwrap_or_default().trim().to_owned()
            };
            format!("{} of {}: {} ({})", thread.tid, thread.pid, of("wchan"), of("syscall"))
        });
        restless.collect::<Vec<_>>().join("; ")
    }
}

/// Kills a worker that hasn't been waited for.
fn kill(worker: pid_t) {
    if worker > 0 {
        // SAFETY: the pid is a child's.
        unsafe { libc::kill(worker, libc::SIGKILL) };
    }
}
