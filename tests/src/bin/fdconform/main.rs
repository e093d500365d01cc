//! Has CRIU itself say what it makes of every fixture, and compares `fdtracker check` with that.
//!
//! Each fixture is a process tree; some are in a container of runc's, too, which then is the one to start CRIU.
//!
//! For each fixture, and once more for each set of options that it names: starts it, asks `fdtracker check` if it is told to, runs
//! `criu dump`, and writes a line of JSON. Everything that it starts is killed, a CRIU that hangs too.
//!
//! It runs in a machine of its own (`cargo xtask criu`): a fixture may mount file systems.

mod container;
mod fixture;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;
use fdtracker_tests::{
    criu::{Line, Log, agrees},
    descendants::adopt_orphans,
    sys::wait_within,
};
use serde_json::{Value, json};

use self::fixture::{Fixture, Held};

/// Compares what CRIU makes of every fixture with what fdtracker says beforehand
#[derive(Parser)]
struct Args {
    /// Where results go, a line of JSON each
    #[arg(long, default_value = "/dev/stdout")]
    results: PathBuf,

    /// Run `fdtracker check` before each dump, and compare
    #[arg(long)]
    check: bool,

    /// What to start as CRIU
    #[arg(long, default_value = "criu")]
    criu: PathBuf,

    /// Seconds that a dump may take
    #[arg(long, default_value_t = 60)]
    timeout: u64,

    /// Not this fixture; may be repeated
    #[arg(long)]
    skip: Vec<String>,

    /// Only these fixtures, or those whose name starts with this and a dot
    fixtures: Vec<String>,
}

/// What every dump is told: that it locks connections by what it has in itself, as `iptables` may not be there.
const ALWAYS: [&str; 2] = ["--network-lock", "nftables"];

/// The fixture without anything: what CRIU complains of there is no cause of anything.
const NOTHING: &str = "nothing.open";

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fdconform: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all checks agreed with CRIU.
fn run(args: &Args) -> io::Result<bool> {
    adopt_orphans()?;
    let mut results = File::options().append(true).open(&args.results)?;
    let all = fixture::list()?;
    let is_wanted = |name: &String| is_chosen(name, &args.fixtures) && !args.skip.contains(name);
    let chosen: Vec<&Fixture> = all.iter().filter(|fixture| is_wanted(&fixture.name)).collect();
    // So that whoever reads this knows what is missing, if the machine doesn't get to the end.
    let runs: BTreeMap<&str, usize> =
        chosen.iter().map(|fixture| (fixture.name.as_str(), fixture.runs().count())).collect();
    writeln!(results, "{}", json!({"runs": runs}))?;
    let nothing = Fixture { name: NOTHING.into(), about: String::new(), options: Vec::new() };
    // The first start also tries what the kernel can do, of which failures tell (CRIU: kerndat_init), and keeps what it found.
    dump(args, &nothing, &[])?;
    let usual = dump(args, &nothing, &[])?.log;
    let mut agreed = true;
    for fixture in chosen {
        for options in fixture.runs() {
            let result = one(args, fixture, options, &usual)?;
            agreed &= result.get("agrees") != Some(&Value::Bool(false));
            writeln!(results, "{result}")?;
        }
    }
    Ok(agreed)
}

/// All, if nothing is chosen.
fn is_chosen(name: &str, chosen: &[String]) -> bool {
    let starts = |part: &String| name.strip_prefix(part.as_str()).is_some_and(|rest| rest.starts_with('.'));
    chosen.is_empty() || chosen.iter().any(|part| name == part || starts(part))
}

/// What came out of a dump.
struct Dumped {
    /// `dumped`, `refused`, `hung`; `not_run` if this CRIU wasn't even started well, or `not_made` if there was nothing to be dumped.
    verdict: &'static str,
    /// Why there was no dump.
    reason: Option<String>,
    log: Log,
    took: Duration,
    /// What `fdtracker check` said before.
    check: Option<Value>,
}

fn one(args: &Args, fixture: &Fixture, options: &[String], usual: &Log) -> io::Result<Value> {
    let Dumped { verdict, reason, log, took, check } = dump(args, fixture, options)?;
    let cause = log.cause(usual);
    let json = |lines: &[&Line]| lines.iter().map(|line| line.json()).collect::<Vec<_>>();
    Ok(json!({
        "fixture": fixture.name,
        "about": fixture.about,
        "options": options,
        "verdict": verdict,
        "reason": reason,
        "cause": json(&cause),
        "errors": json(&log.errors.iter().collect::<Vec<_>>()),
        "milliseconds": took.as_millis() as u64,
        "agrees": check.as_ref().map(|check| agrees(check, verdict, &cause)),
        "check": check,
    }))
}

/// Makes the fixture, has it checked if that is wanted, and dumps it. Nothing is left of it afterwards.
fn dump(args: &Args, fixture: &Fixture, options: &[String]) -> io::Result<Dumped> {
    let start = Instant::now();
    let made = fixture.hold();
    let held: Held = match made {
        Ok(held) => held,
        Err(error) => {
            let (log, reason) = (Log::default(), Some(error.to_string()));
            return Ok(Dumped { verdict: "not_made", reason, log, took: start.elapsed(), check: None });
        }
    };
    let check = args.check.then(|| fdtracker_check(&held.target(), options));
    let images = std::env::temp_dir().join("fdconform");
    fs::create_dir_all(&images)?;
    let mut verdict = criu(args, &held, options, &images)?;
    drop(held);
    let text =
        |name: &str| fs::read(images.join(name)).map(|text| String::from_utf8_lossy(&text).into_owned());
    let (log, mut reason) = (text(LOG).unwrap_or_default(), None);
    // An option that it doesn't know ends it before it has a log.
    if verdict == "refused" && log.is_empty() {
        (verdict, reason) =
            ("not_run", text(STDERR).ok().and_then(|text| text.lines().next().map(str::to_owned)));
    }
    let log = Log::read(&log);
    fs::remove_dir_all(&images)?;
    Ok(Dumped { verdict, reason, log, took: start.elapsed(), check })
}

/// Asks `fdtracker check`. If there is no such command, or it prints no JSON, that is the answer.
fn fdtracker_check(target: &str, options: &[String]) -> Value {
    let output = Command::new("fdtracker")
        .args(["check", target, "-o", "json"])
        .args(options)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| json!({"failed": String::from_utf8_lossy(&output.stderr).trim()})),
        Err(error) => json!({"failed": error.to_string()}),
    }
}

const LOG: &str = "dump.log";
const STDERR: &str = "stderr";

/// Dumps what is held into a directory.
fn criu(args: &Args, held: &Held, options: &[String], images: &Path) -> io::Result<&'static str> {
    let mut command = match held {
        Held::Process(process) => {
            let mut criu = Command::new(&args.criu);
            criu.args(["dump", "--leave-running", "-v4", "-o", LOG, "-t", &process.pid.to_string(), "-D"]);
            criu.arg(images).args(ALWAYS).args(options);
            criu
        }
        Held::Container(container) => container.checkpoint(images, options),
    };
    let mut criu = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(images.join(STDERR))?)
        .spawn()?;
    let Some(status) = wait_within(&mut criu, Duration::from_secs(args.timeout))? else {
        criu.kill()?;
        criu.wait()?;
        return Ok("hung");
    };
    Ok(if status.success() { "dumped" } else { "refused" })
}
