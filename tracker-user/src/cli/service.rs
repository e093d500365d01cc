//! Tells the service manager about the agent's state. Does nothing if there is no manager
//! (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;

use crate::agent::Agent;

/// How long to wait if the manager has no room for a message, because nothing else happens
/// meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);

/// Reports that the agent counts, and its status.
pub(super) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports what the agent does now.
pub(super) fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// Reports that the agent reloads its configuration, until it is [`ready`].
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => {
            let status = NotifyState::Status("reloading the configuration");
            notify(&[NotifyState::Reloading, now, status]);
        }
        Err(error) => tracing::warn!(%error, "tell the service manager of a reload: read the clock"),
    }
}

/// Reports that the agent ends.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("detaching all probes")]);
}

/// Reports at intervals that the agent is alive, as long as it is.
pub(super) async fn keep_alive(agent: &Agent) -> std::convert::Infallible {
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) else {
        return std::future::pending().await;
    };
    let mut told = false;
    loop {
        if agent.is_alive() {
            notify(&[NotifyState::Watchdog]);
        } else if !std::mem::replace(&mut told, true) {
            tracing::error!("a task has ended: the service manager must restart the agent");
        }
        tokio::time::sleep((patience / 2).max(Duration::from_millis(1))).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    if let Err(error) = send(&socket, message.as_bytes()) {
        tracing::warn!(%error, "tell the service manager");
    }
}

/// Sends a message with a timeout. `sd_notify::notify` has none, and waits until the manager reads.
fn send(to: &OsStr, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    match to.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(to)?,
    }
    socket.send(message).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let name = format!("fdtracker-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let to = format!("@{name}");
        let refused = (0..10_000).find_map(|_| send(to.as_ref(), b"WATCHDOG=1\n").err()).unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let mut bytes = [0; 64];
        let n = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"WATCHDOG=1\n");
    }
}
