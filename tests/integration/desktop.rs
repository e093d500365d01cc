//! The case that started it: XFCE on TightVNC with IBus in a container, followed live, and what CRIU makes of it against what was
//! foretold. What was seen goes to the file that `FDTRACKER_DESKTOP_RECORD` names, from which docs/case-vnc.md is made.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    process::Command,
    sync::{Mutex, PoisonError},
};

use fdtracker::host::{KernelVersion, running_kernel};
use fdtracker_tests::{
    Agent, Cgroup, Zoo,
    criu::{Criu, agrees},
    desktop::{self, Desktop, Dump, JOB, NAME, Session},
    eventually, fdtracker,
    monitoring::{ALERTMANAGER, Alertmanager, PROMETHEUS, Prometheus, Webhook},
    same, truth,
};
use serde_json::{Value, json};

use crate::{Needs, Test, alerts, containers::Tail, test_or_skip};

pub fn tests() -> Vec<Test> {
    let runc = Needs::Programs(&["runc"]);
    let all = Needs::Programs(&["runc", PROMETHEUS, ALERTMANAGER]);
    let test = |name, needs, run: fn()| {
        test_or_skip(name, needs, move || {
            if let Some(missing) = desktop::missing() {
                return Err(missing);
            }
            run();
            Ok(())
        })
    };
    vec![
        test("desktop::whole", runc, whole),
        test("desktop::without_ibus", runc, without_ibus),
        test("desktop::simplified", runc, simplified),
        test("desktop::alert", all, alert),
    ]
}

/// From the start of the desktop, which an agent sees, to what can be done about it. All of it of one desktop: in an emulated machine it
/// takes minutes to start.
fn whole() {
    let agent = Agent::start(&["--criu", "3.17.1"]);
    let mut tail = Tail::start(&agent, &["--kind", "pidfd"]);
    let cgroup = Cgroup::docker();
    tail.first_line(&mut Zoo::in_cgroup(&cgroup));
    let lines = tail.gather();
    let mut desktop = Desktop::start(Session::Whole);
    is_followed_live(&agent, &lines, &desktop);
    drop(agent);
    criu_stops_where_check_says(&mut desktop);
    newer_criu(&mut desktop);
    // What CRIU restores is in a time namespace of its own: after that it doesn't dump the whole.
    desktop.configure("");
    a_part_by_itself(&desktop);
}

/// Where CRIU is told to look for watched files: it finds those that are on overlayfs in no other way.
const WHERE_FILES_ARE: &[&str] = &["/root", "/run", "/tmp", "/usr", "/var"];

/// A process, and an fd.
type Slot = (u32, u32);

/// What is open with this link, and the programs that have it.
fn open(desktop: &Desktop, link: &str) -> BTreeMap<Slot, String> {
    let open = desktop.open().into_iter().filter(|open| open.link.to_str() == Some(link));
    open.map(|open| ((open.process.pid, open.fd), open.process.comm)).collect()
}

/// The slot that a line of `tail` or a blocker is about.
fn slot(row: &Value) -> Option<Slot> {
    let number = |key: &str| u32::try_from(row[key].as_u64()?).ok();
    Some((number("pid")?, number("fd")?))
}

const PIDFD: &str = "anon_inode:[pidfd]";

/// As CRIU describes it where it was on the file system of anonymous inodes.
const PIDFD_BEFORE_6_9: &str = "anon anon_inode:[pidfd]";

/// How many of these each program has.
fn by_program(open: &BTreeMap<Slot, String>) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    open.values().for_each(|comm| *counts.entry(comm.as_str()).or_default() += 1);
    counts
}

/// Every pidfd of the desktop's is seen as it is made, by whatever call, and counted as `/proc` does; by an agent that comes later, too.
fn is_followed_live(agent: &Agent, lines: &Mutex<Vec<Value>>, desktop: &Desktop) {
    counts_agree(agent, desktop);
    let open = open(desktop, PIDFD);
    let programs = by_program(&open);
    for program in ["ibus-daemon", "xfce4-session", "xfce4-panel"] {
        assert!(programs.contains_key(program), "{program} has no pidfd: {programs:?}");
    }
    assert_eq!(programs.contains_key("dbus-daemon"), has_peer_pidfds(), "{programs:?}");

    let told = |line: &Value| line["container_id"] == *desktop.id;
    let opened = eventually("all are told", || {
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = lines.iter().filter(|line| told(line) && line["event"] == "opened");
        let slots: BTreeSet<Slot> = opened.filter_map(slot).collect();
        match open.iter().find(|(slot, _)| !slots.contains(*slot)) {
            Some(untold) => Err(format!("{untold:?} of {} pidfds wasn't told", open.len())),
            None => Ok(lines.iter().filter(|line| told(line)).cloned().collect::<Vec<_>>()),
        }
    });
    // Before it opens anything it may go by its id for a moment.
    let unnamed: Vec<_> =
        opened.iter().filter(|line| line["event"] == "opened" && line["container"] != NAME).collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
    // The first of each program.
    let first = |program: &&str| opened.iter().find(|line| line["comm"] == **program);
    let lines: Vec<&Value> = programs.keys().filter_map(first).collect();
    record("live", &json!({"pidfds": programs, "lines": lines, "metrics": metrics(agent)}));

    let later = Agent::start(&["--criu", "3.17.1"]);
    counts_agree(&later, desktop);
}

/// `SO_PEERPIDFD` is of Linux 6.5.
fn has_peer_pidfds() -> bool {
    is_linux(6, 5)
}

/// Whether the kernel is of this release, or newer.
fn is_linux(major: u32, minor: u32) -> bool {
    running_kernel().expect("a version") >= KernelVersion { major, minor }
}

/// Whether CRIU dumps sockets of the internet on this kernel.
fn knows_sockets(criu: &Criu) -> bool {
    criu.version.as_str() >= "4.2" || !is_linux(6, 16)
}

/// The agent counts for the container, and for each of its processes, what `/proc` has.
fn counts_agree(agent: &Agent, desktop: &Desktop) {
    eventually("the agent agrees with /proc", || {
        let found = agent.container(&desktop.id)?;
        same(found["name"].as_str(), Some(NAME))?;
        let rows = found["processes"].as_array().ok_or("no processes")?;
        let counted: BTreeMap<u64, _> = rows
            .iter()
            .map(|row| (row["pid"].as_u64().unwrap_or(0), fdtracker_tests::counts_of(&row["counts"])))
            .filter(|(_, counts)| !counts.is_empty())
            .collect();
        let truth: BTreeMap<u64, _> = desktop
            .processes()
            .iter()
            .map(|process| (u64::from(process.pid), truth(process.pid)))
            .filter(|(_, counts)| !counts.is_empty())
            .collect();
        same(counted, truth)?;
        let labels = [("container", NAME), ("kind", "pidfd"), ("verdict", "blocked")];
        let exported = agent.metrics().get("fdtracker_open_fds", &labels);
        same(exported as usize, open(desktop, PIDFD).len())
    });
}

/// Lines about the desktop.
fn metrics(agent: &Agent) -> Vec<String> {
    let label = format!(r#"container="{NAME}""#);
    agent.metrics().0.lines().filter(|line| line.contains(&label)).map(str::to_owned).collect()
}

/// What is foretold of a CRIU, and what it does.
struct Foretold {
    check: Value,
    dumped: bool,
}

/// Asks `check`, and then CRIU, which must agree. What runc has dumped is restored.
#[track_caller]
fn foretell(desktop: &mut Desktop, criu: &Criu, told: &[&str]) -> Foretold {
    // CRIU 3.17.1 loses paths that a configuration file names: it looks in places that were never said.
    let by_hand = criu.version.as_str() < "4.0" && !told.is_empty();
    let (mut options, mut lines) = (Vec::new(), String::new());
    for path in told {
        if by_hand {
            options.extend(["--irmap-scan-path", path].map(str::to_owned));
        } else {
            lines += &format!("irmap-scan-path {path}\n");
        }
    }
    desktop.configure(&lines);
    let attempt = || {
        let (check, text) = (check(&desktop.id, criu, &options), check_text(&desktop.id, criu, &options));
        let dump = if by_hand { desktop.dump_by_hand(criu, &options) } else { desktop.checkpoint(criu) };
        (check, text, dump)
    };
    let (mut check, mut text, mut dump) = attempt();
    // What moves between a check and a dump may come out otherwise once; and CRIU 4.2.1 has ended without a word, once in a dozen dumps,
    // while it looked for watched files. What disagrees twice disagrees.
    if (by_hand || !dump.done) && !is_foretold(&check, &dump) {
        eprintln!("desktop, CRIU {}: once more; of what was foretold as\n{text}", criu.version);
        (check, text, dump) = attempt();
    }
    let errors = dump.errors();
    let usual = Default::default();
    let cause = errors.cause(&usual);
    let first = &check["blockers"][0];
    let ours = first["message"].as_str().unwrap_or("nothing");
    let its = cause.iter().find(|line| line.text == ours).or(cause.first());
    let its = if dump.done { "nothing" } else { its.map_or("nothing", |line| &line.text) };
    let session = desktop.session.name();
    eprintln!("desktop, {session}, CRIU {}: check says: {ours}", criu.version);
    eprintln!("desktop, {session}, CRIU {}: CRIU says:  {its}", criu.version);
    let is_told = |line: &&str| ["Error (", "Warn  (", " hint"].iter().any(|word| line.contains(word));
    let mut lines: Vec<&str> = dump.log.lines().filter(is_told).collect();
    lines.extend(dump.log.lines().rev().take(10).collect::<Vec<_>>().iter().rev());
    let tail = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n");
    assert!(is_foretold(&check, &dump), "{text}\ndumped: {}, {cause:?}\n{first}\n{tail}", dump.done);
    let job = desktop.counted();
    let restored = dump.done && !by_hand;
    if restored {
        desktop.restore(criu);
        eventually("the job goes on", || if desktop.counted() > job { Ok(()) } else { Err("it doesn't") });
    }
    let blockers = check["blockers"].as_array().expect("a list").clone();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    blockers.iter().for_each(|row| *kinds.entry(row["kind"].as_str().unwrap_or("")).or_default() += 1);
    record(
        "foretold",
        &json!({
            "session": session, "criu": criu.version, "told": told, "verdict": check["verdict"],
            "blockers": kinds, "ours": ours, "its": its, "dumped": dump.done, "restored": restored, "text": text, "first": first,
        }),
    );
    Foretold { check, dumped: dump.done }
}

/// Whether CRIU did what `check` said, and stopped at the process that it lists first.
fn is_foretold(check: &Value, dump: &Dump) -> bool {
    let (errors, usual) = (dump.errors(), Default::default());
    let verdict = if dump.done { "dumped" } else { "refused" };
    // `Dump files (pid: 12) failed with -1`
    let failed = format!("(pid: {}) failed with ", check["blockers"][0]["pid"]);
    agrees(check, verdict, &errors.cause(&usual)) && (dump.done || dump.log.contains(&failed))
}

fn check(target: &str, criu: &Criu, options: &[String]) -> Value {
    // It is of one moment: what is closed while it is looked at, as the job's file may be, can't be told.
    eventually("check can tell", || {
        let mut check = Command::new(fdtracker());
        check.args(["check", target, "--criu", &criu.version, "-o", "json"]).args(options);
        let output = check.output().map_err(|error| error.to_string())?;
        let error = || String::from_utf8_lossy(&output.stderr).into_owned();
        let check: Value = serde_json::from_slice(&output.stdout).map_err(|_| error())?;
        if check["verdict"] == "unknown" { Err(check.to_string()) } else { Ok(check) }
    })
}

/// The same for people.
fn check_text(target: &str, criu: &Criu, options: &[String]) -> String {
    let mut check = Command::new(fdtracker());
    let output = check.args(["check", target, "--criu", &criu.version]).args(options).output();
    String::from_utf8_lossy(&output.expect("run check").stdout).into_owned()
}

/// All CRIUs that are here.
fn all() -> Vec<Criu> {
    let all = Criu::all();
    assert!(!all.is_empty(), "no CRIU beside the tests");
    all
}

fn of_kind<'a>(check: &'a Value, kind: &str) -> Vec<&'a Value> {
    let blockers = check["blockers"].as_array().into_iter().flatten();
    blockers.filter(|blocker| blocker["kind"] == kind).collect()
}

/// What CRIU stops at is what `check` lists first; and it lists the rest.
fn criu_stops_where_check_says(desktop: &mut Desktop) {
    for criu in all() {
        let Foretold { check, dumped } = foretell(desktop, &criu, &[]);
        assert!(!dumped, "CRIU {} dumps it", criu.version);
        let first = &check["blockers"][0];
        let message = first["message"].as_str().unwrap_or_default();
        let expected = if criu.version == "4.1.1" && !knows_sockets(&criu) {
            ("tcp", "Can't get 1:16 opt: Operation not supported")
        } else {
            ("inotify", "Can't dump that handle")
        };
        assert_eq!((first["kind"].as_str(), message), (Some(expected.0), expected.1));
        let pidfds = of_kind(&check, "pidfd").len();
        let expected = if criu.version.as_str() < "4.1" { open(desktop, PIDFD).len() } else { 0 };
        assert_eq!(pidfds, expected, "CRIU {}", criu.version);
        let listed = of_kind(&check, "inotify");
        let listed: BTreeSet<Slot> =
            listed.iter().map(|blocker| slot(blocker).expect("a process and an fd")).collect();
        assert_eq!(listed, lost_watches(desktop, &criu), "CRIU {}", criu.version);
    }
}

/// Slots of inotify that watch what CRIU doesn't find: all is on overlayfs here, and CRIU knows to look in some places only.
fn lost_watches(desktop: &Desktop, criu: &Criu) -> BTreeSet<Slot> {
    let mut places = vec!["etc", "var/log", "var/spool"];
    // CRIU: https://github.com/checkpoint-restore/criu/pull/2324
    places.extend((criu.version.as_str() >= "4.0").then_some("usr/share/dbus-1/services"));
    let found = desktop.inodes(&places);
    let is_lost = |line: &str| {
        let mut words = line.strip_prefix("inotify wd:")?.split(' ').skip(1);
        let inode = words.next()?.strip_prefix("ino:")?;
        let device = words.next()?.strip_prefix("sdev:")?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(!found.contains(&(number(device)?, number(inode)?)))
    };
    let slots = open(desktop, "anon_inode:inotify").into_keys();
    let lost = slots.filter(|(pid, fd)| {
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        info.lines().filter_map(is_lost).any(|lost| lost)
    });
    lost.collect()
}

/// The first way out: a newer CRIU, which is told where the watched files are. Only the newest dumps all of it; the oldest stops where
/// it did in the report.
fn newer_criu(desktop: &mut Desktop) {
    for criu in all() {
        let Foretold { check, dumped } = foretell(desktop, &criu, WHERE_FILES_ARE);
        let knows_pidfds = criu.version.as_str() >= "4.1";
        assert_eq!(dumped, knows_pidfds && knows_sockets(&criu), "CRIU {}", criu.version);
        if criu.version == "3.17.1" {
            let first = &check["blockers"][0];
            let line = format!("Can't dump file {} of that type [600] ({PIDFD_BEFORE_6_9})", first["fd"]);
            assert_eq!((&first["comm"], &first["message"]), (&"ibus-daemon".into(), &line.into()));
        }
    }
}

/// The second: without IBus. XFCE has pidfds of its own.
fn without_ibus() {
    let mut desktop = Desktop::start(Session::WithoutIbus);
    for criu in all() {
        let Foretold { check, dumped } = foretell(&mut desktop, &criu, &[]);
        let pidfds = of_kind(&check, "pidfd");
        assert_eq!(pidfds.is_empty(), criu.version.as_str() >= "4.1", "CRIU {}", criu.version);
        assert!(!dumped || pidfds.is_empty());
    }
}

/// The third: a window manager instead of a session. What the bus watches, CRIU has known where to find since 4.0; it is told.
fn simplified() {
    let mut desktop = Desktop::start(Session::Simplified);
    for criu in all() {
        let Foretold { dumped, .. } = foretell(&mut desktop, &criu, WHERE_FILES_ARE);
        let no_pidfds = criu.version.as_str() >= "4.1" || !has_peer_pidfds();
        assert_eq!(dumped, knows_sockets(&criu) && no_pidfds, "CRIU {}", criu.version);
    }
    assert_eq!(desktop.stop(), Some(0), "what the session ended with");
}

/// The fourth: a part that `check` calls dumpable is dumped by itself, in the middle of a desktop that isn't, and restored.
fn a_part_by_itself(desktop: &Desktop) {
    for criu in all() {
        let job = desktop.process(JOB);
        let (check, text) = (check(&desktop.id, &criu, &[]), check_text(&desktop.id, &criu, &[]));
        let tree = check["tree"].as_array().expect("a tree");
        let fine: Vec<&Value> = tree.iter().filter(|row| row["verdict"] == "ok").collect();
        assert_eq!(fine.iter().map(|row| &row["pid"]).collect::<Vec<_>>(), [job.pid]);
        let dump = desktop.checkpoint_subtree(&criu, &job);
        assert!(dump.done, "{}", dump.log);
        assert!(!desktop.processes().iter().any(|process| process.comm == JOB));
        let counted = desktop.counted();
        let restored = desktop.restore_subtree(&criu);
        assert!(restored.done, "{}", restored.log);
        eventually(
            "the job goes on",
            || if desktop.counted() > counted { Ok(()) } else { Err("it doesn't") },
        );
        assert_eq!(desktop.process(JOB).inner, job.inner);
        eprintln!("desktop, CRIU {}: {JOB}[{}] was dumped by itself, and restored", criu.version, job.pid);
        record("part", &json!({"criu": criu.version, "comm": JOB, "inner": job.inner, "text": text}));
    }
}

/// The alert that is shipped fires for it.
fn alert() {
    let agent = Agent::start(&["--criu", "3.17.1", "--judge-interval", "200ms"]);
    let desktop = Desktop::start(Session::Whole);
    counts_agree(&agent, &desktop);
    let webhook = Webhook::start();
    let alertmanager = Alertmanager::start(webhook.address);
    let rules = alerts::hastened_rules();
    let _prometheus = Prometheus::start(agent.address, &rules, Some(alertmanager.address()));
    let told = eventually("somebody is told", || {
        let is_it = |alert: &Value| {
            alert["labels"]["alertname"] == "FdtrackerContainerNotCheckpointable"
                && alert["labels"]["container"] == NAME
        };
        alerts::last(&webhook, is_it).ok_or("nobody was told")
    });
    assert_eq!(told["status"], "firing", "{told}");
    record("alert", &told);
}

/// Adds what was seen to the record, if one is wanted.
fn record(what: &str, seen: &Value) {
    let Some(file) = std::env::var_os("FDTRACKER_DESKTOP_RECORD") else { return };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let line = json!({"desktop": what, "kernel": kernel.trim(), "seen": seen});
    let mut file = fs::File::options().create(true).append(true).open(file).expect("open the record");
    writeln!(file, "{line}").expect("write the record");
}
