//! The sockets of runtimes, found or given.

use std::{
    collections::BTreeSet,
    fmt,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use thiserror::Error;

use crate::runtime::files;

/// The protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Kubernetes' Container Runtime Interface: containerd, CRI-O.
    Cri,
    /// Docker's API, which podman speaks too.
    Docker,
}

/// A runtime's socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket {
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it is.
    pub path: PathBuf,
}

/// The usual sockets. Users' own aren't among them: they are asked only if the administrator gives
/// them, and users' files tell the names, too.
const USUAL: [(Protocol, &str); 7] = [
    (Protocol::Cri, "/run/containerd/containerd.sock"),
    (Protocol::Cri, "/run/k3s/containerd/containerd.sock"),
    (Protocol::Cri, "/run/k0s/containerd.sock"),
    (Protocol::Cri, "/var/snap/microk8s/common/run/containerd.sock"),
    (Protocol::Cri, "/run/crio/crio.sock"),
    (Protocol::Docker, "/run/docker.sock"),
    (Protocol::Docker, "/run/podman/podman.sock"),
];

impl Socket {
    /// Returns the usual sockets that exist.
    pub(super) fn usual() -> BTreeSet<Self> {
        let all = USUAL.iter().map(|(protocol, path)| Self { protocol: *protocol, path: path.into() });
        all.filter(Self::is_there).collect()
    }

    /// Whether the socket exists.
    pub(super) fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|meta| meta.file_type().is_socket())
    }

    /// Returns the user whose runtime this is; `None` for the machine's own.
    pub(super) fn user(&self) -> Option<u32> {
        files::user_of(&self.path).filter(|user| *user != 0)
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Cri => "cri",
            Protocol::Docker => "docker",
        };
        write!(f, "{protocol}://{}", self.path.display())
    }
}

/// A text that describes no socket.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no runtime's socket, such as cri:///run/containerd/containerd.sock or docker:///run/podman/podman.sock (or none)"
)]
pub struct ParseSocketError(String);

impl FromStr for Socket {
    type Err = ParseSocketError;

    fn from_str(text: &str) -> Result<Self, ParseSocketError> {
        let bad = || ParseSocketError(text.to_owned());
        let (scheme, path) = text.split_once("://").ok_or_else(bad)?;
        let protocol = match scheme {
            "cri" => Protocol::Cri,
            "docker" | "podman" => Protocol::Docker,
            _ => return Err(bad()),
        };
        if Path::new(path).is_absolute() { Ok(Self { protocol, path: path.into() }) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read_as_they_are_shown() {
        for text in ["cri:///run/crio/crio.sock", "docker:///run/docker.sock"] {
            assert_eq!(text.parse::<Socket>().unwrap().to_string(), text);
        }
        let podman: Socket = "podman:///run/user/1000/podman/podman.sock".parse().unwrap();
        assert_eq!((podman.protocol, podman.user()), (Protocol::Docker, Some(1000)));
        assert_eq!("docker:///run/user/0/docker.sock".parse::<Socket>().unwrap().user(), None);
        for bad in ["", "/run/docker.sock", "cri://run/x", "http:///x", "cri:/x"] {
            assert!(bad.parse::<Socket>().unwrap_err().to_string().contains("cri:///run"), "{bad}");
        }
    }
}
