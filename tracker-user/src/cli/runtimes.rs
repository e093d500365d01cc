//! Flags of the runtimes that are asked for names of containers.

use std::{str::FromStr, sync::Arc, time::Duration};

use clap::Args;

use super::values::duration;
use crate::runtime::{Directory, ParseSocketError, Settings, Socket, look_up_names};

#[derive(Debug, Args)]
#[command(next_help_heading = "Names of containers")]
pub(super) struct Runtimes {
    /// A runtime to ask for names of containers: cri:///PATH (containerd, CRI-O) or docker:///PATH
    /// (docker, podman), can be given several times; or none [default: all at their usual paths]
    #[arg(long = "runtime-socket", value_name = "SOCKET")]
    sockets: Vec<SocketChoice>,

    /// How often runtimes are asked, besides when a new container appears: for containers that were
    /// renamed
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    runtime_interval: Duration,
}

/// A socket, or the word for none.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SocketChoice {
    None,
    Socket(Socket),
}

impl FromStr for SocketChoice {
    type Err = ParseSocketError;

    fn from_str(text: &str) -> Result<Self, ParseSocketError> {
        if text == "none" { Ok(Self::None) } else { text.parse().map(Self::Socket) }
    }
}

impl Runtimes {
    pub(super) fn settings(&self) -> Settings {
        let given = |choice: &SocketChoice| match choice {
            SocketChoice::None => None,
            SocketChoice::Socket(socket) => Some(socket.clone()),
        };
        let sockets = (!self.sockets.is_empty()).then(|| self.sockets.iter().filter_map(given).collect());
        Settings { sockets, every: self.runtime_interval }
    }

    /// Asks the runtimes once.
    pub(super) async fn ask(&self) -> Arc<Directory> {
        look_up_names(&self.settings()).await
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        runtimes: Runtimes,
    }

    fn sockets(line: &str) -> Result<Option<Vec<String>>, String> {
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        let sockets = cli.runtimes.settings().sockets;
        Ok(sockets.map(|sockets| sockets.iter().map(Socket::to_string).collect()))
    }

    #[test]
    fn found_or_given_or_none() {
        assert_eq!(sockets("x"), Ok(None));
        assert_eq!(sockets("x --runtime-socket none"), Ok(Some(vec![])));
        let two = "x --runtime-socket cri:///run/a --runtime-socket docker:///run/b";
        assert_eq!(sockets(two), Ok(Some(vec!["cri:///run/a".into(), "docker:///run/b".into()])));
        assert!(sockets("x --runtime-socket /run/a").unwrap_err().contains("cri:///run/containerd"));
    }
}
