//! Prints tables, JSON and events.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    api::{BlockerRow, Check, ContainerRow, Count, EventName, Listing, Notice, SubtreeRow},
    verdict::Verdict,
};

/// Prints one JSON document.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Prints a table.
pub(super) fn table<H: AsRef<str>>(
    header: &[H],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    // A terminal that doesn't know its width, such as a serial console, reports 0.
    if table.width() == Some(0) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(header.iter().map(AsRef::as_ref));
    for row in rows {
        table.add_row(row);
    }
    let mut out = io::stdout().lock();
    for line in table.lines() {
        // The table pads columns on both sides.
        writeln!(out, "{}", line.strip_prefix(' ').unwrap_or(&line).trim_end())?;
    }
    out.flush()
}

/// Prints containers, one in each row, and their processes below.
pub(super) fn listing(listing: &Listing) -> io::Result<()> {
    let with_processes = listing.containers.iter().any(|container| container.processes.is_some());
    let head = |name: &str, runtime: &str, state: &str| vec![printable(name), runtime.into(), state.into()];
    let row = |mut row: Vec<String>, pid: &str, comm: &str, fds: &[Count]| {
        if with_processes {
            row.extend([pid.to_owned(), printable(comm)]);
        }
        row.push(counts(fds));
        row
    };
    let mut rows = Vec::new();
    for container in &listing.containers {
        let ContainerRow { name, runtime, state, counts, .. } = container;
        rows.push(row(head(name, runtime, state.name()), "", "", counts));
        for process in container.processes.iter().flatten() {
            rows.push(row(head("", "", ""), &process.pid.to_string(), &process.comm, &process.counts));
        }
    }
    let mut header = vec!["NAME", "RUNTIME", "STATE"];
    if with_processes {
        header.extend(["PID", "COMM"]);
    }
    header.push("OPEN FDS");
    table(&header, rows)
}

/// Prints what CRIU would say about a tree.
pub(super) fn check(check: &Check) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let note = check.criu.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    let options = check.criu.options.iter().fold(String::new(), |text, option| format!("{text} {option}"));
    writeln!(
        out,
        "{}: {}, with CRIU {}{note}{options} on Linux {}",
        printable(&check.target),
        check.verdict,
        check.criu.version,
        check.kernel
    )?;
    if !check.frozen {
        writeln!(out, "(of one moment: --freeze makes it exact)")?;
    }
    blockers(&mut out, &check.blockers)?;
    writeln!(out, "\nprocess tree, each as if it were dumped by itself:")?;
    for subtree in &check.tree {
        let SubtreeRow { pid, comm, depth, verdict, blockers, .. } = subtree;
        let why = if *blockers > 0 { format!(" ({blockers})") } else { String::new() };
        writeln!(out, "  {}{}[{pid}]  {verdict}{why}", "  ".repeat(*depth), printable(comm))?;
    }
    if !check.plan.is_empty() {
        writeln!(out, "\nthe shortest way to a dump of the whole:")?;
    }
    for (number, step) in check.plan.iter().enumerate() {
        let what = printable(&step.what);
        let text = match step.action {
            "option" => format!("give CRIU {what}"),
            "criu" => format!("use CRIU {what} or newer"),
            _ => {
                let pids = step.pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
                format!("{what} (process {pids})")
            }
        };
        writeln!(out, "  {}. {text}", number + 1)?;
    }
    out.flush()
}

/// Prints blockers by process. Files of a process with the same message, except for the fd's
/// number, are printed once.
fn blockers(out: &mut impl Write, blockers: &[BlockerRow]) -> io::Result<()> {
    let mut process = None;
    let alike = |a: &BlockerRow, b: &BlockerRow| {
        (a.pid, a.kind, &a.link, &a.remedy) == (b.pid, b.kind, &b.link, &b.remedy)
            && without_fd(a) == without_fd(b)
    };
    for group in blockers.chunk_by(alike) {
        let Some(first) = group.first() else { continue };
        if process != Some(first.pid) {
            process = Some(first.pid);
            writeln!(out, "\n{}[{}]", printable(&first.comm), first.pid)?;
        }
        let fds: Vec<u32> = group.iter().filter_map(|blocker| blocker.fd).collect();
        let fds = if fds.is_empty() { "no fd".to_owned() } else { format!("fd {}", ranges(&fds)) };
        let link =
            if first.link.is_empty() { String::new() } else { format!("  {}", printable(&first.link)) };
        writeln!(out, "  {fds}  {}{link}  {}: {}", first.kind, first.verdict, first.reason)?;
        if !first.message.is_empty() {
            let differ = group.iter().any(|blocker| blocker.message != first.message);
            let of = if differ { ", of the first" } else { "" };
            writeln!(out, "    CRIU says{of}: {}", printable(&first.message))?;
        }
        writeln!(out, "    {}", printable(&first.remedy))?;
    }
    Ok(())
}

/// Returns CRIU's message about a file, without the fd's number.
fn without_fd(blocker: &BlockerRow) -> Cow<'_, str> {
    match blocker.fd {
        Some(fd) => blocker.message.replace(&format!(" {fd} "), " # ").into(),
        None => (&blocker.message).into(),
    }
}

/// Formats numbers as `3, 5, 7-11`, as lists of processors are written.
fn ranges(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b)).filter_map(|run| {
        match (run.first()?, run.last()?) {
            (first, last) if first == last => Some(first.to_string()),
            (first, last) if last - first == 1 => Some(format!("{first}, {last}")),
            (first, last) => Some(format!("{first}-{last}")),
        }
    });
    runs.collect::<Vec<_>>().join(", ")
}

/// Returns a name that a container may have chosen, without characters that move a terminal's
/// cursor.
pub(super) fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn counts(counts: &[Count]) -> String {
    if counts.is_empty() {
        return "-".into();
    }
    let one = |c: &Count| match c.verdict {
        Verdict::Ok => format!("{} {}", c.count, c.kind.name()),
        verdict => format!("{} {} ({verdict})", c.count, c.kind.name()),
    };
    counts.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Prints lines on a thread of its own, because standard output may block for any time.
pub(super) struct Printer {
    lines: mpsc::Sender<String>,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Printer {
    /// The most lines that wait for the thread.
    const QUEUE: usize = 256;

    /// Starts the thread.
    pub(super) fn start() -> Self {
        let (lines, mut queue) = mpsc::channel::<String>(Self::QUEUE);
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let mut print = || {
                while let Some(line) = queue.blocking_recv() {
                    let mut out = io::stdout().lock();
                    writeln!(out, "{line}")?;
                    if queue.is_empty() {
                        out.flush()?;
                    }
                }
                Ok(())
            };
            let result = print();
            // An error means that nobody waits any more.
            let _ = end.send(result);
        });
        Self { lines, ended }
    }

    /// Prints a line. Waits while too many lines wait for the thread.
    ///
    /// # Errors
    /// When standard output is closed, or can't be written.
    pub(super) async fn print(&mut self, line: String) -> io::Result<()> {
        if self.lines.send(line).await.is_ok() {
            return Ok(());
        }
        (&mut self.ended).await.unwrap_or(Ok(()))?;
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

/// Formats an event as a line for people.
pub(super) fn notice(notice: &Notice) -> String {
    if let Some(lost) = notice.lost {
        return format!("{}  {lost} events were not shown (counts are exact all the same)", notice.time);
    }
    let Notice { time, event, container, pid, comm, .. } = notice;
    let (container, comm) = (printable(container), printable(comm));
    let event_name = event.name();
    if *event == EventName::Unblocked {
        return format!("{time}  {container}  {event_name:<8}");
    }
    let head = format!("{time}  {container}  {event_name:<8}  {comm}[{pid}]");
    if let (Some(reason), Some(message)) = (&notice.reason, &notice.message) {
        let fd = notice.fd.map(|fd| format!("fd {fd}  ")).unwrap_or_default();
        return format!("{head}  {fd}{reason}: {}", printable(message));
    }
    match (notice.fd, &notice.kind, &notice.verdict) {
        (Some(fd), Some(kind), Some(verdict)) => {
            let link = notice.link.as_ref().map(|link| format!(" {}", printable(link))).unwrap_or_default();
            format!("{head}  fd {fd}  {kind}{link}  {verdict}")
        }
        _ => format!("{head}  {}", counts(&notice.counts)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracker_ebpf::Kind;

    use crate::verdict::FileKind;

    #[test]
    fn names_move_no_cursor() {
        assert_eq!(printable("a\x1b[2J\nb"), "a\u{fffd}[2J\u{fffd}b");
    }

    fn blocker(fd: Option<u32>, message: &str) -> BlockerRow {
        BlockerRow {
            pid: 7,
            comm: "dbus-daemon".into(),
            fd,
            kind: FileKind::Pidfd,
            link: "anon_inode:[pidfd]".into(),
            verdict: Verdict::Blocked,
            reason: "pidfd_unsupported".parse().unwrap(),
            message: message.into(),
            remedy: "use CRIU 4.1 or newer".into(),
        }
    }

    fn shown(rows: &[BlockerRow]) -> String {
        let mut out = Vec::new();
        blockers(&mut out, rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_differs_in_the_number_alone_is_said_once() {
        let rows: Vec<_> =
            [3, 5, 6, 7].map(|fd| blocker(Some(fd), &format!("Can't dump file {fd} of that type"))).into();
        let text = shown(&rows);
        assert!(text.contains("fd 3, 5-7  pidfd"), "{text}");
        assert!(text.contains("CRIU says, of the first: Can't dump file 3 of that type\n"), "{text}");
        assert_eq!(text.matches("use CRIU").count(), 1, "{text}");
        let other = shown(&[blocker(Some(3), "Can't dump file 3"), blocker(Some(4), "Can't close file 4")]);
        assert_eq!(other.matches("use CRIU").count(), 2, "{other}");
        let same = shown(&[blocker(None, "Unsupported"), blocker(None, "Unsupported")]);
        assert!(same.contains("  no fd  ") && same.contains("CRIU says: Unsupported\n"), "{same}");
    }

    #[test]
    fn numbers_that_follow_each_other_are_a_range() {
        assert_eq!(ranges(&[1, 2, 4, 6, 7, 8, 10]), "1, 2, 4, 6-8, 10");
        assert_eq!(ranges(&[u32::MAX]), u32::MAX.to_string());
    }

    #[test]
    fn an_event_is_a_line() {
        let opened = Notice {
            time: "T".into(),
            event: EventName::Opened,
            container: "web".into(),
            pid: 7,
            comm: "ibus".into(),
            fd: Some(9),
            kind: Some(Kind::Pidfd.into()),
            verdict: Some(Verdict::Blocked),
            lost: None,
            ..Notice::lost(0)
        };
        assert_eq!(notice(&opened), "T  web  opened    ibus[7]  fd 9  pidfd  blocked");
        let count = |kind, verdict| Count { kind, verdict, count: 2 };
        let counts = vec![count(Kind::Pidfd, Verdict::Blocked), count(Kind::Eventfd, Verdict::Ok)];
        let exited = Notice { event: EventName::Exited, fd: None, kind: None, counts, ..opened };
        assert_eq!(notice(&exited), "T  web  exited    ibus[7]  2 pidfd (blocked), 2 eventfd");
    }
}
