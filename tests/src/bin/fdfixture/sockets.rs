//! Netlink and packet sockets, and families that CRIU doesn't know.

use std::io;

use fdtracker_tests::{
    kinds::{close, socket},
    sys::call,
};

use crate::{
    Fixture, here,
    os::{self, bind, listen, set, write, zoo},
};

const NETLINK: i64 = libc::AF_NETLINK as i64;
const PACKET: i64 = libc::AF_PACKET as i64;
const RAW: i64 = libc::SOCK_RAW as i64;
const DGRAM: i64 = libc::SOCK_DGRAM as i64;
const LOOPBACK: i32 = 1;

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = netlink();
    all.extend(netlink_protocols());
    all.extend(packet());
    all.extend(families());
    all.extend(places());
    all
}

/// Returns a netlink address: this port (0: any free one) and these groups.
fn netlink_address(port: u32, groups: u32) -> Vec<u8> {
    let family = libc::AF_NETLINK as u32;
    [family, port, groups].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn route() -> io::Result<i64> {
    socket(NETLINK, RAW, libc::NETLINK_ROUTE.into())
}

/// Makes a netlink socket that is bound to these groups.
fn bound(groups: u32) -> io::Result<i64> {
    let socket = route()?;
    bind(socket, &netlink_address(0, groups))?;
    Ok(socket)
}

fn netlink() -> Vec<Fixture> {
    const NETLINK_ADD_MEMBERSHIP: i32 = 1;
    vec![
        here("netlink.fresh", "a socket that does nothing", || route().map(drop)),
        here("netlink.bound", "a socket with a port", || bound(0).map(drop)),
        here("netlink.groups", "a socket that listens to a group", || bound(1).map(drop)),
        here("netlink.queued", "an answer that nobody has read", || {
            // struct nlmsghdr: length; RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP; sequence; port.
            // struct rtgenmsg.
            let request = [20_u32, 18 | 0x301 << 16, 1, 0, 0];
            let bytes: Vec<u8> = request.iter().flat_map(|word| word.to_ne_bytes()).collect();
            write(bound(0)?, &bytes)
        }),
        here("netlink.group_high", "a socket that listens to a group above 32", || {
            const RTNLGRP_NEXTHOP: i32 = 32;
            const RTNLGRP_TUNNEL: i32 = RTNLGRP_NEXTHOP + 4;
            set(bound(0)?, libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &RTNLGRP_TUNNEL)
        }),
        here("netlink.groups_unbound", "a socket that listens to a group, and has no port", || {
            set(route()?, libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &1_i32)
        }),
        here("netlink.connected", "a socket that sends to the kernel", || {
            os::connect(bound(0)?, &netlink_address(0, 0))
        }),
    ]
}

macro_rules! netlink {
    ($name:literal, $about:literal, $protocol:expr) => {
        here(concat!("netlink.", $name), $about, || {
            bind(socket(NETLINK, RAW, i64::from($protocol))?, &netlink_address(0, 0))
        })
    };
}

fn netlink_protocols() -> Vec<Fixture> {
    vec![
        netlink!("uevent", "a socket for news of devices", libc::NETLINK_KOBJECT_UEVENT),
        netlink!("sock_diag", "a socket for questions about sockets", 4),
        netlink!("audit", "a socket for the audit", libc::NETLINK_AUDIT),
        netlink!("generic", "a socket for the rest", libc::NETLINK_GENERIC),
        netlink!("netfilter", "a socket for the packet filter", libc::NETLINK_NETFILTER),
        netlink!("crypto", "a socket for ciphers", libc::NETLINK_CRYPTO),
        netlink!("connector", "a socket for news of processes", libc::NETLINK_CONNECTOR),
        netlink!("selinux", "a socket for SELinux", libc::NETLINK_SELINUX),
        netlink!("xfrm", "a socket for IPsec", libc::NETLINK_XFRM),
    ]
}

/// The protocol of every packet.
const ALL: i64 = (libc::ETH_P_ALL as u16).to_be() as i64;

/// Returns a `struct packet_mreq`: membership in an Ethernet group on the loopback interface.
fn membership(last: u8) -> [u8; 16] {
    let [a, b, c, d] = LOOPBACK.to_ne_bytes();
    [a, b, c, d, 0, 0, 6, 0, 1, 0, 0x5e, 0, 0, last, 0, 0]
}

fn packet() -> Vec<Fixture> {
    const SOL_PACKET: i32 = 263;
    const ADD_MEMBERSHIP: i32 = 1;
    const RX_RING: i32 = 5;
    const FANOUT: i32 = 18;
    vec![
        here("packet.raw", "every packet, with its header", || socket(PACKET, RAW, ALL).map(drop)),
        here("packet.dgram", "every packet, without its header", || socket(PACKET, DGRAM, ALL).map(drop)),
        here("packet.silent", "no packet", || socket(PACKET, RAW, 0).map(drop)),
        here("packet.bound", "every packet of an interface", || packets_of_loopback().map(drop)),
        here("packet.member", "a member of a group", || {
            set(packets_of_loopback()?, SOL_PACKET, ADD_MEMBERSHIP, &membership(1))
        }),
        here("packet.members", "a member of two groups", || {
            let socket = packets_of_loopback()?;
            set(socket, SOL_PACKET, ADD_MEMBERSHIP, &membership(1))?;
            set(socket, SOL_PACKET, ADD_MEMBERSHIP, &membership(2))
        }),
        here("packet.ring", "packets in a ring of memory", || {
            // struct tpacket_req: block size, blocks, frame size, frames
            set(packets_of_loopback()?, SOL_PACKET, RX_RING, &[4096_u32, 4, 2048, 8])
        }),
        here("packet.fanout", "packets that several sockets share", || {
            set(packets_of_loopback()?, SOL_PACKET, FANOUT, &7_u32)
        }),
    ]
}

fn packets_of_loopback() -> io::Result<i64> {
    let socket = socket(PACKET, RAW, ALL)?;
    // struct sockaddr_ll: family and protocol, interface, …
    let address = [libc::AF_PACKET as u32 | (ALL as u32) << 16, LOOPBACK as u32, 0, 0, 0];
    let address: Vec<u8> = address.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bind(socket, &address)?;
    Ok(socket)
}

macro_rules! family {
    ($name:literal, $family:literal, $type:literal, $protocol:literal) => {
        here($name, concat!("a socket of family ", $family), || socket($family, $type, $protocol).map(drop))
    };
}

fn families() -> Vec<Fixture> {
    vec![
        family!("vsock.stream", 40, 1, 0),
        family!("alg.fresh", 38, 5, 0),
        family!("xdp.fresh", 44, 3, 0),
        family!("key.fresh", 15, 3, 2),
        family!("smc.fresh", 43, 1, 0),
        family!("can.raw", 29, 3, 1),
        family!("bluetooth.hci", 31, 3, 1),
        family!("tipc.fresh", 30, 2, 0),
        family!("rds.fresh", 21, 5, 0),
        family!("qrtr.fresh", 42, 2, 0),
        family!("kcm.fresh", 41, 2, 0),
        family!("ieee802154.fresh", 36, 3, 0),
        family!("ax25.fresh", 3, 5, 0),
        family!("appletalk.fresh", 5, 2, 0),
        family!("x25.fresh", 9, 5, 0),
        family!("llc.fresh", 26, 1, 0),
        family!("phonet.fresh", 35, 2, 0),
        family!("pppox.fresh", 24, 1, 0),
        family!("l2tp.fresh", 2, 2, 115),
        family!("mctp.fresh", 45, 2, 0),
        here("alg.bound", "a socket of a cipher, and one that it works with", || {
            let socket = socket(38, 5, 0)?;
            // struct sockaddr_alg: family, type, feature and mask, name
            let mut address = [0_u8; 88];
            let words = 38_u16.to_ne_bytes();
            for (to, from) in address.iter_mut().zip(words.iter().chain(b"hash")) {
                *to = *from;
            }
            for (to, from) in address.iter_mut().skip(24).zip(b"sha256") {
                *to = *from;
            }
            bind(socket, &address)?;
            call(libc::SYS_accept4, &[socket, 0, 0, 0]).map(drop)
        }),
        here("vsock.listen", "a listener for other machines", || {
            let socket = socket(40, 1, 0)?;
            // struct sockaddr_vm: family, any port, any machine
            let address = [40_u32, u32::MAX, u32::MAX, 0];
            let address: Vec<u8> = address.iter().flat_map(|word| word.to_ne_bytes()).collect();
            bind(socket, &address)?;
            listen(socket, 1)
        }),
    ]
}

/// Sockets that are opened by O_PATH, or before and after another file that CRIU doesn't dump.
fn places() -> Vec<Fixture> {
    vec![
        here("opath.tcp", "a TCP socket's place", || {
            let socket = socket(2, 1, 0)?;
            os::open_at(format!("/proc/self/fd/{socket}"), libc::O_PATH)?;
            close(socket);
            Ok(())
        }),
        here("vsock.and_fuse", "a socket and a device, neither of which CRIU dumps", || {
            zoo("vsock")?;
            zoo("char_device")
        }),
        here("fuse.and_vsock", "a device and a socket, neither of which CRIU dumps", || {
            zoo("char_device")?;
            zoo("vsock")
        }),
    ]
}
