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
    let directory = args.engine.runtimes.look().await;
    let snapshot = agent::look_once(args.engine.judge()?, args.engine.sizes(), directory).await?;
    Ok(snapshot.listing(args.processes.then_some(&host::comm_or_empty)))
}
