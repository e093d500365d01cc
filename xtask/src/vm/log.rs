//! What a guest wrote, and what it means.

/// The outcome of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Skipped(String),
    Failed,
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The tests ran, and this was their exit code.
    Finished(i32),
    /// The kernel panicked with this message.
    Panicked(String),
    /// It had to be killed, for this reason.
    Hung(String),
    /// It ended before its tests did.
    Died,
}

/// What a guest's logs say.
#[derive(Debug)]
pub(super) struct Log {
    /// `uname -r`.
    pub(super) release: String,
    /// The version of the kernel's package.
    pub(super) package: String,
    /// The kernel's preemption mode.
    pub(super) preemption: String,
    pub(super) tests: Vec<(String, Outcome)>,
    /// A test that began and didn't end.
    pub(super) unfinished: Option<String>,
    pub(super) end: End,
}

impl Log {
    /// Reads the output of the tests and of the kernel. `killed` says why the guest was killed, if
    /// it was.
    pub(super) fn read(tests: &str, console: &str, killed: Option<String>) -> Self {
        let told = |key: &str| {
            let line = tests.lines().find_map(|line| line.trim().strip_prefix("@@ ")?.strip_prefix(key));
            line.map(|value| value.trim().to_owned())
        };
        let lines: Vec<(&str, &str)> = tests.lines().filter_map(test).collect();
        let unfinished = lines.iter().find(|(_, outcome)| outcome.is_empty());
        let code = told("end ").and_then(|code| code.parse().ok());
        let panic = console.lines().find_map(|line| Some(line.split_at(line.find("Kernel panic")?).1.trim()));
        Self {
            release: told("kernel ").unwrap_or_default(),
            package: package(&told("version ").unwrap_or_default()),
            preemption: mode(&told("preemption ").unwrap_or_default()),
            unfinished: unfinished.map(|(name, _)| (*name).to_owned()),
            tests: lines
                .iter()
                .filter_map(|(name, text)| Some(((*name).to_owned(), outcome(text)?)))
                .collect(),
            end: match (panic, code, killed) {
                (Some(panic), _, _) => End::Panicked(panic.to_owned()),
                (None, Some(code), _) => End::Finished(code),
                (None, None, Some(reason)) => End::Hung(reason),
                (None, None, None) => End::Died,
            },
        }
    }

    pub(super) fn passed(&self) -> usize {
        self.tests.iter().filter(|(_, outcome)| *outcome == Outcome::Passed).count()
    }

    pub(super) fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tests.iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Skipped(reason) => Some((name.as_str(), reason.as_str())),
            Outcome::Passed | Outcome::Failed => None,
        })
    }

    pub(super) fn failed(&self) -> Vec<&str> {
        let failed = self.tests.iter().filter(|(_, outcome)| *outcome == Outcome::Failed);
        failed.map(|(name, _)| name.as_str()).collect()
    }

    /// Returns whether the kernel panicked or stopped. A test that hangs doesn't stop the kernel.
    pub(super) fn kernel_failed(&self) -> bool {
        matches!(self.end, End::Panicked(_) | End::Hung(_))
    }

    /// Returns whether all is well. At least one test must have passed.
    pub(super) fn is_good(&self) -> bool {
        self.end == End::Finished(0) && self.failed().is_empty() && self.passed() > 0
    }
}

/// Returns name and outcome in a line of the test harness. The outcome is empty until it is known.
fn test(line: &str) -> Option<(&str, &str)> {
    let (name, outcome) = line.trim().strip_prefix("test ")?.split_once(" ...")?;
    Some((name.trim(), outcome.trim()))
}

fn outcome(text: &str) -> Option<Outcome> {
    match text {
        "" => None,
        "ok" => Some(Outcome::Passed),
        _ => Some(text.strip_prefix("ignored").map_or(Outcome::Failed, |reason| {
            let reason = reason.trim();
            let inner = reason.strip_prefix('(').and_then(|reason| reason.strip_suffix(')'));
            Outcome::Skipped(inner.unwrap_or(reason).to_owned())
        })),
    }
}

/// Returns the package's version: `6.1.176-1` for `#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1
/// (2026-07-02)`.
fn package(version: &str) -> String {
    let mut words = version.split(' ').skip_while(|word| *word != "Debian");
    words.nth(1).unwrap_or_default().to_owned()
}

/// Returns the mode: `lazy` for `none voluntary full (lazy)`. Older kernels have no choice of
/// modes.
fn mode(modes: &str) -> String {
    let chosen = modes.split(' ').find_map(|mode| mode.strip_prefix('(')?.strip_suffix(')'));
    chosen.unwrap_or("as built").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTS: &str = "\
@@ kernel 6.1.0-50-cloud-amd64\r
@@ version #1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-02)\r
@@ preemption none (voluntary) full \r
\r
running 3 tests\r
test life_cycle::every_kind ... ok\r
test containers::runc       ... ignored (runc is not installed (cargo xtask test installs it))\r
";

    fn log(more: &str, console: &str, killed: Option<&str>) -> Log {
        Log::read(&format!("{TESTS}{more}"), console, killed.map(str::to_owned))
    }

    #[test]
    fn a_guest_whose_tests_pass_is_good() {
        let log = log("test cli::doctor ... ok\r\n@@ end 0\r\n", "reboot: Power down", None);
        assert_eq!((log.end.clone(), log.passed(), log.is_good()), (End::Finished(0), 2, true));
        let skipped: Vec<_> = log.skipped().collect();
        assert_eq!(skipped, [("containers::runc", "runc is not installed (cargo xtask test installs it)")]);
        assert_eq!((log.release.as_str(), log.package.as_str()), ("6.1.0-50-cloud-amd64", "6.1.176-1"));
        assert_eq!((log.preemption.as_str(), log.unfinished), ("voluntary", None));
    }

    #[test]
    fn a_guest_whose_tests_fail_is_not() {
        let failures = "failures:\r\n\r\n---- cli::doctor ----\r\ntest panicked: no\r\n";
        let log = log(&format!("test cli::doctor ... FAILED\r\n{failures}@@ end 101\r\n"), "", None);
        assert_eq!(
            (log.end.clone(), log.failed(), log.is_good()),
            (End::Finished(101), vec!["cli::doctor"], false)
        );
    }

    #[test]
    fn an_exit_code_counts_though_no_test_failed() {
        assert!(!log("@@ end 139\r\n", "", None).is_good());
    }

    #[test]
    fn a_panic_counts_whatever_else_was_said() {
        let console = "[    9.1] Kernel panic - not syncing: Fatal exception\r\n[    9.2] Rebooting";
        let log = log("test cli::doctor ... ", console, None);
        assert_eq!(log.end, End::Panicked("Kernel panic - not syncing: Fatal exception".into()));
        assert_eq!((log.unfinished.as_deref(), log.is_good()), (Some("cli::doctor"), false));
        let late = Log::read("test a ... ok\n@@ end 0\n", console, None);
        assert!(matches!(late.end, End::Panicked(_)) && !late.is_good());
    }

    #[test]
    fn a_hung_guest_tells_what_it_was_at() {
        let log = log("test cli::doctor ... ", "", Some("silent"));
        assert_eq!((log.end.clone(), log.is_good()), (End::Hung("silent".into()), false));
        assert_eq!((log.unfinished.as_deref(), log.passed()), (Some("cli::doctor"), 1));
    }

    #[test]
    fn a_guest_that_ends_early_is_no_success() {
        assert_eq!(log("", "reboot: Power down", None).end, End::Died);
        assert_eq!(Log::read("", "", None).end, End::Died);
    }

    #[test]
    fn no_test_is_no_success() {
        assert!(!Log::read("running 0 tests\n@@ end 0\n", "", None).is_good());
    }

    #[test]
    fn preemption_is_told_if_the_kernel_tells_it() {
        assert_eq!((mode("full (lazy) ").as_str(), mode("").as_str()), ("lazy", "as built"));
    }
}
