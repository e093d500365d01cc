//! Sockets, by family, type and protocol.

use crate::{FileKind, Kind};

/// A socket, as CRIU tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// `AF_UNIX`.
    Unix,
    /// `AF_NETLINK`.
    Netlink,
    /// TCP, or a stream whose protocol isn't set yet.
    Tcp,
    /// UDP or UDP-Lite.
    Udp,
    /// A raw socket of IPv4 or IPv6, whatever its protocol.
    Raw,
    /// One of which not every CRIU dumps all.
    Counted(Kind),
}

// include/linux/socket.h, include/linux/net.h, include/uapi/linux/in.h
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_NETLINK: u16 = 16;
pub(crate) const AF_PACKET: u16 = 17;
pub(crate) const AF_CAN: u16 = 29;
pub(crate) const AF_BLUETOOTH: u16 = 31;
pub(crate) const AF_ALG: u16 = 38;
pub(crate) const AF_VSOCK: u16 = 40;
pub(crate) const AF_XDP: u16 = 44;
const SOCK_STREAM: u16 = 1;
const SOCK_RAW: u16 = 3;
const IPPROTO_IP: u16 = 0;
pub(crate) const IPPROTO_ICMP: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;
pub(crate) const IPPROTO_ICMPV6: u16 = 58;
pub(crate) const IPPROTO_SCTP: u16 = 132;
const IPPROTO_UDPLITE: u16 = 136;
pub(crate) const IPPROTO_MPTCP: u16 = 262;

/// Whether type and protocol matter.
#[must_use]
#[inline(always)]
pub const fn is_inet(family: u16) -> bool {
    matches!(family, AF_INET | AF_INET6)
}

/// Classifies a socket. Type and protocol may be anything where they don't matter.
///
/// # Source
/// CRIU: `sockets.c:dump_socket`, `sk-inet.c:can_dump_ipproto`. Ping sockets since 4.2.
#[must_use]
#[inline(always)]
pub const fn socket(family: u16, kind: u16, protocol: u16) -> Socket {
    match family {
        AF_UNIX => Socket::Unix,
        AF_NETLINK => Socket::Netlink,
        AF_INET | AF_INET6 => inet(kind, protocol),
        _ => of_kind(Kind::of_family(family)),
    }
}

#[inline(always)]
const fn inet(kind: u16, protocol: u16) -> Socket {
    if kind == SOCK_RAW {
        return Socket::Raw;
    }
    match protocol {
        // 0 while the socket is being made.
        IPPROTO_IP | IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE if kind == SOCK_STREAM => Socket::Tcp,
        IPPROTO_IP | IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE => Socket::Udp,
        _ => of_kind(Kind::of_protocol(protocol)),
    }
}

#[inline(always)]
const fn of_kind(kind: Option<Kind>) -> Socket {
    match kind {
        Some(kind) => Socket::Counted(kind),
        None => Socket::Counted(Kind::SocketOther),
    }
}

impl Socket {
    /// The kind as which it is counted, if it is.
    #[must_use]
    #[inline(always)]
    pub const fn counted(self) -> Option<Kind> {
        match self {
            Self::Counted(kind) => Some(kind),
            Self::Unix | Self::Netlink | Self::Tcp | Self::Udp | Self::Raw => None,
        }
    }
}

impl From<Socket> for FileKind {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Unix => Self::Unix,
            Socket::Netlink => Self::Netlink,
            Socket::Tcp => Self::Tcp,
            Socket::Udp => Self::Udp,
            Socket::Raw => Self::Raw,
            Socket::Counted(kind) => kind.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Families that `dump_socket` has a case for, and protocols that `can_dump_ipproto` lets pass,
    /// in CRIU 3.17.1 and in 4.2.1.
    #[test]
    fn what_no_criu_refuses_is_not_counted() {
        for family in 0..=64 {
            for kind in 0..=10 {
                for protocol in 0..=300 {
                    let dumped_by_all = match family {
                        1 | 16 => true,
                        2 | 10 => kind == 3 || [0, 6, 17, 136].contains(&protocol),
                        _ => false,
                    };
                    let found = socket(family, kind, protocol);
                    assert_eq!(found.counted().is_none(), dumped_by_all, "{family} {kind} {protocol}");
                }
            }
        }
    }

    #[test]
    fn each_has_its_kind() {
        assert_eq!(socket(2, 1, 6), Socket::Tcp);
        assert_eq!((socket(2, 2, 17), socket(10, 2, 136)), (Socket::Udp, Socket::Udp));
        assert_eq!((socket(2, 3, 1), socket(10, 3, 58)), (Socket::Raw, Socket::Raw));
        let counted = |family, kind, protocol| socket(family, kind, protocol).counted();
        assert_eq!((counted(10, 1, 262), counted(2, 5, 132)), (Some(Kind::Mptcp), Some(Kind::Sctp)));
        assert_eq!((counted(2, 2, 1), counted(10, 2, 58)), (Some(Kind::Ping), Some(Kind::Ping)));
        assert_eq!((counted(17, 3, 0), counted(15, 3, 2)), (Some(Kind::Packet), Some(Kind::SocketOther)));
        assert_eq!((counted(40, 1, 0), counted(38, 5, 0)), (Some(Kind::Vsock), Some(Kind::Alg)));
    }
}
