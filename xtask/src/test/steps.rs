//! The steps of a run. Before the run, shows what they are and how long they take; after it, how
//! long they took.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{build::was_built, cache};

/// A step.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// How many seconds it takes on a machine with two processors: the first time, and later.
    pub(crate) seconds: (u64, u64),
}

/// How many seconds each step took the last time. First runs and later ones have different keys.
type Known = BTreeMap<String, u64>;

/// A run.
pub(crate) struct Steps {
    all: Vec<Step>,
    is_first: bool,
    known: Known,
    took: Vec<(&'static str, Duration)>,
    start: Instant,
    /// Whether each step is done completely, so that its time is a measure for other runs.
    is_whole: bool,
}

impl Steps {
    /// Shows the steps, and how long they take if all of them are done completely.
    pub(crate) fn begin(all: Vec<Step>, is_whole: bool) -> anyhow::Result<Self> {
        let is_first = !was_built()?;
        let known = fs::read_to_string(file()?).ok().and_then(|text| serde_json::from_str(&text).ok());
        let known = known.unwrap_or_default();
        let steps = Self { all, is_first, known, took: Vec::new(), start: Instant::now(), is_whole };
        let total: u64 = steps.all.iter().map(|step| steps.estimate(step)).sum();
        let most = if is_whole { "about" } else { "at most" };
        eprintln!("{} steps, {most} {} in all:", steps.all.len(), time(total));
        for (number, step) in (1..).zip(&steps.all) {
            eprintln!("  {number}. {}: {} ({})", step.name, step.about, time(steps.estimate(step)));
        }
        Ok(steps)
    }

    /// Does the next step.
    pub(crate) fn next<T>(&mut self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let number = self.took.len();
        let step = *self.all.get(number).context("there is no step left")?;
        eprintln!("== {} of {}: {}", number + 1, self.all.len(), step.about);
        let start = Instant::now();
        let result = work().with_context(|| step.name.to_owned())?;
        let took = start.elapsed();
        self.took.push((step.name, took));
        if self.is_whole {
            self.known.insert(self.key(&step), took.as_secs());
        }
        Ok(result)
    }

    /// Returns the time of each step, and keeps these for the next run.
    pub(crate) fn end(self) -> anyhow::Result<String> {
        let file = file()?;
        fs::write(&file, serde_json::to_string_pretty(&self.known)?)
            .with_context(|| format!("write {}", file.display()))?;
        let each = self.took.iter().map(|(name, took)| format!("{name} {} s", took.as_secs()));
        let each: Vec<String> = each.collect();
        Ok(format!("{} s: {}", self.start.elapsed().as_secs(), each.join(", ")))
    }

    fn key(&self, step: &Step) -> String {
        // Steps of the same name may do different amounts of work.
        let when = if self.is_first { "first" } else { "later" };
        format!("{}: {}, {when}", step.name, step.about)
    }

    fn estimate(&self, step: &Step) -> u64 {
        let usual = if self.is_first { step.seconds.0 } else { step.seconds.1 };
        self.known.get(&self.key(step)).copied().unwrap_or(usual)
    }
}

fn file() -> anyhow::Result<PathBuf> {
    Ok(cache::dir()?.join("durations.json"))
}

/// Returns a number of seconds in words.
fn time(seconds: u64) -> String {
    match seconds {
        0..=90 => format!("{seconds} s"),
        _ => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_believed_rather_than_the_usual() {
        let step = Step { name: "build", about: "", seconds: (150, 5) };
        let steps = |is_first, known: &[(&str, u64)]| Steps {
            all: vec![step],
            is_first,
            known: known.iter().map(|(name, seconds)| ((*name).to_owned(), *seconds)).collect(),
            took: Vec::new(),
            start: Instant::now(),
            is_whole: true,
        };
        assert_eq!(steps(true, &[]).estimate(&step), 150);
        assert_eq!(steps(false, &[("build: , first", 90)]).estimate(&step), 5);
        assert_eq!(steps(true, &[("build: , first", 90)]).estimate(&step), 90);
        assert_eq!((time(90), time(91), time(150)), ("90 s".into(), "2 min".into(), "3 min".into()));
    }
}
