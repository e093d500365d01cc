//! `cargo xtask touched`: runs the parts that changes can have touched since they last ran
//! completely: other kernels, CRIU's conformance, the desktop.

use std::{collections::BTreeSet, fmt};

use crate::{
    test::{Step, Steps},
    vm, whole,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say what would be run, and why
    #[arg(long)]
    list: bool,

    /// Refuse to install or download anything; say what is needed instead
    #[arg(long)]
    no_install: bool,
}

/// A part that can run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The desktop on this machine.
    Desktop,
    /// The desktop in an emulated machine, with the oldest CRIU.
    DesktopGuest,
    /// All fixtures. Each runs with one CRIU, unless the CRIUs differ about it.
    Criu,
    /// All fixtures with every CRIU.
    EveryCriu,
    /// Every CRIU and the desktop's guest, at the same time.
    EveryCriuAndDesktop,
    /// The newest and the oldest kernel, with both feeders.
    Ends,
    /// Every kernel. Those between the newest and the oldest run with kprobes only.
    Kernels,
}

use Part::{Criu, Desktop, DesktopGuest, Ends, EveryCriu, EveryCriuAndDesktop, Kernels};

const ALL: &[Part] = &[Desktop, DesktopGuest, Criu, EveryCriu, Ends, Kernels];

/// The parts that a change of a path can touch. The longest beginning of the path counts. A path
/// that isn't here touches everything.
const TABLE: &[(&str, &[Part])] = &[
    ("tracker-ebpf/", &[Kernels, Desktop]),
    ("tracker-ebpf/Cargo.toml", ALL),
    ("tracker-ebpf/src/classify/", &[Kernels, Criu, Desktop]),
    ("tracker-ebpf/src/kind.rs", &[Kernels, Criu, Desktop]),
    ("tracker-user/", ALL),
    ("tracker-user/src/", &[Ends, Criu]),
    ("tracker-user/src/agent/", &[Ends]),
    ("tracker-user/src/api/", &[Criu]),
    // These files find out what differs from kernel to kernel.
    ("tracker-user/src/bpf/", &[Ends]),
    ("tracker-user/src/bpf/btf.rs", &[Kernels]),
    ("tracker-user/src/bpf/choice.rs", &[Kernels]),
    ("tracker-user/src/bpf/feeder.rs", &[Kernels]),
    ("tracker-user/src/bpf/load.rs", &[Kernels]),
    ("tracker-user/src/bpf/offsets.rs", &[Kernels]),
    ("tracker-user/src/bpf/prerequisites.rs", &[Kernels]),
    ("tracker-user/src/cli/", &[]),
    ("tracker-user/src/cli/args.rs", &[Criu]),
    ("tracker-user/src/cli/check.rs", &[Criu, Desktop]),
    ("tracker-user/src/cli/judging.rs", &[Criu, Desktop]),
    ("tracker-user/src/cli/output.rs", &[Criu]),
    ("tracker-user/src/config", &[]),
    ("tracker-user/src/criu/", &[Criu, Desktop]),
    ("tracker-user/src/file_handle.rs", &[Ends, Criu, Desktop]),
    ("tracker-user/src/freeze.rs", &[Criu]),
    ("tracker-user/src/http/", &[]),
    ("tracker-user/src/inspect/", &[Criu, Desktop]),
    ("tracker-user/src/inventory/", &[Ends]),
    ("tracker-user/src/metrics/", &[]),
    ("tracker-user/src/proc/", &[Ends, Criu, Desktop]),
    ("tracker-user/src/runtime/", &[Ends, Criu]),
    ("tracker-user/src/target.rs", &[Criu, Desktop]),
    ("tracker-user/verdict/src/", &[Criu, Desktop]),
    ("tracker-user/verdict/src/history.rs", &[Ends]),
    ("tests/", ALL),
    ("tests/integration/", &[Ends]),
    ("tests/integration/alerts.rs", &[Desktop]),
    ("tests/integration/config.rs", &[]),
    ("tests/integration/containers.rs", &[Ends, Desktop]),
    ("tests/integration/dashboards.rs", &[]),
    ("tests/integration/deploy/", &[]),
    ("tests/integration/desktop.rs", &[Desktop, DesktopGuest]),
    ("tests/integration/documents.rs", &[]),
    ("tests/integration/engines.rs", &[]),
    ("tests/integration/harness/", ALL),
    ("tests/integration/inspect/", &[]),
    ("tests/integration/names.rs", &[]),
    ("tests/integration/privileges.rs", &[]),
    ("tests/integration/web.rs", &[]),
    ("tests/src/", &[Ends, EveryCriu, Desktop]),
    ("tests/src/bin/", &[Ends]),
    ("tests/src/bin/fdconform/", &[EveryCriu]),
    ("tests/src/bin/fdfixture/", &[EveryCriu]),
    ("tests/src/bin/fdlatency/", &[]),
    ("tests/src/criu/", &[EveryCriu, Desktop]),
    ("tests/src/desktop/", &[Desktop, DesktopGuest]),
    ("tests/src/engines/", &[]),
    ("tests/src/monitoring/", &[Desktop]),
    ("tests/src/rival.rs", &[Ends]),
    ("tests/src/tables.rs", &[Ends]),
    ("CHANGELOG.md", &[]),
    ("CONTRIBUTING.md", &[]),
    ("LICENSE", &[]),
    ("README.md", &[]),
    ("deploy/", &[]),
    ("deploy/prometheus/", &[Desktop]),
    ("docs/", &[]),
    (".gitignore", &[]),
    ("clippy.toml", &[]),
    ("deny.toml", &[]),
    ("rustfmt.toml", &[]),
];

/// Returns the document that names the commit at which a part last ran completely.
fn document(part: Part) -> &'static str {
    match part {
        Desktop | DesktopGuest => vm::desktop::DOCUMENT,
        Criu | EveryCriu | EveryCriuAndDesktop => vm::criu::DOCUMENT,
        Ends | Kernels => vm::DOCUMENT,
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.step().about)
    }
}

impl Part {
    fn step(self) -> Step {
        let (name, about, seconds) = match self {
            Desktop => ("desktop", "the desktop on this machine", 60),
            DesktopGuest => ("desktop's guest", "the desktop with the oldest CRIU", 400),
            Criu => ("CRIU", "every fixture, with each CRIU where they differ, else with one", 300),
            EveryCriu => ("every CRIU", "every fixture with every CRIU", 800),
            EveryCriuAndDesktop => (
                "every CRIU and a desktop",
                "every fixture with every CRIU, and the desktop with the oldest",
                800,
            ),
            Ends => ("ends", "the newest and the oldest kernel", 300),
            Kernels => ("kernels", "every kernel", 900),
        };
        Step { name, about, seconds: (seconds, seconds) }
    }

    /// Returns whether another part includes this one.
    fn is_in(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Criu, EveryCriu | EveryCriuAndDesktop)
                | (EveryCriu | DesktopGuest, EveryCriuAndDesktop)
                | (Ends, Kernels)
        )
    }

    /// Returns what the part leaves out and `cargo xtask test --everything` does.
    fn leaves_out(self) -> Option<&'static str> {
        match self {
            Criu => Some("two of three CRIUs, for each fixture of which all three said the same"),
            Ends => Some("the kernels between the newest and the oldest"),
            Kernels => Some("tracepoints on the kernels between the newest and the oldest"),
            Desktop | DesktopGuest | EveryCriu | EveryCriuAndDesktop => None,
        }
    }

    fn run(self, no_install: bool) -> anyhow::Result<()> {
        match self {
            Desktop => vm::desktop::run_here(no_install),
            DesktopGuest => vm::desktop::run_guest(no_install),
            Criu => vm::criu::run(&vm::criu::Args::each_where_they_differ(no_install)?),
            EveryCriu => vm::criu::run(&vm::criu::Args::everything(None, no_install)),
            EveryCriuAndDesktop => vm::compare(None, no_install),
            Ends => vm::run(&vm::Args::ends(no_install)),
            Kernels => vm::run(&vm::Args::few(no_install)),
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut touched = BTreeSet::new();
    for part in ALL {
        if let Some(why) = touched_by(*part)? {
            eprintln!("touched: {part}: {why}");
            touched.insert(*part);
        }
    }
    if touched.contains(&EveryCriu) && touched.contains(&DesktopGuest) {
        touched.insert(EveryCriuAndDesktop);
    }
    let is_run = |part: &&Part| !touched.iter().any(|other| part.is_in(*other));
    let parts: Vec<Part> = touched.iter().filter(is_run).copied().collect();
    for part in ALL.iter().filter(|part| !touched.contains(part) && is_run(part)) {
        let document = document(*part);
        let commit = whole::named_in(document)?.unwrap_or_default();
        eprintln!(
            "left out: {part}: nothing that it depends on has changed since {commit:.9}, which {document} names"
        );
    }
    for part in &parts {
        if let Some(left_out) = part.leaves_out() {
            eprintln!("left out: {left_out}");
        }
    }
    if args.list {
        return Ok(());
    }
    let mut steps = Steps::begin(parts.iter().map(|part| part.step()).collect(), true)?;
    for part in parts {
        steps.next(|| part.run(args.no_install))?;
    }
    eprintln!("all that was touched passed in {}", steps.end()?);
    Ok(())
}

/// Returns why a part must run, if it must.
fn touched_by(part: Part) -> anyhow::Result<Option<String>> {
    let document = document(part);
    let Some(commit) = whole::named_in(document)? else {
        return Ok(Some(format!("{document} names no commit at which it passed")));
    };
    if !whole::is_here(&commit) {
        let remedy = "git fetch gets it, if this clone is shallow";
        return Ok(Some(format!("commit {commit:.9} of {document} isn't in this clone: {remedy}")));
    }
    let changed = whole::changed_since(&commit)?;
    let touching: Vec<&str> =
        changed.iter().map(String::as_str).filter(|path| parts(path).contains(&part)).collect();
    Ok(touching.split_first().map(|(first, more)| match more.len() {
        0 => format!("{first} has changed since {commit:.9}"),
        count => format!("{first} and {count} more have changed since {commit:.9}"),
    }))
}

/// Returns the parts that a change of this path can touch.
fn parts(path: &str) -> &'static [Part] {
    let matching = TABLE.iter().filter(|(beginning, _)| path.starts_with(beginning));
    matching.max_by_key(|(beginning, _)| beginning.len()).map_or(ALL, |(_, parts)| parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::workspace;

    #[test]
    fn the_longest_beginning_decides_and_what_is_unknown_touches_everything() {
        assert_eq!(parts("tracker-ebpf/src/slots.rs"), [Kernels, Desktop]);
        assert_eq!(parts("tracker-user/verdict/src/rules/rules.toml"), [Criu, Desktop]);
        assert!(parts("tracker-user/src/cli/ls.rs").is_empty());
        assert_eq!(parts("tracker-user/src/bpf/state.rs"), [Ends]);
        for path in ["Cargo.lock", "Cargo.toml", ".ci/run", "xtask/src/touched.rs", "new/file"] {
            assert_eq!(parts(path), ALL, "{path}");
        }
    }

    #[test]
    fn every_path_of_the_table_is_there() {
        for (path, _) in TABLE {
            let (dir, beginning) = path.rsplit_once('/').unwrap_or(("", path));
            let entries = std::fs::read_dir(workspace().unwrap().join(dir)).expect(path);
            let found =
                entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
            assert!(found, "{path} isn't there any more");
        }
    }
}
