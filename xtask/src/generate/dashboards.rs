//! Grafana's dashboards: all containers, one container, the agents.

use anyhow::Context as _;

use super::{
    Generated,
    panels::{
        Dashboard, Panel,
        Shape::{Lines, Number, Stacked, States, Table},
    },
};

pub(super) fn files() -> anyhow::Result<Vec<Generated>> {
    let all = [
        ("deploy/grafana/overview.json", &OVERVIEW),
        ("deploy/grafana/container.json", &CONTAINER),
        ("deploy/grafana/agents.json", &AGENTS),
    ];
    let file = |(path, dashboard): (&'static str, &Dashboard)| {
        let text =
            serde_json::to_string_pretty(&dashboard.json()).with_context(|| format!("write {path}"))?;
        Ok(Generated { path, text: text + "\n" })
    };
    all.into_iter().map(file).collect()
}

const fn panel(
    title: &'static str,
    about: &'static str,
    shape: super::panels::Shape,
    unit: &'static str,
    width: u32,
    queries: &'static [super::panels::Query],
) -> Panel {
    Panel { title, about, shape, unit, width, queries }
}

const OVERVIEW: Dashboard = Dashboard {
    uid: "fdtracker-overview",
    title: "fdtracker: overview",
    about: "Which containers CRIU could checkpoint, and what stands in the way.",
    variables: &[("instance", "fdtracker_ready"), ("namespace", "fdtracker_open_fds")],
    panels: &[
        panel(
            "Checkpointable",
            "Of the containers of which it is known.",
            Number,
            "percentunit",
            6,
            &[(
                r#"avg(fdtracker_container_checkpointable{instance=~"$instance", namespace=~"$namespace", container!~"host|unknown|other"})"#,
                "",
            )],
        ),
        panel(
            "Containers",
            "All that agents know of, and those that can't be checkpointed now.",
            Number,
            "short",
            6,
            &[
                (r#"sum(fdtracker_containers{instance=~"$instance"})"#, "all"),
                (
                    r#"count(fdtracker_container_checkpointable{instance=~"$instance", namespace=~"$namespace", container!~"host|unknown|other"} == 0)"#,
                    "not checkpointable",
                ),
            ],
        ),
        panel(
            "Checkpointable over time",
            "Containers that CRIU would dump, and those that it wouldn't.",
            Stacked,
            "short",
            12,
            &[
                (
                    r#"count(fdtracker_container_checkpointable{instance=~"$instance", namespace=~"$namespace", container!~"host|unknown|other"} == 1)"#,
                    "yes",
                ),
                (
                    r#"count(fdtracker_container_checkpointable{instance=~"$instance", namespace=~"$namespace", container!~"host|unknown|other"} == 0)"#,
                    "no",
                ),
            ],
        ),
        panel(
            "Blockers by kind",
            "Open fds that stop a dump, or need an option of CRIU.",
            Stacked,
            "short",
            12,
            &[(
                r#"sum by (kind, verdict) (fdtracker_open_fds{instance=~"$instance", namespace=~"$namespace", container!="host", verdict=~"blocked|needs_option"})"#,
                "{{kind}} {{verdict}}",
            )],
        ),
        panel(
            "Containers with most blockers",
            "Open fds that stop a dump, now.",
            Table,
            "short",
            12,
            &[(
                r#"topk(20, sum by (instance, namespace, pod, container) (fdtracker_open_fds{instance=~"$instance", namespace=~"$namespace", container!~"host|unknown|other", verdict="blocked"}))"#,
                "",
            )],
        ),
        panel(
            "Longest blocked",
            "Part of the last hour in which a container could not be dumped.",
            Table,
            "percentunit",
            24,
            &[(
                r#"topk(20, increase(fdtracker_container_blocked_seconds_total{instance=~"$instance", namespace=~"$namespace", container!~"host|unknown|other"}[1h]) / 3600)"#,
                "",
            )],
        ),
    ],
};

const CONTAINER: Dashboard = Dashboard {
    uid: "fdtracker-container",
    title: "fdtracker: container",
    about: "When a container could be checkpointed, and what its processes have open.",
    variables: &[
        ("instance", "fdtracker_ready"),
        ("namespace", "fdtracker_open_fds"),
        ("pod", "fdtracker_open_fds"),
        ("container", "fdtracker_open_fds"),
    ],
    panels: &[
        panel(
            "Checkpointable",
            "The windows in which a dump would have worked. A gap is a time of which it isn't known.",
            States,
            "short",
            18,
            &[(
                r#"fdtracker_container_checkpointable{instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container"}"#,
                "{{pod}} {{container}}",
            )],
        ),
        panel(
            "Since it could last be dumped",
            "Nothing if it never could since the agent started.",
            Number,
            "s",
            6,
            &[(
                r#"time() - fdtracker_container_last_checkpointable_timestamp_seconds{instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container"}"#,
                "{{pod}} {{container}}",
            )],
        ),
        panel(
            "Open fds",
            "By kind, with what CRIU would make of them.",
            Stacked,
            "short",
            12,
            &[(
                r#"sum by (kind, verdict) (fdtracker_open_fds{instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container"})"#,
                "{{kind}} {{verdict}}",
            )],
        ),
        panel(
            "Blocked",
            "Part of the time in which it could not be dumped.",
            Lines,
            "percentunit",
            12,
            &[(
                r#"rate(fdtracker_container_blocked_seconds_total{instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container"}[5m])"#,
                "{{pod}} {{container}}",
            )],
        ),
        panel(
            "Opened",
            "Fds that came to be open, per second.",
            Lines,
            "ops",
            12,
            &[(
                r#"sum by (kind) (rate(fdtracker_fds_opened_total{instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container"}[5m]))"#,
                "{{kind}}",
            )],
        ),
        panel(
            "Closed",
            "Fds that ceased to be open, per second.",
            Lines,
            "ops",
            12,
            &[(
                r#"sum by (kind) (rate(fdtracker_fds_closed_total{instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container"}[5m]))"#,
                "{{kind}}",
            )],
        ),
        panel(
            "Under repair",
            "While a count is being repaired the others of its container aren't exact either.",
            States,
            "short",
            24,
            &[(
                r#"1 - fdtracker_container_stale{instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container"}"#,
                "{{pod}} {{container}} is exact",
            )],
        ),
    ],
};

const AGENTS: Dashboard = Dashboard {
    uid: "fdtracker-agents",
    title: "fdtracker: agents",
    about: "Whether the agents count exactly, and what they cost.",
    variables: &[("instance", "fdtracker_ready")],
    panels: &[
        panel(
            "Ready",
            "Whether what was open before the agent started is counted.",
            States,
            "short",
            12,
            &[(r#"fdtracker_ready{instance=~"$instance"}"#, "{{instance}}")],
        ),
        panel(
            "Versions, probes and CRIU",
            "What runs where, and which CRIU its verdicts are about.",
            Table,
            "short",
            12,
            &[
                (r#"fdtracker_build_info{instance=~"$instance"}"#, ""),
                (r#"fdtracker_feeder_info{instance=~"$instance"}"#, ""),
                (r#"fdtracker_criu_info{instance=~"$instance"}"#, ""),
            ],
        ),
        panel(
            "Losses",
            "Events and runs of probes that were lost, per second: audits put the counts right.",
            Lines,
            "ops",
            8,
            &[
                (
                    r#"sum by (instance, stage) (rate(fdtracker_events_lost_total{instance=~"$instance"}[5m]))"#,
                    "{{instance}} {{stage}}",
                ),
                (
                    r#"sum by (instance, program) (rate(fdtracker_probe_misses_total{instance=~"$instance"}[5m]))"#,
                    "{{instance}} {{program}}",
                ),
            ],
        ),
        panel(
            "Audits",
            "Comparisons with the kernel's own list of files, per second; and fds that they put right.",
            Lines,
            "ops",
            8,
            &[
                (
                    r#"sum by (instance, result) (rate(fdtracker_audits_total{instance=~"$instance"}[5m]))"#,
                    "{{instance}} {{result}}",
                ),
                (
                    r#"rate(fdtracker_audit_corrections_total{instance=~"$instance"}[5m])"#,
                    "{{instance}} corrections",
                ),
            ],
        ),
        panel(
            "Age of the last audit",
            "What it confirmed holds with certainty.",
            Lines,
            "s",
            8,
            &[(r#"time() - fdtracker_last_audit_timestamp_seconds{instance=~"$instance"}"#, "{{instance}}")],
        ),
        panel(
            "How long looks take",
            "The last audit, the last look for what no fd holds, the last scrape.",
            Lines,
            "s",
            8,
            &[
                (r#"fdtracker_audit_duration_seconds{instance=~"$instance"}"#, "{{instance}} audit"),
                (r#"fdtracker_hidden_look_duration_seconds{instance=~"$instance"}"#, "{{instance}} hidden"),
                (r#"fdtracker_scrape_duration_seconds{instance=~"$instance"}"#, "{{instance}} scrape"),
            ],
        ),
        panel(
            "Maps",
            "How full the kernel's maps are. A full one loses counts, which its containers show as stale.",
            Lines,
            "percentunit",
            8,
            &[(
                r#"fdtracker_map_entries{instance=~"$instance"} / fdtracker_map_capacity{instance=~"$instance"}"#,
                "{{instance}} {{map}}",
            )],
        ),
        panel(
            "Series",
            "The most that the agent exports, and how many it folded away.",
            Lines,
            "short",
            8,
            &[
                (r#"fdtracker_series_limit{instance=~"$instance"}"#, "{{instance}} limit"),
                (r#"fdtracker_series_dropped{instance=~"$instance"}"#, "{{instance}} dropped"),
            ],
        ),
        panel(
            "CPU",
            "Of one core, by the agent itself. What its probes take is with --bpf-stats only.",
            Lines,
            "percentunit",
            8,
            &[
                (
                    r#"rate(process_cpu_seconds_total{instance=~"$instance", job=~"(.+/)?fdtracker"}[5m])"#,
                    "{{instance}} agent",
                ),
                (
                    r#"sum by (instance) (rate(fdtracker_program_run_seconds_total{instance=~"$instance"}[5m]))"#,
                    "{{instance}} probes",
                ),
            ],
        ),
        panel(
            "Memory",
            "Resident, of the agent's process.",
            Lines,
            "bytes",
            8,
            &[(
                r#"process_resident_memory_bytes{instance=~"$instance", job=~"(.+/)?fdtracker"}"#,
                "{{instance}}",
            )],
        ),
        panel(
            "Names",
            "Questions to container runtimes, per second.",
            Lines,
            "ops",
            8,
            &[(
                r#"sum by (instance, source, result) (rate(fdtracker_runtime_lookups_total{instance=~"$instance"}[5m]))"#,
                "{{instance}} {{source}} {{result}}",
            )],
        ),
    ],
};
