//! A model of the kernel and the probes, on which the audits' logic is tested.
//!
//! Whatever processes do, whatever the probes miss, and whatever happens during an audit: once all
//! is quiet, one audit makes every number equal to the truth, or a second one if the first says
//! that it left something; the next finds nothing. And an audit corrects nothing where nothing was
//! missed.

mod audit;
mod machine;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tracker_ebpf::{Kind, Slot, TABLE_STALE, Tag};

use self::machine::{FDS, Machine, PLAIN};
use crate::{
    inventory::{Counts, Entry, Inventory, Ledger, Uncounted},
    runtime::{Container, Identity, Owner, Runtime},
};

/// What happens next, and to which task.
#[derive(Clone)]
struct Event {
    /// Which of those that run.
    task: usize,
    op: Op,
    /// Runs of probes that are lost, a bit each.
    lost: u8,
    /// How many steps follow at once.
    steps: u8,
    /// How much an audit does before it happens.
    wait: u8,
}

impl fmt::Debug for Event {
    /// In one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task, op, lost, steps, wait } = self;
        write!(f, "task {task}: {op:x?}, lost {lost:#b}, {steps} steps, after {wait}")
    }
}

#[derive(Clone, Debug)]
enum Op {
    Open {
        fd: u32,
        file: Tag,
    },
    Dup {
        from: u32,
        to: u32,
    },
    Dup2 {
        from: u32,
        to: u32,
    },
    Close {
        fd: u32,
    },
    Fork,
    /// A process with `CLONE_FILES`, or a thread.
    Share {
        thread: bool,
    },
    Unshare,
    /// Closes those of [`FDS`] whose bits are set.
    Exec {
        closes: u8,
    },
    Exit,
    Move {
        cgroup: u64,
    },
    /// A probe adds to an entry that has become another table's while it was at work.
    Stray {
        file: Tag,
    },
    /// Some task does the next of its steps.
    Step,
    Audit,
}

/// What a run is made of.
#[derive(Clone, Debug)]
struct Scenario {
    counts_deltas: bool,
    /// Before the probes are attached.
    before: Vec<Event>,
    events: Vec<Event>,
}

fn scenario(losses: bool) -> impl Strategy<Value = Scenario> {
    let events = |max| prop::collection::vec(event(losses), 0..max);
    (any::<bool>(), events(20), events(80)).prop_map(|(counts_deltas, before, events)| Scenario {
        counts_deltas,
        before,
        events,
    })
}

fn event(losses: bool) -> impl Strategy<Value = Event> {
    let lost = if losses { prop_oneof![3 => Just(0), 1 => any::<u8>()].boxed() } else { Just(0).boxed() };
    let steps = prop_oneof![3 => Just(u8::MAX), 2 => 0..4_u8];
    (0..8_usize, op(losses), lost, steps, 0..6_u8).prop_map(|(task, op, lost, steps, wait)| Event {
        task,
        op,
        lost,
        steps,
        wait,
    })
}

fn op(losses: bool) -> impl Strategy<Value = Op> {
    // A table with fds beyond a program's reach is a loss in itself.
    let fds = if losses { &FDS[..] } else { &FDS[1..FDS.len() - 1] };
    let fd = || prop::sample::select(fds);
    // Few, as the kernel uses an address again.
    let counted = || (0..2_u64, 0..3_u64).prop_map(|(kind, file)| Tag::new(kind, 0x1000 + file));
    let file = prop_oneof![4 => counted(), 1 => Just(PLAIN)];
    prop_oneof![
        6 => (fd(), file).prop_map(|(fd, file)| Op::Open { fd, file }),
        2 => (fd(), fd()).prop_map(|(from, to)| Op::Dup { from, to }),
        3 => (fd(), fd()).prop_map(|(from, to)| Op::Dup2 { from, to }),
        4 => fd().prop_map(|fd| Op::Close { fd }),
        3 => Just(Op::Fork),
        2 => any::<bool>().prop_map(move |thread| Op::Share { thread: thread && losses }),
        1 => Just(Op::Unshare),
        2 => any::<u8>().prop_map(move |closes| Op::Exec { closes: if losses { closes } else { closes & !1 } }),
        3 => Just(Op::Exit),
        2 => (1..=4_u64).prop_map(|cgroup| Op::Move { cgroup }),
        1 => counted().prop_map(move |file| if losses { Op::Stray { file } } else { Op::Step }),
        6 => Just(Op::Step),
        2 => Just(Op::Audit),
    ]
}

/// Runs a scenario until all is quiet. Returns also how much audits corrected so far.
fn play(Scenario { counts_deltas, before, events }: Scenario, punctual: bool) -> (Machine, u64) {
    let mut machine = Machine::new(counts_deltas, punctual);
    for event in &before {
        machine.apply(event);
    }
    if punctual {
        machine.finish();
    }
    machine.attached = true;
    let mut events = VecDeque::from(events);
    let mut corrected = 0;
    // Adoption, and what happens meanwhile unless every probe is to be in time.
    if !punctual {
        std::mem::swap(&mut machine.events, &mut events);
    }
    machine.audit();
    machine.events.append(&mut events);
    while let Some(event) = machine.events.pop_front() {
        match event.op {
            Op::Audit => corrected += machine.audit(),
            _ => machine.apply(&event),
        }
        if punctual {
            assert_eq!(machine.mischarged(), Vec::<u64>::new(), "charged to the wrong cgroup");
        }
    }
    machine.finish();
    machine.now += Duration::from_mins(1);
    (machine, corrected)
}

/// Every number is the truth, and nothing else is recorded.
fn check(machine: &Machine) {
    let mut owed: BTreeMap<Option<String>, Counts> = BTreeMap::new();
    for (files, held) in &machine.files {
        let mut truth = [0; Kind::COUNT];
        held.values().filter_map(|file| file.kind()).for_each(|kind| truth[kind.index()] += 1);
        let Some(table) = machine.tables.get(files) else {
            assert_eq!(truth, [0; Kind::COUNT], "the table {files} isn't recorded");
            continue;
        };
        assert_eq!(truth, table.n, "the numbers of the table {files}");
        assert_eq!(table.flags & TABLE_STALE, 0, "the table {files} is stale");
        // Of tables with nothing to count it isn't known who has them.
        if truth == [0; Kind::COUNT] {
            continue;
        }
        let users = || machine.tasks.iter().filter(|task| task.files == Some(*files));
        let cgroups: BTreeSet<u64> = users().map(|task| task.cgroup).collect();
        assert!(
            cgroups.contains(&table.cgroup_id),
            "the table {files} is charged to a cgroup of {cgroups:?}"
        );
        let tgids: BTreeSet<u32> = users().map(|task| task.tgid).collect();
        assert!(tgids.contains(&table.tgid), "the table {files} is {}'s, not of {tgids:?}", table.tgid);
        owed.entry(container(table.cgroup_id)).or_default().add(&truth);
    }
    assert!(machine.tables.keys().all(|files| machine.files.contains_key(files)), "a table that is no more");

    let tables: Vec<_> = machine.tables.iter().map(|(files, table)| (*files, *table)).collect();
    let inventory =
        Inventory::take(&tables, &[], &[], &Ledger::default(), vec![], &Uncounted::default(), |cgroup| {
            owner(cgroup)
        });
    let mut found: BTreeMap<Option<String>, &Entry> = BTreeMap::from([(None, &inventory.host)]);
    found.extend(inventory.containers.iter().map(|(c, entry)| (Some(c.name.clone()), entry)));
    for (name, entry) in found {
        assert!(!entry.stale);
        assert_eq!(entry.counts, owed.remove(&name).unwrap_or_default(), "what {name:?} holds");
        let sum = entry.processes.values().fold(Counts::default(), |mut sum, n| {
            sum.merge(n);
            sum
        });
        assert_eq!(sum, entry.counts, "what the processes of {name:?} hold");
    }
    assert!(owed.is_empty(), "not listed: {owed:?}");
}

/// Cgroup 1 is the host's, 2 and 3 are one container's.
fn container(cgroup: u64) -> Option<String> {
    match cgroup {
        1 => None,
        2 | 3 => Some("web".into()),
        _ => Some("db".into()),
    }
}

fn owner(cgroup: u64) -> Owner {
    container(cgroup).map_or(Owner::Host, |name| {
        let cgroup = format!("/{name}");
        let (runtime, pod_uid) = (Runtime::Runc, None);
        Owner::Container(Arc::new(Container::new(Identity { runtime, id: name, pod_uid, cgroup })))
    })
}

proptest! {
    #[test]
    fn an_audit_puts_everything_right(scenario in scenario(true)) {
        let (mut machine, _) = play(scenario, false);
        machine.audit();
        if machine.unsettled {
            // What it found gone it forgets then.
            machine.now += Duration::from_secs(5);
            machine.audit();
        }
        prop_assert!(!machine.unsettled);
        check(&machine);
        prop_assert_eq!(machine.audit(), 0);
        check(&machine);
        let kept = |slot: &Slot| machine.tables.get(&slot.files).is_some_and(|t| t.generation == slot.generation);
        prop_assert!(machine.slots.keys().all(kept), "slots of tables that are no more");
    }

    #[test]
    fn an_audit_corrects_nothing_where_nothing_was_missed(scenario in scenario(false)) {
        let (mut machine, corrected) = play(scenario, true);
        prop_assert_eq!(corrected, 0);
        machine.audit();
        check(&machine);
        prop_assert_eq!(machine.audit(), 0);
    }
}
