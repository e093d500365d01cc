//! `fdtracker tail`.

use std::{io, os::fd::AsFd as _, process::ExitCode, sync::Arc};

use anyhow::bail;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    EndSignals,
    args::{self, TailFormat},
    output,
};
use crate::{
    agent::{self, Agent},
    api::{Filter, Listing, Notice, Subscription},
    http::{Client, ClientError, Events},
};

pub(super) async fn run(args: args::Tail) -> anyhow::Result<ExitCode> {
    let end = EndSignals::catch()?;
    let format = args.output;
    let follow = async {
        let mut source = EventSource::open(&args).await?;
        let mut printer = output::Printer::start();
        while let Some(notice) = source.next().await? {
            printer.print(line(&notice, format)?).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = follow => ended?,
        () = end.wait() => {}
        () = reader_gone() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The source of events.
enum EventSource {
    Agent(Events),
    /// Probes for this command only, which are attached while the agent is kept.
    Own {
        events: Subscription,
        filter: Filter,
        _agent: Agent,
    },
}

impl EventSource {
    async fn open(args: &args::Tail) -> anyhow::Result<Self> {
        if let Some(agent) = Client::find(&args.socket.socket).await? {
            let filter = filter(args, &agent.listing(false).await?)?;
            return Ok(Self::Agent(agent.events(&filter).await?));
        }
        eprintln!(
            "fdtracker: no agent answers at {}: attaching probes for this command alone",
            args.socket.socket.display()
        );
        let (judge, counting) = (args.counting.judge()?, &args.counting);
        let attached = agent::attach(judge, counting.sizes(), counting.choice(), Arc::default())?;
        let mut agent = Agent::start(attached, counting.runtimes.settings())?;
        let events = agent.feed.subscribe();
        agent.adopt(args.counting.pace()).await?;
        let filter = filter(args, &agent.state.snapshot().await?.listing(None))?;
        Ok(Self::Own { events, filter, _agent: agent })
    }

    /// Returns the next event that matches; `None` when the agent has ended.
    async fn next(&mut self) -> anyhow::Result<Option<Notice>> {
        match self {
            Self::Agent(events) => match events.next().await {
                Ok(None) => bail!(ClientError::Refused("the agent has ended".into())),
                next => Ok(next?),
            },
            Self::Own { events, filter, .. } => {
                while let Some(line) = events.next().await {
                    if filter.matches(&line.notice) {
                        return Ok(Some(line.notice.as_ref().clone()));
                    }
                }
                Ok(None)
            }
        }
    }
}

/// Makes the filter, and finds the container that the user means.
fn filter(args: &args::Tail, listing: &Listing) -> anyhow::Result<Filter> {
    let kinds = args.kind.clone();
    let Some(wanted) = &args.container else { return Ok(Filter { container: None, kinds }) };
    let exact = listing.containers.iter().find(|c| c.name == *wanted || c.id == *wanted);
    let found = match exact {
        Some(container) => container,
        None => {
            let mut matches =
                listing.containers.iter().filter(|c| !wanted.is_empty() && c.id.starts_with(wanted.as_str()));
            match (matches.next(), matches.next()) {
                (Some(only), None) => only,
                (None, _) => bail!("no container {wanted:?}; there are: {}", names(listing)),
                (Some(_), Some(_)) => {
                    bail!("{wanted:?} begins the id of several containers; there are: {}", names(listing))
                }
            }
        }
    };
    Ok(Filter { container: Some(found.id.clone()), kinds })
}

fn names(listing: &Listing) -> String {
    listing.containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn line(notice: &Notice, format: TailFormat) -> anyhow::Result<String> {
    match format {
        TailFormat::Text => Ok(output::notice(notice)),
        TailFormat::Json => Ok(serde_json::to_string(notice)?),
    }
}

/// Waits until the reader of standard output has closed its pipe, even if there is nothing to
/// print.
async fn reader_gone() {
    let Ok(stdout) = io::stdout().as_fd().try_clone_to_owned() else { return std::future::pending().await };
    // SAFETY: the fd is owned, so it stays open and the same for as long as it is registered.
    let watched = unsafe { AsyncFd::register_with_interest(stdout, Interest::ERROR) };
    // A file can't be watched like this, and never closes.
    let Ok(watched) = watched else { return std::future::pending().await };
    let _ = watched.ready(Interest::ERROR).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::ContainerRow, inventory::State, verdict::Verdict};

    fn listing() -> Listing {
        let row = |id: &str, name: &str| ContainerRow {
            id: id.into(),
            name: name.into(),
            runtime: "runc".into(),
            namespace: None,
            pod: None,
            image: None,
            cgroup: "/".into(),
            state: State::Judged(Verdict::Ok),
            counts: vec![],
            processes: None,
        };
        let containers =
            vec![row("host", "host"), row("abc1", "web"), row("abc2", "db"), row("web2", "web2")];
        Listing { containers, ..Listing::default() }
    }

    fn find(wanted: &str) -> Result<Option<String>, String> {
        let cli =
            <super::super::Cli as clap::Parser>::try_parse_from(["fdtracker", "tail", "--container", wanted]);
        let super::super::Command::Tail(args) = cli.unwrap().command else { panic!() };
        filter(&args, &listing()).map(|filter| filter.container).map_err(|error| error.to_string())
    }

    #[test]
    fn containers_are_found_by_name_and_by_the_beginning_of_the_id() {
        assert_eq!(find("web"), Ok(Some("abc1".into())));
        assert_eq!(find("abc2"), Ok(Some("abc2".into())));
        assert_eq!(find("host"), Ok(Some("host".into())));
    }

    #[test]
    fn what_isnt_there_is_told_with_what_is() {
        assert_eq!(find("nginx").unwrap_err(), r#"no container "nginx"; there are: host, web, db, web2"#);
        assert!(find("abc").unwrap_err().contains("several"));
        assert!(find("").is_err());
    }
}
