//! Containers that runc starts: who they are, and what is counted for them.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant, SystemTime},
};

use fdtracker_tests::{Agent, Cgroup, Container, Zoo, deadline, eventually, patience, same, truth};

use crate::{Needs, Test, agent, test};

const RUNC: Needs = Needs::Programs(&["runc"]);

pub fn tests() -> Vec<Test> {
    vec![
        test("containers::runc", RUNC, runc),
        test("containers::a_cgroup_of_any_name", RUNC, a_cgroup_of_any_name),
        test("containers::tail_shows_an_open_at_once", RUNC, tail_shows_an_open_at_once),
        test("containers::tail_filters", Needs::Root, tail_filters),
        test("containers::tail_tells_what_it_missed", Needs::Root, tail_tells_what_it_missed),
        test("containers::tail_tells_what_stands_in_the_way", RUNC, tail_tells_what_stands_in_the_way),
        test("containers::the_host", Needs::Root, the_host),
        test("containers::comes_and_goes", RUNC, comes_and_goes),
    ]
}

/// Waits until `ls` counts for a container what `/proc` says of its process.
#[track_caller]
fn agrees(agent: &Agent, container: &Container) {
    let pid = container.init();
    eventually("the agent agrees with /proc", || same(agent.counts(&container.id)?, truth(pid)));
}

fn runc() {
    let agent = agent();
    let mut container = Container::start(None, "/docker");
    let zoo = &mut container.zoo;
    let first = zoo.must("open pidfd");
    zoo.must(&format!("dup {first}"));
    zoo.must(&format!("pass {first}"));
    agrees(&agent, &container);
    let found = agent.container(&container.id).expect("the container");
    assert_eq!(found["runtime"], "docker");
    assert_eq!(found["name"], container.id[..12]);
    assert_eq!(found["state"], "blocked");
    assert_eq!(found["counts"], serde_json::json!([{"kind": "pidfd", "verdict": "blocked", "count": 3}]));
    assert_eq!(found["processes"][0]["pid"], container.init());
    assert_eq!(found["processes"][0]["comm"], "fdzoo");

    let name = &container.id[..12];
    let metrics = agent.metrics();
    let labels = [("container", name), ("kind", "pidfd"), ("verdict", "blocked")];
    assert_eq!(metrics.get("fdtracker_open_fds", &labels), 3.0);
    assert_eq!(metrics.find("fdtracker_container_checkpointable", &[("container", name)]), Some(0.0));

    let of_container = [("container", name)];
    let blocked = || agent.metrics().get("fdtracker_container_blocked_seconds_total", &of_container);
    eventually("its history says so", || if blocked() > 0.0 { Ok(()) } else { Err("not yet") });

    container.zoo.must("close_range 3 100 0");
    agrees(&agent, &container);
    assert_eq!(agent.metrics().find("fdtracker_open_fds", &labels), None);
    // This is so once the agent has inspected the container.
    eventually("it can be dumped", || {
        let found = agent.metrics().find("fdtracker_container_checkpointable", &of_container);
        if found == Some(1.0) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert!(blocked() > 0.0);
    let metrics = agent.metrics();
    assert!(metrics.get("fdtracker_container_last_checkpointable_timestamp_seconds", &of_container) > 1e9);
    let opened = metrics.get("fdtracker_fds_opened_total", &labels[..2]);
    assert_eq!((opened, metrics.get("fdtracker_fds_closed_total", &labels[..2])), (3.0, 3.0));
}

fn a_cgroup_of_any_name() {
    let agent = agent();
    let id = format!("zoo-{}", std::process::id());
    let mut container = Container::start(Some(&id), "/fdtracker-test");
    container.zoo.must("open eventfd");
    agrees(&agent, &container);
    let found = agent.container(&id).expect("the container");
    assert_eq!((&found["runtime"], &found["name"]), (&"runc".into(), &id.clone().into()));
    assert_eq!(found["cgroup"], format!("/fdtracker-test/{id}"));
}

/// A running `tail -o json`.
pub struct Tail {
    child: Child,
    lines: Receiver<String>,
}

impl Tail {
    /// Starts it. It certainly follows events once [`Tail::first_line`] has returned.
    pub fn start(agent: &Agent, arguments: &[&str]) -> Self {
        let mut child = agent
            .command(&[&["tail", "-o", "json"], arguments].concat())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start tail");
        let output = BufReader::new(child.stdout.take().expect("its standard output"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// Opens and closes pidfds until the first line comes: from then on it follows events.
    pub fn first_line(&mut self, zoo: &mut Zoo) -> String {
        let seen = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let start = Instant::now();
                while !seen.load(Ordering::Relaxed) && start.elapsed() < deadline() {
                    let fd = zoo.must("open pidfd");
                    zoo.must(&format!("close {fd}"));
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            let line = self.line();
            seen.store(true, Ordering::Relaxed);
            line
        })
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let line = self.lines.recv_timeout(deadline());
        line.unwrap_or_else(|error| panic!("no line of tail within {:?}: {error}", deadline()))
    }

    #[track_caller]
    fn next(&mut self) -> serde_json::Value {
        parsed(&self.line())
    }

    /// Collects all lines from now on, until the agent ends.
    pub fn gather(self) -> Arc<Mutex<Vec<serde_json::Value>>> {
        let lines: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
        let to = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in &self.lines {
                to.lock().unwrap_or_else(PoisonError::into_inner).push(parsed(&line));
            }
        });
        lines
    }

    /// Skips to the event with this name and fd.
    #[track_caller]
    pub fn until(&mut self, event: &str, fd: i64) -> serde_json::Value {
        parsed(&self.until_text(event, fd))
    }

    /// Does the same, and returns the line as it was printed.
    #[track_caller]
    pub fn until_text(&mut self, event: &str, fd: i64) -> String {
        loop {
            let text = self.line();
            let line = parsed(&text);
            if line["event"] == event && line["fd"] == fd {
                return text;
            }
        }
    }
}

#[track_caller]
fn parsed(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?} is not JSON: {error}"))
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail_shows_an_open_at_once() {
    let agent = agent();
    let mut container = Container::start(None, "/docker");
    eventually("the container is there", || agent.container(&container.id));
    let mut tail = Tail::start(&agent, &["--container", &container.id[..12], "--kind", "pidfd"]);
    tail.first_line(&mut container.zoo);
    container.zoo.must("open eventfd");
    let fd = container.zoo.must("open pidfd");
    container.zoo.must(&format!("dup2 {fd} 77"));
    let line = tail.until("opened", 77);
    let shown = SystemTime::now();
    assert_eq!(line["container"], container.id[..12]);
    assert_eq!(line["container_id"], container.id);
    assert_eq!(
        (&line["comm"], &line["kind"], &line["verdict"]),
        (&"fdzoo".into(), &"pidfd".into(), &"blocked".into())
    );
    assert_eq!(line["pid"], container.init());
    // The delay is printed, but hardly judged: on a busy machine it has no bound. It must only be
    // less than two seconds.
    let time: String = serde_json::from_value(line["time"].clone()).expect("a time");
    let age = age(&time, shown);
    eprintln!("shown {age:?} after it happened");
    assert!(age < Duration::from_secs(2), "{time} was shown {age:?} late");
    container.zoo.must("close 77");
    assert_eq!(tail.until("closed", 77)["kind"], "pidfd");
}

/// Returns how long before `now` an RFC 3339 time is. Compares only the time of day.
fn age(time: &str, now: SystemTime) -> Duration {
    let clock = time.split(['T', 'Z']).nth(1).expect("a time of day");
    let parts: Vec<f64> = clock.split(':').map(|part| part.parse().expect("a number")).collect();
    let at = parts[0] * 3600.0 + parts[1] * 60.0 + parts[2];
    let now = now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64() % 86_400.0;
    Duration::from_secs_f64((now - at).rem_euclid(86_400.0))
}

fn tail_filters() {
    let (agent, watched, other) = (agent(), Cgroup::docker(), Cgroup::docker());
    let (mut zoo, mut loud) = (Zoo::in_cgroup(&watched), Zoo::in_cgroup(&other));
    eventually("the container is there", || agent.container(&watched.id));
    let mut tail = Tail::start(&agent, &["--container", &watched.id, "--kind", "pidfd", "--kind", "timerfd"]);
    tail.first_line(&mut zoo);
    loud.must("open pidfd");
    zoo.must("open eventfd");
    let fd = zoo.must("open timerfd");
    let line = tail.until("opened", fd);
    assert_eq!((&line["kind"], &line["container_id"]), (&"timerfd".into(), &watched.id.clone().into()));
    // Where the kernel skips the program that reports a fork, no event comes. So it is tried again.
    let forked = eventually("a fork is told", || {
        let child = zoo.must("fork");
        std::iter::from_fn(|| tail.lines.recv_timeout(Duration::from_secs(1) * patience()).ok())
            .map(|line| parsed(&line))
            .find(|line| line["event"] == "forked" && line["pid"] == child)
            .ok_or("no line")
    });
    assert!(forked["counts"].to_string().contains("timerfd"), "{forked}");
}

/// Checks that a ring for a few dozen events loses most of a storm, that the subscriber is told how
/// many were lost, and that counts stay exact.
fn tail_tells_what_it_missed() {
    let cgroup = Cgroup::docker();
    let mut zoo = Zoo::in_cgroup(&cgroup);
    let agent = Agent::start(&["--ring-size", "4096"]);
    let mut tail = Tail::start(&agent, &["--container", &cgroup.id]);
    tail.first_line(&mut zoo);
    for _ in 0..5 {
        zoo.must("churn 5000");
    }
    let lost = std::iter::from_fn(|| Some(tail.next())).find(|line| line["event"] == "lost").expect("a loss");
    assert!(lost["lost"].as_u64() > Some(0), "{lost}");
    let metrics = agent.metrics();
    assert!(metrics.get("fdtracker_events_lost_total", &[("stage", "ring")]) > 0.0);
    let labels = [("container", cgroup.name()), ("kind", "eventfd")];
    assert_eq!(metrics.get("fdtracker_fds_opened_total", &labels), 25_000.0);
    assert_eq!(metrics.get("fdtracker_fds_closed_total", &labels), 25_000.0);
}

fn the_host() {
    let agent = agent();
    let mut zoo = Zoo::start(std::process::Command::new(fdtracker_tests::fdzoo()));
    zoo.must("open pidfd");
    let pid = zoo.pid();
    let mine = |agent: &Agent| -> Result<serde_json::Value, String> {
        let host = agent.container("host")?;
        let processes = host["processes"].as_array().expect("a list").clone();
        processes.into_iter().find(|p| p["pid"] == pid).ok_or_else(|| format!("no process {pid}"))
    };
    let found = eventually("the host has the process", || mine(&agent));
    assert_eq!(found["counts"], serde_json::json!([{"kind": "pidfd", "verdict": "blocked", "count": 1}]));
    let host = agent.container("host").expect("the host");
    assert_eq!((&host["runtime"], &host["cgroup"]), (&"host".into(), &"/".into()));
    zoo.end();
    eventually("the process has gone", || match mine(&agent) {
        Ok(found) => Err(found.to_string()),
        Err(_) => Ok(()),
    });
}

fn comes_and_goes() {
    let agent = agent();
    let id = {
        let mut container = Container::start(None, "/docker");
        container.zoo.must("open pidfd");
        agrees(&agent, &container);
        container.id.clone()
    };
    eventually("the container has gone", || match agent.container(&id) {
        Ok(found) => Err(found.to_string()),
        Err(_) => Ok(()),
    });
    // No series of the container is left.
    assert!(!agent.metrics().0.contains(&id[..12]));
}

/// Tests a verdict that no probe can give: for a pidfd, it depends on whether the target is in the
/// tree.
fn tail_tells_what_stands_in_the_way() {
    let agent = Agent::start(&["--criu", "4.2.1", "--judge-interval", "200ms"]);
    let mut container = Container::start(None, "/docker");
    // An answer shows that the fixture runs.
    container.zoo.must("pid");
    let name = container.id[..12].to_owned();
    let mut tail = Tail::start(&agent, &["--container", &name]);
    tail.first_line(&mut container.zoo);
    let fd = container.zoo.must("open io_uring");
    // Other lines may come first: a container begins with runc's own sockets, and `tail` may tell
    // that these don't block it any more.
    let line = tail.until("blocked", fd);
    assert_eq!(
        (&line["reason"], &line["pid"]),
        (&"io_uring_fd".into(), &container.init().into()),
        "{line:#}"
    );
    assert_eq!(line["message"], "Can't retrieve FDs from socket");
    container.zoo.must(&format!("close {fd}"));
    while tail.next()["event"] != "unblocked" {}
    // The target of this pidfd is the process itself.
    container.zoo.must("open pidfd");
    let verdict = |agent: &Agent, verdict: &str| {
        let labels = [("container", name.as_str()), ("kind", "pidfd"), ("verdict", verdict)];
        agent.metrics().find("fdtracker_open_fds", &labels)
    };
    eventually("the pidfd is fine", || same(verdict(&agent, "ok"), Some(1.0)));
}
