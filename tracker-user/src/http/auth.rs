//! Basic authentication with names, and bcrypt hashes of passwords.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    str::FromStr as _,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bcrypt::{BcryptError, HashParts};
use thiserror::Error;
use tokio::sync::Semaphore;

/// How many verified passwords are remembered: more than any configuration has users.
const REMEMBERED: usize = 256;

/// The highest cost of a hash, which takes about 5 s. Each step more takes twice as long, for the
/// client, and for the end of the agent.
const MAX_COST: u32 = 16;

/// The users who may send requests.
pub(super) struct Users {
    hashes: BTreeMap<String, String>,
    /// The hash that takes longest. It is also verified for a name that isn't a user's: else the
    /// time would tell whether there is such a user.
    slowest: String,
    remembered: Mutex<HashSet<Proof>>,
    keys: (RandomState, RandomState),
    /// Allows one verification at a time. Each takes about 70 ms of CPU time, so that guessing
    /// passwords takes no more than one CPU.
    turn: Semaphore,
    /// Limits how many passwords wait for their turn.
    waiting: Semaphore,
}

/// Why a user's hash can't be used.
#[derive(Debug, Error)]
pub(super) enum HashError {
    #[error("{name}: not a hash of bcrypt ({error}): htpasswd -nBC 10 {name} makes one")]
    Malformed { name: String, error: BcryptError },
    #[error("{name}: a hash of cost {cost} takes too long: {MAX_COST} at the most, 10 is usual")]
    Slow { name: String, cost: u32 },
}

/// The result of checking a name and a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Granted,
    Refused,
    /// Too many passwords wait to be verified.
    Busy,
}

/// The most passwords that may wait for their turn: they take some seconds.
const WAITING: usize = 16;

/// Two keyed hashes of a name and its password: 128 bits, from which nobody can find the password.
type Proof = (u64, u64);

impl Users {
    /// Creates the users from names and hashes; there must be at least one.
    ///
    /// # Errors
    /// When a hash is malformed or too slow; the error names the user.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Result<Self, HashError> {
        let mut slowest = (0, String::new());
        for (name, hash) in &hashes {
            let cost = HashParts::from_str(hash).map(|parts| parts.get_cost());
            let cost = cost.map_err(|error| HashError::Malformed { name: name.clone(), error })?;
            if cost > MAX_COST {
                return Err(HashError::Slow { name: name.clone(), cost });
            }
            if cost > slowest.0 {
                slowest = (cost, hash.clone());
            }
        }
        Ok(Self {
            hashes,
            slowest: slowest.1,
            remembered: Mutex::default(),
            keys: Default::default(),
            turn: Semaphore::new(1),
            waiting: Semaphore::new(WAITING),
        })
    }

    /// Checks an `Authorization` header.
    pub(super) async fn admit(self: &Arc<Self>, authorization: Option<&[u8]>) -> Admission {
        let Some((name, password)) = authorization.and_then(credentials) else {
            return Admission::Refused;
        };
        let proof = (self.keys.0.hash_one((&name, &password)), self.keys.1.hash_one((&name, &password)));
        if self.remembered().contains(&proof) {
            return Admission::Granted;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return Admission::Busy };
        let Ok(_turn) = self.turn.acquire().await else { return Admission::Busy };
        let users = Arc::clone(self);
        let verified = tokio::task::spawn_blocking(move || users.verify(&name, &password)).await;
        // An error means a panic, which is logged.
        if !verified.unwrap_or(false) {
            return Admission::Refused;
        }
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(proof);
        Admission::Granted
    }

    /// Whether a user has the same password as before.
    pub(super) fn has_still(&self, name: &str, before: &Self) -> bool {
        self.hashes.get(name).is_some_and(|hash| before.hashes.get(name) == Some(hash))
    }

    /// Verifies a password. For a name that isn't a user's it takes as long as the slowest hash; if
    /// all hashes have the same cost, as long as for any user.
    fn verify(&self, name: &str, password: &[u8]) -> bool {
        let hash = self.hashes.get(name);
        let right = bcrypt::verify(password, hash.unwrap_or(&self.slowest)).unwrap_or(false);
        right && hash.is_some()
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashSet<Proof>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the name in an `Authorization` header.
pub(super) fn name(authorization: &[u8]) -> Option<String> {
    credentials(authorization).map(|(name, _)| name)
}

/// Parses the name and the password of `Basic BASE64`.
fn credentials(authorization: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut name = BASE64_STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = name.iter().position(|byte| *byte == b':')?;
    let password = name.split_off(colon + 1);
    name.pop();
    Some((String::from_utf8(name).ok()?, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(text: &str) -> Vec<u8> {
        format!("Basic {}", BASE64_STANDARD.encode(text)).into_bytes()
    }

    #[test]
    fn credentials_are_read() {
        assert_eq!(credentials(&basic("me:a:b")), Some(("me".into(), b"a:b".to_vec())));
        assert_eq!(credentials(b"bAsIc bWU6"), Some(("me".into(), Vec::new())));
        for bad in [&b""[..], b"Basic", b"Basic !", b"Bearer bWU6", b"Basic bWU="] {
            assert_eq!(credentials(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[tokio::test]
    async fn only_users_with_their_passwords() {
        let hash = bcrypt::hash("right", 4).unwrap();
        let users = Arc::new(Users::new(BTreeMap::from([("me".into(), hash)])).unwrap());
        for _ in 0..2 {
            assert_eq!(users.admit(Some(&basic("me:right"))).await, Admission::Granted);
            for wrong in [Some(basic("me:wrong")), Some(basic("you:right")), None] {
                assert_eq!(users.admit(wrong.as_deref()).await, Admission::Refused);
            }
        }
        // Only correct passwords are remembered.
        assert_eq!(users.remembered().len(), 1);
    }

    #[test]
    fn what_is_no_hash_is_told() {
        let refused =
            |hash: String| Users::new(BTreeMap::from([("me".into(), hash)])).err().unwrap().to_string();
        let error = refused("right".into());
        assert!(error.starts_with("me: not a hash of bcrypt"), "{error}");
        let costly = bcrypt::hash("right", 4).unwrap().replace("$04$", "$17$");
        let error = refused(costly);
        assert!(error.contains("16 at the most"), "{error}");
    }
}
