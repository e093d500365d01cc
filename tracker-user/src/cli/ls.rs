//! `fdtracker ls`.

use std::process::ExitCode;

use super::{
    args::{self, LsFormat},
    output,
};
use crate::{agent, api::Listing, host, http::Client};

pub(super) async fn run(args: args::Ls) -> anyhow::Result<ExitCode> {
    let listing = match Client::find(&args.socket.socket).await? {
        Some(agent) => agent.listing(args.processes).await?,
        None => list_without_agent(&args).await?,
    };
    match args.output {
        LsFormat::Json => output::json(&listing)?,
        LsFormat::Table => output::listing(&listing)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists containers when no agent runs, from one snapshot.
async fn list_without_agent(args: &args::Ls) -> anyhow::Result<Listing> {
    let directory = args.counting.runtimes.ask().await;
    let snapshot = agent::snapshot_once(args.counting.judge()?, args.counting.sizes(), directory).await?;
    Ok(snapshot.listing(args.processes.then_some(&host::comm_or_empty)))
}
