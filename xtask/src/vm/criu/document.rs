//! `docs/criu-support.md`: what each version of CRIU makes of each fixture, and whether `fdtracker
//! check` says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    process::Command,
};

use anyhow::Context as _;
use serde_json::Value;

use super::{
    explained::explanation,
    results::{Results, is_compared, options, text},
};
use crate::{build, command::output, paths::workspace, whole};

/// The document.
pub(crate) const FILE: &str = "docs/criu-support.md";

/// Writes the document.
pub(super) fn write(all: &[Results], commit: &str) -> anyhow::Result<()> {
    let fdtracker = build::programs()?.into_iter().find(|program| program.name == "fdtracker");
    let fdtracker = fdtracker.context("cargo has built no fdtracker")?;
    let rules = output(Command::new(fdtracker.path).args(["rules", "-o", "markdown"]))?;
    fs::write(workspace()?.join(FILE), document(all, &rules, commit))
        .with_context(|| format!("write {FILE}"))?;
    eprintln!("wrote {FILE}");
    Ok(())
}

/// Returns the fixtures about which the document says the same for each version, whatever the
/// options are.
pub(super) fn agreed() -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string(workspace()?.join(FILE)).with_context(|| format!("read {FILE}"))?;
    Ok(agreed_in(&text))
}

fn agreed_in(document: &str) -> Vec<String> {
    let mut fixtures: BTreeMap<&str, bool> = BTreeMap::new();
    let (_, rows) = document.split_once(BY_FIXTURE).unwrap_or_default();
    for row in rows.lines().skip_while(|line| line.is_empty()).take_while(|line| line.starts_with('|')) {
        // The cells are: name and options, contents, and one cell for each version. It is empty if
        // nothing was said.
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _, versions @ ..] = cells.as_slice() else { continue };
        let name = name.trim_matches('`').split(' ').next().unwrap_or_default();
        let first = versions.first().copied().unwrap_or_default();
        let agreed = !first.is_empty() && versions.iter().all(|version| *version == first);
        *fixtures.entry(name).or_insert(true) &= agreed;
    }
    let agreed = fixtures.into_iter().filter(|(name, agreed)| *agreed && name.contains('.'));
    agreed.map(|(name, _)| name.to_owned()).collect()
}

/// The heading of the part about each fixture.
const BY_FIXTURE: &str = "\n## By fixture\n";

fn document(all: &[Results], rules: &str, commit: &str) -> String {
    let mut out = format!(
        "# What CRIU dumps, and what `fdtracker check` says of it\n\n\
         `cargo xtask criu --write-docs` made this page. {}\n\n\
         ## By kind\n\n\
         What follows from a file's kind alone. What `depends` on more is decided by what the file is like, whom it has to do with, and the \
         options of the dump: `fdtracker explain KIND` tells each reason, `fdtracker check` looks.\n\n",
        whole::sentence(commit)
    );
    out.push_str(rules);
    out.push_str(
        "\n## Conformance\n\n\
         For each fixture, a process or a tree that holds files in some state, `fdtracker check` was asked first, and then the real `criu dump` was run. \
         They agree if both say that it is dumped, or both that it isn't and the message is the same. Those whose names begin with `container` \
         were in a container of runc's, with namespaces and a root of its own, and it was `runc checkpoint` that had CRIU dump them.\n\n\
         | CRIU | Debian's package | Linux | dumps | agree | explained |\n|---|---|---|---|---|---|\n",
    );
    for results in all {
        let (package, kernel) = results.ground();
        let compared = results.dumps().iter().filter(|dump| is_compared(dump)).count();
        let disagree = results.disagreements().count();
        let explained = results.disagreements().filter(|dump| explanation(dump).is_some()).count();
        let _ = writeln!(
            out,
            "| {} | {package} | {kernel} | {compared} | {} | {explained} |",
            results.name(),
            compared - disagree
        );
    }
    explained(all, &mut out);
    fixtures(all, &mut out);
    not_made(all, &mut out);
    out
}

/// Lists where `check` can't agree, by the reason.
fn explained(all: &[Results], out: &mut String) {
    let mut reasons: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for dump in all.iter().flat_map(Results::disagreements) {
        if let Some(why) = explanation(dump) {
            reasons.entry(why).or_default().insert(name(dump));
        }
    }
    out.push_str(
        "\n## Where `check` can't say it\n\nIt says `unknown` there.\n\n| why | fixtures |\n|---|---|\n",
    );
    for (why, names) in reasons {
        let names: Vec<String> = names.into_iter().collect();
        let _ = writeln!(out, "| {why} | {} |", names.join(", "));
    }
}

fn name(dump: &Value) -> String {
    let name = format!("{} {}", text(dump, "fixture"), options(dump).join(" "));
    format!("`{}`", name.trim())
}

/// Lists what each version does with each fixture.
fn fixtures(all: &[Results], out: &mut String) {
    let mut rows: BTreeMap<String, (&str, BTreeMap<&str, String>)> = BTreeMap::new();
    for results in all {
        for dump in results.dumps().iter().filter(|dump| is_compared(dump)) {
            let row = rows.entry(name(dump)).or_default();
            row.0 = text(dump, "about");
            row.1.insert(results.name(), cell(dump));
        }
    }
    let _ = write!(out, "{BY_FIXTURE}\n| fixture | what it holds |");
    for results in all {
        let _ = write!(out, " {} |", results.name());
    }
    let _ = writeln!(out, "\n|---|---|{}", "---|".repeat(all.len()));
    for (name, (about, cells)) in rows {
        let _ = write!(out, "| {name} | {about} |");
        for results in all {
            let _ = write!(out, " {} |", cells.get(results.name()).map_or("", String::as_str));
        }
        out.push('\n');
    }
}

/// Returns `dumped`, or the reason why it wasn't.
fn cell(dump: &Value) -> String {
    let blockers = dump.pointer("/check/blockers").and_then(Value::as_array).into_iter().flatten();
    let first = blockers.into_iter().find(|blocker| text(blocker, "verdict") != "unknown");
    let reason = first.map(|blocker| text(blocker, "reason")).unwrap_or_default();
    match text(dump, "verdict") {
        "refused" if reason.is_empty() => "refused".to_owned(),
        "refused" => format!("`{reason}`"),
        verdict => verdict.to_owned(),
    }
}

/// Lists what the kernels don't have.
fn not_made(all: &[Results], out: &mut String) {
    let mut reasons: BTreeMap<String, BTreeMap<&str, &str>> = BTreeMap::new();
    for results in all {
        for dump in results.dumps().iter().filter(|dump| text(dump, "verdict") == "not_made") {
            reasons.entry(name(dump)).or_default().insert(results.name(), text(dump, "reason"));
        }
    }
    out.push_str(
        "\n## Fixtures that could not be made\n\n| fixture | with CRIU | because |\n|---|---|---|\n",
    );
    for (name, versions) in reasons {
        let why: BTreeSet<&str> = versions.values().copied().collect();
        let why: Vec<&str> = why.into_iter().collect();
        let versions: Vec<&str> = versions.into_keys().collect();
        let _ = writeln!(out, "| {name} | {} | {} |", versions.join(", "), why.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixtures_are_told_about_which_all_versions_agree() {
        let page = "## By fixture\n\n| fixture | what it holds | 3 | 4 |\n|---|---|---|---|\n\
                    | `a.same` | x | dumped | dumped |\n| `a.same --file-locks` | x | `r` | `r` |\n\
                    | `b.options` | x | dumped | dumped |\n| `b.options --ext-unix-sk` | x | dumped | `r` |\n\
                    | `c.differs` | x | `r` | dumped |\n| `d.missing` | x |  | dumped |\n\n## Next\n";
        assert_eq!(agreed_in(&format!("# Page\n\n{page}")), ["a.same"]);
    }
}
