//! Does this feeder count exactly on this kernel? Walks an fd through its life in a child process,
//! and compares what is counted after each step with what the child knows to be open.
//!
//! Versions are never trusted: compilers inline functions, and distributions change kernels.

mod child;
mod steps;

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

pub use child::run as run_child;
use steps::Step;
use tracker_ebpf::{Kind, Table};

use super::BpfError;

/// The hidden command by which the child is started.
pub const COMMAND: &str = "self-test";

/// What the self-test found, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelfTest {
    steps: Vec<(&'static str, Outcome)>,
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Exact,
    /// The kernel doesn't have what the step does.
    Skipped(String),
    Wrong {
        counted: Open,
        open: Open,
    },
}

/// What the child has open, of the two kinds that it opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Open {
    eventfds: i64,
    pidfds: i64,
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} eventfds and {} pidfds", self.eventfds, self.pidfds)
    }
}

impl SelfTest {
    /// Whether every step was counted exactly.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.steps.iter().all(|(_, outcome)| !matches!(outcome, Outcome::Wrong { .. }))
    }
}

impl fmt::Display for SelfTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = self.steps.iter().filter(|(_, outcome)| *outcome == Outcome::Exact);
        write!(f, "{} of {} steps exact", exact.count(), self.steps.len())?;
        for (step, outcome) in &self.steps {
            match outcome {
                Outcome::Exact => {}
                Outcome::Skipped(reason) => write!(f, "; {step}: not here ({reason})")?,
                Outcome::Wrong { counted, open } => {
                    write!(f, "; {step}: counted {counted}, open were {open}")?;
                }
            }
        }
        Ok(())
    }
}

/// Runs the child through all steps. `tables` reads what is counted.
///
/// # Errors
/// When the child can't be started or doesn't answer; or what `tables` returns.
pub(super) fn run(tables: impl Fn() -> Result<Vec<(u64, Table)>, BpfError>) -> Result<SelfTest, BpfError> {
    let failed = |call| move |source| super::call(call, "the self-test's process", source);
    let mut subject = Subject::start().map_err(failed("start"))?;
    let mut steps = Vec::new();
    for step in Step::ALL {
        let outcome = match subject.walk(*step).map_err(failed("talk to"))? {
            Answer::Open { open, pids } => {
                let counted = counted(&tables()?, &pids);
                if counted == open { Outcome::Exact } else { Outcome::Wrong { counted, open } }
            }
            Answer::Skipped(reason) => Outcome::Skipped(reason),
        };
        steps.push((step.name(), outcome));
    }
    Ok(SelfTest { steps })
}

/// What is counted for these processes.
fn counted(tables: &[(u64, Table)], pids: &[u32]) -> Open {
    let mut open = Open::default();
    for (_, table) in tables.iter().filter(|(_, table)| pids.contains(&table.tgid)) {
        let of = |kind: Kind| table.n.get(kind.index()).copied().unwrap_or(0);
        open.eventfds += of(Kind::Eventfd);
        open.pidfds += of(Kind::Pidfd);
    }
    open
}

/// What the child answers when it has done a step.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// What is open now, in these processes.
    Open { open: Open, pids: Vec<u32> },
    /// The kernel refused.
    Skipped(String),
}

impl Answer {
    /// `open EVENTFDS PIDFDS PID…`, or `no REASON`.
    fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.trim().split_once(' ')?;
        match word {
            "open" => {
                let mut numbers = rest.split(' ');
                let mut next = || numbers.next()?.parse().ok();
                let open = Open { eventfds: next()?, pidfds: next()? };
                Some(Self::Open { open, pids: numbers.map_while(|n| n.parse().ok()).collect() })
            }
            "no" => Some(Self::Skipped(rest.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { open, pids } => {
                write!(f, "open {} {}", open.eventfds, open.pidfds)?;
                pids.iter().try_for_each(|pid| write!(f, " {pid}"))
            }
            Self::Skipped(reason) => write!(f, "no {reason}"),
        }
    }
}

/// The child, as its parent sees it.
struct Subject {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Subject {
    fn start() -> io::Result<Self> {
        // Not by its path, which another file may have by now.
        let mut child = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let gone = || io::Error::other("it has no pipes");
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().ok_or_else(gone)?);
        Ok(Self { child, commands, answers })
    }

    fn walk(&mut self, step: Step) -> io::Result<Answer> {
        if step == Step::Exit {
            return self.end();
        }
        if let Some(commands) = &mut self.commands {
            writeln!(commands, "{}", step.name())?;
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Answer::parse(&line)
            .ok_or_else(|| io::Error::other(format!("it answered {line:?} to {:?}", step.name())))
    }

    /// The child ends when it is told nothing more.
    fn end(&mut self) -> io::Result<Answer> {
        self.commands = None;
        self.child.wait()?;
        Ok(Answer::Open { open: Open::default(), pids: vec![self.child.id()] })
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_round_trip() {
        for answer in [
            Answer::Open { open: Open { eventfds: 3, pidfds: 1 }, pids: vec![7, 8] },
            Answer::Skipped("Function not implemented".into()),
        ] {
            assert_eq!(Answer::parse(&answer.to_string()), Some(answer));
        }
        for garbage in ["", "open", "open 1", "open x 1 7", "what 1"] {
            assert_eq!(Answer::parse(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_wrong_step_is_named() {
        let wrong = Outcome::Wrong {
            counted: Open { eventfds: 1, pidfds: 0 },
            open: Open { eventfds: 2, pidfds: 0 },
        };
        let test = SelfTest { steps: vec![("open", Outcome::Exact), ("dup", wrong)] };
        assert!(!test.is_exact());
        let text =
            "1 of 2 steps exact; dup: counted 1 eventfds and 0 pidfds, open were 2 eventfds and 0 pidfds";
        assert_eq!(test.to_string(), text);
    }

    #[test]
    fn only_the_childs_tables_count() {
        let mut n = [0; Kind::COUNT];
        n[Kind::Eventfd.index()] = 2;
        let table = |tgid| Table { n, generation: 1, cgroup_id: 1, tgid, ..Table::EMPTY };
        let tables = [(1, table(7)), (2, table(7)), (3, table(9))];
        assert_eq!(counted(&tables, &[7, 8]), Open { eventfds: 4, pidfds: 0 });
    }
}
