//! What the agent tells the service manager: nothing, if none asks (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).

use std::time::Duration;

use sd_notify::NotifyState;

use crate::agent::Engine;

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
pub(super) async fn keep_alive(engine: &Engine) -> std::convert::Infallible {
    let Some(patience) = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()) else {
        return std::future::pending().await;
    };
    let mut told = false;
    loop {
        if engine.is_alive() {
            notify(&[NotifyState::Watchdog]);
        } else if !std::mem::replace(&mut told, true) {
            tracing::error!("a task has ended: the service manager is left to start the agent anew");
        }
        tokio::time::sleep((patience / 2).max(Duration::from_millis(1))).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "tell the service manager");
    }
}
