//! `/metrics`, made anew from a snapshot at every scrape: a series can't outlive what it is about.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::{
    CounterVec, Encoder as _, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, GenericCounterVec, GenericGaugeVec},
    process_collector::ProcessCollector,
};

use crate::{
    bpf::Look,
    inventory::{Entry, Inventory},
    report::{HOST, UNKNOWN},
    tracker::Snapshot,
    verdict::{Judge, Verdict},
};

/// The labels that tell containers apart, as kubelet's and cadvisor's metrics do.
const CONTAINER: [&str; 3] = ["namespace", "pod", "container"];

/// Renders a snapshot in Prometheus' text format.
///
/// # Errors
/// Never in practice: the metrics' names and labels are fixed.
pub fn render(snapshot: &Snapshot) -> Result<Vec<u8>, prometheus::Error> {
    let registry = Registry::new();
    if let Some(inventory) = &snapshot.inventory {
        let containers = Containers::register(&registry)?;
        containers.entries(HOST, &[&inventory.host], &snapshot.judge);
        if inventory.unknown != Entry::default() {
            containers.entries(UNKNOWN, &[&inventory.unknown], &snapshot.judge);
        }
        for (name, entries) in by_name(inventory) {
            containers.entries(name, &entries, &snapshot.judge);
        }
    }
    own(&registry, snapshot)?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

/// Metrics of containers.
struct Containers {
    open: IntGaugeVec,
    opened: IntCounterVec,
    closed: IntCounterVec,
    checkpointable: IntGaugeVec,
    last_ok: GaugeVec,
    blocked: CounterVec,
    stale: IntGaugeVec,
}

impl Containers {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let kind: Vec<&str> = CONTAINER.into_iter().chain(["kind"]).collect();
        let verdict: Vec<&str> = kind.iter().copied().chain(["verdict"]).collect();
        Ok(Self {
            open: gauges(
                registry,
                "fdtracker_open_fds",
                "Open file descriptors of a kind that can matter to a checkpoint, with what CRIU would make of each: ok, needs_option, unknown or blocked. The kinds *_mapped, io_uring_registered, io_uring_direct and fd_in_flight are files that no descriptor holds: these are as the last look found them, at most --audit-interval ago, not live.",
                &verdict,
            )?,
            opened: counters(
                registry,
                "fdtracker_fds_opened_total",
                "File descriptors that came to be open since the agent started: opened, duplicated, received or inherited.",
                &kind,
            )?,
            closed: counters(
                registry,
                "fdtracker_fds_closed_total",
                "File descriptors that ceased to be open since the agent started: closed, replaced, or lost by exec or exit.",
                &kind,
            )?,
            checkpointable: gauges(
                registry,
                "fdtracker_container_checkpointable",
                "1 if CRIU would dump the container, 0 if a file stops it or needs an option; absent while that is unknown or a count is being repaired. What no probe sees (a TCP state, a unix peer, a lock) is as the last look found it, at most --judge-interval ago.",
                &CONTAINER,
            )?,
            last_ok: registered(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "fdtracker_container_last_checkpointable_timestamp_seconds",
                        "When the container could last be dumped, as far as the agent looked; absent if never. Unix time.",
                    ),
                    &CONTAINER,
                )?,
            )?,
            blocked: registered(
                registry,
                CounterVec::new(
                    Opts::new(
                        "fdtracker_container_blocked_seconds_total",
                        "For how long the container could not be dumped, or only with an option, since the agent started.",
                    ),
                    &CONTAINER,
                )?,
            )?,
            stale: gauges(
                registry,
                "fdtracker_container_stale",
                "1 while a count of the container is being repaired, so that it may not be exact.",
                &CONTAINER,
            )?,
        })
    }

    /// Containers of the same name are one series: they can't be told apart by their labels.
    fn entries(&self, name: &str, entries: &[&Entry], judge: &Judge) {
        let labels = ["", "", name];
        entries.iter().for_each(|entry| self.count(name, entry, judge));
        if let Some(last) = entries.iter().filter_map(|entry| entry.last_ok).max() {
            self.last_ok.with_label_values(&labels).set(seconds(last));
        }
        let blocked: Duration = entries.iter().map(|entry| entry.blocked).sum();
        if !blocked.is_zero() {
            self.blocked.with_label_values(&labels).inc_by(blocked.as_secs_f64());
        }
        if entries.iter().any(|entry| entry.stale) {
            self.stale.with_label_values(&labels).set(1);
            return;
        }
        let checkpointable = match entries.iter().map(|entry| entry.verdict(judge)).max() {
            Some(Verdict::Ok) => 1,
            Some(Verdict::NeedsOption | Verdict::Blocked) => 0,
            Some(Verdict::Unknown) | None => return,
        };
        self.checkpointable.with_label_values(&labels).set(checkpointable);
    }

    fn count(&self, name: &str, entry: &Entry, judge: &Judge) {
        for (kind, verdict, n) in entry.judged(judge) {
            self.open.with_label_values(&["", "", name, kind.name(), verdict.name()]).add(n);
        }
        for (counter, counts) in [(&self.opened, &entry.totals.opened), (&self.closed, &entry.totals.closed)]
        {
            for (kind, n) in counts.iter() {
                counter.with_label_values(&["", "", name, kind.name()]).inc_by(n.unsigned_abs());
            }
        }
    }
}

fn by_name(inventory: &Inventory) -> BTreeMap<&str, Vec<&Entry>> {
    let mut entries: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for (container, entry) in &inventory.containers {
        entries.entry(&container.name).or_default().push(entry);
    }
    entries
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Metrics of the agent itself.
fn own(registry: &Registry, snapshot: &Snapshot) -> Result<(), prometheus::Error> {
    let profile = snapshot.judge.profile();
    gauges(registry, "fdtracker_build_info", "The agent's version.", &["version"])?
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
    gauges(
        registry,
        "fdtracker_criu_info",
        "The CRIU that verdicts are about, and where its version comes from: given, path or assumed.",
        &["version", "source"],
    )?
    .with_label_values(&[profile.version.to_string(), profile.source.to_string()])
    .set(1);
    gauges(
        registry,
        "fdtracker_feeder_info",
        "The probes that keep counts current, and whether these are live.",
        &["feeder", "live"],
    )?
    .with_label_values(&[snapshot.feeder.name().to_owned(), snapshot.feeder.is_live().to_string()])
    .set(1);
    let ready =
        IntGauge::new("fdtracker_ready", "1 once what was open before the agent started is counted.")?;
    ready.set(i64::from(snapshot.ready));
    registry.register(Box::new(ready))?;
    let lost = counters(
        registry,
        "fdtracker_events_lost_total",
        "Events and changes lost, by stage. ring and reader: only not shown in tail; the others make a count stale until the next audit.",
        &["stage"],
    )?;
    for (stage, count) in &snapshot.lost {
        lost.with_label_values(&[*stage]).inc_by(*count);
    }
    let misses = counters(
        registry,
        "fdtracker_probe_misses_total",
        "Runs of a BPF program that the kernel skipped: a change may not have been counted, and an audit follows at once. Before Linux 6.7 kprobes and tracepoints aren't told of.",
        &["program"],
    )?;
    for (program, count) in &snapshot.misses {
        misses.with_label_values(&[program]).inc_by(*count);
    }
    audits(registry, snapshot)?;
    looks(registry, snapshot)?;
    registry.register(Box::new(ProcessCollector::for_self()))
}

fn audits(registry: &Registry, snapshot: &Snapshot) -> Result<(), prometheus::Error> {
    let audits = counters(
        registry,
        "fdtracker_audits_total",
        "Comparisons of all counts with the kernel's own list of files, by what came of them: ok, corrected or error.",
        &["result"],
    )?;
    audits.with_label_values(&["ok"]).inc_by(snapshot.audits.finished - snapshot.audits.corrected);
    audits.with_label_values(&["corrected"]).inc_by(snapshot.audits.corrected);
    audits.with_label_values(&["error"]).inc_by(snapshot.audits.failed);
    let corrections = prometheus::IntCounter::new(
        "fdtracker_audit_corrections_total",
        "File descriptors that an audit found counted wrongly, and put right; 0 in a healthy agent.",
    )?;
    corrections.inc_by(snapshot.audits.corrections);
    registry.register(Box::new(corrections))?;
    let took = prometheus::Gauge::new("fdtracker_audit_duration_seconds", "How long the last audit took.")?;
    took.set(snapshot.audits.last.as_secs_f64());
    registry.register(Box::new(took))
}

fn looks(registry: &Registry, snapshot: &Snapshot) -> Result<(), prometheus::Error> {
    let looks = counters(
        registry,
        "fdtracker_hidden_looks_total",
        "Looks for files that no descriptor holds, by what came of them: ok or error.",
        &["result"],
    )?;
    looks.with_label_values(&["ok"]).inc_by(snapshot.hidden.finished);
    looks.with_label_values(&["error"]).inc_by(snapshot.hidden.failed);
    let taken = gauges(
        registry,
        "fdtracker_hidden_look",
        "1 if the last look for files that no descriptor holds was taken in this place, 0 if the kernel can't be asked or the look failed.",
        &["place"],
    )?;
    for look in Look::ALL {
        taken.with_label_values(&[look.name()]).set(i64::from(snapshot.hidden.was_taken(look)));
    }
    let took = prometheus::Gauge::new(
        "fdtracker_hidden_look_duration_seconds",
        "How long the last look for files that no descriptor holds took.",
    )?;
    took.set(snapshot.hidden.took.as_secs_f64());
    registry.register(Box::new(took))
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    registered(registry, GenericGaugeVec::new(Opts::new(name, help), labels)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    registered(registry, GenericCounterVec::new(Opts::new(name, help), labels)?)
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tracker_ebpf::Kind;

    use super::*;
    use crate::{
        bpf::Feeder,
        host::KernelVersion,
        inventory::Counts,
        runtime::{Container, Identity, Runtime},
        tracker::{AuditStats, Found},
        verdict::{Profile, Rules},
    };

    fn entry(kind: Kind, n: i64) -> Entry {
        let mut counts = [0_i64; Kind::COUNT];
        counts[kind.index()] = n;
        let mut entry = Entry { counts: Counts::from(&counts), ..Entry::default() };
        entry.totals.opened.add(&counts);
        entry
    }

    fn judge() -> Judge {
        let kernel = KernelVersion { major: 6, minor: 1 };
        Judge::new(Rules::embedded().unwrap(), Profile::new("4.0".parse().ok(), None, kernel))
    }

    fn text(containers: &[(&str, Entry)]) -> String {
        let container = |name: &str| {
            let (id, cgroup) = (name.to_owned(), format!("/{name}"));
            Arc::new(Container::new(Identity { id, runtime: Runtime::Runc, pod_uid: None, cgroup }))
        };
        let snapshot = Snapshot {
            inventory: Some(Inventory {
                containers: containers.iter().map(|(name, entry)| (container(name), entry.clone())).collect(),
                ..Inventory::default()
            }),
            judge: Arc::new(judge()),
            feeder: Feeder::Tracepoint,
            misses: vec![("fd_install".into(), 2)],
            lost: vec![("ring", 3)],
            audits: AuditStats {
                finished: 2,
                corrected: 0,
                failed: 0,
                corrections: 0,
                last: Duration::from_millis(5),
            },
            hidden: Found::new(vec![(Look::Mapped, "too old".into())]),
            ready: true,
        };
        String::from_utf8(render(&snapshot).unwrap()).unwrap()
    }

    #[track_caller]
    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "no line {line}\nin\n{text}");
    }

    #[test]
    fn counts_and_verdicts() {
        let text = text(&[("web", entry(Kind::Pidfd, 2)), ("db", entry(Kind::Eventfd, 1))]);
        has(
            &text,
            r#"fdtracker_open_fds{container="web",kind="pidfd",namespace="",pod="",verdict="blocked"} 2"#,
        );
        has(&text, r#"fdtracker_fds_opened_total{container="web",kind="pidfd",namespace="",pod=""} 2"#);
        has(&text, r#"fdtracker_container_checkpointable{container="web",namespace="",pod=""} 0"#);
        has(&text, r#"fdtracker_container_checkpointable{container="db",namespace="",pod=""} 1"#);
        has(&text, r#"fdtracker_container_checkpointable{container="host",namespace="",pod=""} 1"#);
    }

    #[test]
    fn what_isnt_known_isnt_called_checkpointable() {
        let stale = Entry { stale: true, ..entry(Kind::Pidfd, 1) };
        let text = text(&[("epoll", entry(Kind::Epoll, 1)), ("stale", stale)]);
        assert!(!text.contains(r#"checkpointable{container="epoll""#));
        assert!(!text.contains(r#"checkpointable{container="stale""#));
        has(&text, r#"fdtracker_container_stale{container="stale",namespace="",pod=""} 1"#);
    }

    #[test]
    fn containers_of_one_name_add_up() {
        let text = text(&[("web", entry(Kind::Pidfd, 2)), ("web", entry(Kind::Pidfd, 3))]);
        has(
            &text,
            r#"fdtracker_open_fds{container="web",kind="pidfd",namespace="",pod="",verdict="blocked"} 5"#,
        );
    }

    #[test]
    fn the_agent_itself() {
        let text = text(&[]);
        has(&text, r#"fdtracker_feeder_info{feeder="tracepoint",live="true"} 1"#);
        has(&text, r#"fdtracker_events_lost_total{stage="ring"} 3"#);
        has(&text, r#"fdtracker_audits_total{result="ok"} 2"#);
        // So far none was taken.
        has(&text, r#"fdtracker_hidden_look{place="in_flight"} 0"#);
        has(&text, "fdtracker_ready 1");
        assert!(text.contains("fdtracker_build_info{version="));
        assert!(text.contains("process_resident_memory_bytes"));
    }
}
