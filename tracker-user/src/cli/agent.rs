//! `fdtracker agent`.

use std::process::ExitCode;

use anyhow::Context as _;
use tokio::sync::broadcast::error::RecvError;

use super::{EndSignals, args, output};
use crate::{
    agent::Engine,
    criu, host,
    http::{Line, Lines, Listeners, Service},
    report::Notice,
    verdict::Profile,
};

pub(super) async fn run(args: args::Agent) -> anyhow::Result<ExitCode> {
    let end = EndSignals::catch()?;
    let profile = profile(&args.engine)?;
    // First, because a taken port or another agent is told at once.
    let listeners = Listeners::bind(&args.listen, &args.socket.socket).await?;
    for address in listeners.addresses() {
        tracing::info!("listening on http://{address}/metrics");
    }
    tracing::info!("verdicts are about {profile}");
    let mut engine = Engine::load(profile, args.engine.sizes())?;
    let service = Service { tracker: engine.tracker.clone(), lines: engine.lines.clone() };
    let socket = listeners.serve(&service);
    let work = async {
        engine.attach(args.engine.audit_interval).await?;
        if args.live {
            output::listing(&engine.tracker.listing(false)?)?;
            print(&engine.lines).await?;
        }
        std::future::pending().await
    };
    let ended = tokio::select! {
        () = end.wait() => Ok(()),
        ended = work => ended,
    };
    drop(socket);
    tracing::info!("ending: detaching all probes, for which the kernel needs some seconds");
    ended.map(|()| ExitCode::SUCCESS)
}

pub(super) fn profile(args: &args::Engine) -> anyhow::Result<Profile> {
    let kernel = host::KernelVersion::running().context("tell the kernel's version")?;
    Ok(criu::profile(args.criu, kernel))
}

/// Prints every event until standard output is closed.
async fn print(lines: &Lines) -> anyhow::Result<()> {
    let mut lines = lines.subscribe();
    let mut printer = output::Printer::start();
    loop {
        let notice = match lines.recv().await {
            Ok(Line { notice, .. }) => notice,
            Err(RecvError::Lagged(missed)) => Notice::lost(missed).into(),
            Err(RecvError::Closed) => return Ok(()),
        };
        printer.print(output::notice(&notice)).await?;
    }
}
