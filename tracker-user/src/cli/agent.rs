//! `fdtracker agent`.

use std::process::ExitCode;

use super::{EndSignals, args, output};
use crate::{
    agent::Engine,
    bpf,
    http::{Line, Listeners, Service},
    privileges,
};

pub(super) async fn run(args: args::Agent) -> anyhow::Result<ExitCode> {
    let end = EndSignals::catch()?;
    let judge = args.engine.judge()?;
    // Kept until the agent ends.
    let _stats = args.bpf_stats.then(bpf::count_runs).transpose()?;
    // First, because a taken port or another agent is told at once.
    let listeners = Listeners::bind(args.web.options(), &args.socket.socket).await?;
    for url in listeners.urls().await {
        tracing::info!("listening on {url}");
    }
    tracing::info!("verdicts are about {}", judge.profile());
    let mut engine =
        Engine::start(judge, args.engine.sizes(), args.engine.choice(), args.engine.runtimes.settings())?;
    // Before any other thread is started.
    privileges::keep(&args.keep)?;
    let socket = listeners.serve(Service {
        tracker: engine.tracker.clone(),
        lines: engine.lines.clone(),
        pulses: engine.pulses.clone(),
        max_series: args.web.max_series,
    });
    let work = async {
        engine.adopt(args.engine.audit_interval, args.engine.judge_interval).await?;
        if args.live {
            output::listing(&engine.tracker.listing(false)?)?;
            print(&engine).await?;
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

/// Prints every event until standard output is closed.
async fn print(engine: &Engine) -> anyhow::Result<()> {
    let mut lines = engine.lines.subscribe();
    let mut printer = output::Printer::start();
    while let Some(line) = Line::next(&mut lines, &engine.tracker).await {
        printer.print(output::notice(&line.notice)).await?;
    }
    Ok(())
}
