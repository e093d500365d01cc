//! One event, as users see it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tracker_ebpf::Kind;

use super::{Count, OwnerLabels, count_rows, names_path, timestamp};
use crate::{
    bpf::{Change, Event},
    inventory::Counts,
    runtime::Owner,
    verdict::{Blocker, FileKind, Judge, Reason, Verdict},
};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventName {
    /// A slot was filled.
    Opened,
    /// A slot was emptied.
    Closed,
    /// A new process inherited files.
    Forked,
    /// A program was executed.
    Execed,
    /// A process ended.
    Exited,
    /// A task got a table of its own.
    Unshared,
    /// A process was moved to another cgroup.
    Moved,
    /// A container can't be dumped any more.
    Blocked,
    /// A container can be dumped again.
    Unblocked,
    /// Events were not shown.
    Lost,
}

impl EventName {
    /// Returns the stable name that JSON uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Forked => "forked",
            Self::Execed => "execed",
            Self::Exited => "exited",
            Self::Unshared => "unshared",
            Self::Moved => "moved",
            Self::Blocked => "blocked",
            Self::Unblocked => "unblocked",
            Self::Lost => "lost",
        }
    }
}

/// What the event itself doesn't contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// When it happened.
    pub time: Option<SystemTime>,
    /// The process's name, if the event has none.
    pub comm: Option<String>,
    /// The target of the fd's link, for a kind that has no name of its own.
    pub link: Option<String>,
}

/// One line of `tail -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// When it happened: RFC 3339, UTC, microseconds.
    pub time: String,
    /// What happened.
    pub event: EventName,
    /// The container's name; `host` for the host.
    pub container: String,
    /// The container's full id.
    pub container_id: String,
    /// The container's runtime.
    pub runtime: String,
    /// The container's Kubernetes namespace.
    pub namespace: Option<String>,
    /// The container's Kubernetes pod.
    pub pod: Option<String>,
    /// The process, in the initial pid namespace.
    pub pid: u32,
    /// The thread that caused the event.
    pub tid: u32,
    /// The thread's name.
    pub comm: String,
    /// `opened`: the fd number; `closed`: the same, if the probe knows it (the kprobe feeder does
    /// at `close` and `dup2`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<u32>,
    /// `opened`, `closed`: the file's kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<FileKind>,
    /// `opened`, `closed`: the verdict on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// `opened`, for a kind that has no name of its own: the target of the fd's link in `/proc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// `forked`, `execed`, `exited`, `unshared`, `moved`: all counted fds of the table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<Count>,
    /// `blocked`: the stable code of the first blocker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// `blocked`: the message that CRIU would print.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `lost`: how many events were not shown. Counts are exact nevertheless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

impl Notice {
    /// Creates the notice of an event; `None` for an event that is only for the agent itself.
    #[must_use]
    pub fn new(event: &Event, owner: &Owner, details: Details, judge: &Judge) -> Option<Self> {
        let mut notice = Self {
            time: details.time.map(timestamp).unwrap_or_default(),
            pid: event.pid,
            tid: event.tid,
            comm: event.comm.clone().or(details.comm).unwrap_or_default(),
            link: details.link,
            ..Self::about(owner, EventName::Opened)
        };
        match &event.change {
            Change::Opened { fd, tag } => notice.slot(EventName::Opened, Some(*fd), tag.kind()?, judge),
            Change::Closed { fd, tag } => notice.slot(EventName::Closed, *fd, tag.kind()?, judge),
            Change::Forked(counts) => notice.table(EventName::Forked, counts, judge),
            Change::Execed(counts) => notice.table(EventName::Execed, counts, judge),
            Change::Exited(counts) => notice.table(EventName::Exited, counts, judge),
            Change::Unshared(counts) => notice.table(EventName::Unshared, counts, judge),
            Change::Moved(counts) => notice.table(EventName::Moved, counts, judge),
            Change::AuditRequested => return None,
        }
        Some(notice)
    }

    /// Creates the notice that a container can't be dumped any more, with the blocker; or, without
    /// one, that it can be dumped again.
    #[must_use]
    pub fn verdict_changed(owner: &Owner, blocker: Option<&Blocker>) -> Self {
        let time = timestamp(SystemTime::now());
        let mut notice = Self { time, ..Self::about(owner, EventName::Unblocked) };
        if let Some(Blocker { pid, comm, fd, kind, link, judgement }) = blocker {
            notice.event = EventName::Blocked;
            (notice.pid, notice.tid, notice.comm) = (*pid, *pid, comm.clone());
            (notice.fd, notice.kind) = (*fd, Some(*kind));
            notice.link = Some(link.clone());
            notice.verdict = Some(judgement.verdict);
            notice.reason = Some(judgement.reason.clone());
            notice.message = Some(judgement.message.clone());
        }
        notice
    }

    /// Creates the notice that events were lost, because a subscriber or the agent was too slow.
    #[must_use]
    pub fn lost(count: u64) -> Self {
        let time = timestamp(SystemTime::now());
        Self { time, lost: Some(count), ..Self::about(&Owner::Unknown, EventName::Lost) }
    }

    /// Creates a notice of an owner, with nothing else in it.
    fn about(owner: &Owner, event: EventName) -> Self {
        let OwnerLabels { id, name, runtime, namespace, pod, .. } = OwnerLabels::of(owner);
        Self {
            time: String::new(),
            event,
            container: name,
            container_id: id,
            runtime,
            namespace,
            pod,
            pid: 0,
            tid: 0,
            comm: String::new(),
            fd: None,
            kind: None,
            verdict: None,
            link: None,
            counts: Vec::new(),
            reason: None,
            message: None,
            lost: None,
        }
    }

    fn slot(&mut self, event: EventName, fd: Option<u32>, kind: Kind, judge: &Judge) {
        self.event = event;
        self.fd = fd;
        self.kind = Some(kind.into());
        self.verdict = Some(judge.kind(kind));
    }

    fn table(&mut self, event: EventName, counts: &Counts, judge: &Judge) {
        self.event = event;
        self.counts = count_rows(counts.judged(judge));
    }

    /// Whether it contains a path.
    #[must_use]
    pub fn has_paths(&self) -> bool {
        self.link.iter().chain(&self.message).any(|text| names_path(text))
    }

    /// Removes the link and the message if they contain a path.
    pub fn hide_paths(&mut self) {
        for text in [&mut self.link, &mut self.message] {
            text.take_if(|text| names_path(text));
        }
    }

    /// Whether this is about a kind. Losses are about every kind.
    #[must_use]
    pub fn is_about(&self, kind: Kind) -> bool {
        self.lost.is_some()
            || self.kind == Some(kind.into())
            || self.counts.iter().any(|count| count.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use tracker_ebpf::Tag;

    use super::*;
    use crate::{
        host::KernelVersion,
        verdict::{Profile, Rules},
    };

    fn judge() -> Judge {
        let kernel = KernelVersion { major: 6, minor: 1 };
        Judge::new(Rules::embedded().unwrap(), Profile::new("4.0".parse().ok(), None, kernel))
    }

    fn notice(change: Change, details: Details) -> Notice {
        let event = Event { pid: 7, tid: 8, comm: Some("ibus".into()), time_ns: 1, cgroup_id: 1, change };
        Notice::new(&event, &Owner::Host, details, &judge()).unwrap()
    }

    #[test]
    fn the_fields_of_an_opened_fd() {
        let tag = Tag::new(Kind::Pidfd.index() as u64, 0);
        let time = Some(std::time::UNIX_EPOCH);
        let notice = notice(Change::Opened { fd: 9, tag }, Details { time, ..Details::default() });
        assert_eq!(
            serde_json::to_string(&notice).unwrap(),
            r#"{"time":"1970-01-01T00:00:00.000000Z","event":"opened","container":"host","container_id":"host","runtime":"host","namespace":null,"pod":null,"pid":7,"tid":8,"comm":"ibus","fd":9,"kind":"pidfd","verdict":"blocked"}"#
        );
    }

    #[test]
    fn the_fields_of_an_exit() {
        let mut n = [0_u32; Kind::COUNT];
        n[Kind::Eventfd.index()] = 2;
        let notice = notice(Change::Exited(Counts::from(&n)), Details::default());
        let json = serde_json::to_value(&notice).unwrap();
        assert_eq!(json["counts"], serde_json::json!([{"kind": "eventfd", "verdict": "ok", "count": 2}]));
        assert!(json.get("fd").is_none());
        assert!(notice.is_about(Kind::Eventfd) && !notice.is_about(Kind::Pidfd));
    }

    #[test]
    fn a_loss_is_about_everything() {
        assert!(Notice::lost(3).is_about(Kind::Pidfd));
    }
}
