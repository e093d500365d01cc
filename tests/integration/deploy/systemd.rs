//! Tests the systemd units.

use std::{fs, process::Command};

use super::{must, path, read, understood};
use crate::{
    Needs::{Nobody, Programs},
    Test, test,
};

pub fn tests() -> Vec<Test> {
    vec![
        test("deploy::systemd_units_are_right", Programs(&["systemd-analyze"]), systemd_units_are_right),
        test(
            "deploy::the_unit_is_no_less_confined",
            Programs(&["systemd-analyze"]),
            the_unit_is_no_less_confined,
        ),
        test("deploy::systemd_starts_what_is_understood", Nobody, systemd_starts_what_is_understood),
    ]
}

const UNITS: [&str; 4] = [
    "deploy/systemd/fdtracker.service",
    "deploy/systemd/fdtracker.socket",
    "deploy/systemd/fdtracker.service.d/details.conf",
    "deploy/systemd/fdtracker.service.d/socket.conf",
];

/// Makes a directory with the units. They start a program that exists.
fn installed(drop_ins: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory for the units");
    fs::create_dir(dir.path().join("fdtracker.service.d")).expect("make a directory");
    for unit in UNITS.iter().filter(|unit| drop_ins || !unit.ends_with(".conf")) {
        let to = dir.path().join(unit.strip_prefix("deploy/systemd/").expect("a unit"));
        fs::write(to, read(unit).replace("/usr/local/bin/fdtracker", "/bin/true")).expect("write the unit");
    }
    dir
}

fn systemd_units_are_right() {
    for drop_ins in [false, true] {
        let dir = installed(drop_ins);
        let units = ["fdtracker.service", "fdtracker.socket"];
        let mut analyze = Command::new("systemd-analyze");
        analyze.arg("verify").args(units.map(|unit| dir.path().join(unit)));
        // It warns about what it ignores, and prints nothing if all is right.
        let said = must(&mut analyze);
        assert!(!said.contains("fdtracker"), "{said}");
    }
}

/// Returns the exposure that `docs/operations.md` states.
fn documented_exposure() -> f64 {
    let text = read("docs/operations.md");
    let (_, rest) =
        text.split_once("exposure level of ").expect("docs/operations.md states the exposure level");
    rest.split_whitespace()
        .next()
        .and_then(|number| number.trim_end_matches(',').parse().ok())
        .expect("a number")
}

fn the_unit_is_no_less_confined() {
    let dir = installed(false);
    // The option takes tenths; exposure goes up to 10.
    let threshold = format!("--threshold={}", (documented_exposure() * 10.0).round());
    let unit = dir.path().join("fdtracker.service");
    must(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", &threshold])
            .arg(unit),
    );
}

fn systemd_starts_what_is_understood() {
    for unit in UNITS.iter().filter(|unit| path(unit).is_file()) {
        let text = read(unit);
        let starts = text.lines().filter_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/fdtracker "));
        for start in starts {
            understood(&start.split_whitespace().collect::<Vec<_>>());
        }
    }
}
