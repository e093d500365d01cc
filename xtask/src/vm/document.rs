//! `docs/compatibility.md`: the results of a run over the whole matrix. The same versions give the
//! same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{guest::Run, report};
use crate::whole;

/// A guest: the name of its kernel's row, and its feeder.
type Who = (&'static str, &'static str);

/// Returns the document.
pub(super) fn document(
    runs: &[Run],
    commit: &str,
    qemu: &str,
    left_out: &[&str],
    shown_by_another: &[&str],
) -> String {
    let mut text = format!(
        "# Compatibility\n\n\
         `cargo xtask vm --write-docs` made this page: the integration tests, on Debian's kernels for virtual machines, once with each\n\
         feeder (`--feeder`, the probes by which the agent hears of changes). {}\n\n\
         | kernel | Linux | Debian's package | preemption | processors | feeder | passed | skipped | failed |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        whole::sentence(commit)
    );
    for run in runs {
        let (log, name) = (&run.log, run.row.name);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} |",
            log.release,
            log.package,
            log.preemption,
            run.processors,
            run.feeder,
            log.passed(),
            log.skipped().count(),
            log.failed().len()
        );
    }
    let listed =
        |parts: &[&str]| parts.iter().map(|part| format!("`{part}…`")).collect::<Vec<_>>().join(", ");
    let _ = write!(
        text,
        "\n{qemu} emulated the machines: cgroup v2, nothing but busybox and the tests. Left out were {}:\n\
         what they show doesn't depend on the kernel. With the tracepoint feeder, and where only the preemption differs, so were {}:\n\
         there the kernel's first row shows them. Kernels before 6.12 don't tell how they preempt if nobody may choose.\n",
        listed(left_out),
        listed(shown_by_another)
    );
    text.push_str(&bad(runs));
    text.push_str(&skipped(runs));
    text
}

fn bad(runs: &[Run]) -> String {
    let bad = runs.iter().filter(|run| !run.log.is_good());
    let lines: String = bad
        .map(|run| format!("- {} with {}: {}\n", run.row.name, run.feeder, report::why(&run.log)))
        .collect();
    if lines.is_empty() { lines } else { format!("\n## Failed\n\n{lines}") }
}

fn skipped(runs: &[Run]) -> String {
    let mut where_skipped: BTreeMap<(&str, &str), BTreeSet<Who>> = BTreeMap::new();
    for run in runs {
        for skipped in run.log.skipped() {
            where_skipped.entry(skipped).or_default().insert((run.row.name, run.feeder));
        }
    }
    if where_skipped.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n## Skipped\n\n| test | on | because |\n|---|---|---|\n");
    for ((test, reason), places) in where_skipped {
        let _ = writeln!(text, "| `{test}` | {} | {reason} |", places_of(&places, runs));
    }
    text
}

/// Names guests as briefly as possible, in the order in which they ran.
fn places_of(places: &BTreeSet<Who>, runs: &[Run]) -> String {
    if places.len() == runs.len() {
        return "all".into();
    }
    let mut names: Vec<String> = Vec::new();
    for run in runs.iter().filter(|run| places.contains(&(run.row.name, run.feeder))) {
        let of_row = |run: &&Run, row| run.row.name == row;
        let all = runs.iter().filter(|other| of_row(other, run.row.name));
        let whole = all.into_iter().all(|other| places.contains(&(other.row.name, other.feeder)));
        let name =
            if whole { run.row.name.to_owned() } else { format!("{} with {}", run.row.name, run.feeder) };
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{kernels::MATRIX, log::Log};

    fn run(row: usize, feeder: &'static str, tests: &str) -> Run {
        let head = "@@ kernel 6.1.0-50-cloud-amd64\n@@ version #1 SMP Debian 6.1.176-1 (2026-07-02)\n\
                    @@ preemption none (voluntary) full\n";
        let log = Log::read(&format!("{head}{tests}"), "", None);
        let file = || std::path::PathBuf::new();
        Run {
            row: MATRIX[row],
            feeder,
            processors: 2,
            log,
            took: std::time::Duration::from_secs(7),
            tests: file(),
            console: file(),
        }
    }

    #[test]
    fn the_page_tells_counts_failures_and_skips() {
        let runs = [
            run(0, "kprobe", "test a ... ok\ntest b ... ignored (no b here)\n@@ end 0\n"),
            run(0, "tracepoint", "test a ... FAILED\ntest b ... ignored (no b here)\n@@ end 101\n"),
            run(1, "kprobe", "test a ... ignored (no a)\ntest b ... ok\n@@ end 0\n"),
            run(1, "tracepoint", "test a ... ok\ntest b ... ignored (no b here)\n@@ end 0\n"),
        ];
        let page = document(&runs, "abc", "QEMU 7.2", &["documents::"], &["cli::"]);
        for line in [
            "| 7 | 6.1.0-50-cloud-amd64 | 6.1.176-1 | voluntary | 2 | kprobe | 1 | 1 | 0 |",
            "| 7 | 6.1.0-50-cloud-amd64 | 6.1.176-1 | voluntary | 2 | tracepoint | 0 | 1 | 1 |",
            "- 7 with tracepoint: a",
            "| `a` | 7+preempt=full with kprobe | no a |",
            "| `b` | 7, 7+preempt=full with tracepoint | no b here |",
        ] {
            assert!(page.lines().any(|l| l == line), "no {line} in\n{page}");
        }
        assert!(
            page.contains("QEMU 7.2 emulated")
                && page.contains("`documents::…`")
                && page.contains("`cli::…`"),
            "{page}"
        );
        assert!(!page.contains(" 7 s"), "{page}");
    }

    #[test]
    fn where_nothing_fails_nothing_is_said_of_it() {
        let page = document(&[run(0, "kprobe", "test a ... ok\n@@ end 0\n")], "abc", "QEMU", &[], &[]);
        assert!(!page.contains("## Failed") && !page.contains("## Skipped"), "{page}");
    }
}
