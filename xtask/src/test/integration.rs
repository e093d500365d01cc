//! Runs the integration tests of this machine as root, and reads their results.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::Context as _;
use serde_json::Value;

use super::{programs, tries};
use crate::{build::cargo_with_path, command::must, paths::target, vm::desktop};

/// Which tests run.
pub(crate) struct Choice<'a> {
    /// Only those whose names contain this.
    pub(crate) filter: Option<&'a str>,
    /// Whether the desktop's tests run too. They need what [`desktop::prepare`] makes.
    pub(crate) desktop: bool,
}

/// Runs the tests, which must pass. Returns a summary.
pub(crate) fn run(choice: &Choice<'_>) -> anyhow::Result<String> {
    run_with(choice, |_| {})
}

/// Does the same, after a change to the command.
pub(crate) fn run_with(choice: &Choice<'_>, change: impl FnOnce(&mut Command)) -> anyhow::Result<String> {
    let report = target()?.join("integration.jsonl");
    fs::write(&report, "").with_context(|| format!("write {}", report.display()))?;
    let mut command = command(choice, &report)?;
    change(&mut command);
    let result = must(&mut command);
    let text = fs::read_to_string(&report).with_context(|| format!("read {}", report.display()))?;
    let report = Report::read(&text);
    for (name, why) in &report.again {
        tries::note(name, why);
    }
    if !report.tests.is_empty() {
        eprintln!("{}", report.slowest());
    }
    match result {
        Ok(()) => Ok(report.counts()),
        Err(error) => Err(match report.failed() {
            failed if failed.is_empty() => error,
            failed => error.context(format!("failed: {}", failed.join(", "))),
        }),
    }
}

fn command(choice: &Choice<'_>, report: &Path) -> anyhow::Result<Command> {
    let mut cargo = cargo_with_path("test", &programs::path()?)?;
    cargo.env("FDTRACKER_TEST_REPORT", report);
    if let Some(modules) = programs::python_modules()? {
        cargo.env("FDTRACKER_TEST_PYTHON", modules);
    }
    cargo.args(["--test", "integration", "--"]).args(choice.filter);
    if choice.desktop {
        desktop::tell(&mut cargo)?;
    } else if choice.filter.is_none() {
        cargo.args(["--skip", desktop::TESTS]);
    }
    Ok(cargo)
}

/// What the tests have written about themselves.
struct Report {
    tests: Vec<Value>,
    again: Vec<(String, String)>,
}

impl Report {
    fn read(text: &str) -> Self {
        let tests: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let again = tests.iter().filter_map(|test| {
            let first = test.pointer("/tries/0")?;
            let busy = first.get("busy")?.as_str()?;
            let why = first.get("why")?.as_str()?.lines().next()?;
            Some((text_of(test, "/test").to_owned(), format!("{why}; {busy}")))
        });
        let again = again.collect();
        Self { tests, again }
    }

    fn failed(&self) -> Vec<&str> {
        let failed = self.tests.iter().filter(|test| last(test) == "failed");
        failed.map(|test| text_of(test, "/test")).collect()
    }

    fn counts(&self) -> String {
        let count = |outcome: &str| self.tests.iter().filter(|test| last(test) == outcome).count();
        format!("{} integration tests passed, {} skipped", count("passed"), count("skipped"))
    }

    /// Returns which tests took most of the time.
    fn slowest(&self) -> String {
        const SHOWN: usize = 10;
        let seconds = |test: &Value| test.get("seconds").and_then(Value::as_f64).unwrap_or_default();
        let mut tests: Vec<&Value> = self.tests.iter().collect();
        tests.sort_by(|a, b| seconds(b).total_cmp(&seconds(a)));
        let mut out = format!("{:.0} s in all; the slowest:", self.tests.iter().map(seconds).sum::<f64>());
        for test in tests.into_iter().take(SHOWN) {
            let _ = write!(out, " {} {:.1} s,", text_of(test, "/test"), seconds(test));
        }
        out.trim_end_matches(',').to_owned()
    }
}

/// Returns the outcome of a test's last try.
fn last(test: &Value) -> &str {
    let tries = test.get("tries").and_then(Value::as_array).and_then(|tries| tries.last());
    tries.map(|last| text_of(last, "/outcome")).unwrap_or_default()
}

fn text_of<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_what_was_tried_again() {
        let text = "\
{\"test\":\"a::b\",\"seconds\":1.5,\"tries\":[{\"outcome\":\"passed\"}]}
{\"test\":\"a::c\",\"seconds\":30.0,\"tries\":[{\"outcome\":\"failed\",\"why\":\"x: not within 20s\\nmore\",\"waited\":true,\"busy\":\"80 %\"},{\"outcome\":\"passed\"}]}
{\"test\":\"a::d\",\"seconds\":0.0,\"tries\":[{\"outcome\":\"skipped\",\"why\":\"no runc\"}]}
{\"test\":\"a::e\",\"seconds\":0.0,\"tries\":[{\"outcome\":\"failed\",\"why\":\"no\",\"waited\":false}]}
";
        let report = Report::read(text);
        assert_eq!(report.counts(), "2 integration tests passed, 1 skipped");
        assert_eq!(report.failed(), ["a::e"]);
        assert_eq!(report.again, [("a::c".into(), "x: not within 20s; 80 %".into())]);
        assert!(report.slowest().starts_with("32 s in all; the slowest: a::c 30.0 s, a::b 1.5 s"));
    }
}
