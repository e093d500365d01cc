//! Which feeder: the best that counts exactly on the running kernel.

use std::fmt;

use tracker_ebpf::Loss;

use super::{
    BpfError, Feeder, Kernel, Rings, SelfTest, Sizes,
    prerequisites::{kprobe, syscall_events},
    self_test,
};
use crate::{error::chain, runtime::Hierarchy};

/// Which feeder is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The best that passes its self-test.
    #[default]
    Best,
    /// kprobes.
    Kprobe,
    /// Tracepoints.
    Tracepoint,
    /// No probes: counts are those of the last audit.
    Audit,
}

impl Choice {
    /// What is tried, in this order.
    fn candidates(self) -> impl Iterator<Item = Feeder> {
        Feeder::ALL.into_iter().filter(move |feeder| match self {
            Self::Best => true,
            Self::Kprobe => matches!(feeder, Feeder::Kprobe(_)),
            Self::Tracepoint => *feeder == Feeder::Tracepoint,
            Self::Audit => *feeder == Feeder::None,
        })
    }
}

/// What came of trying a feeder.
#[derive(Debug)]
pub struct Trial {
    /// The feeder.
    pub feeder: Feeder,
    outcome: Outcome,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Tested(SelfTest),
    /// It can't be attached: why.
    Refused(String),
}

impl Trial {
    /// Whether it attached, and counted every step exactly.
    #[must_use]
    pub fn passed(&self) -> bool {
        matches!(&self.outcome, Outcome::Tested(test) if test.is_exact())
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.feeder, &self.outcome) {
            (Feeder::Kprobe(close), Outcome::Tested(_)) => write!(f, "kprobe ({}): ", close.symbol())?,
            (feeder, _) => write!(f, "{feeder}: ")?,
        }
        match &self.outcome {
            Outcome::Tested(test) => write!(f, "{test}"),
            Outcome::Refused(why) => f.write_str(why),
        }
    }
}

impl Kernel {
    /// Loads the programs and attaches the feeder that is wanted, once it has passed its self-test.
    /// Counts are live from the first [`Kernel::begin_audit`] on.
    ///
    /// # Errors
    /// When the kernel lacks what all feeders need; or, if one was asked for, what that needs.
    pub fn start(hierarchy: &Hierarchy, sizes: Sizes, choice: Choice) -> Result<(Self, Rings), BpfError> {
        let mut refused = None;
        for feeder in choice.candidates() {
            let why = match attempt(hierarchy, sizes, feeder) {
                Ok((started, test)) if test.is_exact() => {
                    if feeder.is_live() {
                        tracing::info!("feeder {feeder}: self-test {test}");
                    }
                    return Ok(started);
                }
                Ok(((kernel, _), test)) if kernel.had_room() => test.to_string(),
                Ok(_) => {
                    "there is no room for its self-test: --max-tables or --max-fds is too small".to_owned()
                }
                // Without any feeder nothing is left to try.
                Err(error) if feeder == Feeder::None => return Err(error),
                Err(error) => why(error),
            };
            // Both ways to probe with kprobes may lack the same.
            if choice == Choice::Best && refused.as_ref().is_none_or(|(_, said)| *said != why) {
                tracing::info!("feeder {feeder} can't be used here: {why}");
            }
            refused = Some((feeder, why));
        }
        // `candidates` is never empty.
        let (feeder, why) = refused.unwrap_or((Feeder::None, String::new()));
        Err(BpfError::Feeder { feeder, why })
    }
}

impl Kernel {
    /// Whether there was room for everything so far.
    fn had_room(&self) -> bool {
        self.lost(Loss::Tables) + self.lost(Loss::Slots) == 0
    }
}

/// Tries every feeder; of those with the same probes but for the hook of closes, until one passes.
#[must_use]
pub fn trials(hierarchy: &Hierarchy) -> Vec<Trial> {
    let sizes = Sizes { tables: 1024, slots: 1024, ring: 1 << 16 };
    let mut trials: Vec<Trial> = Vec::new();
    for feeder in Choice::Best.candidates().filter(|feeder| feeder.is_live()) {
        let before = trials.last().filter(|trial| trial.feeder.name() == feeder.name());
        if before.is_some_and(Trial::passed) {
            continue;
        }
        let outcome = match attempt(hierarchy, sizes, feeder) {
            Ok((_, test)) => Outcome::Tested(test),
            Err(error) => Outcome::Refused(why(error)),
        };
        let trial = Trial { feeder, outcome };
        if before.is_some_and(|before| trial.passed() || before.outcome == trial.outcome) {
            trials.pop();
        }
        trials.push(trial);
    }
    trials
}

/// How many self-tests a feeder may fail: a probe that doesn't see a step never does.
const TRIES: usize = 3;

/// How many may fail in which the kernel skipped a program, because its CPU was busy: such a test
/// tells nothing of the feeder, and what was skipped is a loss like any other, which audits heal.
const TRIES_WITH_MISSES: usize = 20;

/// Attaches a feeder, and has it tested.
fn attempt(
    hierarchy: &Hierarchy,
    sizes: Sizes,
    feeder: Feeder,
) -> Result<((Kernel, Rings), SelfTest), BpfError> {
    match feeder {
        Feeder::Kprobe(close) => kprobe(close.symbol())?,
        Feeder::Tracepoint => drop(syscall_events()?),
        Feeder::None => return Ok((Kernel::load(hierarchy, sizes, feeder)?, SelfTest::default())),
    }
    let (mut kernel, mut rings) = Kernel::load(hierarchy, sizes, feeder)?;
    kernel.attach()?;
    let test = until_exact(&kernel, feeder)?;
    // Users aren't told what the test did.
    while rings.events.next().is_some() {}
    for (cgroup, _) in kernel.flows()? {
        kernel.forget_flow(cgroup)?;
    }
    Ok(((kernel, rings), test))
}

/// Tests a feeder until it is exact, or has failed too often.
fn until_exact(kernel: &Kernel, feeder: Feeder) -> Result<SelfTest, BpfError> {
    let (mut failed, mut failed_with_misses) = (0, 0);
    loop {
        let before = kernel.missed()?;
        let test = self_test::run(|| kernel.tables())?;
        if test.is_exact() {
            return Ok(test);
        }
        let misses = kernel.missed()?.saturating_sub(before);
        let (failures, most) = match misses {
            0 => (&mut failed, TRIES),
            _ => (&mut failed_with_misses, TRIES_WITH_MISSES),
        };
        *failures += 1;
        if *failures >= most {
            return Ok(test);
        }
        tracing::info!(
            "feeder {feeder}: self-test {test}; once more ({misses} runs of programs were skipped)"
        );
    }
}

/// An error and its causes, without the verifier's pages.
pub(super) fn why(error: BpfError) -> String {
    let text = chain(error);
    text.split(" Verifier output:").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_tried_first_and_none_last() {
        let all: Vec<_> = Choice::Best.candidates().map(Feeder::name).collect();
        assert_eq!(all, ["kprobe", "kprobe", "tracepoint", "none"]);
        assert_eq!(Choice::Audit.candidates().collect::<Vec<_>>(), [Feeder::None]);
        assert!(Choice::Kprobe.candidates().all(|feeder| feeder.name() == "kprobe"));
    }
}
