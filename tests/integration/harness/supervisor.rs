//! The parent of a worker: tells it which test to run, and ends it when the test takes too long.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::ExitStatusExt as _,
    },
    process::{Command, ExitStatus},
    sync::{Mutex, Once},
    thread,
    time::{Duration, Instant},
};

use fdtracker_tests::{
    descendants::{adopt_orphans, kill_all, reap},
    patience,
};
use tempfile::TempDir;

use super::{Outcome, lock, worker::SOCKET};

/// How often a line shows that a test is still running.
const TICK: Duration = Duration::from_secs(4);

/// How long a read waits for an answer before the time limit is checked.
const POLL: Duration = Duration::from_millis(500);

/// How long a worker may take to start or to end, and its descendants to end.
const END: Duration = Duration::from_secs(30);

/// How often this process looks for children that have ended.
const PAUSE: Duration = Duration::from_millis(20);

/// How the children of this process ended, including orphans that became its children.
static ENDED: Mutex<BTreeMap<i32, ExitStatus>> = Mutex::new(BTreeMap::new());

/// How many times everything that tests had started was ended, no matter which worker's it was.
/// Locked meanwhile, and also while a worker starts, so that a new worker isn't ended with the
/// rest.
static ENDINGS: Mutex<u32> = Mutex::new(0);

#[derive(Default)]
pub(super) struct Supervisor {
    worker: Option<Worker>,
}

impl Supervisor {
    /// Runs a test.
    pub(super) fn run(&mut self, name: &str, limit: Duration) -> Outcome {
        loop {
            let worker = match self.worker.take() {
                Some(worker) => worker,
                None => match Worker::start() {
                    Ok(worker) => worker,
                    Err(why) => return Outcome::Failed { why, waited: false },
                },
            };
            let worker = self.worker.insert(worker);
            match worker.run(name, limit) {
                Ok(outcome) => return outcome,
                Err(Lost::Ended) if worker.is_bystander() => {
                    eprintln!("{name} was ended with a test that hung: it runs again");
                    self.worker = None;
                }
                Err(end) => {
                    let waited = matches!(end, Lost::Late);
                    let why = worker.lost(end, limit);
                    self.worker = None;
                    return Outcome::Failed { why, waited };
                }
            }
        }
    }

    /// Lets the worker end by itself.
    pub(super) fn end(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.end();
        }
    }
}

/// Why there is no answer.
enum Lost {
    /// The time limit has passed.
    Late,
    /// The worker ended.
    Ended,
}

struct Worker {
    pid: i32,
    stream: BufReader<UnixStream>,
    /// The value of [`ENDINGS`] when the worker was started.
    endings: u32,
    /// The directory of the socket.
    _dir: TempDir,
}

impl Worker {
    fn start() -> Result<Self, String> {
        reap_all();
        let endings = lock(&ENDINGS);
        let dir = tempfile::tempdir().expect("a directory for the socket");
        let socket = dir.path().join("harness.sock");
        let listener = UnixListener::bind(&socket).expect("listen to the worker");
        listener.set_nonblocking(true).expect("look for the worker without waiting");
        let program = std::env::current_exe().expect("this test's own path");
        #[expect(clippy::zombie_processes, reason = "`reap_all` waits for all children")]
        let worker = Command::new(program).env(SOCKET, &socket).spawn().expect("start a worker");
        let (pid, start) = (worker.id() as i32, Instant::now());
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("accept the worker: {error}")),
            }
            if lock(&ENDED).contains_key(&pid) || start.elapsed() > END * patience() {
                return Err("the process that runs tests didn't start".into());
            }
            thread::sleep(PAUSE);
        };
        stream.set_nonblocking(false).expect("wait for answers");
        stream.set_read_timeout(Some(POLL)).expect("limit the wait for an answer");
        Ok(Self { pid, stream: BufReader::new(stream), endings: *endings, _dir: dir })
    }

    fn run(&mut self, name: &str, limit: Duration) -> Result<Outcome, Lost> {
        let (start, mut shown) = (Instant::now(), Instant::now());
        if writeln!(self.stream.get_mut(), "{name}").is_err() {
            return Err(Lost::Ended);
        }
        let mut answer = String::new();
        loop {
            match self.stream.read_line(&mut answer) {
                // A worker that has ended sends no answer, or half of one.
                Ok(_) => {
                    let outcome = serde_json::from_str(&answer).ok();
                    return outcome.and_then(|value| Outcome::from_json(&value)).ok_or(Lost::Ended);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Lost::Ended),
            }
            if start.elapsed() > limit {
                return Err(Lost::Late);
            }
            // An emulated machine that is silent for too long is taken for hung.
            if shown.elapsed() >= TICK {
                shown = Instant::now();
                eprintln!("… {} s: {name}", start.elapsed().as_secs());
            }
        }
    }

    /// Returns whether it was ended because a test of another worker failed.
    fn is_bystander(&self) -> bool {
        *lock(&ENDINGS) > self.endings
    }

    /// Returns what happened to the worker, and ends all that tests have started.
    fn lost(&mut self, how: Lost, limit: Duration) -> String {
        let why = match how {
            Lost::Late => format!("not done within {} s; it was {}", limit.as_secs(), self.places()),
            Lost::Ended => {
                let how = self.status(END).map_or("nobody knows how".into(), |status| status.to_string());
                format!("the process that ran it ended: {how}")
            }
        };
        let left = end_all_tests();
        if left.is_empty() { why } else { format!("{why}; these can't be ended: {left:?}") }
    }

    /// Returns where the worker's threads wait in the kernel.
    fn places(&self) -> String {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let places = threads.map(|thread| {
            let read = |name: &str| std::fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            format!("{} in {}", read("comm").trim(), read("wchan").trim())
        });
        places.collect::<Vec<_>>().join(", ")
    }

    /// Returns how it ended, once it has ended.
    fn status(&self, limit: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            let status = lock(&ENDED).remove(&self.pid);
            if status.is_some() || start.elapsed() > limit {
                return status;
            }
            thread::sleep(PAUSE);
        }
    }

    fn end(self) {
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Write);
        if self.status(END * patience()).is_none() {
            eprintln!("a process that ran tests doesn't end: {}", self.places());
            end_all_tests();
        }
    }
}

/// Ends all that tests have started, workers too. Returns the processes that are left.
fn end_all_tests() -> Vec<i32> {
    let mut endings = lock(&ENDINGS);
    *endings += 1;
    let start = Instant::now();
    loop {
        let left = {
            // Nobody reaps meanwhile, so no pid of these processes can belong to another process.
            let _ended = lock(&ENDED);
            kill_all()
        };
        if left.is_empty() || start.elapsed() > END {
            return left;
        }
        thread::sleep(PAUSE);
    }
}

/// Reaps workers, and everything that tests leave behind: this process becomes the parent of
/// orphans, so that it finds them when it ends a test.
fn reap_all() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        adopt_orphans().expect("become the parent of what tests leave behind");
        thread::spawn(|| {
            loop {
                let mut ended = lock(&ENDED);
                while let Some((pid, status)) = reap(-1) {
                    ended.insert(pid, ExitStatus::from_raw(status));
                }
                drop(ended);
                thread::sleep(PAUSE);
            }
        });
    });
}
