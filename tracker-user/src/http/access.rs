//! Rules of who is told about processes, for `/v1`. Pure.
//!
//! Containers' contents, with the names and pids of processes, are told to those who can open the
//! unix socket, or who have shown a password or a certificate. For others, over TCP:
//!
//! - A loopback address answers the machine's own users. They are told nothing that `/proc` doesn't
//!   tell each of them anyway, unless it is mounted with `hidepid`. `/proc` doesn't tell them which
//!   files others have open, so paths are left out.
//! - A web page isn't answered if its own host name was changed to point to 127.0.0.1 (DNS
//!   rebinding): the browser's requests have that name in `Host`.
//! - Nobody else is told anything, unless `--web.serve-processes` allows it.

use std::net::{IpAddr, SocketAddr};

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A user who can open the unix socket.
    Socket,
    /// A user on this machine, who connected to a loopback address.
    Loopback,
    /// Any other client.
    Remote,
}

impl Peer {
    /// Returns the peer of a TCP connection.
    pub(super) fn of(peer: SocketAddr, local: SocketAddr) -> Self {
        let both = [peer, local].iter().all(|address| address.ip().to_canonical().is_loopback());
        if both { Self::Loopback } else { Self::Remote }
    }
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything.
    All,
    /// Everything except paths of files.
    NoPaths,
    /// Nothing; with the reason.
    Refused(&'static str),
}

/// The settings that decide about access.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// `--web.serve-processes`.
    pub(super) serve_processes: bool,
    /// Whether `/proc` hides processes from other users.
    pub(super) hidepid: bool,
}

const ASK_SOCKET: &str = "this tells of processes: ask over the agent's unix socket, or have the agent ask for a password or a client \
                          certificate (--web.config.file), or tell it to answer everybody (--web.serve-processes)\n";

const ASK_LOOPBACK: &str = "this tells of processes, on a loopback address: ask for localhost, 127.0.0.1 or [::1], not for another name\n";

impl Policy {
    /// Decides what a client is told. `authenticated` means by a password or a certificate.
    pub(super) fn access(self, peer: Peer, authenticated: bool, host: Option<&str>) -> Access {
        match peer {
            Peer::Socket => Access::All,
            _ if authenticated => Access::All,
            Peer::Loopback if !host.is_some_and(is_loopback) => Access::Refused(ASK_LOOPBACK),
            _ if self.serve_processes => Access::All,
            Peer::Loopback if !self.hidepid => Access::NoPaths,
            Peer::Loopback | Peer::Remote => Access::Refused(ASK_SOCKET),
        }
    }
}

/// Whether a `Host` header names the machine itself.
fn is_loopback(host: &str) -> bool {
    let port = |rest: &str| rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    let name = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((name, rest))) if rest.is_empty() || port(rest) => name,
        Some(_) => return false,
        None => match host.find(':').and_then(|colon| host.split_at_checked(colon)) {
            Some((name, rest)) if port(rest) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Policy = Policy { serve_processes: false, hidepid: false };

    #[test]
    fn who_is_told_what() {
        let asked = Policy { serve_processes: true, ..PLAIN };
        let hidepid = Policy { hidepid: true, ..PLAIN };
        let (local, page) = (Some("localhost:10460"), Some("evil.example:10460"));
        for (policy, peer, authenticated, host, expected) in [
            (PLAIN, Peer::Socket, false, None, Access::All),
            (PLAIN, Peer::Remote, true, page, Access::All),
            (PLAIN, Peer::Remote, false, local, Access::Refused(ASK_SOCKET)),
            (PLAIN, Peer::Loopback, false, local, Access::NoPaths),
            (PLAIN, Peer::Loopback, false, page, Access::Refused(ASK_LOOPBACK)),
            (PLAIN, Peer::Loopback, false, None, Access::Refused(ASK_LOOPBACK)),
            (PLAIN, Peer::Loopback, true, page, Access::All),
            (hidepid, Peer::Loopback, false, local, Access::Refused(ASK_SOCKET)),
            (asked, Peer::Remote, false, page, Access::All),
            (asked, Peer::Loopback, false, local, Access::All),
            (asked, Peer::Loopback, false, page, Access::Refused(ASK_LOOPBACK)),
        ] {
            let found = policy.access(peer, authenticated, host);
            assert_eq!(found, expected, "{policy:?} {peer:?} {authenticated} {host:?}");
        }
    }

    #[test]
    fn hosts() {
        for yes in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:10460"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in
            ["", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "[::1", "[::1]x", "localhost:x"]
        {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn peers() {
        let of = |peer: &str, local: &str| Peer::of(peer.parse().unwrap(), local.parse().unwrap());
        assert_eq!(of("127.0.0.1:5", "127.0.0.1:1"), Peer::Loopback);
        assert_eq!(of("[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:1"), Peer::Loopback);
        assert_eq!(of("10.0.0.1:5", "10.0.0.1:1"), Peer::Remote);
        assert_eq!(of("10.0.0.1:5", "127.0.0.1:1"), Peer::Remote);
    }
}
