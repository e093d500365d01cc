//! `cargo xtask touched`: of what runs on emulated machines, that which changes can have touched
//! since it was last run whole.

use std::{collections::BTreeSet, fmt, time::SystemTime};

use crate::{
    cache,
    test::{Step, Steps, tries},
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

/// What can be run apart from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The desktop on this machine.
    Desktop,
    /// The desktop in an emulated machine, with the oldest CRIU.
    DesktopGuest,
    /// All fixtures, each with one CRIU unless these differ about it.
    Criu,
    /// All fixtures with every CRIU.
    EveryCriu,
    /// Both, at the same time.
    EveryCriuAndDesktop,
    /// The newest and the oldest kernel, with both feeders.
    Ends,
    /// Every kernel, those between the newest and the oldest with kprobes.
    Kernels,
}

use Part::{Criu, Desktop, DesktopGuest, Ends, EveryCriu, EveryCriuAndDesktop, Kernels};

const ALL: &[Part] = &[Desktop, DesktopGuest, Criu, EveryCriu, Ends, Kernels];

/// What a change of a path can touch: that of the longest of these with which it begins. Whatever
/// isn't here touches everything.
const TABLE: &[(&str, &[Part])] = &[
    ("tracker-ebpf/", &[Kernels]),
    ("tracker-ebpf/Cargo.toml", ALL),
    ("tracker-ebpf/src/classify/", &[Kernels, Criu]),
    ("tracker-ebpf/src/kind.rs", &[Kernels, Criu]),
    ("tracker-user/", ALL),
    ("tracker-user/src/", &[Ends, Criu]),
    ("tracker-user/src/agent.rs", &[Ends]),
    ("tracker-user/src/bpf/", &[Ends]),
    ("tracker-user/src/cli/", &[]),
    ("tracker-user/src/cli/args.rs", &[Criu]),
    ("tracker-user/src/cli/check.rs", &[Criu, Desktop]),
    ("tracker-user/src/config", &[]),
    ("tracker-user/src/criu/", &[Criu, Desktop]),
    ("tracker-user/src/freeze.rs", &[Criu]),
    ("tracker-user/src/http/", &[]),
    ("tracker-user/src/inspect/", &[Criu, Desktop]),
    ("tracker-user/src/inventory/", &[Ends]),
    ("tracker-user/src/metrics/", &[]),
    ("tracker-user/src/pulse.rs", &[]),
    ("tracker-user/src/runtime/", &[Ends]),
    ("tracker-user/src/standing.rs", &[Ends]),
    ("tracker-user/src/target.rs", &[Criu, Desktop]),
    ("tracker-user/src/tracker.rs", &[Ends]),
    ("tracker-user/src/verdict/", &[Criu, Desktop]),
    ("tests/", ALL),
    ("tests/integration/", &[Ends]),
    ("tests/integration/alerts.rs", &[]),
    ("tests/integration/config.rs", &[]),
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
    ("tests/src/", &[Ends, EveryCriu]),
    ("tests/src/bin/", &[Ends]),
    ("tests/src/bin/fdconform/", &[EveryCriu]),
    ("tests/src/bin/fdfixture/", &[EveryCriu]),
    ("tests/src/criu/", &[EveryCriu, Desktop]),
    ("tests/src/desktop/", &[Desktop, DesktopGuest]),
    ("tests/src/engines/", &[]),
    ("tests/src/lib.rs", &[Ends]),
    ("tests/src/monitoring/", &[]),
    ("tests/src/rival.rs", &[Ends]),
    ("tests/src/tables.rs", &[Ends]),
    ("CHANGELOG.md", &[]),
    ("CONTRIBUTING.md", &[]),
    ("LICENSE", &[]),
    ("README.md", &[]),
    ("deploy/", &[]),
    ("docs/", &[]),
    (".gitignore", &[]),
    ("clippy.toml", &[]),
    ("rustfmt.toml", &[]),
];

/// The document that names the commit at which parts were run whole.
fn document(part: Part) -> &'static str {
    match part {
        Desktop | DesktopGuest | Criu | EveryCriu | EveryCriuAndDesktop => vm::criu::DOCUMENT,
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

    /// Whether another part has all of it.
    fn is_in(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Criu, EveryCriu | EveryCriuAndDesktop)
                | (EveryCriu | DesktopGuest, EveryCriuAndDesktop)
                | (Ends, Kernels)
        )
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
    let start = SystemTime::now();
    let mut touched = BTreeSet::new();
    for part in ALL {
        match touched_by(*part)? {
            Some(why) => {
                eprintln!("touched: {part}: {why}");
                touched.insert(*part);
            }
            None => {
                eprintln!("left out: {part}: nothing that touches it has changed since {}", document(*part));
            }
        }
    }
    if touched.contains(&EveryCriu) && touched.contains(&DesktopGuest) {
        touched.insert(EveryCriuAndDesktop);
    }
    let parts: Vec<Part> =
        touched.iter().filter(|part| !touched.iter().any(|other| part.is_in(*other))).copied().collect();
    if args.list {
        return Ok(());
    }
    let mut steps = Steps::begin(parts.iter().map(|part| part.step()).collect(), true)?;
    for part in parts {
        steps.next(|| part.run(args.no_install))?;
    }
    cache::prune(start)?;
    eprintln!("all that was touched passed in {}; {}", steps.end()?, tries::summary());
    Ok(())
}

/// Why a part must be run, if it must.
fn touched_by(part: Part) -> anyhow::Result<Option<String>> {
    let document = document(part);
    let Some(commit) = whole::named_in(document)? else {
        return Ok(Some(format!("{document} names no commit at which it passed")));
    };
    let Ok(changed) = whole::changed_since(&commit) else {
        return Ok(Some(format!("commit {commit} of {document} isn't in this clone")));
    };
    let touching: Vec<&str> =
        changed.iter().map(String::as_str).filter(|path| parts(path).contains(&part)).collect();
    Ok(touching.split_first().map(|(first, more)| match more.len() {
        0 => format!("{first} has changed since {document}"),
        count => format!("{first} and {count} more have changed since {document}"),
    }))
}

/// What a change of this path can touch.
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
        assert_eq!(parts("tracker-ebpf/src/slots.rs"), [Kernels]);
        assert_eq!(parts("tracker-user/src/verdict/rules/rules.toml"), [Criu, Desktop]);
        assert!(parts("tracker-user/src/cli/ls.rs").is_empty());
        assert_eq!(parts("tracker-user/src/bpf/load.rs"), [Ends]);
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
