//! An Alertmanager that sends everything to a webhook at once.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use super::server::{Server, configure};

/// The program's name in Debian.
pub const ALERTMANAGER: &str = "prometheus-alertmanager";

/// A running Alertmanager.
pub struct Alertmanager(Server);

impl Alertmanager {
    /// Starts one that sends a webhook each alert by itself.
    pub fn start(webhook: SocketAddr) -> Self {
        let dir = tempfile::tempdir().expect("a directory for Alertmanager");
        let configuration = json!({
            "route": {
                "receiver": "test",
                "group_by": ["..."],
                "group_wait": "0s",
                "group_interval": "1s",
            },
            "receivers": [{"name": "test", "webhook_configs": [{"url": format!("http://{webhook}/")}]}],
        });
        configure(&dir, "alertmanager.yml", &configuration);
        let mut command = program();
        command.args(["--config.file=alertmanager.yml", "--storage.path=data"]);
        // It has no peers.
        command.arg("--cluster.listen-address=");
        Self(Server::start(command, dir))
    }

    /// Returns the address at which it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }
}

/// Returns the command that starts it. Debian's Alertmanager reads its templates only from
/// `/usr/share`. If it isn't installed but only unpacked for the project, its own mount namespace
/// shows its package's files there.
fn program() -> Command {
    let Some(share) = extracted_share() else { return Command::new(ALERTMANAGER) };
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /usr/share && exec "$@""#]);
    command.arg(share).arg(ALERTMANAGER);
    command
}

/// Returns `/usr/share` of the package that `cargo xtask test` unpacked, if the program in `PATH`
/// is from that package.
fn extracted_share() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let bin = env::split_paths(&path).find(|dir| dir.join(ALERTMANAGER).is_file())?;
    let share = bin.parent()?.join("share");
    (share != Path::new("/usr/share") && share.is_dir()).then_some(share)
}
