//! docs/case-vnc.md: the case from symptom to fix, in the output of real programs.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::Context as _;
use serde_json::Value;

use crate::{paths::workspace, whole};

/// The page.
pub(crate) const FILE: &str = "docs/case-vnc.md";

/// Writes the page from what the tests recorded here and in the guest.
pub(super) fn write(here: &str, guest: &str, commit: &str) -> anyhow::Result<()> {
    let text = document(&records(guest), &records(here)).context("the tests recorded too little")?;
    let text = format!("{text}\n{}\n", whole::sentence(commit));
    fs::write(workspace()?.join(FILE), text).with_context(|| format!("write {FILE}"))?;
    eprintln!("wrote {FILE}");
    Ok(())
}

/// A result that a test recorded on some kernel.
struct Record {
    what: String,
    kernel: String,
    seen: Value,
}

/// Returns the lines that are records.
fn records(log: &str) -> Vec<Record> {
    let record = |line: &str| {
        let mut line: Value = serde_json::from_str(line.trim()).ok()?;
        let what = line.get("desktop")?.as_str()?.to_owned();
        // The kernel's release, without its builder.
        let kernel = line.get("kernel")?.as_str()?.split('-').next()?.to_owned();
        Some(Record { what, kernel, seen: line.get_mut("seen")?.take() })
    };
    log.lines().filter_map(record).collect()
}

/// Returns the first of these records.
fn first<'a>(records: &'a [Record], what: &str, is_it: impl Fn(&Value) -> bool) -> Option<&'a Record> {
    records.iter().find(|record| record.what == what && is_it(&record.seen))
}

fn document(guest: &[Record], here: &[Record]) -> Option<String> {
    let report = first(guest, "foretold", |seen| at(seen, "/session") == "whole" && is_told(seen))?;
    let live = first(here, "live", |_| true)?;
    let alert = first(here, "alert", |_| true)?;
    let part = here.iter().rfind(|record| record.what == "part")?;
    let mut text = String::new();
    let out = &mut text;
    symptom(out, report).ok()?;
    beforehand(out, report, guest, here).ok()?;
    followed(out, live, guest).ok()?;
    ways_out(out, report, guest, here, part).ok()?;
    alerted(out, alert).ok()?;
    Some(text)
}

type Written = std::fmt::Result;

fn symptom(out: &mut String, report: &Record) -> Written {
    let Record { kernel, seen, .. } = report;
    let its = text(at(seen, "/its"));
    writeln!(
        out,
        "# The case that started it: XFCE, TightVNC and IBus in a container

This page is written by `cargo xtask desktop --write-docs`, of real runs: Debian's desktop in a container of runc's, its root on overlayfs, dumped by the real
CRIU 3.17.1 on Linux {kernel} in an emulated machine, and by 4.1.1 and 4.2.1 on the kernel that wrote it. The tests that did so are in
[tests/integration/desktop.rs](../tests/integration/desktop.rs), and `cargo xtask test --everything` runs all of them.

## The symptom

A desktop runs in a container: a VNC server, a session on it, an input method. `runc checkpoint` freezes all of it, works for a
moment, and gives up. In `dump.log`, among thousands of lines:

```text
(...) Error (criu/files-ext.c:...): {its}
(...) Error (criu/cr-dump.c:...): Dumping FAILED.
```

Which program has that fd, and whether it is the only one, it doesn't say. The next try ends with the same line and another number."
    )
}

/// Returns a part of a value, or nothing if it has no such part.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(path).unwrap_or(&Value::Null)
}

/// Returns the text of a string.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn beforehand(out: &mut String, report: &Record, guest: &[Record], here: &[Record]) -> Written {
    writeln!(
        out,
        "
## What fdtracker says beforehand

All of it at once, without stopping anything; the first is what CRIU would stop at. (Both were told where watched files are: of that more below.)

```console
$ fdtracker check desktop --criu 3.17.1{}
{}
```

One blocker hides the next: not told where watched files are, CRIU 3.17.1 stops at a watch, and a newer one at what is left when pidfds are dumped. What `check` lists first, and what CRIU
stops at:
",
        told(report, |path| format!(" --irmap-scan-path {path}")),
        shown(text(at(&report.seen, "/text")))
    )?;
    rows(out, guest, here, |seen| at(seen, "/session") == "whole" && !is_told(seen))
}

/// Returns whether CRIU was told where watched files are.
fn is_told(seen: &Value) -> bool {
    at(seen, "/told").as_array().is_some_and(|paths| !paths.is_empty())
}

/// Returns each path that it was told.
fn told(record: &Record, shown: impl Fn(&str) -> String) -> String {
    at(&record.seen, "/told").as_array().into_iter().flatten().map(|path| shown(text(path))).collect()
}

/// Returns the check as it was printed, with the container's name and not its id.
fn shown(check: &str) -> String {
    let (target, rest) = check.split_once(':').unwrap_or(("", check));
    let is_id = target.len() == 64;
    if is_id { format!("desktop:{}", rest.trim_end()) } else { check.trim_end().to_owned() }
}

/// Writes a table of what `check` predicted and what CRIU did.
fn rows(out: &mut String, guest: &[Record], here: &[Record], are: impl Fn(&Value) -> bool) -> Written {
    writeln!(out, "| CRIU | Linux | `check` counts | `check` lists first | CRIU stops at |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    let chosen = guest.iter().chain(here).filter(|record| record.what == "foretold" && are(&record.seen));
    for Record { kernel, seen, .. } in chosen {
        let kinds: BTreeMap<String, Value> =
            at(seen, "/blockers").as_object().cloned().into_iter().flatten().collect();
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let kinds = if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") };
        let first = match (at(seen, "/first/comm").as_str(), text(at(seen, "/ours"))) {
            (Some(comm), ours) => format!("`{comm}`: `{ours}`"),
            (None, _) => format!("nothing: {}", text(at(seen, "/verdict"))),
        };
        let is = |key: &str| at(seen, key).as_bool() == Some(true);
        let its = match (is("/dumped"), is("/restored")) {
            (true, true) => "nothing: dumped, and restored".to_owned(),
            (true, false) => "nothing: dumped".to_owned(),
            (false, _) => format!("`{}`", text(at(seen, "/its"))),
        };
        writeln!(out, "| {} | {kernel} | {kinds} | {first} | {its} |", text(at(seen, "/criu")))?;
    }
    Ok(())
}

fn followed(out: &mut String, live: &Record, guest: &[Record]) -> Written {
    let counts = |record: &Record| {
        let programs = at(&record.seen, "/pidfds").as_object().into_iter().flatten();
        let counts: Vec<String> = programs.map(|(program, count)| format!("`{program}` {count}")).collect();
        counts.join(", ")
    };
    writeln!(
        out,
        "
## Live

With the agent on the node nobody needs to ask: it has counted them since they were made, by whatever call. On Linux {} these are the pidfds: {}.",
        live.kernel,
        counts(live)
    )?;
    if let Some(live) = first(guest, "live", |_| true) {
        writeln!(out, "On Linux {}: {}.", live.kernel, counts(live))?;
    }
    writeln!(
        out,
        "The bus makes its own by `getsockopt(SO_PEERPIDFD)`, which Linux has since 6.5, and which no probe on `pidfd_open` sees. The tests compare each with `/proc`, also for an agent
that was started later.

```console
$ fdtracker tail --kind pidfd"
    )?;
    for line in at(&live.seen, "/lines").as_array().into_iter().flatten() {
        let word = |key: &str| at(line, &format!("/{key}")).as_str().unwrap_or_default().to_owned();
        let (pid, fd) = (at(line, "/pid"), at(line, "/fd"));
        let (time, container, event) = (word("time"), word("container"), word("event"));
        let (comm, kind, verdict) = (word("comm"), word("kind"), word("verdict"));
        writeln!(out, "{time}  {container}  {event:<8}  {comm}[{pid}]  fd {fd}  {kind}  {verdict}")?;
    }
    writeln!(out, "$ curl -s 127.0.0.1:10460/metrics | grep 'container=\"desktop\"'")?;
    let metrics = at(&live.seen, "/metrics").as_array().into_iter().flatten().filter_map(Value::as_str);
    for line in metrics.filter(|line| line.contains("checkpointable{") || line.contains("open_fds")) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "```")
}

fn ways_out(out: &mut String, report: &Record, guest: &[Record], here: &[Record], part: &Record) -> Written {
    let of = |session: &'static str, is: bool| {
        move |seen: &Value| at(seen, "/session") == session && is_told(seen) == is
    };
    writeln!(
        out,
        "
## Four ways out

Each was tried with each CRIU. What runc had dumped was restored (3.17.1 was started by hand, and left the desktop running): a VNC client then saw the desktop again, and its programs went on.

### 1. A newer CRIU, which is told where watched files are

CRIU 4.1 dumps pidfds, 4.2 sockets on Linux 6.16 and newer. What is left are inotify watches: overlayfs has no file handles that CRIU can open, so it must find the files by
itself. `check` says so, and which option names where to look. In CRIU's configuration file (`/etc/criu/runc.conf`, or what the annotation `org.criu.config`
names, which `check` reads, too):

```text
{}```

CRIU 3.17.1 was given these as options of `criu dump`: releases before 4.0 [lose](https://github.com/checkpoint-restore/criu/pull/2415) what their configuration file names, and look in places
that nobody said. `check` knows that.
",
        told(report, |path| format!("irmap-scan-path {path}\n"))
    )?;
    rows(out, guest, here, of("whole", true))?;
    writeln!(
        out,
        "
### 2. Without IBus

`GTK_IM_MODULE=xim`, and no `ibus-daemon`. It is the advice that is found most, and not enough for an old CRIU: XFCE and the bus have pidfds of their own.
"
    )?;
    rows(out, guest, here, of("without-ibus", false))?;
    writeln!(
        out,
        "
### 3. A simplified session

A window manager and the bus that it needs, without XFCE's session and panel; CRIU was told where watched files are, as above.
"
    )?;
    rows(out, guest, here, of("simplified", true))?;
    // The paragraph with the tree.
    let tree = text(at(&part.seen, "/text")).split("\n\n").find(|part| part.starts_with("process tree"));
    let tree = tree.ok_or(std::fmt::Error)?.trim_end();
    let criu = |record: &&Record| text(at(&record.seen, "/criu")).to_owned();
    let parts = guest.iter().chain(here).filter(|record| record.what == "part");
    let versions: Vec<String> = parts.collect::<Vec<_>>().iter().map(criu).collect();
    let (comm, inner) = (text(at(&part.seen, "/comm")), at(&part.seen, "/inner"));
    writeln!(
        out,
        "
### 4. A part by itself

Often it isn't the desktop that must survive, but a job that was started in it. `check` says of each process whether it, with all below it, could be dumped by itself:

```text
{tree}
```

Here it is `{comm}`. From inside the container, where its pid is {inner}:

```console
# nsenter -t PID-OF-THE-CONTAINER -m -p -i -u criu dump -t {inner} -D /root/images
# nsenter -t PID-OF-THE-CONTAINER -m -p -i -u criu restore --restore-detached -D /root/images
```

CRIU {} did both, in the middle of a desktop that it doesn't dump, and the job went on counting where it was.",
        versions.join(", ")
    )
}

fn alerted(out: &mut String, alert: &Record) -> Written {
    let alert = &alert.seen;
    let annotation = |key: &str| text(at(alert, &format!("/annotations/{key}"))).trim().to_owned();
    writeln!(
        out,
        "
## The alert

Nobody has to try a checkpoint to learn of it. The rule that is shipped ([deploy/prometheus](../deploy/prometheus)), in the real Prometheus, by way of the real Alertmanager:

```text
{} ({}): {}
{}
```

[The runbook](runbooks/FdtrackerContainerNotCheckpointable.md) leads here.",
        text(at(alert, "/labels/alertname")),
        text(at(alert, "/labels/severity")),
        annotation("summary"),
        annotation("description"),
    )
}
