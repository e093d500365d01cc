//! Tests sockets in many states.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsRawFd as _,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    process::Command,
};

use fdtracker::verdict::{
    fact,
    tree::Relation,
    word::{Filter, SocketState},
};
use fdtracker_tests::{
    Zoo, fdzoo,
    sys::{address, call},
};

use super::{fd, first, has, inspect, is_related, me, owned};

pub(super) fn tcp_and_udp() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let idle = TcpListener::bind("127.0.0.1:0").expect("listen");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("connect");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let corked = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let one = 1_i32;
    call(libc::SYS_setsockopt, &[corked.as_raw_fd().into(), 17, 1, address(&one), 4]).expect("cork");
    let fresh = owned(call(libc::SYS_socket, &[2, 1, 0]).expect("a socket"));
    let tree = me();
    let found = fd(&tree, listener.as_raw_fd());
    has(found, fact::STATE, SocketState::Listen);
    has(found, fact::BACKLOG, 1);
    has(found, fact::FILTER, Filter::None);
    is_related(found, &Relation::SocketNamespace(tree.host["net"]));
    has(fd(&tree, idle.as_raw_fd()), fact::BACKLOG, 0);
    has(fd(&tree, client.as_raw_fd()), fact::STATE, SocketState::Connected);
    has(fd(&tree, fresh.as_raw_fd()), fact::STATE, SocketState::Close);
    assert_eq!(fd(&tree, udp.as_raw_fd()).kind.name(), "udp");
    has(fd(&tree, udp.as_raw_fd()), fact::CORKED, false);
    has(fd(&tree, corked.as_raw_fd()), fact::CORKED, true);
}

pub(super) fn unix_sockets() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("listen");
    let mut client = UnixStream::connect(&path).expect("connect");
    client.write_all(b"hello").expect("send");
    let (a, b) = UnixStream::pair().expect("a pair");
    let name = std::ffi::CString::new(path.to_str().expect("a path")).expect("a path");
    let flags = i64::from(libc::O_PATH);
    let opened = call(libc::SYS_openat, &[libc::AT_FDCWD.into(), name.as_ptr() as i64, flags, 0]);
    let opened = owned(opened.expect("open the socket's name"));
    let tree = me();
    let inode = |fd_of: i32| fd(&tree, fd_of).facts.get(fact::INODE).expect("an inode") as u64;
    let (a, b) = (inode(a.as_raw_fd()), inode(b.as_raw_fd()));
    assert_eq!((tree.unix[&a].peer, tree.unix[&b].peer), (Some(b), Some(a)));
    let listening = &tree.unix[&inode(listener.as_raw_fd())];
    assert_eq!((listening.state, listening.name.as_deref()), (10, path.to_str()));
    let client = inode(client.as_raw_fd());
    assert_eq!(listening.pending, [client]);
    assert!(tree.unix[&client].send_queue > 0);
    assert_eq!(tree.unix[&client].peer, None, "nobody has accepted it");
    has(fd(&tree, opened.as_raw_fd()), fact::O_PATH, true);
    has(fd(&tree, listener.as_raw_fd()), fact::O_PATH, false);
}

pub(super) fn unix_queues() {
    let (plain, from_plain) = UnixDatagram::pair().expect("a pair");
    let (asking, from_asking) = UnixDatagram::pair().expect("a pair");
    let (idle, _other) = UnixDatagram::pair().expect("a pair");
    let one = 1_i32;
    for socket in [&asking, &idle] {
        let arguments = [socket.as_raw_fd().into(), 1, libc::SO_PASSCRED.into(), address(&one), 4];
        call(libc::SYS_setsockopt, &arguments).expect("ask for credentials");
    }
    // Empty datagrams are messages too.
    from_plain.send(b"hello").expect("send");
    from_asking.send(b"").expect("send");
    let tree = me();
    has(fd(&tree, plain.as_raw_fd()), fact::CREDENTIALS, false);
    has(fd(&tree, asking.as_raw_fd()), fact::CREDENTIALS, true);
    has(fd(&tree, idle.as_raw_fd()), fact::CREDENTIALS, false);
    // Files in flight can't be inspected.
    let mut zoo = Zoo::start(Command::new(fdzoo()));
    let file = zoo.must("open eventfd");
    zoo.must(&format!("send {file}"));
    let tree = inspect(zoo.pid()).expect("the fixture can be inspected");
    let sent = first(&tree).files.iter().find(|file| file.kind.name() == "fd_in_flight");
    assert!(sent.is_some_and(|sent| sent.fd.is_none()), "{tree:#?}");
}

pub(super) fn netlink_and_filters() {
    let netlink = owned(call(libc::SYS_socket, &[16, 3, 0]).expect("a netlink socket"));
    // struct sockaddr_nl: family, port, groups
    let name = [16_u32, 0, 1];
    call(libc::SYS_bind, &[netlink.as_raw_fd().into(), address(&name), 12]).expect("bind");
    let unbound = owned(call(libc::SYS_socket, &[16, 3, 0]).expect("a netlink socket"));
    let filtered = UdpSocket::bind("127.0.0.1:0").expect("bind");
    // struct sock_filter: let everything pass
    let program: [u64; 1] = [0x6 | u64::MAX << 32];
    let filter: [u64; 2] = [1, address(&program) as u64];
    let arguments = [filtered.as_raw_fd().into(), 1, libc::SO_ATTACH_FILTER.into(), address(&filter), 16];
    call(libc::SYS_setsockopt, &arguments).expect("attach a filter");
    let tree = me();
    let found = fd(&tree, netlink.as_raw_fd());
    has(found, fact::GROUP, 1);
    assert!(found.facts.get(fact::PORT_ID).is_some_and(|port| port != 0), "{found:#?}");
    has(fd(&tree, unbound.as_raw_fd()), fact::GROUP, 0);
    has(fd(&tree, unbound.as_raw_fd()), fact::PORT_ID, 0);
    has(fd(&tree, filtered.as_raw_fd()), fact::FILTER, Filter::Classic);
}
