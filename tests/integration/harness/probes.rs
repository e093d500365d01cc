//! Tests the harness: it runs tests that misbehave, in a process of its own.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use super::{Needs::Nobody, Test, test};

/// The variable that enables them.
const WANTED: &str = "FDTRACKER_TEST_PROBES";

/// The argument of a process that must not be left over.
const LEFT: &str = "86399";

pub fn tests() -> Vec<Test> {
    vec![test("harness::ends_what_hangs_and_goes_on", Nobody, ends_what_hangs_and_goes_on)]
}

/// Returns tests that misbehave, if they are enabled.
pub fn probes() -> Vec<Test> {
    if std::env::var_os(WANTED).is_none() {
        return Vec::new();
    }
    vec![
        test("probe::hangs", Nobody, hangs).within(Duration::from_secs(1)),
        test("probe::dies", Nobody, || std::process::abort()),
        test("probe::fails", Nobody, || panic!("as it should")),
        test("probe::passes", Nobody, || ()),
    ]
}

/// Returns a test that behaves well, to run beside them.
pub fn bystanders() -> Vec<Test> {
    if std::env::var_os(WANTED).is_none() {
        return Vec::new();
    }
    // This takes longer than the other worker has until it is ended.
    vec![test("probe::bystander", Nobody, || std::thread::sleep(Duration::from_secs(2)))]
}

fn hangs() {
    // It is in a session of its own, as containers' processes are, and no parent waits for it.
    let mut orphan = Command::new("setsid");
    orphan.args(["sh", "-c", &format!("sleep {LEFT} & exec sleep 0")]).stdout(Stdio::null());
    orphan.status().expect("start a process that stays");
    loop {
        std::thread::park();
    }
}

fn ends_what_hangs_and_goes_on() {
    let me = std::env::current_exe().expect("this test's own path");
    let mut probes = Command::new(me);
    probes.env(WANTED, "1").env_remove(super::worker::SOCKET).env_remove("FDTRACKER_TEST_REPORT");
    let output = probes.args(["--color", "never", "probe::"]).output().expect("run the probes");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(101), "{text}");
    for line in [
        "not done within 1 s",
        "the process that ran it ended: signal: 6 (SIGABRT)",
        "as it should",
        "test result: FAILED. 2 passed; 3 failed; 0 ignored",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("probe::bystander was ended with a test that hung: it runs again"), "{said}");
    let left = Command::new("pgrep").args(["-f", LEFT]).output().expect("run pgrep");
    assert!(left.stdout.is_empty(), "left: {}", String::from_utf8_lossy(&left.stdout));
}
