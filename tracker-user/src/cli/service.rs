//! What the agent tells the service manager: nothing, if none asks (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).

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

/// How long a manager may take to make room for a message: nothing else goes on meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);

/// It counts, or goes on counting: `status` says what.
pub(super) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What it does now.
pub(super) fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// It reads its configuration anew, until it is [`ready`].
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => {
            let status = NotifyState::Status("reading the configuration anew");
            notify(&[NotifyState::Reloading, now, status]);
        }
        Err(error) => tracing::warn!(%error, "tell the service manager of a reload: read the clock"),
    }
}

/// It ends.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("detaching all probes")]);
}

/// Says now and then that the agent is alive, as long as it is.
pub(super) async fn keep_alive(agent: &Agent) -> std::convert::Infallible {
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) else {
        return std::future::pending().await;
    };
    let mut told = false;
    loop {
        if agent.is_alive() {
            notify(&[NotifyState::Watchdog]);
        } else if !std::mem::replace(&mut told, true) {
            tracing::error!("a task has ended: the service manager is left to start the agent anew");
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

/// Not by `sd_notify::notify`, which waits for as long as a manager doesn't read.
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
