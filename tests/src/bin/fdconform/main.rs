//! Has CRIU dump every fixture, and compares what it does with what `fdtracker check` says.
//!
//! Each fixture is a process tree. Some also run in a container; then runc starts CRIU.
//!
//! For each fixture, and again for each set of options that it names, this program starts the
//! fixture, runs `fdtracker check` if it is told to, runs `criu dump`, and writes a line of JSON.
//! It kills everything that it started, even a CRIU that hangs.
//!
//! It runs in a machine of its own (`cargo xtask criu`), because a fixture may mount file systems.

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

/// Options of every dump. CRIU locks connections by nftables, which is built in: `iptables` may be
/// missing.
const ALWAYS: [&str; 2] = ["--network-lock", "nftables"];

/// The fixture with nothing open. Errors that CRIU prints for it aren't the cause of any failure.
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

/// Runs everything. Returns whether all checks agreed with CRIU.
fn run(args: &Args) -> io::Result<bool> {
    adopt_orphans()?;
    let mut results = File::options().append(true).open(&args.results)?;
    let all = fixture::list()?;
    let is_wanted = |name: &String| is_chosen(name, &args.fixtures) && !args.skip.contains(name);
    let chosen: Vec<&Fixture> = all.iter().filter(|fixture| is_wanted(&fixture.name)).collect();
    // Says first what is to come. If the machine crashes, the results show what is missing.
    let runs: BTreeMap<&str, usize> =
        chosen.iter().map(|fixture| (fixture.name.as_str(), fixture.runs().count())).collect();
    writeln!(results, "{}", json!({"runs": runs}))?;
    let nothing = Fixture { name: NOTHING.into(), about: String::new(), options: Vec::new() };
    // The first start also tests what the kernel can do (CRIU: `kerndat_init`), and CRIU keeps the
    // result in a file. It logs errors for what the kernel can't do, so this log isn't used.
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

/// Returns whether a fixture is chosen. All are if nothing is named.
fn is_chosen(name: &str, chosen: &[String]) -> bool {
    let starts = |part: &String| name.strip_prefix(part.as_str()).is_some_and(|rest| rest.starts_with('.'));
    chosen.is_empty() || chosen.iter().any(|part| name == part || starts(part))
}

/// The outcome of a dump.
struct Dumped {
    /// `dumped`, `refused` or `hung`; `not_run` if CRIU didn't start properly, `not_made` if there
    /// was no process to dump.
    verdict: &'static str,
    /// Why there was no dump.
    reason: Option<String>,
    log: Log,
    took: Duration,
    /// What `fdtracker check` said before the dump.
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

/// Makes the fixture, checks it if that is wanted, and dumps it. Afterwards nothing of it is left.
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
    // CRIU refuses an unknown option before it has a log.
    if verdict == "refused" && log.is_empty() {
        (verdict, reason) =
            ("not_run", text(STDERR).ok().and_then(|text| text.lines().next().map(str::to_owned)));
    }
    let log = Log::read(&log);
    fs::remove_dir_all(&images)?;
    Ok(Dumped { verdict, reason, log, took: start.elapsed(), check })
}

/// Runs `fdtracker check`. If it is missing or prints no JSON, the result says so.
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

/// Dumps the fixture into a directory.
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
