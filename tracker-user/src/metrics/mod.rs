//! Renders `/metrics` from a snapshot at every scrape, so that no series outlives its container.
//! Only the totals of containers with the same name are kept.
//!
//! - `registry`: all metrics, with their meaning;
//! - `containers`: series of containers, limited in number;
//! - `own`: series of the agent itself;
//! - `families`: samples, and their text format.

mod containers;
mod families;
mod own;
pub mod registry;

use std::time::Instant;

pub use containers::Namesakes;
use families::Families;
use prometheus::{core::Collector as _, process_collector::ProcessCollector};

use crate::{agent::Snapshot, api::Feed};

/// How many series an answer has at most, by default.
pub const MAX_SERIES: usize = 2_000;

/// The smallest limit: fewer series can be too few for those of the agent itself.
pub const LEAST_SERIES: usize = 500;

/// Inputs of an answer besides the snapshot.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// When the request came.
    pub began: Instant,
    /// How many series the answer has at most.
    pub max_series: usize,
    /// The feed of events.
    pub feed: Feed,
}

/// Renders a snapshot in Prometheus' text format.
///
/// # Errors
/// Never in practice: metrics' names and labels are fixed.
pub fn render(
    snapshot: &Snapshot,
    scrape: &Scrape,
    namesakes: &mut Namesakes,
) -> Result<Vec<u8>, prometheus::Error> {
    let process = ProcessCollector::for_self().collect();
    let mut families = Families::default();
    own::add(&mut families, snapshot, scrape);
    if let Some(inventory) = &snapshot.inventory {
        let room = scrape.max_series.saturating_sub(families.len() + process.len());
        containers::add(&mut families, inventory, &snapshot.judge, namesakes, room);
    }
    families.encode(process)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::Arc,
        time::{Duration, UNIX_EPOCH},
    };

    use tracker_ebpf::Kind;

    use super::*;
    use crate::{
        agent::{AuditStats, HiddenScans, Reloads},
        bpf::{Feeder, Fill, HiddenPlace, Program, RingFill},
        host::KernelVersion,
        inventory::{Counts, Entry, Inventory},
        runtime::{Container, Identity, Runtime},
        verdict::{Judge, Profile, Rules, history::Summary},
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

    fn container(name: &str) -> Container {
        let (id, cgroup) = (name.to_owned(), format!("/{name}"));
        Container::new(Identity { id, runtime: Runtime::Runc, pod_uid: None, cgroup })
    }

    fn snapshot(containers: Vec<(Container, Entry)>) -> Snapshot {
        let mut inventory = Inventory {
            containers: containers.into_iter().map(|(c, entry)| (Arc::new(c), entry)).collect(),
            ..Inventory::default()
        };
        inventory.judge(&judge());
        Snapshot {
            begun: Instant::now(),
            inventory: Some(inventory),
            judge: Arc::new(judge()),
            feeder: Feeder::Tracepoint,
            programs: vec![Program {
                name: "fd_install".into(),
                missed: 2,
                runs: 0,
                run_time: Duration::ZERO,
            }],
            fills: vec![Fill { map: "tables", entries: 1, capacity: 16 }],
            ring: RingFill { waiting: 8, capacity: 4096 },
            lost: vec![("ring", 3)],
            audits: AuditStats { finished: 2, last: Duration::from_millis(5), ..AuditStats::default() },
            hidden: HiddenScans::new(vec![(HiddenPlace::Mapped, "too old".into())]),
            runtime_lookups: vec![],
            ready: true,
            reloads: Reloads { successful: true, succeeded_at: UNIX_EPOCH },
        }
    }

    fn render_with(containers: Vec<(Container, Entry)>, max_series: usize) -> String {
        render_after(containers, max_series, &mut Namesakes::default())
    }

    fn render_after(
        containers: Vec<(Container, Entry)>,
        max_series: usize,
        namesakes: &mut Namesakes,
    ) -> String {
        let scrape = Scrape { began: Instant::now(), max_series, feed: Feed::default() };
        String::from_utf8(render(&snapshot(containers), &scrape, namesakes).unwrap()).unwrap()
    }

    fn text(containers: &[(&str, Entry)]) -> String {
        let containers = containers.iter().map(|(name, entry)| (container(name), entry.clone()));
        render_with(containers.collect(), MAX_SERIES)
    }

    #[track_caller]
    fn has(text: &str, line: &str) {
        assert!(text.lines().any(|l| l == line), "no line {line}\nin\n{text}");
    }

    fn series(text: &str) -> BTreeMap<&str, f64> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.rsplit_once(' ').unwrap()).map(|(k, v)| (k, v.parse().unwrap())).collect()
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
        has(&text, r#"fdtracker_containers{state="blocked"} 1"#);
        has(&text, r#"fdtracker_containers{state="ok"} 1"#);
        has(&text, r#"fdtracker_containers{state="stale"} 0"#);
    }

    #[test]
    fn a_kind_at_zero_has_a_series_for_the_host_only() {
        let text = text(&[("web", entry(Kind::Eventfd, 1))]);
        let zero =
            |of: &str| text.lines().any(|line| line.starts_with("fdtracker_open_fds") && line.contains(of));
        assert!(zero(r#"container="host",kind="pidfd""#));
        assert!(!zero(r#"container="web",kind="pidfd""#));
    }

    #[test]
    fn a_pods_container_is_known_by_all_three() {
        let mut shop = container("nginx");
        (shop.namespace, shop.pod) = (Some("shop".into()), Some("web-0".into()));
        let text = render_with(vec![(shop, entry(Kind::Pidfd, 1))], MAX_SERIES);
        has(&text, r#"fdtracker_container_checkpointable{container="nginx",namespace="shop",pod="web-0"} 0"#);
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
    fn counters_of_a_name_dont_fall_when_one_of_its_containers_goes() {
        let mut namesakes = Namesakes::default();
        let mut at = |all: &[(&str, i64, u64)]| {
            let member = |(cgroup, opened, blocked): &(&str, i64, u64)| {
                let history = Summary { blocked: Duration::from_secs(*blocked), last_ok: None };
                let mut web = container("web");
                web.cgroup = (*cgroup).to_owned();
                (web, Entry { history, ..entry(Kind::Pidfd, *opened) })
            };
            let text = render_after(all.iter().map(member).collect(), MAX_SERIES, &mut namesakes);
            let series = series(&text);
            let of = |metric: &str, labels| series.get(format!("{metric}{{{labels}}}").as_str()).copied();
            (
                of("fdtracker_fds_opened_total", r#"container="web",kind="pidfd",namespace="",pod="""#),
                of("fdtracker_container_blocked_seconds_total", r#"container="web",namespace="",pod="""#),
            )
        };
        assert_eq!(at(&[("/1", 2, 90), ("/2", 3, 80)]), (Some(5.0), Some(90.0)));
        assert_eq!(at(&[("/2", 4, 85)]), (Some(6.0), Some(95.0)));
        assert_eq!(at(&[("/2", 4, 95), ("/3", 1, 0)]), (Some(7.0), Some(105.0)));
        assert_eq!(at(&[("/3", 2, 10)]), (Some(8.0), Some(115.0)));
        // Nothing outlives a name; and if a container gets the name of one that has gone, the
        // counter starts again.
        assert_eq!(at(&[]), (None, None));
        assert_eq!(at(&[("/3", 2, 20)]), (Some(2.0), Some(20.0)));
        assert_eq!(at(&[("/4", 1, 5)]), (Some(1.0), Some(5.0)));
    }

    #[test]
    fn there_are_never_more_series_than_allowed_and_blocked_containers_keep_theirs() {
        for (fine, blocked) in [(0, 0), (10, 10), (150, 3), (10_000, 50), (10, 10_000), (10_000, 10_000)] {
            let many = |n: usize, name: &'static str, kind: Kind| {
                (0..n).map(move |i| (container(&format!("{name}-{i}")), entry(kind, 1)))
            };
            let all = many(fine, "fine", Kind::Eventfd).chain(many(blocked, "blocked", Kind::Pidfd));
            let text = render_with(all.collect(), LEAST_SERIES);
            let series = series(&text);
            assert!(series.len() <= LEAST_SERIES, "{} series of {fine} and {blocked}", series.len());
            // Every container that is left out is counted, and is part of the sum.
            let sum: f64 =
                series.iter().filter(|(k, _)| k.starts_with("fdtracker_open_fds")).map(|(_, v)| v).sum();
            assert_eq!(sum as usize, fine + blocked);
            let verdicts = series.keys().filter(|k| k.starts_with("fdtracker_container_checkpointable"));
            let shown = verdicts.clone().count() - 1;
            assert_eq!(series["fdtracker_containers_folded"] as usize, fine + blocked - shown);
            assert_eq!(series["fdtracker_series_dropped"] as usize, 3 * (fine + blocked - shown));
            if blocked <= 50 {
                let named = verdicts.filter(|k| k.contains("blocked-")).count();
                assert_eq!(named, blocked, "of {fine} and {blocked}");
            }
            if fine + blocked <= 50 {
                assert_eq!(shown, fine + blocked);
            }
        }
    }

    #[test]
    fn the_agent_itself() {
        let text = text(&[]);
        has(&text, r#"fdtracker_feeder_info{feeder="tracepoint",live="true"} 1"#);
        has(&text, r#"fdtracker_events_lost_total{stage="ring"} 3"#);
        has(&text, r#"fdtracker_probe_misses_total{program="fd_install"} 2"#);
        has(&text, r#"fdtracker_audits_total{result="ok"} 2"#);
        // No container was inspected so far.
        has(&text, r#"fdtracker_hidden_look{place="in_flight"} 0"#);
        has(&text, "fdtracker_ready 1");
        has(&text, r#"fdtracker_map_capacity{map="tables"} 16"#);
        has(&text, "fdtracker_ring_bytes 8");
        has(&text, "fdtracker_series_limit 2000");
        let build = text.lines().find(|line| line.starts_with("fdtracker_build_info{")).unwrap();
        for label in ["version=\"", "revision=\"", "rustversion=\"1."] {
            assert!(build.contains(label), "{build}");
        }
        assert!(text.contains("process_resident_memory_bytes"));
        // The kernel doesn't count runs.
        assert!(!text.contains("fdtracker_program_runs_total"));
    }
}
