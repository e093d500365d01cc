//! Results of a guest's dumps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use serde_json::{Value, json};

use super::explained::explanation;
use crate::vm::log::{End, Log};

/// All results of one version.
pub(super) struct Results {
    name: String,
    /// The version of CRIU's package.
    package: String,
    /// The version that CRIU prints.
    version: String,
    log: Log,
    /// How many dumps of each fixture there should be.
    expected: BTreeMap<String, usize>,
    dumps: Vec<Value>,
    took: Duration,
}

impl Results {
    /// Reads what the guest wrote on its second port.
    pub(super) fn read(
        name: &str,
        package: &str,
        output: &str,
        console: &str,
        killed: Option<String>,
        took: Duration,
    ) -> Self {
        let (expected, dumps) = parse(output);
        let version = output.lines().find_map(|line| line.strip_prefix("@@ criu ")).unwrap_or_default();
        let log = Log::read(output, console, killed);
        Self {
            name: name.into(),
            package: package.into(),
            version: version.trim().into(),
            log,
            expected,
            dumps,
            took,
        }
    }

    /// Returns whether everything ran, and all differences are explained.
    pub(super) fn is_good(&self) -> bool {
        self.is_complete()
            && matches!(self.log.end, End::Finished(_))
            && self.with_verdict("hung").count() == 0
            && self.disagreements().all(|dump| explanation(dump).is_some())
    }

    /// Returns whether the guest failed although no fixture must be repeated: its kernel panicked
    /// before the first one or after the last one.
    pub(super) fn ended_badly(&self) -> bool {
        !self.is_good() && self.to_repeat().is_empty()
    }

    /// Returns the dumps about which `fdtracker check` said something else.
    pub(super) fn disagreements(&self) -> impl Iterator<Item = &Value> {
        let disagree = |dump: &&Value| dump.get("agrees") == Some(&Value::Bool(false));
        self.dumps.iter().filter(|dump| is_compared(dump)).filter(disagree)
    }

    /// Returns all dumps.
    pub(super) fn dumps(&self) -> &[Value] {
        &self.dumps
    }

    /// Returns the name of the results.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the version of CRIU's package, and the kernel's release.
    pub(super) fn ground(&self) -> (&str, &str) {
        (&self.package, &self.log.release)
    }

    fn is_complete(&self) -> bool {
        !self.expected.is_empty() && self.missing().is_empty()
    }

    /// Returns the fixtures of which some dumps are missing.
    pub(super) fn missing(&self) -> Vec<String> {
        let found = |name: &str| self.dumps.iter().filter(|dump| text(dump, "fixture") == name).count();
        self.expected
            .iter()
            .filter(|(name, count)| found(name) < **count)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Returns the fixtures of which a dump is missing, hung, or disagreed.
    pub(super) fn to_repeat(&self) -> Vec<String> {
        let odd = self.disagreements().filter(|dump| explanation(dump).is_none());
        let odd = odd.chain(self.with_verdict("hung"));
        let names: BTreeSet<String> =
            odd.map(|dump| text(dump, "fixture").to_owned()).chain(self.missing()).collect();
        names.into_iter().collect()
    }

    /// Adds the results of another guest, which has repeated some fixtures.
    pub(super) fn and(self, other: Self) -> Self {
        let again = self.to_repeat();
        let mut dumps = self.dumps;
        dumps.retain(|dump| !again.iter().any(|name| name == text(dump, "fixture")));
        dumps.extend(other.dumps);
        Self { dumps, expected: self.expected, took: self.took + other.took, ..other }
    }

    fn with_verdict(&self, verdict: &str) -> impl Iterator<Item = &Value> {
        self.dumps.iter().filter(move |dump| text(dump, "verdict") == verdict)
    }

    /// Returns the table of results.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(&json!({
            "criu": self.version,
            "criu_package": self.package,
            "kernel": self.log.release,
            "kernel_package": self.log.package,
            "complete": self.is_complete(),
            "results": self.dumps,
        }))? + "\n")
    }

    /// Returns a summary for people.
    pub(super) fn summary(&self) -> String {
        let mut out = String::new();
        for dump in &self.dumps {
            let cause = dump.pointer("/cause/0/text").or_else(|| dump.get("reason"));
            let name = format!("{} {}", text(dump, "fixture"), options(dump).join(" "));
            let cause = cause.and_then(Value::as_str).unwrap_or_default();
            let _ = writeln!(out, "{:9} {name:48} {cause}", text(dump, "verdict"));
        }
        let mut counts = BTreeMap::new();
        for dump in &self.dumps {
            *counts.entry(text(dump, "verdict")).or_insert(0_u32) += 1;
        }
        let counts: Vec<String> =
            counts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
        let _ = writeln!(
            out,
            "criu {} on {}: {} of {} dumps in {} s: {}",
            self.name,
            self.log.release,
            self.dumps.len(),
            self.expected.values().sum::<usize>(),
            self.took.as_secs(),
            counts.join(", ")
        );
        for dump in self.disagreements() {
            let said = dump.pointer("/check/blockers/0/message").or_else(|| dump.pointer("/check/failed"));
            let verdict = dump.pointer("/check/verdict").and_then(Value::as_str).unwrap_or_default();
            let why = explanation(dump).map_or_else(String::new, |why| format!(" (explained: {why})"));
            let said = said.and_then(Value::as_str).unwrap_or_default();
            let _ = writeln!(
                out,
                "fdtracker check disagrees: {} {}: {verdict} {said}{why}",
                text(dump, "fixture"),
                options(dump).join(" ")
            );
        }
        match &self.log.end {
            End::Finished(0) => {}
            End::Finished(code) => drop(writeln!(out, "fdconform ended with exit code {code}")),
            End::Panicked(message) => drop(writeln!(out, "{message}")),
            End::Hung(reason) => drop(writeln!(out, "the guest was killed: {reason}")),
            End::Died => drop(writeln!(out, "the guest ended before its dumps")),
        }
        out
    }
}

/// Returns whether there is something to compare: a dump that didn't begin says nothing.
pub(super) fn is_compared(dump: &Value) -> bool {
    matches!(text(dump, "verdict"), "dumped" | "refused")
}

/// Returns the options that CRIU was given.
pub(super) fn options(dump: &Value) -> Vec<&str> {
    let options = dump.get("options").and_then(Value::as_array);
    options.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Returns a text from a dump.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Returns how many dumps there were, and how many there should be.
pub(super) fn progress(output: &str) -> (usize, usize) {
    let (expected, dumps) = parse(output);
    (dumps.len(), expected.values().sum())
}

/// Reads the number of dumps of each fixture, which the guest told first, and what it told about
/// each dump.
fn parse(output: &str) -> (BTreeMap<String, usize>, Vec<Value>) {
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let (head, dumps): (Vec<Value>, Vec<Value>) = lines.partition(|line| line.get("runs").is_some());
    let runs = head.first().and_then(|head| head.get("runs")?.as_object());
    let expected =
        runs.into_iter().flatten().filter_map(|(name, count)| Some((name.clone(), count.as_u64()? as usize)));
    (expected.collect(), dumps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
@@ kernel 6.1.0-50-cloud-amd64
@@ criu 3.17.1
{\"runs\": {\"char.fuse\": 1, \"pipe.pair\": 1}}
{\"fixture\": \"char.fuse\", \"options\": [], \"verdict\": \"refused\", \"cause\": [{\"text\": \"Can't dump\"}]}
";

    fn results(more: &str) -> Results {
        let output = format!("{OUTPUT}{more}");
        Results::read("3.17.1", "3.17.1-2", &output, "", None, Duration::from_secs(1))
    }

    #[test]
    fn all_dumps_must_be_there() {
        let last = "{\"fixture\": \"pipe.pair\", \"options\": [], \"verdict\": \"dumped\"}\n";
        assert!(results(&format!("{last}@@ end 0\n")).is_good());
        assert!(!results("@@ end 0\n").is_good());
        assert!(!results(last).is_good());
        let other = last.replace("\"dumped\"", "\"dumped\", \"agrees\": false");
        assert!(!results(&format!("{other}@@ end 1\n")).is_good());
        assert_eq!(progress(OUTPUT), (1, 2));
    }

    #[test]
    fn another_guest_adds_what_is_missing() {
        let first = results("");
        assert_eq!(first.missing(), ["pipe.pair"]);
        let head = "{\"runs\": {\"pipe.pair\": 1}}\n";
        let output = format!("{head}{{\"fixture\": \"pipe.pair\", \"verdict\": \"dumped\"}}\n@@ end 0\n");
        let both = first.and(Results::read("3.17.1", "3.17.1-2", &output, "", None, Duration::from_secs(1)));
        assert!(both.is_good());
        assert_eq!((both.dumps.len(), both.took), (2, Duration::from_secs(2)));
    }

    #[test]
    fn what_disagrees_is_asked_again() {
        let odd = "{\"fixture\": \"pipe.pair\", \"verdict\": \"dumped\", \"agrees\": false}\n@@ end 1\n";
        let not_run = odd.replace("dumped", "not_run");
        assert!(results(&not_run).is_good());
        let first = results(odd);
        assert_eq!(first.to_repeat(), ["pipe.pair"]);
        let head = "{\"runs\": {\"pipe.pair\": 1}}\n";
        let output = format!("{head}{{\"fixture\": \"pipe.pair\", \"verdict\": \"dumped\"}}\n@@ end 0\n");
        let both = first.and(Results::read("3.17.1", "3.17.1-2", &output, "", None, Duration::from_secs(1)));
        assert!(both.is_good());
    }

    #[test]
    fn a_dump_that_hung_is_not_well() {
        let first = results("{\"fixture\": \"pipe.pair\", \"verdict\": \"hung\"}\n@@ end 0\n");
        assert!(!first.is_good());
        assert_eq!(first.to_repeat(), ["pipe.pair"]);
    }

    #[test]
    fn a_guest_that_ends_before_or_after_its_dumps_is_repeated() {
        let read = |output: &str, console: &str| {
            Results::read("3.17.1", "3.17.1-2", output, console, None, Duration::from_secs(1))
        };
        assert!(read("", "Kernel panic - not syncing").ended_badly());
        let last = "{\"fixture\": \"pipe.pair\", \"options\": [], \"verdict\": \"dumped\"}\n@@ end 0\n";
        assert!(read(&format!("{OUTPUT}{last}"), "Kernel panic - not syncing").ended_badly());
        assert!(!read(&format!("{OUTPUT}{last}"), "").ended_badly());
        assert!(!results("").ended_badly(), "what is missing has a name");
    }

    #[test]
    fn a_summary_tells_why() {
        let summary = results("{\"fixture\": \"pipe.pa").summary();
        assert!(summary.contains("char.fuse") && summary.contains("Can't dump"), "{summary}");
        assert!(summary.contains("1 of 2 dumps"), "{summary}");
    }
}
