//! `fdtracker ls`.

use std::{process::ExitCode, time::Duration};

use super::{
    args::{self, LsFormat},
    output,
};
use crate::{bpf::Choice, http::Client, report::Listing, tracker::Tracker};

pub(super) async fn run(args: args::Ls) -> anyhow::Result<ExitCode> {
    let listing = match Client::find(&args.socket.socket).await? {
        Some(agent) => agent.listing(args.processes).await?,
        None => look(&args).await?,
    };
    match args.output {
        LsFormat::Json => output::json(&listing)?,
        LsFormat::Table => output::listing(&listing)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// No agent runs: one look is enough.
async fn look(args: &args::Ls) -> anyhow::Result<Listing> {
    let (tracker, _rings) = Tracker::start(
        args.engine.judge()?,
        args.engine.sizes(),
        Choice::Audit,
        args.engine.runtimes.look().await,
    )?;
    tracker.adopt()?;
    tracker.look_in_detail();
    for container in tracker.containers() {
        // There was no look before, so nothing is news.
        let _ = tracker.assess(&container, Duration::MAX);
    }
    Ok(tracker.listing(args.processes)?)
}
