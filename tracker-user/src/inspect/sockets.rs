//! Sockets, by duplicates that live for microseconds.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::event::PollFlags;
use tracker_ebpf::classify::magic::SOCKFS;

use super::{
    files::{Looker, Open, basics, unreadable},
    kinds, parse, sys,
};
use crate::verdict::{
    FileKind, fact,
    tree::{File, Relation},
    word::{Filter, SocketState},
};

/// A socket, of which only the link was read: the duplicate tells the rest.
pub(super) fn look(looker: &mut Looker<'_>, fd: u32, link: &str) -> File {
    let unknown = |why: &str| unreadable(fd, link.to_owned(), why);
    let socket = match looker.duplicate_socket(fd) {
        Ok(socket) => socket,
        Err(error) => return unknown(&error.to_string()),
    };
    // It may be another file by now, of which a duplicate isn't to live longer than this.
    let status = match sys::status_of(socket.as_fd()) {
        Ok(status) if parse::namespace(link) == Some(("socket", status.inode)) => status,
        _ => return unknown("it was replaced while it was looked at"),
    };
    let open = Open { fd, link: link.to_owned(), status, magic: SOCKFS };
    look_at(looker, &open, socket.as_fd())
}

fn look_at(looker: &mut Looker<'_>, open: &Open, socket: BorrowedFd<'_>) -> File {
    let number = |name| sys::socket_option(socket, libc::SOL_SOCKET, name);
    let what = number(libc::SO_DOMAIN)
        .and_then(|family| Ok((family, number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?)));
    let (family, kind, protocol) = match what {
        Ok(what) => what,
        // Opened anew by its link in /proc, with O_PATH: nothing can be asked of it, by CRIU neither.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return o_path(open),
        Err(error) => return unreadable(open.fd, open.link.clone(), &format!("getsockopt: {error}")),
    };
    let mut file = socket_file(open, kinds::of_socket(family, kind, protocol));
    file.facts.set(fact::O_PATH, false);
    file.facts.set(fact::FAMILY, i64::from(family));
    file.facts.set(fact::SOCKET_TYPE, i64::from(kind));
    file.facts.set(fact::PROTOCOL, i64::from(protocol));
    file.facts.set_some(fact::FILTER, filter(socket));
    let listed = looker.around.listed.get(&open.status.inode).copied();
    // Not permitted in a user namespace that this process isn't above (net/socket.c:SIOCGSKNS).
    let namespace = listed.or_else(|| sys::socket_namespace(socket).ok());
    file.relations.extend(namespace.map(Relation::SocketNamespace));
    details(looker, open, socket, namespace, &mut file);
    file
}

fn socket_file(open: &Open, kind: FileKind) -> File {
    let (link, facts) = (open.link.clone(), basics(&open.status));
    File { fd: Some(open.fd), kind, link, facts, relations: Vec::new() }
}

fn o_path(open: &Open) -> File {
    let mut file = socket_file(open, kinds::of_socket(libc::AF_UNIX, 0, 0));
    file.facts.set(fact::O_PATH, true);
    file
}

fn filter(socket: BorrowedFd<'_>) -> Option<Filter> {
    match sys::socket_filter(socket) {
        Ok(0) => Some(Filter::None),
        Ok(_) => Some(Filter::Classic),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Some(Filter::Ebpf),
        Err(_) => None,
    }
}

fn details(
    looker: &mut Looker<'_>,
    open: &Open,
    socket: BorrowedFd<'_>,
    namespace: Option<u64>,
    file: &mut File,
) {
    match file.kind {
        FileKind::Tcp => tcp(socket, file),
        FileKind::Udp => {
            const UDP_CORK: i32 = 1;
            let protocol = if file.facts.get(fact::PROTOCOL) == Some(136) { 136 } else { libc::IPPROTO_UDP };
            let corked = sys::socket_option(socket, protocol, UDP_CORK);
            file.facts.set_some(fact::CORKED, corked.ok().map(|corked| corked != 0));
        }
        FileKind::Netlink => netlink_socket(socket, file),
        FileKind::Packet => {
            let memberships = looker.around.memberships(looker.seen, namespace, open.status.inode);
            file.facts.set_some(fact::MEMBERSHIPS, memberships);
        }
        FileKind::Unix => {
            file.relations.push(Relation::Unix(open.status.inode));
            unix_queue(looker, open, socket, file);
        }
        _ => {}
    }
}

/// The first bytes of `struct tcp_info`, and the words that follow them: up to `tcpi_unacked`.
fn tcp(socket: BorrowedFd<'_>, file: &mut File) {
    let Ok((info, length)) = sys::socket_option_words::<8>(socket, libc::IPPROTO_TCP, libc::TCP_INFO) else {
        return;
    };
    if length < size_of_val(&info) {
        return;
    }
    let [first, .., unacknowledged, _] = info;
    let [state, ..] = first.to_ne_bytes();
    let known = match state {
        1 | 4 | 5 | 8 | 9 | 11 => SocketState::Connected,
        2 => SocketState::Connecting,
        3 | 12 => SocketState::SynRecv,
        6 => SocketState::TimeWait,
        7 => SocketState::Close,
        10 => SocketState::Listen,
        _ => return,
    };
    file.facts.set(fact::STATE, known);
    file.facts.set(fact::STATE_NUMBER, i64::from(state));
    if known == SocketState::Listen {
        // Of a listening socket it is the number of connections to accept (net/ipv4/tcp.c:tcp_get_info).
        file.facts.set(fact::BACKLOG, i64::from(unacknowledged));
    }
}

/// `sk-netlink.c:dump_one_netlink_fd`
fn netlink_socket(socket: BorrowedFd<'_>, file: &mut File) {
    // CRIU asks `poll` too (fd_has_data).
    let readable = sys::poll(socket, PollFlags::IN).map(|events| i64::from(!events.is_empty()));
    file.facts.set_some(fact::QUEUED, readable.ok());
    file.facts.set_some(fact::PORT_ID, sys::netlink_port(socket).ok().map(i64::from));
    // include/uapi/linux/netlink.h
    const SOL_NETLINK: i32 = 270;
    const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
    if let Ok((words, length)) = sys::socket_option_words::<32>(socket, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS)
    {
        file.facts.set(fact::GROUP, highest_group(&words, length));
    }
}

/// The highest group, as CRIU counts: it takes the kernel's whole list, which comes in words of a `long`, less the last half if that
/// is empty. More than one word is too many for it, whatever is in them.
fn highest_group(words: &[u32], length: usize) -> i64 {
    let count = length.next_multiple_of(8) / 4;
    let last = count.checked_sub(1).and_then(|last| words.get(last));
    let counted = if last.is_none_or(|word| *word == 0) { count.saturating_sub(1) } else { count };
    let groups = words.iter().zip((0_u32..).step_by(32));
    let highest =
        groups.filter(|(word, _)| **word != 0).map(|(word, at)| at + 32 - word.leading_zeros()).max();
    let highest = i64::from(highest.unwrap_or(0));
    if counted > 1 { highest.max(33) } else { highest }
}

/// What CRIU would find in the queue (sk-queue.c:dump_sk_queue). Nothing is read, so what isn't plain remains unknown.
fn unix_queue(looker: &mut Looker<'_>, open: &Open, socket: BorrowedFd<'_>, file: &mut File) {
    let Ok(events) = sys::poll(socket, PollFlags::IN | PollFlags::RDHUP) else { return };
    if !events.contains(PollFlags::IN) {
        file.facts.set(fact::CREDENTIALS, false);
        return;
    }
    let has = |name| sys::socket_option(socket, libc::SOL_SOCKET, name).is_ok_and(|value| value != 0);
    // A socket that listens has connections in its queue, which CRIU doesn't read. One that was shut down is readable too; a
    // datagram may be empty.
    let is_stream = file.facts.get(fact::SOCKET_TYPE) == Some(libc::SOCK_STREAM.into());
    let is_empty = match sys::unread(socket) {
        _ if has(libc::SO_ACCEPTCONN) => Some(true),
        Ok(0) if is_stream => Some(true),
        Ok(0) if events.contains(PollFlags::RDHUP) => None,
        Ok(_) => Some(false),
        Err(_) => None,
    };
    let is_asking = CREDENTIALS.iter().any(|name| has(*name));
    match is_empty {
        Some(is_empty) => file.facts.set(fact::CREDENTIALS, !is_empty && is_asking),
        None if !is_asking => file.facts.set(fact::CREDENTIALS, false),
        None => {}
    }
    in_flight(looker, open, file);
}

/// Options by which messages come with control data other than files (include/uapi/asm-generic/socket.h). Not SO_PASSSEC: a label
/// comes only with some security modules.
const CREDENTIALS: [i32; 6] = [
    libc::SO_PASSCRED,
    SO_PASSPIDFD,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    SO_TIMESTAMP_NEW,
    SO_TIMESTAMPNS_NEW,
];
const SO_TIMESTAMP_NEW: i32 = 63;
const SO_TIMESTAMPNS_NEW: i32 = 64;
const SO_PASSPIDFD: i32 = 76;

/// Files on their way through the socket (Linux 5.5), which can't be looked at before they are received: nothing is known of them.
fn in_flight(looker: &mut Looker<'_>, open: &Open, file: &mut File) {
    let count = looker.fdinfo_or_why(open.fd, file).and_then(|info| info.files_in_flight).unwrap_or(0);
    if count > 0 {
        let mut sent = unreadable(open.fd, open.link.clone(), "");
        sent.fd = None;
        sent.kind = FileKind::FdInFlight;
        let why = format!(
            "{count} files wait to be received from fd {}, and can't be looked at from outside",
            open.fd
        );
        sent.facts.set(fact::WHY, why.into());
        looker.sent.push(sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_netlink_are_counted_as_criu_does() {
        assert_eq!(highest_group(&[0; 32], 0), 0);
        // rtnetlink: 36 groups
        assert_eq!(highest_group(&[1, 0], 8), 1);
        assert_eq!(highest_group(&[0x8000_0000, 0], 4), 32);
        assert_eq!(highest_group(&[0, 2], 8), 34);
        // Generic netlink has room for more.
        assert_eq!(highest_group(&[1, 0, 0, 0], 16), 33);
        assert_eq!(highest_group(&[0; 32], 4096), 33);
    }
}
