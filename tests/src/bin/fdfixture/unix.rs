//! Unix sockets. What decides is mostly at the other end, or in the queue.

use std::{fs, io, os::unix::net::UnixListener};

use fdtracker_tests::{
    kinds::{close, open, send},
    sys::call,
};

use crate::{
    Fixture, here,
    os::{self, bind, connect, keep, listen, pair, path, set, shutdown, unix_address, write},
    process::{inside, outside},
};

const EXTERNAL: &[crate::Options] = &[&["--ext-unix-sk"]];

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = whole();
    all.extend(listeners());
    all.extend(streams_outside());
    all.extend(datagrams_outside());
    all.extend(queues());
    all.extend(with_names());
    all
}

fn socket(ty: i32) -> io::Result<i64> {
    call(libc::SYS_socket, &[libc::AF_UNIX.into(), ty.into(), 0])
}

/// Makes a pair of sockets: the caller keeps the first, another process gets the second.
fn divided(ty: i32, process: fn(&mut dyn FnMut() -> io::Result<()>) -> io::Result<i64>) -> io::Result<i64> {
    let (here, there) = pair(ty)?;
    process(&mut || {
        close(here);
        Ok(())
    })?;
    close(there);
    Ok(here)
}

fn with_child(ty: i32) -> io::Result<()> {
    divided(ty, |part| inside(part)).map(drop)
}

fn with_outside(ty: i32) -> io::Result<()> {
    divided(ty, |part| outside(part)).map(drop)
}

fn whole() -> Vec<Fixture> {
    vec![
        here("unix.fresh", "a stream socket that does nothing", || socket(libc::SOCK_STREAM).map(drop)),
        here("unix.fresh_dgram", "a datagram socket that does nothing", || {
            socket(libc::SOCK_DGRAM).map(drop)
        }),
        here("unix.stream_pair", "both ends of a stream", || pair(libc::SOCK_STREAM).map(drop)),
        here("unix.dgram_pair", "both ends of datagrams", || pair(libc::SOCK_DGRAM).map(drop)),
        here("unix.seqpacket_pair", "both ends of packets", || pair(libc::SOCK_SEQPACKET).map(drop)),
        here("unix.stream_child", "a stream to a child", || with_child(libc::SOCK_STREAM)),
        here("unix.half_closed", "both ends of a stream, one way being closed", || {
            shutdown(pair(libc::SOCK_STREAM)?.0, libc::SHUT_WR)
        }),
        here("unix.peer_closed", "one end of a stream, the other being closed", || {
            close(pair(libc::SOCK_STREAM)?.1);
            Ok(())
        }),
        here("unix.peer_closed_data", "one end of a stream, the other being closed after it wrote", || {
            let (_, there) = pair(libc::SOCK_STREAM)?;
            write(there, b"data")?;
            close(there);
            Ok(())
        }),
        here("unix.dgram_peer_closed", "one end of datagrams, the other being closed", || {
            close(pair(libc::SOCK_DGRAM)?.1);
            Ok(())
        }),
        here("unix.raw", "a raw socket, which Linux takes for datagrams", || {
            socket(libc::SOCK_RAW).map(drop)
        }),
    ]
}

/// Makes a socket that listens at `socket`.
fn listener() -> io::Result<i64> {
    UnixListener::bind(path("socket")).map(keep)
}

fn address() -> Vec<u8> {
    unix_address(path("socket").as_os_str().as_encoded_bytes())
}

fn client() -> io::Result<i64> {
    let client = socket(libc::SOCK_STREAM)?;
    connect(client, &address())?;
    Ok(client)
}

/// Accepts a connection, and doesn't ask for the address.
fn accept(listener: i64) -> io::Result<i64> {
    call(libc::SYS_accept4, &[listener, 0, 0, 0])
}

fn listeners() -> Vec<Fixture> {
    vec![
        here("unix.listen", "a listener", || listener().map(drop)),
        here("unix.listen_pending", "a listener with a connection that isn't accepted", || {
            listener()?;
            client().map(drop)
        }),
        here(
            "unix.listen_pending_data",
            "a listener with a connection that isn't accepted, and has bytes",
            || {
                listener()?;
                write(client()?, b"data")
            },
        ),
        here(
            "unix.listen_pending_closed",
            "a listener with a connection that was closed before it was accepted",
            || {
                listener()?;
                close(client()?);
                Ok(())
            },
        ),
        here("unix.listen_pending_outside", "a listener to which a process outside has connected", || {
            listener()?;
            outside(|| client().map(drop)).map(drop)
        })
        .with(EXTERNAL),
        here("unix.accepted", "a listener, and both ends of a connection", || {
            let listener = listener()?;
            client()?;
            accept(listener).map(drop)
        }),
        here(
            "unix.connected_to_outside",
            "a connection to a listener outside, which hasn't accepted it",
            || {
                outside(|| listener().map(drop))?;
                client().map(drop)
            },
        )
        .with(EXTERNAL),
        here("unix.accepted_by_outside", "a connection to a process outside, by its listener's name", || {
            let listener = listener()?;
            let client = client()?;
            outside(|| {
                accept(listener)?;
                close(client);
                Ok(())
            })?;
            close(listener);
            Ok(())
        })
        .with(EXTERNAL),
        here("unix.accepted_from_outside", "a listener, and a connection of a process outside", || {
            let listener = listener()?;
            outside(|| client().map(drop))?;
            accept(listener).map(drop)
        })
        .with(EXTERNAL),
    ]
}

fn streams_outside() -> Vec<Fixture> {
    vec![
        here("unix.stream_outside", "one end of a stream, the other being in a process outside", || {
            with_outside(libc::SOCK_STREAM)
        })
        .with(EXTERNAL),
        here("unix.seqpacket_outside", "one end of packets, the other being in a process outside", || {
            with_outside(libc::SOCK_SEQPACKET)
        })
        .with(EXTERNAL),
        here("unix.stream_outside_shut", "one end of a stream to outside, closed both ways", || {
            shutdown(divided(libc::SOCK_STREAM, |part| outside(part))?, libc::SHUT_RDWR)
        })
        .with(EXTERNAL),
        here("unix.peer_in_queue", "one end of a stream, the other being in a socket's queue", || {
            let (_, there) = pair(libc::SOCK_STREAM)?;
            let (a, _) = pair(libc::SOCK_STREAM)?;
            send(a, there as i32)?;
            close(there);
            Ok(())
        }),
    ]
}

/// Makes a socket that receives datagrams at `socket`.
fn receiver() -> io::Result<i64> {
    let receiver = socket(libc::SOCK_DGRAM)?;
    bind(receiver, &address())?;
    Ok(receiver)
}

fn sender() -> io::Result<i64> {
    let sender = socket(libc::SOCK_DGRAM)?;
    connect(sender, &address())?;
    Ok(sender)
}

fn datagrams_outside() -> Vec<Fixture> {
    vec![
        here("unix.dgram_outside", "one end of datagrams, the other being outside and nameless", || {
            with_outside(libc::SOCK_DGRAM)
        })
        .with(EXTERNAL),
        here("unix.dgram_named_outside", "sends datagrams to a socket outside that has a name", || {
            outside(|| receiver().map(drop))?;
            sender().map(drop)
        })
        .with(EXTERNAL),
        here("unix.dgram_from_outside", "receives datagrams of a process outside", || {
            receiver()?;
            outside(|| sender().map(drop)).map(drop)
        })
        .with(EXTERNAL),
        here("unix.dgram_named_gone", "sends datagrams to a socket that is closed", || {
            let receiver = receiver()?;
            sender()?;
            close(receiver);
            Ok(())
        })
        .with(EXTERNAL),
    ]
}

/// Sends a file through a pair, and closes it.
fn queue(file: i64) -> io::Result<()> {
    let (a, _) = pair(libc::SOCK_STREAM)?;
    send(a, file as i32)?;
    close(file);
    Ok(())
}

/// Makes a pair whose second end is told who writes, with bytes in its queue.
fn told(ty: i32, option: i32) -> io::Result<()> {
    let (here, there) = pair(ty)?;
    set(there, libc::SOL_SOCKET, option, &1_i32)?;
    write(here, b"data")
}

fn queues() -> Vec<Fixture> {
    const SO_PASSPIDFD: i32 = 76;
    vec![
        here("unix.queue_data", "a pair with bytes that nobody has read", || {
            write(pair(libc::SOCK_STREAM)?.0, b"data")
        }),
        here("unix.queue_dgram", "a pair with datagrams that nobody has read", || {
            write(pair(libc::SOCK_DGRAM)?.0, b"data")
        }),
        here("unix.queue_fd_ok", "a pair with a file in its queue that CRIU dumps", || {
            let (read, write) = os::pipe(0)?;
            close(write);
            queue(read)
        }),
        here("unix.queue_fd_bad", "a pair with a file in its queue that CRIU doesn't dump", || {
            queue(open("userfaultfd")?)
        }),
        here("unix.queue_fd_device", "a pair with a device in its queue that CRIU doesn't dump", || {
            queue(open("char_device")?)
        }),
        here("unix.queue_fd_socket", "a pair with a socket in its queue", || {
            queue(socket(libc::SOCK_STREAM)?)
        }),
        here("unix.queue_pidfd_outside", "a pair with a pidfd of a process outside in its queue", || {
            queue(call(libc::SYS_pidfd_open, &[outside(|| Ok(()))?, 0])?)
        }),
        here("unix.queue_creds", "a pair with bytes that tell who wrote them", || {
            told(libc::SOCK_STREAM, libc::SO_PASSCRED)
        }),
        here("unix.queue_creds_dgram", "a pair with a datagram that tells who wrote it", || {
            told(libc::SOCK_DGRAM, libc::SO_PASSCRED)
        }),
        here("unix.queue_security", "a pair with bytes that tell the writer's label", || {
            told(libc::SOCK_STREAM, libc::SO_PASSSEC)
        }),
        here("unix.queue_pidfd", "a pair with bytes that come with a pidfd (Linux 6.5)", || {
            told(libc::SOCK_STREAM, SO_PASSPIDFD)
        }),
        here("unix.creds_no_data", "a pair that would tell who writes", || {
            set(pair(libc::SOCK_STREAM)?.1, libc::SOL_SOCKET, libc::SO_PASSCRED, &1_i32)
        }),
        here(
            "unix.pending_fd_bad",
            "a connection that isn't accepted, with a file that CRIU doesn't dump",
            || {
                listener()?;
                let file = open("userfaultfd")?;
                send(client()?, file as i32)?;
                close(file);
                Ok(())
            },
        ),
    ]
}

fn with_names() -> Vec<Fixture> {
    vec![
        here("unix.bound_unlinked", "a listener whose name is gone", || {
            listener()?;
            fs::remove_file(path("socket"))
        }),
        here("unix.bound_replaced", "a listener whose name is another's now", || {
            listener()?;
            fs::remove_file(path("socket"))?;
            listener().map(drop)
        }),
        here("unix.bound_relative", "a socket bound to a name below the working directory", || {
            std::env::set_current_dir(path(""))?;
            let socket = socket(libc::SOCK_STREAM)?;
            bind(socket, &unix_address(b"relative"))?;
            listen(socket, 1)
        }),
        here("unix.bound_relative_moved", "one whose process has another working directory now", || {
            std::env::set_current_dir(path(""))?;
            let socket = socket(libc::SOCK_STREAM)?;
            bind(socket, &unix_address(b"relative"))?;
            listen(socket, 1)?;
            std::env::set_current_dir("/")
        }),
        here("unix.bound_detached", "a listener on a mount that was taken out of the tree", || {
            let at = os::tmpfs("mounted")?;
            keep(UnixListener::bind(at.join("socket"))?);
            os::umount(&at)
        }),
        here("unix.bound_overlay", "a listener on an overlay", || {
            UnixListener::bind(os::overlay()?.join("socket")).map(keep).map(drop)
        }),
        here("unix.abstract", "a listener with a name that is no file's", || {
            let socket = socket(libc::SOCK_STREAM)?;
            bind(socket, &unix_address(b"\0fdfixture"))?;
            listen(socket, 1)
        }),
    ]
}
