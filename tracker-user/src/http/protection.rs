//! Keeps the web config current: it is read again when it, or a file that it names, has changed.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    auth::Users,
    routes::Caller,
    web_config::{WatchedFile, WebConfig, WebConfigError},
};
use crate::error::chain;

/// The shortest time between two checks whether a file has changed. There are checks only while
/// requests come, or a client follows events.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// The permission of a client whose request was accepted, and is still being answered.
pub(super) struct Pass {
    pub(super) protection: Arc<Protection>,
    /// The web config of that time.
    pub(super) config: Arc<WebConfig>,
    pub(super) caller: Caller,
    /// The user's name.
    pub(super) name: Option<String>,
}

impl Pass {
    /// Whether the client would still be accepted.
    pub(super) async fn holds(&self) -> bool {
        let now = self.protection.current().await;
        Arc::ptr_eq(&now, &self.config) || self.is_enough_for(&now)
    }

    fn is_enough_for(&self, now: &WebConfig) -> bool {
        let (name, before) = (self.name.as_deref(), self.config.users.as_deref());
        let is_user =
            |users: &Arc<Users>| name.zip(before).is_some_and(|(name, before)| users.has_still(name, before));
        // A certificate is checked only when a connection is made.
        !self.caller.certified && now.takes(self.caller) && now.users.as_ref().is_none_or(is_user)
    }
}

/// The protection of requests over TCP, at every moment.
pub struct Protection {
    path: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    config: Arc<WebConfig>,
    checked: Instant,
    /// Why the current file can't be used.
    failed: Option<String>,
}

impl Protection {
    /// Reads the web config, if there is one.
    ///
    /// # Errors
    /// When it can't be used.
    pub fn open(path: Option<PathBuf>) -> Result<Self, WebConfigError> {
        let state = State::read(path.as_deref())?;
        Ok(Self { path, state: Mutex::new(state) })
    }

    /// Reads the web config again. Connections stay open. Their next requests are checked against
    /// the new config, and so are streams ([`Pass`]).
    ///
    /// # Errors
    /// When it can't be used, or protects less than before. Then the old config stays.
    fn reload(&self) -> Result<(), WebConfigError> {
        let read = State::read(self.path.as_deref())?;
        let mut state = self.state();
        if let (Some(lost), Some(path)) = (state.config.lost_in(&read.config), &self.path) {
            return Err(WebConfigError::Less { path: path.clone(), lost });
        }
        *state = read;
        Ok(())
    }

    /// Returns the web config that was read last.
    pub(super) fn last(&self) -> Arc<WebConfig> {
        Arc::clone(&self.state().config)
    }

    /// Returns the current web config, and reads it again if it has changed.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<WebConfig> {
        if self.path.is_some() && self.is_due() {
            let this = Arc::clone(self);
            // An error means a panic, which is logged.
            let _ = tokio::task::spawn_blocking(move || this.reload_if_changed()).await;
        }
        self.last()
    }

    fn is_due(&self) -> bool {
        let mut state = self.state();
        let due = state.checked.elapsed() >= EVERY;
        if due {
            state.checked = Instant::now();
        }
        due
    }

    fn reload_if_changed(&self) {
        let (config, failed) = {
            let state = self.state();
            (Arc::clone(&state.config), state.failed.clone())
        };
        // A config that couldn't be used may have named a file that didn't exist yet.
        if failed.is_none() && !config.files.iter().any(WatchedFile::has_changed) {
            return;
        }
        match self.reload() {
            Ok(()) => tracing::info!("the web config has changed, and is used now"),
            Err(error) => {
                let error = chain(error);
                if failed.as_ref() != Some(&error) {
                    tracing::error!(
                        error,
                        "the web config has changed, and can't be used: the old one stays"
                    );
                }
                self.state().failed = Some(error);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(path: Option<&Path>) -> Result<Self, WebConfigError> {
        let config = path.map(WebConfig::load).transpose()?.unwrap_or_default();
        Ok(Self { config: Arc::new(config), checked: Instant::now(), failed: None })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::access::Peer, *};

    #[tokio::test]
    async fn whoever_is_no_user_any_more_is_let_in_no_more() {
        let dir = std::env::temp_dir().join(format!("fdtracker-web-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("web.yml");
        let hash = |password| bcrypt::hash(password, 4).unwrap();
        let (right, other) = (hash("right"), hash("other"));
        let users = |users: &[(&str, &str)]| {
            let lines: String = users.iter().map(|(name, hash)| format!("  {name}: {hash}\n")).collect();
            fs::write(&path, format!("basic_auth_users:\n{lines}")).unwrap();
        };
        users(&[("me", &right)]);
        let protection = Arc::new(Protection::open(Some(path.clone())).unwrap());
        let caller = Caller { peer: Peer::Loopback, encrypted: false, certified: false };
        let config = protection.last();
        let pass = Pass { protection: Arc::clone(&protection), config, caller, name: Some("me".into()) };
        let mut holds = vec![pass.holds().await];
        for (now, certified) in [
            (&[("me", &*right), ("you", &*other)][..], false),
            (&[("me", &*right), ("you", &*other)], true),
            (&[("me", &*other)], false),
            (&[("you", &*other)], false),
        ] {
            users(now);
            protection.reload().unwrap();
            let caller = Caller { certified, ..caller };
            let (protection, config) = (Arc::clone(&protection), Arc::clone(&pass.config));
            holds.push(Pass { protection, config, caller, name: pass.name.clone() }.holds().await);
        }
        fs::remove_dir_all(dir).unwrap();
        assert_eq!(holds, [true, true, false, false, false]);
    }
}
