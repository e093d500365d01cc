//! Which worker runs which test, and when.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fdtracker_tests::patience;
use libtest_mimic::{Completion, Failed, Trial};
use serde_json::{Value, json};

use super::{Outcome, Test, Tests, load::Load, lock, supervisor::Supervisor};

/// The variable that names a file. A line of JSON for each test is written there: how long it took,
/// and the outcome of each try.
const REPORT: &str = "FDTRACKER_TEST_REPORT";

/// A test, and the time limit for it.
type Job = (&'static str, Duration);

/// One or two queues of tests. In each, one test runs after the other.
pub(super) struct Lanes {
    /// The tests that wait in each lane.
    jobs: Vec<Vec<Job>>,
    /// Where the outcome of each test is sent. Each sender belongs to one lane: when that has
    /// ended, nobody waits any more.
    outcomes: Mutex<BTreeMap<&'static str, Sender<Outcome>>>,
    waiting: Mutex<BTreeMap<&'static str, Receiver<Outcome>>>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl Lanes {
    pub(super) fn new(tests: &Tests) -> Self {
        let of = |tests: &[Test]| -> Vec<Job> {
            tests.iter().map(|test| (test.name, test.limit * patience())).collect()
        };
        let mut jobs = vec![of(&tests.alone), of(&tests.beside)];
        if patience() > 1 {
            // An emulated machine is busy enough with one.
            jobs = vec![jobs.into_iter().flatten().collect()];
        }
        let channels = tests.all().map(|test| (test.name, channel()));
        let (outcomes, waiting) = channels.map(|(name, (to, from))| ((name, to), (name, from))).unzip();
        let (outcomes, waiting) = (Mutex::new(outcomes), Mutex::new(waiting));
        Self { jobs, outcomes, waiting, running: Mutex::new(Vec::new()) }
    }

    /// Returns whether there is only one lane, so that only one test runs at a time.
    pub(super) fn is_one(&self) -> bool {
        self.jobs.len() == 1
    }

    /// Makes a test for Rust's harness. It waits until a lane has run the test.
    pub(super) fn trial(&self, name: &'static str) -> Trial {
        let outcome = lock(&self.waiting).remove(name).expect("each name is of one test");
        Trial::ignorable_test(name, move || match outcome.recv() {
            Ok(Outcome::Passed) => Ok(Completion::Completed),
            Ok(Outcome::Skipped(why)) => Ok(Completion::ignored_with(why)),
            Ok(Outcome::Failed { why, .. }) => Err(Failed::from(why)),
            Err(_) => Err(Failed::from("no lane has run it")),
        })
    }

    /// Starts the tests that are wanted.
    pub(super) fn start(&self, is_wanted: impl Fn(&str) -> bool) {
        let report = std::env::var_os(REPORT).map(|path| {
            File::options().create(true).append(true).open(&path).expect("open the report of the tests")
        });
        let report = Arc::new(Mutex::new(report));
        for jobs in &self.jobs {
            let wanted = jobs.iter().filter(|(name, _)| is_wanted(name));
            let mut outcomes = lock(&self.outcomes);
            let jobs = wanted.filter_map(|job| Some((*job, outcomes.remove(job.0)?))).collect();
            let lane = Lane { jobs, report: Arc::clone(&report) };
            lock(&self.running).push(thread::spawn(|| lane.run()));
        }
    }

    /// Waits for the end of the workers.
    pub(super) fn end(&self) {
        for lane in std::mem::take(&mut *lock(&self.running)) {
            lane.join().expect("a lane ends");
        }
    }
}

struct Lane {
    jobs: Vec<(Job, Sender<Outcome>)>,
    report: Arc<Mutex<Option<File>>>,
}

impl Lane {
    fn run(self) {
        let mut supervisor = Supervisor::default();
        for ((name, limit), outcome_to) in self.jobs {
            let start = Instant::now();
            let (tries, outcome) = run(&mut supervisor, name, limit);
            if let Some(report) = &mut *lock(&self.report) {
                let line = json!({"test": name, "seconds": start.elapsed().as_secs_f64(), "tries": tries});
                writeln!(report, "{line}").expect("write the report of the tests");
            }
            let _ = outcome_to.send(outcome);
        }
        supervisor.end();
    }
}

/// Runs a test. Runs it again if it waited for something until a deadline while the machine was
/// busy. Any other failure is a fault, whatever a second try would give.
fn run(supervisor: &mut Supervisor, name: &str, limit: Duration) -> (Vec<Value>, Outcome) {
    let load = Load::start();
    let first = supervisor.run(name, limit);
    let mut tries = vec![first.to_json()];
    let busy = load.since();
    if let (Outcome::Failed { why, waited: true }, Some(busy)) = (&first, busy) {
        eprintln!("{name}: {why}\nIt may have had too little time: {busy}. It runs once more.");
        tries[0]["busy"] = json!(busy);
        let second = supervisor.run(name, limit);
        tries.push(second.to_json());
        return (tries, second);
    }
    (tries, first)
}
