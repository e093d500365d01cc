//! `fdtracker agent`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;

use super::{
    EndSignals, args,
    load::{self, LogLevel},
    output,
    reload::{self, Reloads},
    service,
};
use crate::{
    agent::{self, Agent},
    bpf,
    config::Settings,
    http::{Listeners, Service},
    privileges,
};

pub(super) async fn run(
    args: args::Agent,
    settings: Option<Settings>,
    log: LogLevel,
) -> anyhow::Result<ExitCode> {
    let settings = settings.context("the agent has no settings")?;
    settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let judge = load::check(&args)?;
    if args.config.config_check {
        write!(io::stdout().lock(), "{settings}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let end = EndSignals::catch()?;
    let reloads = Reloads::catch(settings, log)?;
    // Statistics are on while this is kept: until the agent ends.
    let _stats = args.bpf_stats.then(bpf::count_runs).transpose()?;
    // Bind first, so that a taken port or another running agent is reported immediately.
    let listeners = Listeners::bind(args.web.options(), &args.socket.socket).await?;
    for url in listeners.urls() {
        tracing::info!("listening on {url}");
    }
    tracing::info!("verdicts are about {}", judge.profile());
    service::status("attaching probes");
    let attached = agent::attach(judge, args.counting.sizes(), args.counting.choice(), Arc::default())?;
    // This must happen before any other thread is started.
    privileges::keep(&args.keep)?;
    let mut agent = Agent::start(attached, args.counting.runtimes.settings())?;
    let socket = listeners.serve(Service {
        state: agent.state.clone(),
        feed: agent.feed.clone(),
        liveness: agent.liveness.clone(),
        max_series: args.web.max_series,
    });
    let work = async {
        service::status("counting what is open already");
        agent.adopt(args.counting.pace()).await?;
        service::ready(&reload::at_work(&agent));
        tokio::select! {
            never = reloads.run(&agent) => match never {},
            never = service::keep_alive(&agent) => match never {},
            ended = show(&agent, args.live) => ended,
        }
    };
    let ended = tokio::select! {
        () = end.wait() => Ok(()),
        ended = work => ended,
    };
    drop(socket);
    service::stopping();
    tracing::info!("ending: detaching all probes, for which the kernel needs some seconds");
    ended.map(|()| ExitCode::SUCCESS)
}

/// With `--live`, prints all containers, and then every event until standard output is closed. Then
/// it waits.
async fn show(agent: &Agent, live: bool) -> anyhow::Result<()> {
    if live {
        let mut events = agent.feed.subscribe();
        output::listing(&agent.state.snapshot().await?.listing(None))?;
        let mut printer = output::Printer::start();
        while let Some(line) = events.next().await {
            printer.print(output::notice(&line.notice)).await?;
        }
    }
    std::future::pending().await
}
