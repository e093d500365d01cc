//! `fdtracker check`.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    args::{self, LsFormat},
    explain, output,
};
use crate::{
    api::Check,
    criu::Engine,
    freeze::Frozen,
    inspect,
    runtime::{Directory, Runtime},
    target::{Found, Target},
    verdict::{self, Judge, Verdict},
};

/// How often it is looked again with `--wait`.
const AGAIN: Duration = Duration::from_millis(250);

pub(super) async fn run(args: &args::Check) -> anyhow::Result<ExitCode> {
    if let Some(log) = &args.log {
        return read_log(args, log);
    }
    let Some(target) = &args.target else {
        anyhow::bail!(
            "say what to check: a container, pod/NAMESPACE/NAME, pid:N or cgroup:/PATH (or --log FILE)"
        );
    };
    let directory = match target {
        Target::Container(_) | Target::Pod { .. } => args.runtimes.look().await,
        Target::Pid(_) | Target::Cgroup(_) => Arc::new(Directory::default()),
    };
    let start = Instant::now();
    let mut known = None;
    loop {
        let found = target.find(&directory)?;
        let how = how_dumped(&found);
        // To find out which CRIU there is takes longer than a look.
        let judge = match known.take() {
            Some((as_known, judge)) if as_known == how => judge,
            _ => args.judging.judge_of(how.0, how.1.clone())?,
        };
        let check = look(args, target, &found, &judge)?;
        known = Some((how, judge));
        let waited = args.wait.is_none_or(|wait| start.elapsed() >= wait);
        if waited || check.verdict == Verdict::Ok {
            print(args, &check)?;
            return Ok(code(check.verdict));
        }
        std::thread::sleep(AGAIN);
    }
}

/// One look at what was found.
fn look(args: &args::Check, target: &Target, found: &Found, judge: &Judge) -> anyhow::Result<Check> {
    let frozen = args.freeze.then(|| Frozen::freeze(found)).transpose()?;
    let tree = inspect::tree(found.root, &judge.profile().irmap_paths())?;
    let is_frozen = frozen.is_some();
    if let Some(frozen) = frozen {
        frozen.thaw()?;
    }
    Ok(Check::new(target.to_string(), judge, is_frozen, &verdict::check(judge, &tree)))
}

/// Who would run CRIU, and with which configuration of the container's.
fn how_dumped(found: &Found) -> (Engine, Option<String>) {
    let Some(container) = &found.container else { return (Engine::Criu, None) };
    let engine = match container.runtime {
        Runtime::Podman => Engine::Podman,
        Runtime::Crun => Engine::Crun,
        _ => Engine::Runc,
    };
    (engine, container.criu_config.clone())
}

fn code(verdict: Verdict) -> ExitCode {
    ExitCode::from(match verdict {
        Verdict::Ok => 0,
        Verdict::NeedsOption | Verdict::Blocked => 1,
        Verdict::Unknown => 3,
    })
}

fn print(args: &args::Check, check: &Check) -> anyhow::Result<()> {
    match args.output {
        LsFormat::Json => output::json(check),
        LsFormat::Table => Ok(output::check(check)?),
    }
}

/// Ties what a log says to a rule.
fn read_log(args: &args::Check, log: &Path) -> anyhow::Result<ExitCode> {
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let judge: Judge = args.judging.judge(Engine::default())?;
    let Some(cause) = verdict::cause(&text) else {
        anyhow::bail!(
            "{} tells no error: a log of criu dump has lines with \"Error\" where it failed (it may be cut off, or of a dump that went through)",
            log.display()
        );
    };
    explain::cause(args.output, &judge, &cause)
}
