//! How things are printed.

use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use serde::Serialize;

use crate::report::{ContainerRow, Count, Listing, Notice};

/// Prints one JSON document.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Prints a table.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    let mut out = io::stdout().lock();
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    out.flush()
}

/// Prints containers, one per row, and their processes below.
pub(super) fn listing(listing: &Listing) -> io::Result<()> {
    let header = ["NAME", "RUNTIME", "STATE", "PID", "COMM", "OPEN FDS"];
    let rows = listing.containers.iter().flat_map(|container| {
        let ContainerRow { name, runtime, state, counts: fds, .. } = container;
        let row =
            vec![name.clone(), runtime.clone(), state.clone(), String::new(), String::new(), counts(fds)];
        let processes = container.processes.iter().flatten().map(|process| {
            let pid = process.pid.to_string();
            vec![
                String::new(),
                String::new(),
                String::new(),
                pid,
                process.comm.clone(),
                counts(&process.counts),
            ]
        });
        std::iter::once(row).chain(processes)
    });
    let with_processes = listing.containers.iter().any(|c| c.processes.is_some());
    if with_processes {
        return table(&header, rows);
    }
    let short: Vec<&str> = header.into_iter().filter(|name| !matches!(*name, "PID" | "COMM")).collect();
    table(
        &short,
        rows.map(|row| {
            row.into_iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, c)| c).collect()
        }),
    )
}

fn counts(counts: &[Count]) -> String {
    if counts.is_empty() {
        return "-".into();
    }
    let one = |c: &Count| match c.verdict.as_str() {
        "ok" => format!("{} {}", c.count, c.kind),
        verdict => format!("{} {} ({verdict})", c.count, c.kind),
    };
    counts.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// One event as a line for people.
pub(super) fn notice(notice: &Notice) -> String {
    if let Some(lost) = notice.lost {
        return format!("{}  {lost} events were not shown (counts are exact all the same)", notice.time);
    }
    let Notice { time, event, container, pid, comm, .. } = notice;
    let head = format!("{time}  {container}  {event:<8}  {comm}[{pid}]");
    match (notice.fd, &notice.kind, &notice.verdict) {
        (Some(fd), Some(kind), Some(verdict)) => {
            let link = notice.link.as_ref().map(|link| format!(" {link}")).unwrap_or_default();
            format!("{head}  fd {fd}  {kind}{link}  {verdict}")
        }
        _ => format!("{head}  {}", counts(&notice.counts)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let opened = Notice {
            time: "T".into(),
            event: "opened".into(),
            container: "web".into(),
            pid: 7,
            comm: "ibus".into(),
            fd: Some(9),
            kind: Some("pidfd".into()),
            verdict: Some("blocked".into()),
            lost: None,
            ..Notice::lost(0)
        };
        assert_eq!(notice(&opened), "T  web  opened    ibus[7]  fd 9  pidfd  blocked");
        let count =
            |kind: &str, verdict: &str| Count { kind: kind.into(), verdict: verdict.into(), count: 2 };
        let counts = vec![count("pidfd", "blocked"), count("eventfd", "ok")];
        let exited = Notice { event: "exited".into(), fd: None, kind: None, counts, ..opened };
        assert_eq!(notice(&exited), "T  web  exited    ibus[7]  2 pidfd (blocked), 2 eventfd");
    }
}
