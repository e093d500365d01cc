//! Tells the program which compiler made it, for `fdtracker_build_info`. Not by a variable `FDTRACKER_*`: cargo sets it when it runs the
//! program, too, which would take it for a flag.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // As `rustc 1.95.0 (59807616e 2026-04-14)`.
    let told = env::var_os("RUSTC").and_then(|rustc| Command::new(rustc).arg("--version").output().ok());
    let told = told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let version = told.split_whitespace().nth(1).unwrap_or("unknown");
    println!("cargo::rustc-env=BUILT_BY_RUST={version}");
}
