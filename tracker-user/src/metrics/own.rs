//! The series of the agent itself.

use super::{
    Scrape,
    families::{Families, unix_seconds},
    registry::{
        AUDIT_CORRECTIONS, AUDIT_DURATION, AUDITS, BUILD_INFO, CRIU_INFO, EVENTS_LOST, FEEDER_INFO,
        HIDDEN_LOOK, HIDDEN_LOOK_DURATION, HIDDEN_LOOKS, LAST_AUDIT, MAP_CAPACITY, MAP_ENTRIES, PROBE_MISSES,
        PROGRAM_RUNS, PROGRAM_SECONDS, QUEUE_CAPACITY, QUEUE_ENTRIES, READY, RELOAD_SUCCESSFUL,
        RELOAD_TIMESTAMP, RING_BYTES, RING_CAPACITY, RUNTIME_LOOKUPS, SCRAPE_DURATION, SERIES_LIMIT, TABLES,
    },
};
use crate::{
    agent::Snapshot,
    api::Feed,
    bpf::{Fill, HiddenPlace, Program},
};

/// Adds all series of the agent.
pub(super) fn add(families: &mut Families, snapshot: &Snapshot, scrape: &Scrape) {
    identity(families, snapshot);
    losses(families, snapshot, scrape);
    audits(families, snapshot);
    looks(families, snapshot);
    fills(families, snapshot, scrape);
    for (source, result, n) in &snapshot.runtime_lookups {
        families.add(&RUNTIME_LOOKUPS, &[source, result], *n as f64);
    }
    families.one(&RELOAD_SUCCESSFUL, f64::from(u8::from(snapshot.reloads.successful)));
    families.one(&RELOAD_TIMESTAMP, unix_seconds(snapshot.reloads.succeeded_at));
    families.one(&SERIES_LIMIT, scrape.max_series as f64);
    families.one(&SCRAPE_DURATION, scrape.began.elapsed().as_secs_f64());
}

fn identity(families: &mut Families, snapshot: &Snapshot) {
    let (profile, feeder) = (snapshot.judge.profile(), snapshot.feeder);
    let live = if feeder.is_live() { "true" } else { "false" };
    let revision = option_env!("FDTRACKER_REVISION").unwrap_or("unknown");
    families.add(&BUILD_INFO, &[env!("CARGO_PKG_VERSION"), revision, env!("BUILT_BY_RUST")], 1.0);
    families.add(&CRIU_INFO, &[&profile.version.to_string(), &profile.source.to_string()], 1.0);
    families.add(&FEEDER_INFO, &[feeder.name(), live], 1.0);
    families.one(&READY, f64::from(u8::from(snapshot.ready)));
}

fn losses(families: &mut Families, snapshot: &Snapshot, scrape: &Scrape) {
    let feed = &scrape.feed;
    let ours = [("owner", feed.dropped()), ("reader", feed.missed())];
    for (stage, count) in snapshot.lost.iter().chain(&ours) {
        families.add(&EVENTS_LOST, &[stage], *count as f64);
    }
    for Program { name, missed, runs, run_time } in &snapshot.programs {
        families.add(&PROBE_MISSES, &[name], *missed as f64);
        // The kernel measures these only if it is asked to.
        if *runs > 0 {
            families.add(&PROGRAM_RUNS, &[name], *runs as f64);
            families.add(&PROGRAM_SECONDS, &[name], run_time.as_secs_f64());
        }
    }
}

fn audits(families: &mut Families, snapshot: &Snapshot) {
    let audits = snapshot.audits;
    for (result, n) in [
        ("ok", audits.finished - audits.corrected),
        ("corrected", audits.corrected),
        ("error", audits.failed),
    ] {
        families.add(&AUDITS, &[result], n as f64);
    }
    families.one(&AUDIT_CORRECTIONS, audits.corrections as f64);
    families.one(&AUDIT_DURATION, audits.last.as_secs_f64());
    if let Some(ended) = audits.ended {
        families.one(&LAST_AUDIT, unix_seconds(ended));
    }
}

fn looks(families: &mut Families, snapshot: &Snapshot) {
    let hidden = &snapshot.hidden;
    families.add(&HIDDEN_LOOKS, &["ok"], hidden.finished as f64);
    families.add(&HIDDEN_LOOKS, &["error"], hidden.failed as f64);
    for look in HiddenPlace::ALL {
        families.add(&HIDDEN_LOOK, &[look.name()], f64::from(u8::from(hidden.covers(look))));
    }
    families.one(&HIDDEN_LOOK_DURATION, hidden.took.as_secs_f64());
}

fn fills(families: &mut Families, snapshot: &Snapshot, scrape: &Scrape) {
    if let Some(inventory) = &snapshot.inventory {
        for (state, n) in inventory.tables.by_state() {
            families.add(&TABLES, &[state], n as f64);
        }
    }
    for Fill { map, entries, capacity } in &snapshot.fills {
        families.add(&MAP_ENTRIES, &[map], *entries as f64);
        families.add(&MAP_CAPACITY, &[map], f64::from(*capacity));
    }
    families.one(&RING_BYTES, snapshot.ring.waiting as f64);
    families.one(&RING_CAPACITY, snapshot.ring.capacity as f64);
    families.add(&QUEUE_ENTRIES, &["events"], scrape.feed.waiting() as f64);
    families.add(&QUEUE_CAPACITY, &["events"], Feed::BACKLOG as f64);
}
