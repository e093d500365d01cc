//! `fdtracker check`, `explain` and `rules`, as users run them: verdicts, exit codes, wrong input,
//! and what a frozen container goes through.

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use fdtracker_tests::{Cgroup, Container, Zoo, eventually, fdtracker, fdzoo, hierarchy, same};
use serde_json::Value;

use crate::{
    Needs::{self, Nobody, Root},
    Test, agent, test, test_or_skip,
};

pub fn tests() -> Vec<Test> {
    vec![
        test("check::every_blocker_at_once", Root, every_blocker_at_once),
        test("check::a_pidfd_is_judged_by_its_target", Root, a_pidfd_is_judged_by_its_target),
        test("check::an_option_makes_it_dumpable", Root, an_option_makes_it_dumpable),
        test("check::waits_until_it_can_be_dumped", Root, waits_until_it_can_be_dumped),
        test("check::a_container_by_its_id", Needs::Programs(&["runc"]), a_container_by_its_id),
        test("check::a_containers_configuration", Needs::Programs(&["runc"]), a_containers_configuration),
        test(
            "check::a_device_is_counted_as_it_is_judged",
            Needs::Programs(&["runc"]),
            a_device_is_counted_as_it_is_judged,
        ),
        test("check::targets_that_are_none", Root, targets_that_are_none),
        test_or_skip("check::frozen_and_thawed", Root, frozen_and_thawed),
        test_or_skip("check::thawed_when_killed", Root, thawed_when_killed),
        test("check::reads_logs", Nobody, reads_logs),
        test("check::rules_can_be_overridden", Root, rules_can_be_overridden),
        test("check::explains", Nobody, explains),
        test("check::prints_tables", Root, prints_tables),
    ]
}

fn run(arguments: &[&str]) -> Output {
    Command::new(fdtracker()).args(arguments).stdin(Stdio::null()).output().expect("run fdtracker")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `check`, and returns its exit code and its document.
#[track_caller]
fn check(target: &str, arguments: &[&str]) -> (i32, Value) {
    let output = run(&[&["check", target, "-o", "json"], arguments].concat());
    let json = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
    (output.status.code().expect("an exit code"), json)
}

#[track_caller]
fn fails(arguments: &[&str], with: &str) {
    let output = run(arguments);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    assert!(stderr.contains(with), "no {with:?} in {stderr}");
}

/// Returns the fd, the kind and the reason of each blocker.
fn blockers(json: &Value) -> Vec<(i64, String, String)> {
    let rows = json["blockers"].as_array().expect("a list of blockers");
    let word = |row: &Value, name: &str| row[name].as_str().expect("a word").to_owned();
    rows.iter()
        .map(|row| (row["fd"].as_i64().unwrap_or(-1), word(row, "kind"), word(row, "reason")))
        .collect()
}

/// Starts the fixture alone, in a session of its own.
fn zoo() -> (Zoo, String) {
    let mut zoo = Zoo::start(Command::new(fdzoo()));
    let pid = zoo.must("pid");
    (zoo, format!("pid:{pid}"))
}

fn every_blocker_at_once() {
    let (mut zoo, target) = zoo();
    let (pidfd, perf, mptcp) = (zoo.must("open pidfd"), zoo.ask("open perf_event"), zoo.ask("open mptcp"));
    zoo.must("open eventfd");
    let (code, json) = check(&target, &["--criu", "4.0"]);
    assert_eq!((code, json["verdict"].as_str()), (1, Some("blocked")), "{json:#}");
    let mut expected = vec![(pidfd, "pidfd".to_owned(), "pidfd_unsupported".to_owned())];
    if let Ok(fd) = perf {
        expected.push((fd[0], "perf_event".into(), "anon_inode_unsupported".into()));
    }
    if let Ok(fd) = mptcp {
        expected.push((fd[0], "mptcp".into(), "mptcp_unsupported".into()));
    }
    assert_eq!(blockers(&json), expected, "{json:#}");
    let message = json["blockers"][0]["message"].as_str().expect("a message");
    assert!(message.starts_with(&format!("Can't dump file {pidfd} of that type [")), "{message}");
    assert_eq!(json["criu"]["version"], "4.0");
    assert_eq!(json["tree"][0]["verdict"], "blocked");
    // A newer CRIU takes the pidfd; the rest must go.
    assert_eq!(json["plan"][0]["action"], "criu");
    assert_eq!(json["plan"][0]["what"], "4.1");
}

/// Device numbers on both sides of each boundary that CRIU draws (CRIU: `files.c:dump_chrdev`,
/// `tty.c:get_tty_driver`). Each with its kind if CRIU can't dump it; `None` if it can: terminals,
/// memory and autofs.
const DEVICES: &[((u32, u32), Option<&str>)] = &[
    ((1, 3), None),
    ((1, 200), None),
    ((2, 0), Some("char_device")),
    ((4, 0), Some("char_device")),
    ((4, 1), None),
    ((4, 63), None),
    ((4, 64), Some("char_device")),
    ((5, 0), None),
    ((5, 1), None),
    ((5, 2), None),
    ((5, 3), Some("char_device")),
    ((5, 64), Some("char_device")),
    ((10, 199), Some("char_device")),
    ((10, 229), Some("char_device")),
    ((10, 235), None),
    ((127, 0), Some("char_device")),
    ((128, 0), None),
    ((135, 255), None),
    ((136, 0), None),
    ((137, 0), Some("char_device")),
    ((143, 0), Some("char_device")),
    ((187, 0), Some("char_device")),
    ((188, 0), None),
    ((195, 0), Some("nvidia")),
    ((204, 64), None),
    ((205, 0), Some("char_device")),
    ((226, 128), Some("dri")),
];

/// Compares, for each device number: what the agent counts, what it finds when it inspects the
/// container, and what `check` finds.
fn a_device_is_counted_as_it_is_judged() {
    let (agent, mut container) = (agent(), Container::start(None, "/docker"));
    let root = format!("/proc/{}/root", container.init());
    let mut expected = Vec::new();
    for ((major, minor), kind) in DEVICES {
        let name = format!("/dev/c{major}-{minor}");
        make_device(&format!("{root}{name}"), *major, *minor);
        let fd = container.zoo.must(&format!("open_path {name}"));
        expected.extend(kind.map(|kind| (fd, kind.to_owned())));
    }
    let mut sums: BTreeMap<String, i64> = BTreeMap::new();
    for (_, kind) in &expected {
        *sums.entry(kind.clone()).or_default() += 1;
    }
    eventually("the devices are counted", || same(agent.counts(&container.id)?, sums.clone()));
    let devices = |json: &Value| -> Vec<(i64, String)> {
        let found = blockers(json).into_iter().map(|(fd, kind, _)| (fd, kind));
        found.filter(|(_, kind)| ["char_device", "nvidia", "dri"].contains(&kind.as_str())).collect()
    };
    eventually("the inspection agrees with the counts", || {
        let (_, body) = agent.ask(&format!("/v1/containers/{}", container.id));
        let json: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        same(json["look"].as_str(), Some("current"))?;
        same(devices(&json), expected.clone())
    });
    for criu in ["3.17.1", "4.0", "4.1.1", "4.2.1"] {
        let (code, json) = check(&container.id, &["--criu", criu]);
        assert_eq!((code, devices(&json)), (1, expected.clone()), "CRIU {criu}: {json:#}");
    }
}

/// Makes a node for a character device. No driver is needed.
fn make_device(path: &str, major: u32, minor: u32) {
    let path = std::ffi::CString::new(path).expect("a path");
    // SAFETY: the path is NUL-terminated.
    let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(major, minor)) };
    assert_eq!(made, 0, "make {path:?}: {}", std::io::Error::last_os_error());
}

fn a_pidfd_is_judged_by_its_target() {
    let (mut zoo, target) = zoo();
    zoo.must("open pidfd");
    assert_eq!(check(&target, &["--criu", "4.2.1"]).0, 0);
    // The child inherits the pidfd, and its target, the parent, isn't in the child's tree.
    let child = zoo.must("fork");
    let (code, json) = check(&format!("pid:{child}"), &["--criu", "4.2.1"]);
    assert_eq!((code, blockers(&json)[0].2.as_str()), (1, "pidfd_target_outside_tree"), "{json:#}");
    let (code, json) = check(&target, &["--criu", "4.2.1"]);
    assert_eq!(code, 0, "{json:#}");
    let verdicts: Vec<_> =
        json["tree"].as_array().expect("a tree").iter().map(|row| row["verdict"].clone()).collect();
    assert_eq!(verdicts, ["ok", "blocked"]);
}

fn an_option_makes_it_dumpable() {
    let file = tempfile::tempfile().expect("a file");
    file.lock().expect("lock the file");
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null());
    let fd = file.as_raw_fd();
    // SAFETY: the calls are safe after a fork. The child leads a session, and keeps the file, with
    // its lock.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            libc::fcntl(fd, libc::F_SETFD, 0);
            Ok(())
        })
    };
    let mut child = command.spawn().expect("start a program");
    drop(file);
    let target = format!("pid:{}", child.id());
    let without = check(&target, &["--criu", "4.2.1"]);
    let with = check(&target, &["--criu", "4.2.1", "--file-locks"]);
    let _ = child.kill();
    let _ = child.wait();
    let (code, json) = without;
    assert_eq!((code, json["verdict"].as_str()), (1, Some("needs_option")), "{json:#}");
    assert_eq!(blockers(&json), [(i64::from(fd), "file".to_owned(), "file_lock".to_owned())]);
    assert_eq!(json["plan"], serde_json::json!([{"action": "option", "what": "--file-locks"}]));
    let (code, json) = with;
    assert_eq!((code, json["verdict"].as_str()), (0, Some("ok")), "{json:#}");
    assert_eq!(json["criu"]["options"], serde_json::json!(["--file-locks"]));
}

fn waits_until_it_can_be_dumped() {
    let (mut zoo, target) = zoo();
    let fd = zoo.must("open pidfd");
    let (code, _) = check(&target, &["--criu", "4.0", "--wait", "300ms"]);
    assert_eq!(code, 1);
    let waiting = thread::spawn(move || check(&target, &["--criu", "4.0", "--wait", "60s"]));
    thread::sleep(Duration::from_millis(300));
    zoo.must(&format!("close {fd}"));
    let (code, json) = waiting.join().expect("the check");
    assert_eq!(code, 0, "{json:#}");
}

fn a_container_by_its_id() {
    let mut container = Container::start(None, "/docker");
    container.zoo.must("open io_uring");
    container.zoo.must("open pidfd");
    let (code, json) = check(&container.id[..20], &["--criu", "4.0"]);
    assert_eq!((code, json["verdict"].as_str()), (1, Some("blocked")), "{json:#}");
    let found = blockers(&json);
    for reason in ["pidfd_unsupported", "io_uring_fd"] {
        assert!(found.iter().any(|(.., other)| other == reason), "no {reason} in {json:#}");
    }
    assert_eq!(json["tree"][0]["pid"], container.init());
    // Finds the same container by its cgroup.
    let (code, by_cgroup) = check(&format!("cgroup:/docker/{}", container.id), &["--criu", "4.0"]);
    assert_eq!((code, &by_cgroup["tree"]), (1, &json["tree"]));
}

/// Checks that `check` uses the CRIU configuration that a container names in an annotation. runc
/// passes this file to CRIU instead of its own.
fn a_containers_configuration() {
    let config = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(config.path(), "file-locks\n").expect("write it");
    let annotations = serde_json::json!({"org.criu.config": config.path()});
    let mut container = Container::start_annotated(None, "/docker", annotations);
    container.zoo.must("pid");
    let options = |more: &[&str]| {
        check(&container.id, &[&["--criu", "4.2.1"], more].concat()).1["criu"]["options"].clone()
    };
    let has =
        |options: serde_json::Value| options.as_array().expect("a list").contains(&"--file-locks".into());
    assert!(has(options(&[])));
    // A configuration on the command line goes before the one that the container names.
    assert!(!has(options(&["--criu-config", "/dev/null"])));
}

fn targets_that_are_none() {
    fails(&["check", "nowhere"], "there is no container nowhere");
    fails(&["check", "pid:4194305"], "there is no process 4194305");
    fails(&["check", "pid:x"], "pid:N");
    fails(&["check", "pod/default/web"], "/var/log/pods");
    fails(&["check", "cgroup:/no/such"], "no/such");
    fails(&["check"], "required");
    let own = std::process::id();
    assert_ne!(
        run(&["check", &format!("pid:{own}")]).status.code(),
        Some(2),
        "another process of the same user"
    );
    let (first, second) = (Cgroup::docker(), Cgroup::docker());
    let zoos = [Zoo::in_cgroup(&first), Zoo::in_cgroup(&second)];
    let common: String =
        first.id.chars().zip(second.id.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    if !common.is_empty() {
        fails(&["check", &common], "may be any of");
    }
    drop(zoos);
    let mut child = Command::new("true").spawn().expect("start a program");
    let pid = child.id();
    eventually("it has ended", || {
        let stderr = text(&run(&["check", &format!("pid:{pid}")]).stderr);
        if stderr.contains("a process that has ended") { Ok(()) } else { Err(stderr) }
    });
    let _ = child.wait();
}

/// Starts a fixture in a cgroup that can be frozen, and returns its target too.
fn freezable() -> Result<(Cgroup, Zoo, String), String> {
    let cgroup = Cgroup::docker();
    let zoo = Zoo::in_cgroup(&cgroup);
    let target = cgroup.id[..20].to_owned();
    let output = run(&["check", &target, "--freeze"]);
    let stderr = text(&output.stderr);
    if stderr.contains("has no cgroup of its own that could be frozen") {
        Err(stderr)
    } else {
        Ok((cgroup, zoo, target))
    }
}

fn frozen_and_thawed() -> Result<(), String> {
    let (_cgroup, mut zoo, target) = freezable()?;
    zoo.must("open pidfd");
    let (code, json) = check(&target, &["--criu", "4.0", "--freeze"]);
    assert_eq!((code, &json["frozen"]), (1, &Value::Bool(true)), "{json:#}");
    // It answers, so it isn't frozen any more.
    zoo.must("open eventfd");
    Ok(())
}

fn thawed_when_killed() -> Result<(), String> {
    let (cgroup, mut zoo, target) = freezable()?;
    // Many files, so that it takes a while.
    zoo.must("open_many eventfd 900");
    for delay in [0, 2, 5, 10, 20, 40] {
        let mut child = Command::new(fdtracker())
            .args(["check", &target, "--freeze"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start fdtracker");
        thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        let _ = child.wait();
        zoo.must("dup 0");
        eventually("it is thawed", || match is_frozen(&cgroup) {
            false => Ok(()),
            true => Err("frozen"),
        });
    }
    Ok(())
}

fn is_frozen(cgroup: &Cgroup) -> bool {
    let path = cgroup.dir().strip_prefix(hierarchy().root()).expect("below the root").to_owned();
    let read = |file: String| fs::read_to_string(file).unwrap_or_default();
    let v1 = read(format!("/sys/fs/cgroup/freezer/{}/freezer.state", path.display()));
    let v2 =
        ["", "/unified"].map(|root| read(format!("/sys/fs/cgroup{root}/{}/cgroup.events", path.display())));
    v1.trim() == "FROZEN" || v2.iter().any(|events| events.lines().any(|line| line == "frozen 1"))
}

fn reads_logs() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = |text: &[u8]| {
        let path = dir.path().join("dump.log");
        fs::write(&path, text).expect("write a log");
        path.to_str().expect("a path").to_owned()
    };
    let failed = b"(00.1) Dumping task (pid: 42 comm: ibus)\n\
        (00.2) Error (criu/files-ext.c:94): Can't dump file 7 of that type [600] (anon anon_inode:[pidfd])\n\
        (00.3) Error (criu/cr-dump.c:2098): Dumping FAILED.\n";
    let output = run(&["check", "--log", &log(failed), "-o", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&json["pid"], &json["fd"], &json["comm"]), (&42.into(), &7.into(), &"ibus".into()));
    assert_eq!(json["reason"], "pidfd_unsupported");
    // An error that isn't about a file.
    let output = run(&["check", "--log", &log(b"(00.1) Error (criu/x.c:1): Something else\n")]);
    assert_eq!(output.status.code(), Some(3));
    fails(&["check", "--log", &log(b"\0\x01\xff\xfe")], "tells no error");
    fails(&["check", "--log", &log(&failed[..60])], "tells no error");
    fails(&["check", "--log", "/nonexistent/dump.log"], "read /nonexistent/dump.log");
}

fn rules_can_be_overridden() {
    let (mut zoo, target) = zoo();
    zoo.must("open io_uring");
    let dir = tempfile::tempdir().expect("a directory");
    let rules = dir.path().join("vendor.toml");
    let file = rules.to_str().expect("a path");
    let rule = "[[rule]]\nreason = \"io_uring_fd\"\nkinds = [\"io_uring\"]\nverdict = \"ok\"\nsource = \"a vendor's fork\"\n";
    fs::write(&rules, rule).expect("write rules");
    assert_eq!(check(&target, &["--criu", "4.2.1"]).0, 1);
    let (code, json) = check(&target, &["--criu", "4.2.1", "--rules", file]);
    assert_eq!(code, 0, "{json:#}");
    fs::write(&rules, rule.replace("\"ok\"", "\"fine\"")).expect("write rules");
    fails(
        &["check", &target, "--rules", file],
        "vendor.toml, line 4: rule \"io_uring_fd\": \"fine\" is no verdict",
    );
    fails(&["check", &target, "--rules", "/nonexistent.toml"], "read /nonexistent.toml");
    fails(&["check", &target, "--criu-path", "/bin/true"], "is it a CRIU?");
    fails(&["check", &target, "--ghost-limit", "much"], "such as 4194304 or 4M");
}

fn explains() {
    let stdout = |arguments: &[&str]| text(&run(arguments).stdout);
    assert!(stdout(&["explain", "pidfd"]).contains("pidfd_target_outside_tree"));
    assert!(stdout(&["explain", "tcp_established"]).contains("--tcp-established"));
    let line = "(00.2) Error (criu/sk-inet.c:188): inet: Connected TCP socket, consider using --tcp-established option.";
    assert!(stdout(&["explain", line]).contains("tcp_established"));
    fails(&["explain", "nonsense"], "nothing is known of \"nonsense\"");
    let rules: Value = serde_json::from_str(&stdout(&["rules", "-o", "json"])).expect("JSON");
    let pidfd = rules.as_array().expect("a list").iter().find(|row| row["kind"] == "pidfd").expect("pidfd");
    assert_eq!((&pidfd["criu"]["4.0"], &pidfd["criu"]["4.1"]), (&"blocked".into(), &"depends".into()));
}

fn prints_tables() {
    let (mut zoo, target) = zoo();
    let fd = zoo.must("open pidfd");
    let output = run(&["check", &target, "--criu", "4.0"]);
    let stdout = text(&output.stdout);
    for line in [
        format!("{target}: blocked, with CRIU 4.0"),
        format!("fd {fd}  pidfd  anon_inode:[pidfd]  blocked: pidfd_unsupported"),
        format!("CRIU says: Can't dump file {fd} of that type"),
        "1. use CRIU 4.1 or newer".to_owned(),
    ] {
        assert!(stdout.contains(&line), "no {line:?} in\n{stdout}");
    }
}
