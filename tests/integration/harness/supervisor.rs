//! The parent of a worker: tells it what to run, and for how long.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::ExitStatusExt as _,
    },
    process::{Command, ExitStatus},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use fdtracker_tests::{
    descendants::{adopt_orphans, end_all, reap},
    patience,
};
use tempfile::TempDir;

use super::{Outcome, worker::SOCKET};

/// How often it is shown that a test goes on.
const TICK: Duration = Duration::from_secs(4);

/// How often the time is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long a worker has for its end, and what it started for theirs.
const END: Duration = Duration::from_secs(30);

/// How often ended processes are looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// How the children of this process ended, those too that came to it when their parents ended.
static ENDED: Mutex<BTreeMap<i32, ExitStatus>> = Mutex::new(BTreeMap::new());

/// How many times all that tests had started was ended, whoever's it was.
static ENDINGS: AtomicU32 = AtomicU32::new(0);

#[derive(Default)]
pub(super) struct Supervisor {
    worker: Option<Worker>,
}

impl Supervisor {
    /// Runs a test.
    pub(super) fn run(&mut self, name: &str, limit: Duration) -> Outcome {
        loop {
            let before = ENDINGS.load(Relaxed);
            let worker = self.worker.get_or_insert_with(Worker::start);
            match worker.run(name, limit) {
                Ok(outcome) => return outcome,
                // It was ended with what a test of another worker's had started.
                Err(Lost::Ended) if ENDINGS.load(Relaxed) > before => self.worker = None,
                Err(end) => {
                    let waited = matches!(end, Lost::Late);
                    let why = worker.lost(end, limit);
                    self.worker = None;
                    return Outcome::Failed { why, waited };
                }
            }
        }
    }

    /// Lets the worker end.
    pub(super) fn end(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.end();
        }
    }
}

/// Why there is no answer.
enum Lost {
    /// The time was over.
    Late,
    /// The worker ended.
    Ended,
}

struct Worker {
    pid: i32,
    stream: BufReader<UnixStream>,
    /// Where it found the socket.
    _dir: TempDir,
}

impl Worker {
    fn start() -> Self {
        reap_all();
        let dir = tempfile::tempdir().expect("a directory for the socket");
        let socket = dir.path().join("harness.sock");
        let listener = UnixListener::bind(&socket).expect("listen to the worker");
        let program = std::env::current_exe().expect("this test's own path");
        #[expect(clippy::zombie_processes, reason = "`reap_all` waits for all children")]
        let worker = Command::new(program).env(SOCKET, &socket).spawn().expect("start a worker");
        let (stream, _) = listener.accept().expect("the worker connects");
        stream.set_read_timeout(Some(LOOK)).expect("limit the wait for an answer");
        Self { pid: worker.id() as i32, stream: BufReader::new(stream), _dir: dir }
    }

    fn run(&mut self, name: &str, limit: Duration) -> Result<Outcome, Lost> {
        let (start, mut shown) = (Instant::now(), Instant::now());
        if writeln!(self.stream.get_mut(), "{name}").is_err() {
            return Err(Lost::Ended);
        }
        let mut answer = String::new();
        loop {
            match self.stream.read_line(&mut answer) {
                // A worker that ended has none, or half of one.
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
            // Whoever watches an emulated machine takes silence for its end.
            if shown.elapsed() >= TICK {
                shown = Instant::now();
                eprintln!("… {} s: {name}", start.elapsed().as_secs());
            }
        }
    }

    /// Says what became of it, and ends all that tests have started.
    fn lost(&mut self, how: Lost, limit: Duration) -> String {
        let why = match how {
            Lost::Late => format!("not done within {} s; it was {}", limit.as_secs(), self.places()),
            Lost::Ended => {
                let how = self.status(END).map_or("nobody knows how".into(), |status| status.to_string());
                format!("the process that ran it ended: {how}")
            }
        };
        ENDINGS.fetch_add(1, Relaxed);
        let left = end_all(END);
        if left.is_empty() { why } else { format!("{why}; these can't be ended: {left:?}") }
    }

    /// Where the worker's threads wait in the kernel.
    fn places(&self) -> String {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let places = threads.map(|thread| {
            let read = |name: &str| std::fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            format!("{} in {}", read("comm").trim(), read("wchan").trim())
        });
        places.collect::<Vec<_>>().join(", ")
    }

    /// How it ended, once it has.
    fn status(&self, limit: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            let status = ENDED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
            if status.is_some() || start.elapsed() > limit {
                return status;
            }
            thread::sleep(PAUSE);
        }
    }

    fn end(self) {
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Write);
        self.status(END * patience());
    }
}

/// Reaps workers, and all that tests leave behind, which so can be found when a test is ended.
fn reap_all() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        adopt_orphans().expect("become the parent of what tests leave behind");
        thread::spawn(|| {
            loop {
                while let Some((pid, status)) = reap(-1) {
                    let mut ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
                    ended.insert(pid, ExitStatus::from_raw(status));
                }
                thread::sleep(PAUSE);
            }
        });
    });
}
