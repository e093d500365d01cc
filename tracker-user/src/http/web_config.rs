//! Reads the file of `--web.config.file`, in the format that Prometheus' exporters share.
//!
//! Unknown keys are refused, and so are keys of other exporters that have no effect here: a file
//! must never protect less than it says.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, de::IgnoredAny};
use thiserror::Error;
use tokio_rustls::rustls::ServerConfig;

use super::{
    auth::{HashError, Users},
    routes::Caller,
    tls::{self, TlsFiles, TlsSection},
};
use crate::error::SyscallError;

/// Why a web config can't be used.
#[derive(Debug, Error)]
pub enum WebConfigError {
    /// The file, or one that it names, can't be read.
    #[error(transparent)]
    Read(#[from] SyscallError),
    /// The file isn't understood.
    #[error("{}", .path.display())]
    Parse {
        /// Its path.
        path: PathBuf,
        /// Where, and why.
        #[source]
        source: serde_norway::Error,
    },
    /// The file protects less than before. Perhaps it is just being written.
    #[error("{}: it doesn't require {lost} any more: if this is intended, restart the agent", .path.display())]
    Less {
        /// Its path.
        path: PathBuf,
        /// What it required before.
        lost: &'static str,
    },
    /// A key has a value that can't be used, or the key has no effect here.
    #[error("{}: {problem}", .path.display())]
    Key {
        /// Its path.
        path: PathBuf,
        /// Which, and what is wrong.
        problem: KeyError,
    },
}

/// The protection of requests over TCP. Without a file there is none.
#[derive(Default)]
pub struct WebConfig {
    /// The configuration of TLS, if it is used.
    pub(super) tls: Option<Arc<ServerConfig>>,
    /// Whether every client needs a certificate.
    pub(super) wants_certificates: bool,
    /// The users who may send requests; `None` for everybody.
    pub(super) users: Option<Arc<Users>>,
    /// Headers that are added to every answer.
    pub(super) headers: HeaderMap,
    /// The files that were read.
    pub(super) files: Vec<WatchedFile>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tls_server_config: Option<TlsSection>,
    http_server_config: Option<HttpSection>,
    basic_auth_users: Option<BTreeMap<String, String>>,
    rate_limit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpSection {
    http2: Option<bool>,
    headers: Option<BTreeMap<String, String>>,
}

/// A key, and what is wrong with its value.
#[derive(Debug, Error)]
#[error("{key}: {problem}")]
pub struct KeyError {
    /// The key, with those above it.
    pub key: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl KeyError {
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}

impl WebConfig {
    /// Checks whether a file can be used: reads it, its certificates and its keys.
    ///
    /// # Errors
    /// When it can't be used. The message names file and key.
    pub fn check(path: &Path) -> Result<(), WebConfigError> {
        Self::load(path).map(drop)
    }

    /// Reads the web config, and the files that it names.
    ///
    /// # Errors
    /// When it, or a file that it names, can't be read or used.
    pub(super) fn load(path: &Path) -> Result<Self, WebConfigError> {
        let (watched, text) = WatchedFile::read(path.to_owned())?;
        let file: Option<File> = serde_norway::from_slice(&text)
            .map_err(|source| WebConfigError::Parse { path: path.to_owned(), source })?;
        let File { tls_server_config, http_server_config, basic_auth_users, rate_limit } =
            file.unwrap_or_default();
        let refuse = |problem| WebConfigError::Key { path: path.to_owned(), problem };
        if rate_limit.is_some() {
            let problem = "isn't followed here: leave it out, and limit requests by --web.max-requests";
            return Err(refuse(KeyError::new("rate_limit", problem)));
        }
        let mut config = Self { files: vec![watched], ..Self::default() };
        if let Some(section) = tls_server_config {
            section.check().map_err(refuse)?;
            let dir = path.parent().unwrap_or(Path::new(""));
            let files = TlsFiles::read(&section, dir)?;
            let protected = tls::configure(&section, &files).map_err(refuse)?;
            config.tls = Some(Arc::new(protected));
            config.wants_certificates = section.wants_certificates();
            config.files.extend(files.watched);
        }
        config.headers = http_server_config.map(headers).transpose().map_err(refuse)?.unwrap_or_default();
        let users = basic_auth_users.filter(|users| !users.is_empty());
        let users = users.map(Users::new).transpose();
        let problem = |error: HashError| KeyError::new("basic_auth_users", error.to_string());
        config.users = users.map_err(|error| refuse(problem(error)))?.map(Arc::new);
        Ok(config)
    }

    /// Whether every client must show who it is.
    #[must_use]
    pub fn authenticates(&self) -> bool {
        self.users.is_some() || self.wants_certificates
    }

    /// Whether a connection fulfils the requirements.
    pub(super) fn takes(&self, caller: Caller) -> bool {
        (self.tls.is_none() || caller.encrypted) && (!self.wants_certificates || caller.certified)
    }

    /// Returns what this config requires, but the other doesn't.
    pub(super) fn lost_in(&self, other: &Self) -> Option<&'static str> {
        if self.tls.is_some() && other.tls.is_none() {
            Some("TLS")
        } else if self.wants_certificates && !other.wants_certificates {
            Some("certificates")
        } else if self.users.is_some() && other.users.is_none() {
            Some("passwords")
        } else {
            None
        }
    }
}

/// A file that was read, and whose changes are noticed.
pub(super) struct WatchedFile {
    path: PathBuf,
    stamp: Option<Stamp>,
}

/// Changes when a file is written or replaced: device, inode, time and size.
type Stamp = (u64, u64, i64, i64, u64);

impl WatchedFile {
    /// Reads a file, and remembers its version.
    pub(super) fn read(path: PathBuf) -> Result<(Self, Vec<u8>), SyscallError> {
        // Take the version before reading, so that a change meanwhile is noticed later.
        let stamp = stamp(&path);
        let content = fs::read(&path).map_err(SyscallError::on("read", path.display()))?;
        Ok((Self { path, stamp }, content))
    }

    /// Whether the file was written or replaced since.
    pub(super) fn has_changed(&self) -> bool {
        stamp(&self.path) != self.stamp
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
}

/// The headers that can be set, and their values if only some are allowed.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Content-Security-Policy", &[]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-XSS-Protection", &[]),
    ("Strict-Transport-Security", &[]),
];

fn headers(section: HttpSection) -> Result<HeaderMap, KeyError> {
    if section.http2 == Some(true) {
        let problem = "HTTP/2 isn't spoken here: leave it out, or say false";
        return Err(KeyError::new("http_server_config.http2", problem));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in section.headers.unwrap_or_default() {
        let refuse =
            |problem: String| Err(KeyError::new(format!("http_server_config.headers.{name}"), problem));
        let Some((_, values)) = HEADERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name)) else {
            let known = HEADERS.map(|(name, _)| name).join(", ");
            return refuse(format!("this header can't be set: one of {known} can"));
        };
        if value.is_empty() {
            continue;
        }
        if !values.is_empty() && !values.iter().any(|known| value.eq_ignore_ascii_case(known)) {
            return refuse(format!("{value:?} isn't one of its values: {}", values.join(", ")));
        }
        let (Ok(header), Ok(value)) =
            (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str()))
        else {
            return refuse(format!("{value:?} can't be sent in a header"));
        };
        headers.insert(header, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn load(text: &str) -> Result<WebConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.yml");
        fs::write(&path, text).unwrap();
        WebConfig::load(&path).map_err(|error| {
            let error = chain(error);
            assert!(error.contains("web.yml") || error.contains("no-such-file"), "{error}");
            error
        })
    }

    #[test]
    fn what_is_lost_is_noticed() {
        let hash = bcrypt::hash("x", 4).unwrap();
        let asks = load(&format!("basic_auth_users:\n  me: {hash}\n")).unwrap();
        let nothing = load("").unwrap();
        assert_eq!(asks.lost_in(&nothing), Some("passwords"));
        assert_eq!((nothing.lost_in(&asks), asks.lost_in(&asks)), (None, None));
    }

    #[test]
    fn what_is_followed() {
        for nothing in ["", "# nothing\n", "basic_auth_users: {}\n", "http_server_config:\n  http2: false\n"]
        {
            let config = load(nothing).unwrap_or_else(|error| panic!("{nothing:?}: {error}"));
            assert!(!config.authenticates() && config.tls.is_none(), "{nothing}");
        }
        let hash = bcrypt::hash("secret", 4).unwrap();
        let config = load(&format!(
            "basic_auth_users:\n  me: {hash}\nhttp_server_config:\n  headers:\n    X-Frame-Options: deny\n"
        ));
        let config = config.unwrap();
        assert!(config.authenticates());
        assert_eq!(config.headers["x-frame-options"], "deny");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key() {
        for (text, told) in [
            ("tls_server_confg: {}", "unknown field `tls_server_confg`"),
            ("tls_server_config: {cert_fil: a}", "tls_server_config: unknown field `cert_fil`"),
            ("http_server_config: {http3: true}", "http_server_config: unknown field `http3`"),
            ("rate_limit: {burst: 1}", "rate_limit: isn't followed here"),
            ("http_server_config: {http2: true}", "http_server_config.http2: HTTP/2 isn't spoken"),
            ("http_server_config: {headers: {Server: x}}", "http_server_config.headers.Server: this header"),
            ("http_server_config: {headers: {X-Frame-Options: x}}", "deny, sameorigin"),
            ("basic_auth_users: {me: secret}", "basic_auth_users: me: not a hash of bcrypt"),
            ("tls_server_config: {}", "tls_server_config.cert_file: is missing"),
            ("tls_server_config: {cert_file: no-such-file, key_file: k}", "read"),
            (
                "tls_server_config: {cert_file: no-such-file, client_allowed_sans: [a]}",
                "tls_server_config.client_allowed_sans: isn't followed here",
            ),
            ("a: b: c", "web.yml"),
        ] {
            let error = load(text).err().unwrap_or_else(|| panic!("{text} is taken"));
            assert!(error.contains(told), "{text}: {error}");
        }
        assert!(WebConfig::check(Path::new("/no-such-file")).is_err());
    }
}
