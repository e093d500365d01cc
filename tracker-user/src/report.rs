//! What users are shown, as plain data: the JSON of `ls` and `tail`, and of the agent's socket.
//!
//! Field names are stable.

mod check;
mod container;

use std::time::SystemTime;

pub use check::{BlockerRow, Check, StepRow, SubtreeRow};
pub use container::ContainerReport;
use serde::{Deserialize, Serialize};
use tracker_ebpf::Kind;

use crate::{
    bpf::{Change, Event},
    host,
    inventory::{Counts, Entry, Inventory},
    runtime::{Container, Owner},
    verdict::{Blocker, Judge, Verdict},
};

/// The event of a container that can be dumped again.
pub const UNBLOCKED: &str = "unblocked";

/// The document that `ls -o json` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The CRIU that verdicts are about.
    pub criu: Criu,
    /// The host first, then containers by name.
    pub containers: Vec<ContainerRow>,
}

/// The CRIU that verdicts are about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criu {
    /// Its version.
    pub version: String,
    /// `given`, `path` or `assumed`.
    pub source: String,
}

/// A container, or the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// Full id; `host` for the host.
    pub id: String,
    /// Name, or the id's first 12 digits.
    pub name: String,
    /// What runs it; `host` for the host.
    pub runtime: String,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Kubernetes pod.
    pub pod: Option<String>,
    /// The image that it was made from.
    #[serde(default)]
    pub image: Option<String>,
    /// Path from the cgroup hierarchy's root.
    pub cgroup: String,
    /// What CRIU would make of it, or `stale` while a count is being repaired.
    pub state: String,
    /// Open fds per kind; kinds without any are left out.
    pub counts: Vec<Count>,
    /// Processes that have any, by pid; with `--processes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Vec<ProcessRow>>,
}

/// Open fds of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The kind's name.
    pub kind: String,
    /// What CRIU would make of each.
    pub verdict: String,
    /// How many.
    pub count: i64,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRow {
    /// Its pid, in the initial pid namespace.
    pub pid: u32,
    /// Its name; empty when it has gone.
    pub comm: String,
    /// Its open fds per kind.
    pub counts: Vec<Count>,
}

/// The name, id and runtime of the host's entry.
pub const HOST: &str = "host";

/// The name of the entry for what could not be told.
pub const UNKNOWN: &str = "unknown";

/// What containers without series of their own are summed up as.
pub const OTHER: &str = "other";

impl Listing {
    /// Lists an inventory.
    #[must_use]
    pub fn new(inventory: &Inventory, judge: &Judge, processes: bool) -> Self {
        let mut containers = vec![ContainerRow::new(&Owner::Host, &inventory.host, judge, processes)];
        if inventory.unknown.counts.total() > 0 {
            containers.push(ContainerRow::new(&Owner::Unknown, &inventory.unknown, judge, processes));
        }
        containers.extend(inventory.containers.iter().map(|(container, entry)| {
            ContainerRow::new(&Owner::Container(container.clone()), entry, judge, processes)
        }));
        Self { criu: Criu::new(judge), containers }
    }
}

impl Criu {
    fn new(judge: &Judge) -> Self {
        let profile = judge.profile();
        Self { version: profile.version.to_string(), source: profile.source.to_string() }
    }
}

impl ContainerRow {
    fn new(owner: &Owner, entry: &Entry, judge: &Judge, processes: bool) -> Self {
        let Who { id, name, runtime, namespace, pod, image, cgroup } = Who::of(owner);
        let process = |(pid, counts): (&u32, &Counts)| ProcessRow {
            pid: *pid,
            comm: host::comm(*pid).unwrap_or_default(),
            counts: rows(counts, judge),
        };
        Self {
            id,
            name,
            runtime,
            namespace,
            pod,
            image,
            cgroup,
            state: entry.state(judge).to_owned(),
            counts: count_rows(entry.judged(judge)),
            processes: processes.then(|| entry.processes.iter().map(process).collect()),
        }
    }
}

fn rows(counts: &Counts, judge: &Judge) -> Vec<Count> {
    count_rows(counts.judged(judge))
}

fn count_rows(judged: impl IntoIterator<Item = (Kind, Verdict, i64)>) -> Vec<Count> {
    judged
        .into_iter()
        .map(|(kind, verdict, count)| Count {
            kind: kind.name().into(),
            verdict: verdict.name().into(),
            count,
        })
        .collect()
}

/// How an owner is called.
struct Who {
    id: String,
    name: String,
    runtime: String,
    namespace: Option<String>,
    pod: Option<String>,
    image: Option<String>,
    cgroup: String,
}

impl Who {
    fn of(owner: &Owner) -> Self {
        let fixed = |name: &str, cgroup: &str| Self {
            id: name.into(),
            name: name.into(),
            runtime: name.into(),
            namespace: None,
            pod: None,
            image: None,
            cgroup: cgroup.into(),
        };
        match owner {
            Owner::Host => fixed(HOST, "/"),
            Owner::Unknown => fixed(UNKNOWN, ""),
            Owner::Container(c) => {
                let Container { id, name, runtime, namespace, pod, image, cgroup, .. } = c.as_ref().clone();
                Self { id, name, runtime: runtime.to_string(), namespace, pod, image, cgroup }
            }
        }
    }
}

/// One line of `tail -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// When it happened: RFC 3339, UTC, microseconds.
    pub time: String,
    /// `opened`, `closed`, `forked`, `execed`, `exited`, `unshared`, `moved`, `blocked`, `unblocked`, or `lost`.
    pub event: String,
    /// The container's name; `host` for the host.
    pub container: String,
    /// The container's full id.
    pub container_id: String,
    /// What runs it.
    pub runtime: String,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Kubernetes pod.
    pub pod: Option<String>,
    /// Process, in the initial pid namespace.
    pub pid: u32,
    /// Thread that caused it.
    pub tid: u32,
    /// The thread's name.
    pub comm: String,
    /// `opened`: the fd number; `closed`: the same, where the probe could tell (the kprobe feeder can at `close` and `dup2`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<u32>,
    /// `opened`, `closed`: the file's kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `opened`, `closed`: what CRIU would make of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// `opened`, of a kind that has no name of its own: what the fd's link in `/proc` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// `forked`, `execed`, `exited`, `unshared`, `moved`: all of the table's fds that are counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<Count>,
    /// `blocked`: the first thing that stands in the way, by its stable code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `blocked`: what CRIU would say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `lost`: how many events were not shown. Counts are exact all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

impl Notice {
    /// Describes an event; `None` for one that is only for the agent itself.
    #[must_use]
    pub fn new(event: &Event, owner: &Owner, judge: &Judge) -> Option<Self> {
        let Who { id, name, runtime, namespace, pod, .. } = Who::of(owner);
        let mut notice = Self {
            time: timestamp(host::wall_clock(event.time_ns)),
            event: String::new(),
            container: name,
            container_id: id,
            runtime,
            namespace,
            pod,
            pid: event.pid,
            tid: event.tid,
            comm: event.comm.clone().or_else(|| host::comm(event.pid)).unwrap_or_default(),
            fd: None,
            kind: None,
            verdict: None,
            link: None,
            counts: Vec::new(),
            reason: None,
            message: None,
            lost: None,
        };
        match &event.change {
            Change::Opened { fd, tag } => {
                notice.slot("opened", Some(*fd), tag.kind()?, judge);
                if tag.kind() == Some(Kind::AnonOther) {
                    notice.link = host::fd_link(event.pid, *fd);
                }
            }
            Change::Closed { fd, tag } => notice.slot("closed", *fd, tag.kind()?, judge),
            Change::Forked(counts) => notice.table("forked", counts, judge),
            Change::Execed(counts) => notice.table("execed", counts, judge),
            Change::Exited(counts) => notice.table("exited", counts, judge),
            Change::Unshared(counts) => notice.table("unshared", counts, judge),
            Change::Moved(counts) => notice.table("moved", counts, judge),
            Change::Uncertain => return None,
        }
        Some(notice)
    }

    /// Says that a container can't be dumped any more, and what stands in the way; or that it can be again.
    #[must_use]
    pub fn standing(owner: &Owner, blocker: Option<&Blocker>) -> Self {
        let Who { id, name, runtime, namespace, pod, .. } = Who::of(owner);
        let mut notice =
            Self { container: name, container_id: id, runtime, namespace, pod, lost: None, ..Self::lost(0) };
        notice.event = UNBLOCKED.into();
        if let Some(Blocker { pid, comm, fd, kind, link, judgement }) = blocker {
            notice.event = "blocked".into();
            (notice.pid, notice.tid, notice.comm) = (*pid, *pid, comm.clone());
            (notice.fd, notice.kind) = (*fd, Some(kind.name().into()));
            notice.link = Some(link.clone());
            notice.verdict = Some(judgement.verdict.name().into());
            notice.reason = Some(judgement.reason.clone());
            notice.message = Some(judgement.message.clone());
        }
        notice
    }

    /// Says that a reader was too slow for the events, or the agent for the kernel.
    #[must_use]
    pub fn lost(count: u64) -> Self {
        let unknown = Who::of(&Owner::Unknown);
        Self {
            time: timestamp(SystemTime::now()),
            event: "lost".into(),
            container: unknown.name,
            container_id: unknown.id,
            runtime: unknown.runtime,
            namespace: None,
            pod: None,
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
            lost: Some(count),
        }
    }

    fn slot(&mut self, event: &str, fd: Option<u32>, kind: Kind, judge: &Judge) {
        self.event = event.into();
        self.fd = fd;
        self.kind = Some(kind.name().into());
        self.verdict = Some(judge.kind(kind).name().into());
    }

    fn table(&mut self, event: &str, counts: &Counts, judge: &Judge) {
        self.event = event.into();
        self.counts = rows(counts, judge);
    }

    /// Whether it names a file by its path.
    #[must_use]
    pub fn has_paths(&self) -> bool {
        self.link.iter().chain(&self.message).any(|text| names_path(text))
    }

    /// Leaves out what names a file by its path.
    pub fn hide_paths(&mut self) {
        for text in [&mut self.link, &mut self.message] {
            text.take_if(|text| names_path(text));
        }
    }

    /// Whether this is about a kind. What was lost is about every kind.
    #[must_use]
    pub fn is_about(&self, kind: &str) -> bool {
        self.lost.is_some()
            || self.kind.as_deref() == Some(kind)
            || self.counts.iter().any(|count| count.kind == kind)
    }
}

/// Whether a text has an absolute path in it: a slash that doesn't follow a word, as in `sid/pgrp`.
fn names_path(text: &str) -> bool {
    let before = |at: usize| text.get(..at).and_then(|before| before.chars().next_back());
    text.match_indices('/').any(|(at, _)| !before(at).is_some_and(char::is_alphanumeric))
}

/// RFC 3339 with microseconds.
fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |t| format!("{t:.6}"))
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

    fn event(change: Change) -> Event {
        Event { pid: 7, tid: 8, comm: Some("ibus".into()), time_ns: 1, cgroup_id: 1, change }
    }

    #[test]
    fn the_fields_of_an_opened_fd() {
        let tag = Tag::new(Kind::Pidfd.index() as u64, 0);
        let opened = event(Change::Opened { fd: 9, tag });
        let mut notice = Notice::new(&opened, &Owner::Host, &judge()).unwrap();
        notice.time = "2026-01-01T00:00:00.000000Z".into();
        assert_eq!(
            serde_json::to_string(&notice).unwrap(),
            r#"{"time":"2026-01-01T00:00:00.000000Z","event":"opened","container":"host","container_id":"host","runtime":"host","namespace":null,"pod":null,"pid":7,"tid":8,"comm":"ibus","fd":9,"kind":"pidfd","verdict":"blocked"}"#
        );
    }

    #[test]
    fn the_fields_of_an_exit() {
        let mut n = [0_u32; Kind::COUNT];
        n[Kind::Eventfd.index()] = 2;
        let exited = event(Change::Exited(Counts::from(&n)));
        let notice = Notice::new(&exited, &Owner::Host, &judge()).unwrap();
        let json = serde_json::to_value(&notice).unwrap();
        assert_eq!(json["counts"], serde_json::json!([{"kind": "eventfd", "verdict": "ok", "count": 2}]));
        assert!(json.get("fd").is_none());
        assert!(notice.is_about("eventfd") && !notice.is_about("pidfd"));
    }

    #[test]
    fn a_loss_is_about_everything() {
        assert!(Notice::lost(3).is_about("pidfd"));
    }

    #[test]
    fn paths_are_told_from_other_slashes() {
        for path in ["/a", "Can't dump ghost file /tmp/a of 1 size", "path=/a b", "(unknown /dev/x)"] {
            assert!(names_path(path), "{path}");
        }
        for other in ["", "sid/pgrp 1, no peer", "err -1/10", "anon_inode:[pidfd]"] {
            assert!(!names_path(other), "{other}");
        }
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_micros(1_500_000);
        assert_eq!(timestamp(at), "1970-01-01T00:00:01.500000Z");
    }

    #[test]
    fn a_listing_has_the_host_first() {
        let listing = Listing::new(&Inventory::default(), &judge(), true);
        let json = serde_json::to_value(&listing).unwrap();
        assert_eq!(json["containers"][0]["name"], "host");
        assert_eq!(json["containers"][0]["processes"], serde_json::json!([]));
        assert_eq!(json["criu"]["version"], "4.0");
    }
}
