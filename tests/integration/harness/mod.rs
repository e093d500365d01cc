//! Runs tests, each with a time limit.
//!
//! A thread can't be ended from outside, so a test that hangs would stop all tests after it. Here a
//! *worker*, a second process of this program, runs the tests that its parent names, one after the
//! other ([`worker`]). If a test takes too long, the parent ends the worker with all that it
//! started, and continues with a new one ([`supervisor`]). Two workers share the tests, because
//! most tests mostly wait ([`lanes`]). Names, filters and output are the same as in Rust's own
//! harness.

mod lanes;
mod load;
mod probes;
mod supervisor;
mod worker;

use std::{
    process::{Command, ExitCode, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};

use self::lanes::Lanes;
pub use self::probes::{bystanders, probes, tests};

/// How long a test may take, unless it says something else.
const LIMIT: Duration = Duration::from_secs(90);

/// What a test needs in addition to the fixture.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nobody,
    /// Root, to load BPF programs and make cgroups.
    Root,
    /// Root, and these programs.
    Programs(&'static [&'static str]),
}

/// A test.
pub struct Test {
    name: &'static str,
    needs: Needs,
    limit: Duration,
    run: Box<dyn Fn() -> Result<(), String> + Send>,
}

impl Test {
    /// Sets the time limit.
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

/// Makes a test. It is skipped, with the reason, where it can't run.
pub fn test(name: &'static str, needs: Needs, run: fn()) -> Test {
    test_or_skip(name, needs, move || {
        run();
        Ok(())
    })
}

/// Makes a test that finds out only while it runs that it can't run here, and why.
pub fn test_or_skip(
    name: &'static str,
    needs: Needs,
    run: impl Fn() -> Result<(), String> + Send + 'static,
) -> Test {
    Test { name, needs, limit: LIMIT, run: Box::new(run) }
}

/// The outcome of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    /// Why it can't run here.
    Skipped(String),
    Failed {
        why: String,
        /// Whether it waited for something until a deadline: then it may have needed more time.
        waited: bool,
    },
}

impl Outcome {
    fn to_json(&self) -> Value {
        match self {
            Self::Passed => json!({"outcome": "passed"}),
            Self::Skipped(why) => json!({"outcome": "skipped", "why": why}),
            Self::Failed { why, waited } => json!({"outcome": "failed", "why": why, "waited": waited}),
        }
    }

    fn from_json(value: &Value) -> Option<Self> {
        let why = || value["why"].as_str().unwrap_or_default().to_owned();
        match value["outcome"].as_str()? {
            "passed" => Some(Self::Passed),
            "skipped" => Some(Self::Skipped(why())),
            "failed" => Some(Self::Failed { why: why(), waited: value["waited"] == true }),
            _ => None,
        }
    }
}

/// All tests, by which others they can run beside.
pub struct Tests {
    /// These count everything that happens on the machine, or keep it busy: one at a time.
    pub alone: Vec<Test>,
    /// These may run beside any of those above, but also only one at a time: what they start has
    /// the same names.
    pub beside: Vec<Test>,
}

/// Runs the tests that the command line names. Where they ran, calls `clean` at the end.
pub fn main(tests: Tests, clean: fn()) -> ExitCode {
    if let Some(socket) = std::env::var_os(worker::SOCKET) {
        worker::work(&tests, socket.as_ref());
        clean();
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    let lanes = Lanes::new(&tests);
    // Each trial waits for a test that a lane runs. With one lane, there is one trial at a time, so
    // that the output names a test before it has run.
    arguments.test_threads = Some(if lanes.is_one() { 1 } else { tests.all().count().max(1) });
    let trials: Vec<Trial> = tests.all().map(|test| lanes.trial(test.name)).collect();
    if !arguments.list {
        lanes.start(|name| {
            trials.iter().any(|trial| trial.name() == name && !arguments.is_filtered_out(trial))
        });
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    lanes.end();
    conclusion.exit_code()
}

impl Tests {
    fn all(&self) -> impl Iterator<Item = &Test> {
        self.alone.iter().chain(&self.beside)
    }
}

/// Locks a mutex, also if a thread has panicked while it had the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what is missing here for a test, if anything is.
fn missing(needs: Needs) -> Option<String> {
    // SAFETY: the call has no precondition.
    if needs != Needs::Nobody && unsafe { libc::geteuid() } != 0 {
        return Some("not root".into());
    }
    let Needs::Programs(programs) = needs else { return None };
    let absent = programs.iter().find(|program| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    absent.map(|program| format!("{program} is not installed (cargo xtask test installs it)"))
}
