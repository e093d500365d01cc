//! Namespaces that are open as files, and sockets of other network namespaces.

use std::{fs::File, io};

use fdtracker_tests::{
    kinds::{close, open, socket},
    sys::call,
};

use crate::{
    Fixture, here,
    os::{self, keep, path},
    process::{inside, outside},
};

macro_rules! own {
    ($kind:literal) => {
        here(concat!("ns.own_", $kind), concat!("its own ", $kind, " namespace"), || {
            File::open(concat!("/proc/self/ns/", $kind)).map(keep).map(drop)
        })
    };
}

macro_rules! foreign {
    ($kind:literal, $flag:expr) => {
        here(concat!("ns.foreign_", $kind), concat!("a ", $kind, " namespace of a process outside"), || {
            let helper = outside(|| call(libc::SYS_unshare, &[i64::from($flag)]).map(drop))?;
            File::open(format!(concat!("/proc/{}/ns/", $kind), helper)).map(keep).map(drop)
        })
    };
}

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = own();
    all.extend(foreign());
    all.extend(of_children());
    all.extend(sockets());
    all
}

fn own() -> Vec<Fixture> {
    vec![
        own!("net"),
        own!("mnt"),
        own!("pid"),
        own!("uts"),
        own!("ipc"),
        own!("user"),
        own!("cgroup"),
        own!("time"),
        here("ns.bound", "its own network, by a path that it is mounted at", || {
            drop(os::file("net", 0)?);
            os::bind_mount("/proc/self/ns/net".as_ref(), &path("net"))?;
            File::open(path("net")).map(keep).map(drop)
        }),
    ]
}

fn foreign() -> Vec<Fixture> {
    vec![
        foreign!("net", libc::CLONE_NEWNET),
        foreign!("mnt", libc::CLONE_NEWNS),
        foreign!("uts", libc::CLONE_NEWUTS),
        foreign!("ipc", libc::CLONE_NEWIPC),
        foreign!("user", libc::CLONE_NEWUSER),
        foreign!("cgroup", libc::CLONE_NEWCGROUP),
        here("ns.foreign_pid", "a pid namespace in which there is nobody yet", || {
            let helper = outside(|| call(libc::SYS_unshare, &[libc::CLONE_NEWPID.into()]).map(drop))?;
            File::open(format!("/proc/{helper}/ns/pid_for_children")).map(keep).map(drop)
        }),
        here("ns.foreign_time", "a time namespace in which there is nobody yet", || {
            const CLONE_NEWTIME: i64 = 0x80;
            let helper = outside(|| call(libc::SYS_unshare, &[CLONE_NEWTIME]).map(drop))?;
            File::open(format!("/proc/{helper}/ns/time_for_children")).map(keep).map(drop)
        }),
        here("ns.foreign_net_bound", "a network without a process, by a path that it is mounted at", || {
            let helper = outside(new_network)?;
            drop(os::file("net", 0)?);
            os::bind_mount(format!("/proc/{helper}/ns/net").as_ref(), &path("net"))?;
            File::open(path("net")).map(keep).map(drop)
        }),
    ]
}

/// Makes a child that has namespaces of its own, although no open file shows it.
fn child_in(flags: i32) -> io::Result<()> {
    inside(|| call(libc::SYS_unshare, &[flags.into()]).map(drop)).map(drop)
}

fn of_children() -> Vec<Fixture> {
    vec![
        here("ns.child_net", "a child with a network of its own", || child_in(libc::CLONE_NEWNET)),
        here("ns.child_mnt", "a child with mounts of its own", || child_in(libc::CLONE_NEWNS)),
        here("ns.child_uts", "a child with a host name of its own", || child_in(libc::CLONE_NEWUTS)),
        here("ns.child_ipc", "a child with IPC of its own", || child_in(libc::CLONE_NEWIPC)),
        here("ns.child_user", "a child with users of its own", || child_in(libc::CLONE_NEWUSER)),
        here("ns.child_pid", "a child with processes of its own", || {
            inside(|| {
                call(libc::SYS_unshare, &[libc::CLONE_NEWPID.into()])?;
                inside(|| Ok(())).map(drop)
            })
            .map(drop)
        }),
        here("ns.child_net_open", "a child's network, open", || {
            let child = inside(new_network)?;
            File::open(format!("/proc/{child}/ns/net")).map(keep).map(drop)
        }),
    ]
}

/// Enters a new network namespace.
pub(crate) fn new_network() -> io::Result<()> {
    call(libc::SYS_unshare, &[libc::CLONE_NEWNET.into()]).map(drop)
}

/// Does something in another process's network namespace.
pub(crate) fn in_network_of(pid: i64, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let enter = |path: &str| {
        let network = os::open_at(path, libc::O_RDONLY)?;
        let entered = call(libc::SYS_setns, &[network, libc::CLONE_NEWNET.into()]);
        Ok::<i64, io::Error>(network).and(entered.map(|_| network))
    };
    let own = os::open_at("/proc/self/ns/net", libc::O_RDONLY)?;
    close(enter(&format!("/proc/{pid}/ns/net"))?);
    let done = act();
    call(libc::SYS_setns, &[own, libc::CLONE_NEWNET.into()])?;
    close(own);
    done
}

macro_rules! foreign_socket {
    ($name:literal, $about:literal, $act:expr) => {
        here($name, concat!($about, " of another network"), || in_network_of(outside(new_network)?, $act))
    };
}

fn sockets() -> Vec<Fixture> {
    vec![
        foreign_socket!("foreign_net.unix", "a unix socket", || socket(1, 1, 0).map(drop)),
        foreign_socket!("foreign_net.unix_listen", "a unix listener", || {
            std::os::unix::net::UnixListener::bind(path("socket")).map(keep).map(drop)
        }),
        foreign_socket!("foreign_net.tcp", "a TCP socket", || socket(2, 1, 0).map(drop)),
        foreign_socket!("foreign_net.tcp_listen", "a TCP listener", || {
            std::net::TcpListener::bind("0.0.0.0:0").map(keep).map(drop)
        }),
        foreign_socket!("foreign_net.udp", "a UDP socket", || socket(2, 2, 0).map(drop)),
        foreign_socket!("foreign_net.netlink", "a netlink socket", || socket(16, 3, 0).map(drop)),
        foreign_socket!("foreign_net.packet", "a packet socket", || open("packet").map(drop)),
    ]
}
