//! Shows results: a line for each guest, and the document about all of them.

use std::fmt::Write as _;

use super::{
    guest::Run,
    log::{End, Log},
    qemu::read,
};

/// Returns one line about a guest.
pub(super) fn verdict(run: &Run) -> String {
    let log = &run.log;
    let word = match log.end {
        _ if log.is_good() => "passed",
        End::Finished(_) => "FAILED",
        End::Panicked(_) => "PANICKED",
        End::Hung(_) => "HUNG",
        End::Died => "DIED",
    };
    let mut line = format!(
        "{word:8} {:14} {:10} {} passed, {} skipped, {} failed; {} s",
        run.row.name,
        run.feeder,
        log.passed(),
        log.skipped().count(),
        log.failed().len(),
        run.took.as_secs()
    );
    let why = why(log);
    if !why.is_empty() {
        let _ = write!(line, ": {why}");
    }
    line
}

/// Returns what is wrong with a guest.
pub(super) fn why(log: &Log) -> String {
    let failed = log.failed().join(", ");
    let at = log.unfinished.as_ref().map_or_else(String::new, |test| format!(", at {test}"));
    match &log.end {
        End::Finished(0) if failed.is_empty() && log.passed() == 0 => "no test passed".into(),
        End::Finished(0) => failed,
        End::Finished(code) if failed.is_empty() => format!("the tests ended with exit code {code}{at}"),
        End::Finished(_) => failed,
        End::Panicked(message) => format!("{message}{at}"),
        End::Hung(reason) => format!("{reason}{at}"),
        End::Died => format!("the guest ended before its tests{at}"),
    }
}

/// Returns the ends of a guest's logs, and their paths.
pub(super) fn tails(run: &Run) -> anyhow::Result<String> {
    const LINES: usize = 30;
    let mut text = String::new();
    for file in [&run.console, &run.tests] {
        let log = read(file)?;
        let lines: Vec<&str> = log.lines().collect();
        let _ = writeln!(text, "---- the end of {}", file.display());
        for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
            // Lines are shortened: what a test records is one line, too.
            let _ = writeln!(text, "{line:.400}");
        }
    }
    Ok(text)
}
