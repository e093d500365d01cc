//! TCP, UDP, and whatever else the internet's families have.

use std::{fs, io, net::UdpSocket};

use fdtracker_tests::{
    kinds::{close, socket},
    sys::call,
};

use crate::{
    Fixture, here,
    os::{bind, connect, keep, listen, local, port_of, set, shutdown, write, zoo},
    process::{inside, outside},
};

const INET: i64 = libc::AF_INET as i64;
const INET6: i64 = libc::AF_INET6 as i64;
const STREAM: i64 = libc::SOCK_STREAM as i64;
const DGRAM: i64 = libc::SOCK_DGRAM as i64;
const RAW: i64 = libc::SOCK_RAW as i64;

const CONNECTED: &[crate::Options] = &[&["--tcp-established"], &["--tcp-close"]];

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = tcp();
    all.extend(tcp_connected());
    all.extend(tcp_closing());
    all.extend(udp());
    all.extend(others());
    all
}

fn listener(backlog: i64) -> io::Result<i64> {
    let socket = socket(INET, STREAM, 0)?;
    bind(socket, &local(0))?;
    listen(socket, backlog)?;
    Ok(socket)
}

/// Connects to a listener.
fn client(listener: i64) -> io::Result<i64> {
    let client = socket(INET, STREAM, 0)?;
    connect(client, &local(port_of(listener)?))?;
    Ok(client)
}

fn accept(listener: i64) -> io::Result<i64> {
    call(libc::SYS_accept4, &[listener, 0, 0, 0])
}

/// Makes both ends of a connection, and closes the listener. Returns the end that connected, and
/// the one that was accepted.
fn pair() -> io::Result<(i64, i64)> {
    let listener = listener(1)?;
    let client = client(listener)?;
    let server = accept(listener)?;
    close(listener);
    Ok((client, server))
}

fn tcp() -> Vec<Fixture> {
    const IN_FLIGHT: &[crate::Options] = &[&["--skip-in-flight"]];
    vec![
        here("tcp.fresh", "a socket that does nothing", || socket(INET, STREAM, 0).map(drop)),
        here("tcp.fresh6", "a socket of IPv6 that does nothing", || socket(INET6, STREAM, 0).map(drop)),
        here("tcp.bound", "a socket with a port", || bind(socket(INET, STREAM, 0)?, &local(0))),
        here("tcp.listen", "a listener", || listener(1).map(drop)),
        here("tcp.listen6", "a listener of IPv6", || {
            std::net::TcpListener::bind("[::]:0").map(keep).map(drop)
        }),
        here("tcp.listen_queued", "a listener with a connection that isn't accepted", || {
            let listener = listener(1)?;
            outside(|| client(listener).map(drop)).map(drop)
        })
        .with(IN_FLIGHT),
        here(
            "tcp.listen_queued_inside",
            "a listener with a connection of its own that isn't accepted",
            || client(listener(1)?).map(drop),
        )
        .with(&[
            &["--skip-in-flight"],
            &["--tcp-established"],
            &["--skip-in-flight", "--tcp-established"],
        ]),
        here("tcp.shut_listen", "a listener that was shut down", || shutdown(listener(1)?, libc::SHUT_RDWR)),
        here("tcp.refused", "a socket whose connection was refused", || {
            let (gone, socket) = (listener(1)?, socket(INET, STREAM, 0)?);
            let port = port_of(gone)?;
            close(gone);
            match connect(socket, &local(port)) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                Err(error) => Err(error),
                Ok(()) => Err(io::Error::other("connected to nobody")),
            }
        }),
    ]
}

fn tcp_connected() -> Vec<Fixture> {
    vec![
        here("tcp.established", "both ends of a connection", || pair().map(drop)).with(CONNECTED),
        here("tcp.established_outside", "a connection with a process outside", || {
            let (client, server) = pair()?;
            outside(|| {
                close(client);
                Ok(())
            })?;
            close(server);
            Ok(())
        })
        .with(CONNECTED),
        here("tcp.established_child", "a connection with a child", || {
            let (client, server) = pair()?;
            inside(|| {
                close(client);
                Ok(())
            })?;
            close(server);
            Ok(())
        })
        .with(CONNECTED),
        here("tcp.established6", "both ends of a connection by IPv6", || {
            let listener = std::net::TcpListener::bind("[::1]:0")?;
            let client = std::net::TcpStream::connect(listener.local_addr()?)?;
            keep(client);
            keep(listener.accept()?.0);
            Ok(())
        })
        .with(CONNECTED),
        here("tcp.established_data", "a connection with bytes that nobody has read", || {
            write(pair()?.0, b"data")
        })
        .with(CONNECTED),
        here("tcp.syn_sent", "a socket that waits for an answer", || {
            // A listener with a full queue answers no connection (kernel: `tcp_conn_request`).
            let listener = listener(0)?;
            outside(|| client(listener).map(drop))?;
            let waiting = socket(INET, STREAM | i64::from(libc::SOCK_NONBLOCK), 0)?;
            let port = port_of(listener)?;
            outside(|| Ok(()))?;
            close(listener);
            match connect(waiting, &local(port)) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                other => other.and(Err(io::Error::other("connected at once"))),
            }
        })
        .with(CONNECTED),
    ]
}

fn tcp_closing() -> Vec<Fixture> {
    vec![
        here("tcp.fin_wait", "an end that said that it is done, and the other", || {
            shutdown(pair()?.0, libc::SHUT_WR)
        })
        .with(CONNECTED),
        here("tcp.close_wait", "an end whose other end is closed", || {
            close(pair()?.0);
            Ok(())
        })
        .with(CONNECTED),
        here("tcp.closed_both", "both ends, both having said that they are done", || {
            let (client, server) = pair()?;
            shutdown(client, libc::SHUT_WR)?;
            shutdown(server, libc::SHUT_WR)
        })
        .with(CONNECTED),
        here("tcp.reset", "an end whose other end broke off", || {
            let (client, server) = pair()?;
            let linger = [1_i32, 0];
            set(client, libc::SOL_SOCKET, libc::SO_LINGER, &linger)?;
            close(client);
            let _ = server;
            Ok(())
        })
        .with(CONNECTED),
        here("tcp.ulp", "a connection with TLS in the kernel", || {
            const TCP_ULP: i32 = 31;
            set(pair()?.0, libc::IPPROTO_TCP, TCP_ULP, b"tls")
        })
        .with(CONNECTED),
    ]
}

fn udp_to_itself() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(socket.local_addr()?)?;
    Ok(socket)
}

fn udp() -> Vec<Fixture> {
    const UDP_CORK: i32 = 1;
    const IPPROTO_UDPLITE: i64 = 136;
    vec![
        here("udp.fresh", "a socket that does nothing", || socket(INET, DGRAM, 0).map(drop)),
        here("udp.fresh6", "a socket of IPv6 that does nothing", || socket(INET6, DGRAM, 0).map(drop)),
        here("udp.bound", "a socket with a port", || UdpSocket::bind("127.0.0.1:0").map(keep).map(drop)),
        here("udp.connected", "a socket that sends to itself", || udp_to_itself().map(keep).map(drop)),
        here("udp.queued", "a datagram that nobody has read", || {
            let socket = udp_to_itself()?;
            socket.send(b"data")?;
            keep(socket);
            Ok(())
        }),
        here("udp.corked", "a socket that waits for the rest of a datagram", || {
            set(keep(udp_to_itself()?), libc::IPPROTO_UDP, UDP_CORK, &1_i32)
        }),
        here("udp.multicast", "a socket that listens to a group", || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.join_multicast_v4(&[224, 0, 0, 99].into(), &[127, 0, 0, 1].into())?;
            keep(socket);
            Ok(())
        }),
        here("udplite.bound", "a socket that doesn't check all of a datagram", || {
            bind(socket(INET, DGRAM, IPPROTO_UDPLITE)?, &local(0))
        }),
    ]
}

/// Lets every group send echo requests.
fn allow_ping() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
}

fn others() -> Vec<Fixture> {
    const SCTP: i64 = libc::IPPROTO_SCTP as i64;
    const MPTCP: i64 = libc::IPPROTO_MPTCP as i64;
    const DCCP_TYPE: i64 = 6;
    vec![
        here("raw.icmp", "a raw socket of ICMP", || socket(INET, RAW, libc::IPPROTO_ICMP.into()).map(drop)),
        here("raw.any", "a raw socket of packets with their header", || {
            socket(INET, RAW, libc::IPPROTO_RAW.into()).map(drop)
        }),
        here("raw.icmp6", "a raw socket of IPv6's ICMP", || {
            socket(INET6, RAW, libc::IPPROTO_ICMPV6.into()).map(drop)
        }),
        here("ping.icmp", "a socket for echo requests", || {
            allow_ping()?;
            zoo("ping")
        }),
        here("ping.icmp6", "a socket for IPv6's echo requests", || {
            allow_ping()?;
            socket(INET6, DGRAM, libc::IPPROTO_ICMPV6.into()).map(drop)
        }),
        here("mptcp.fresh", "a socket of several paths", || zoo("mptcp")),
        here("mptcp.listen", "a listener for several paths", || {
            let listener = socket(INET, STREAM, MPTCP)?;
            bind(listener, &local(0))?;
            listen(listener, 1)
        }),
        here("sctp.fresh", "a socket of SCTP", || zoo("sctp")),
        here("sctp.seqpacket", "a socket of SCTP's packets", || {
            socket(INET, libc::SOCK_SEQPACKET.into(), SCTP).map(drop)
        }),
        here("dccp.fresh", "a socket of DCCP", || {
            socket(INET, DCCP_TYPE, libc::IPPROTO_DCCP.into()).map(drop)
        }),
    ]
}
