//! The data that goes over the wire: the JSON of `ls`, `tail` and `check`, and of the agent's
//! socket. Field names are stable. No I/O: callers provide what must be read.
//!
//! - `check`: the result of `check`; `container`: the answer about one container;
//! - `notice`: one event; `feed`: sends events to subscribers.

mod check;
mod container;
mod feed;
mod notice;

use std::time::SystemTime;

pub use check::{BlockerRow, Check, StepRow, SubtreeRow};
pub use container::ContainerReport;
pub use feed::{Feed, Filter, FilterError, Line, Subscription, parameters};
pub use notice::{Details, EventName, Notice};
use serde::{Deserialize, Serialize};
use tracker_ebpf::Kind;

use crate::{
    inventory::{Counts, Entry, Inventory, State},
    runtime::{Container, Owner},
    verdict::{Judge, Profile, Verdict},
};

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
    /// Its full id; `host` for the host.
    pub id: String,
    /// Its name, or the id's first 12 digits.
    pub name: String,
    /// The runtime that runs it; `host` for the host.
    pub runtime: String,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Kubernetes pod.
    pub pod: Option<String>,
    /// The image that it was made from.
    #[serde(default)]
    pub image: Option<String>,
    /// Its cgroup's path from the hierarchy's root.
    pub cgroup: String,
    /// The verdict, or `stale` while a count is being repaired.
    pub state: State,
    /// Open fds of each kind; kinds without any are left out.
    pub counts: Vec<Count>,
    /// Processes that have any, by pid; only with `--processes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Vec<ProcessRow>>,
}

/// Open fds of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Their kind.
    pub kind: Kind,
    /// The verdict on each.
    pub verdict: Verdict,
    /// How many there are.
    pub count: i64,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRow {
    /// Its pid, in the initial pid namespace.
    pub pid: u32,
    /// Its name; empty when it has gone.
    pub comm: String,
    /// Its open fds of each kind.
    pub counts: Vec<Count>,
}

/// The name, id and runtime of the host's entry.
pub const HOST: &str = "host";

/// The name of the entry for owners that aren't known.
pub const UNKNOWN: &str = "unknown";

/// The name of the sum of containers without series of their own.
pub const OTHER: &str = "other";

impl Listing {
    /// Lists a judged inventory; with processes, if `comm` is given to name them.
    #[must_use]
    pub fn new(inventory: &Inventory, judge: &Judge, comm: Option<Comm<'_>>) -> Self {
        let mut containers = vec![ContainerRow::new(&Owner::Host, &inventory.host, judge, comm)];
        if inventory.unknown.counts.total() > 0 {
            containers.push(ContainerRow::new(&Owner::Unknown, &inventory.unknown, judge, comm));
        }
        containers.extend(inventory.containers.iter().map(|(container, entry)| {
            ContainerRow::new(&Owner::Container(container.clone()), entry, judge, comm)
        }));
        Self { criu: Criu::new(judge.profile()), containers }
    }
}

impl Criu {
    fn new(profile: &Profile) -> Self {
        Self { version: profile.version.to_string(), source: profile.source.to_string() }
    }
}

/// Returns the name of a process; empty if it has gone.
pub type Comm<'a> = &'a dyn Fn(u32) -> String;

impl ContainerRow {
    fn new(owner: &Owner, entry: &Entry, judge: &Judge, comm: Option<Comm<'_>>) -> Self {
        let OwnerLabels { id, name, runtime, namespace, pod, image, cgroup } = OwnerLabels::of(owner);
        let rows = |comm: Comm<'_>| {
            let row = |(pid, held): (&u32, &Counts)| ProcessRow {
                pid: *pid,
                comm: comm(*pid),
                counts: count_rows(held.judged(judge)),
            };
            entry.processes.iter().map(row).collect()
        };
        Self {
            id,
            name,
            runtime,
            namespace,
            pod,
            image,
            cgroup,
            state: entry.state(),
            counts: count_rows(entry.judged.files.iter().copied()),
            processes: comm.map(rows),
        }
    }
}

fn count_rows(judged: impl IntoIterator<Item = (Kind, Verdict, i64)>) -> Vec<Count> {
    judged.into_iter().map(|(kind, verdict, count)| Count { kind, verdict, count }).collect()
}

/// The labels that identify an owner.
struct OwnerLabels {
    id: String,
    name: String,
    runtime: String,
    namespace: Option<String>,
    pod: Option<String>,
    image: Option<String>,
    cgroup: String,
}

impl OwnerLabels {
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

/// Whether a text contains an absolute path: a slash that doesn't follow a word, unlike in
/// `sid/pgrp`.
fn names_path(text: &str) -> bool {
    let before = |at: usize| text.get(..at).and_then(|before| before.chars().next_back());
    text.match_indices('/').any(|(at, _)| !before(at).is_some_and(char::is_alphanumeric))
}

/// Formats a time as RFC 3339 with microseconds.
fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |t| format!("{t:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::KernelVersion,
        verdict::{Profile, Rules},
    };

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
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1500);
        assert_eq!(timestamp(at), "1970-01-01T00:00:01.500000Z");
    }

    #[test]
    fn a_listing_has_the_host_first() {
        let kernel = KernelVersion { major: 6, minor: 1 };
        let judge = Judge::new(Rules::embedded().unwrap(), Profile::new("4.0".parse().ok(), None, kernel));
        let listing = Listing::new(&Inventory::default(), &judge, Some(&|_| String::new()));
        let json = serde_json::to_value(&listing).unwrap();
        assert_eq!(json["containers"][0]["name"], "host");
        assert_eq!(json["containers"][0]["processes"], serde_json::json!([]));
        assert_eq!(json["criu"]["version"], "4.0");
    }
}
