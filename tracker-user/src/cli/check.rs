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
    criu::CriuRunner,
    freeze::Frozen,
    inspect,
    runtime::{Directory, Runtime},
    target::{Target, TargetTree},
    verdict::{self, Judge, Verdict},
};

/// The time between two inspections with `--wait`.
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
        Target::Container(_) | Target::Pod { .. } => args.runtimes.ask().await,
        Target::Pid(_) | Target::Cgroup(_) => Arc::new(Directory::default()),
    };
    let start = Instant::now();
    let mut known = None;
    loop {
        let tree = target.find(&directory)?;
        let how = how_dumped(&tree);
        // Finding out which CRIU is installed takes longer than an inspection.
        let judge = match known.take() {
            Some((as_known, judge)) if as_known == how => judge,
            _ => args.judging.judge_of(how.0, how.1.clone())?,
        };
        let check = inspect_once(args, target, &tree, &judge)?;
        known = Some((how, judge));
        let waited = args.wait.is_none_or(|wait| start.elapsed() >= wait);
        if waited || check.verdict == Verdict::Ok {
            print(args, &check)?;
            return Ok(code(check.verdict));
        }
        std::thread::sleep(AGAIN);
    }
}

/// Inspects a tree once, and judges it.
fn inspect_once(
    args: &args::Check,
    target: &Target,
    tree: &TargetTree,
    judge: &Judge,
) -> anyhow::Result<Check> {
    let frozen = args.freeze.then(|| Frozen::freeze(tree)).transpose()?;
    let inspected = inspect::tree(tree.root, &judge.profile().irmap_paths())?;
    let is_frozen = frozen.is_some();
    if let Some(frozen) = frozen {
        frozen.thaw()?;
    }
    Ok(Check::new(target.to_string(), judge, is_frozen, &verdict::check(judge, &inspected)))
}

/// Returns the program that would run CRIU, and the configuration file that the container asks for.
fn how_dumped(tree: &TargetTree) -> (CriuRunner, Option<String>) {
    let Some(container) = &tree.container else { return (CriuRunner::Criu, None) };
    let runner = match container.runtime {
        Runtime::Podman => CriuRunner::Podman,
        Runtime::Crun => CriuRunner::Crun,
        _ => CriuRunner::Runc,
    };
    (runner, container.criu_config.clone())
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

/// Explains the error in a log by a rule.
fn read_log(args: &args::Check, log: &Path) -> anyhow::Result<ExitCode> {
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let judge: Judge = args.judging.judge(CriuRunner::default())?;
    let Some(cause) = verdict::cause(&text) else {
        anyhow::bail!(
            "{} tells no error: a log of criu dump has lines with \"Error\" where it failed (it may be cut off, or of a dump that went through)",
            log.display()
        );
    };
    explain::cause(args.output, &judge, &cause)
}
