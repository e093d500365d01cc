//! All metrics, as `/metrics` and docs/metrics.md describe them.

use std::fmt::Write as _;

use prometheus::proto::MetricType;

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How its values change.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// Its meaning, in one or a few sentences, as Prometheus shows them.
    pub help: &'static str,
}

/// How a metric's values change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They only increase, until the agent is restarted.
    Counter,
    /// They increase and decrease.
    Gauge,
}

impl Kind {
    pub(super) const fn proto(self) -> MetricType {
        match self {
            Self::Counter => MetricType::COUNTER,
            Self::Gauge => MetricType::GAUGE,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// The labels that identify a container, as in kubelet's and cadvisor's metrics.
const CONTAINER: &[&str] = &["namespace", "pod", "container"];

/// Defines metrics, and the list of them all in the order of their definition.
macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(pub(super) static $id: Metric = Metric { name: $name, kind: Kind::$kind, labels: $labels, help: $help };)*

        /// All metrics of the agent, besides `process_*`, which every Prometheus client has.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    OPEN_FDS: Gauge "fdtracker_open_fds" &["namespace", "pod", "container", "kind", "verdict"],
        "Open file descriptors of a kind that can matter to a checkpoint, with what CRIU would make of each: ok, needs_option, unknown or blocked. Kinds at zero have a series for the host only. The kinds *_mapped, io_uring_registered, io_uring_direct and fd_in_flight are files that no descriptor holds: these are as the last look found them, at most --audit-interval ago, not live.";
    FDS_OPENED: Counter "fdtracker_fds_opened_total" &["namespace", "pod", "container", "kind"],
        "File descriptors that came to be open since the agent started: opened, duplicated, received or inherited.";
    FDS_CLOSED: Counter "fdtracker_fds_closed_total" &["namespace", "pod", "container", "kind"],
        "File descriptors that ceased to be open since the agent started: closed, replaced, or lost by exec or exit.";
    CHECKPOINTABLE: Gauge "fdtracker_container_checkpointable" CONTAINER,
        "1 if CRIU would dump the container, 0 if a file stops it or needs an option; absent while that is unknown or a count is being repaired. What no probe sees (a TCP state, a unix peer, a lock) is as the last look found it, at most --judge-interval ago.";
    LAST_CHECKPOINTABLE: Gauge "fdtracker_container_last_checkpointable_timestamp_seconds" CONTAINER,
        "When the container could last be dumped, as far as the agent looked; absent if never. Unix time.";
    BLOCKED_SECONDS: Counter "fdtracker_container_blocked_seconds_total" CONTAINER,
        "For how long the container could not be dumped, or only with an option, since the agent started.";
    STALE: Gauge "fdtracker_container_stale" CONTAINER,
        "1 while a count of the container is being repaired, so that it may not be exact; absent otherwise.";
    CONTAINERS: Gauge "fdtracker_containers" &["state"],
        "Containers that there are, by state: ok, needs_option, unknown, blocked, or stale while a count is being repaired.";
    SERIES_LIMIT: Gauge "fdtracker_series_limit" &[],
        "How many series an answer has at the most, all in all (--web.max-series).";
    SERIES_DROPPED: Gauge "fdtracker_series_dropped" &[],
        "Series left out of this answer because of that limit: those of containers that are summed up as container=\"other\". 0 unless there are too many.";
    CONTAINERS_FOLDED: Gauge "fdtracker_containers_folded" &[],
        "Containers without series of their own in this answer: only their open file descriptors are shown, summed up as container=\"other\". Containers that can't be dumped are the last to be left out.";
    READY: Gauge "fdtracker_ready" &[],
        "1 once what was open before the agent started is counted; until then no container is shown.";
    EVENTS_LOST: Counter "fdtracker_events_lost_total" &["stage"],
        "Events and changes lost, by stage. ring, owner and reader: only not shown in tail; the others make a count stale until the next audit.";
    PROBE_MISSES: Counter "fdtracker_probe_misses_total" &["program"],
        "Runs of a BPF program that the kernel skipped: a change may not have been counted, all containers are stale, and an audit follows at once. Before Linux 6.7 kprobes and tracepoints aren't told of.";
    AUDITS: Counter "fdtracker_audits_total" &["result"],
        "Comparisons of all counts with the kernel's own list of files, by what came of them: ok, corrected or error.";
    AUDIT_CORRECTIONS: Counter "fdtracker_audit_corrections_total" &[],
        "File descriptors that an audit found counted wrongly, and put right; 0 in a healthy agent.";
    AUDIT_DURATION: Gauge "fdtracker_audit_duration_seconds" &[],
        "How long the last audit took.";
    LAST_AUDIT: Gauge "fdtracker_last_audit_timestamp_seconds" &[],
        "When the last audit that succeeded ended; absent before the first. Unix time.";
    HIDDEN_LOOKS: Counter "fdtracker_hidden_looks_total" &["result"],
        "Looks for files that no descriptor holds, by what came of them: ok or error.";
    HIDDEN_LOOK: Gauge "fdtracker_hidden_look" &["place"],
        "1 if the last look for files that no descriptor holds was taken in this place (mapped, registered, direct or in_flight), 0 if the kernel can't be asked or the look failed.";
    HIDDEN_LOOK_DURATION: Gauge "fdtracker_hidden_look_duration_seconds" &[],
        "How long the last look for files that no descriptor holds took.";
    FEEDER_INFO: Gauge "fdtracker_feeder_info" &["feeder", "live"],
        "The probes that keep counts current: kprobe, tracepoint, or none with live=\"false\": then counts are those of the last audit, at most 5 s old.";
    TABLES: Gauge "fdtracker_tables" &["state"],
        "fd tables that the agent keeps, by state: counted, empty (with nothing to count any more, soon to be forgotten), or stale (an audit must count anew).";
    MAP_ENTRIES: Gauge "fdtracker_map_entries" &["map"],
        "Entries of a bounded BPF map: tables (--max-tables), slots (--max-fds; not with the kprobe feeder) or flows (one a cgroup).";
    MAP_CAPACITY: Gauge "fdtracker_map_capacity" &["map"],
        "How many entries a bounded BPF map has room for. What finds none is counted as lost, and containers are stale.";
    RING_BYTES: Gauge "fdtracker_ring_bytes" &[],
        "Bytes of events that wait in the kernel's ring for the agent.";
    RING_CAPACITY: Gauge "fdtracker_ring_capacity_bytes" &[],
        "Bytes that the kernel's ring has room for (--ring-size). What finds none is missed by tail, never by a count.";
    QUEUE_ENTRIES: Gauge "fdtracker_queue_entries" &["queue"],
        "Entries of a queue in the agent: events that the slowest reader has not taken yet.";
    QUEUE_CAPACITY: Gauge "fdtracker_queue_capacity" &["queue"],
        "How many entries a queue in the agent has room for. A reader that falls further behind is told how many it missed.";
    PROGRAM_SECONDS: Counter "fdtracker_program_run_seconds_total" &["program"],
        "For how long a BPF program ran; only while the kernel counts that (--bpf-stats, or the sysctl kernel.bpf_stats_enabled).";
    PROGRAM_RUNS: Counter "fdtracker_program_runs_total" &["program"],
        "How often a BPF program ran; only while the kernel counts that (--bpf-stats, or the sysctl kernel.bpf_stats_enabled).";
    RUNTIME_LOOKUPS: Counter "fdtracker_runtime_lookups_total" &["source", "result"],
        "Questions to container runtimes for the names of containers, by where they were put and what came of them: ok, or why there was no answer. Without one a container goes by its id.";
    RELOAD_SUCCESSFUL: Gauge "fdtracker_config_last_reload_successful" &[],
        "1 if the last attempt to read the configuration anew (SIGHUP) succeeded, or there was none; 0 if it failed and the old one holds.";
    RELOAD_TIMESTAMP: Gauge "fdtracker_config_last_reload_success_timestamp_seconds" &[],
        "When the configuration that holds was read. Unix time.";
    SCRAPE_DURATION: Gauge "fdtracker_scrape_duration_seconds" &[],
        "How long it took to collect what this answer shows.";
    CRIU_INFO: Gauge "fdtracker_criu_info" &["version", "source"],
        "The CRIU that verdicts are about, and where its version comes from: given, path or assumed.";
    BUILD_INFO: Gauge "fdtracker_build_info" &["version", "revision", "rustversion"],
        "The agent's version, the commit that it was built from (FDTRACKER_REVISION while building), and the compiler's version.";
}

/// Returns the table of docs/metrics.md.
#[must_use]
pub fn markdown() -> String {
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for Metric { name, kind, labels, help } in ALL {
        let (kind, labels, help) = (kind.name(), labels.join(", "), help.replace('*', "\\*"));
        // Writing to memory can't fail.
        let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {help} |");
    }
    table
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn names_follow_prometheus_conventions() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name is used twice");
        for Metric { name, kind, labels, help } in ALL {
            assert!(name.starts_with("fdtracker_"), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(help.ends_with('.') && help.len() > 15, "{name}: {help}");
            for label in *labels {
                let forbidden = ["pid", "fd", "comm", "id", "cgroup", "node", "instance"];
                assert!(!forbidden.contains(label), "{name} has the label {label}");
            }
        }
    }

    /// Compares the table; writes it instead if `FDTRACKER_WRITE_DOCS` is in the environment.
    #[test]
    fn the_reference_is_up_to_date() {
        const BEGIN: &str = "<!-- Made by `cargo xtask gen` -->\n\n";
        const END: &str = "\n<!-- made -->\n";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let found = fs::read_to_string(&path).unwrap();
        let (before, rest) = found.split_once(BEGIN).unwrap();
        let (_, after) = rest.split_once(END).unwrap();
        let made = format!("{before}{BEGIN}{}{END}{after}", markdown());
        if std::env::var_os("FDTRACKER_WRITE_DOCS").is_some() {
            fs::write(&path, &made).unwrap();
        } else {
            assert!(found == made, "docs/metrics.md: cargo xtask gen rewrites it");
        }
    }
}
