//! Runs tests, each with a time in which it must be done.
//!
//! No thread can be ended from outside, so that a test that hangs would take all others with it.
//! Here a *worker*, this program once more, runs what its parent names, one test after the other
//! ([`worker`]); the parent ends a worker that takes too long, with all that it started, and goes
//! on with a new one ([`supervisor`]). Two workers share the tests, of which most wait for
//! something most of the time ([`lanes`]). Names, filters and output are those of Rust's own
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

/// How long a test may take, if it doesn't say otherwise.
const LIMIT: Duration = Duration::from_secs(90);

/// What a test needs besides the fixture.
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
    /// The same, with this time to be done in.
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

/// A test that is skipped, with the reason, where it can't run.
pub fn test(name: &'static str, needs: Needs, run: fn()) -> Test {
    test_or_skip(name, needs, move || {
        run();
        Ok(())
    })
}

/// A test that finds out only on the way that it can't run here, and why.
pub fn test_or_skip(
    name: &'static str,
    needs: Needs,
    run: impl Fn() -> Result<(), String> + Send + 'static,
) -> Test {
    Test { name, needs, limit: LIMIT, run: Box::new(run) }
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    /// Why it can't run here.
    Skipped(String),
    Failed {
        why: String,
        /// Whether it waited until a deadline for what never came: it may have needed more time.
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

/// All tests, by whom they get on with.
pub struct Tests {
    /// They count all that the machine does, or keep it busy: one at a time.
    pub alone: Vec<Test>,
    /// They may run beside any of those, but one at a time, too: what they start has the same
    /// names.
    pub beside: Vec<Test>,
}

/// Runs those tests that the command line names; `clean` is called where they ran, in the end.
pub fn main(tests: Tests, clean: fn()) -> ExitCode {
    if let Some(socket) = std::env::var_os(worker::SOCKET) {
        worker::work(&tests, socket.as_ref());
        clean();
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    let lanes = Lanes::new(&tests);
    // Each waits for a test that a lane runs; where there is one lane, it is told what runs before
    // it has run.
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

/// What a mutex protects, also if a thread panicked that had it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a test misses here, if something.
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
