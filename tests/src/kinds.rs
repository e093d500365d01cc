//! Opens one file of each kind, and sends fds: what fixtures are made of.

use std::{
    ffi::{CStr, CString},
    io, ptr,
};

use libc::c_int;

use crate::sys::{address, call, message};

/// Opens a file of this kind. The names are those of [`tracker_ebpf::Kind`].
///
/// # Errors
/// What the kernel says.
pub fn open(kind: &str) -> Result<i64, io::Error> {
    match kind {
        "eventfd" => call(libc::SYS_eventfd2, &[0, 0]),
        "epoll" => call(libc::SYS_epoll_create1, &[0]),
        "signalfd" => call(libc::SYS_signalfd4, &[-1, address(&0_u64), 8, 0]),
        "timerfd" => call(libc::SYS_timerfd_create, &[libc::CLOCK_MONOTONIC.into(), 0]),
        "inotify" => call(libc::SYS_inotify_init1, &[0]),
        "fanotify" => call(libc::SYS_fanotify_init, &[0, 0]),
        "pidfd" => call(libc::SYS_pidfd_open, &[std::process::id().into(), 0]),
        "io_uring" => {
            // struct io_uring_params, which the kernel fills.
            let mut params = [0_u64; 16];
            call(libc::SYS_io_uring_setup, &[4, params.as_mut_ptr() as i64])
        }
        "perf_event" => perf_event(),
        "bpf_map" => bpf(0, &[2 | 4 << 32, 4 | 1 << 32]),
        "bpf_prog" => bpf_prog(),
        "bpf_link" => {
            let prog = bpf_prog()?;
            let name = CString::new("sys_enter").unwrap_or_default();
            let link = bpf(17, &[name.as_ptr() as u64, prog as u64]);
            close(prog);
            link
        }
        "btf" => btf(),
        "userfaultfd" => call(libc::SYS_userfaultfd, &[libc::O_NONBLOCK.into()]),
        "fscontext" => {
            let name = CString::new("tmpfs").unwrap_or_default();
            call(libc::SYS_fsopen, &[name.as_ptr() as i64, 0])
        }
        "seccomp_notify" => seccomp_notify(),
        "landlock" => call(libc::SYS_landlock_create_ruleset, &[address(&1_u64), 8, 0]),
        "memfd_secret" => call(libc::SYS_memfd_secret, &[0]),
        "mqueue" => mqueue(),
        "vsock" => socket(40, 1, 0),
        "alg" => socket(38, 5, 0),
        "xdp" => socket(44, 3, 0),
        "packet" => socket(17, 3, 0),
        "bluetooth" => socket(31, 3, 1),
        "can" => socket(29, 3, 1),
        "mptcp" => socket(2, 1, 262),
        "sctp" => socket(2, 1, 132),
        "ping" => socket(2, 2, 1),
        "tun" => path(c"/dev/net/tun"),
        "char_device" => path(c"/dev/fuse"),
        "kvm" => {
            let device = path(c"/dev/kvm")?;
            let vm = call(libc::SYS_ioctl, &[device, 0xae01, 0]);
            close(device);
            vm
        }
        "kvm_device" => {
            let vm = open("kvm")?;
            // struct kvm_create_device: type KVM_DEV_TYPE_VFIO, fd, flags
            let mut device = [4_u32, 0, 0];
            let made = call(libc::SYS_ioctl, &[vm, 0xc00c_aee0, device.as_mut_ptr() as i64]);
            close(vm);
            // SAFETY: the call has filled the array behind the compiler's back.
            made.map(|_| unsafe { device.as_ptr().add(1).read_volatile() }.into())
        }
        "block_device" => block_device(),
        // These aren't counted: they must not show up anywhere.
        "null" => path(c"/dev/null"),
        "dir" => path(c"/"),
        "tcp" => socket(2, 1, 0),
        "udp" => socket(2, 2, 0),
        "unix" => socket(1, 1, 0),
        "netlink" => socket(16, 3, 0),
        "memfd" => call(libc::SYS_memfd_create, &[c"zoo".as_ptr() as i64, 0]),
        other => Err(io::Error::other(format!("unknown kind {other}"))),
    }
}

/// Closes an fd that the caller doesn't need any more.
pub fn close(fd: i64) {
    // SAFETY: the fd was made by the caller, who has no other use for it.
    unsafe { libc::close(fd as c_int) };
}

/// Makes a socket.
///
/// # Errors
/// What the kernel says.
pub fn socket(family: i64, ty: i64, protocol: i64) -> Result<i64, io::Error> {
    call(libc::SYS_socket, &[family, ty, protocol])
}

/// Opens a path for reading.
///
/// # Errors
/// What the kernel says.
pub fn path(path: &CStr) -> Result<i64, io::Error> {
    call(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.as_ptr() as i64, libc::O_RDONLY.into(), 0])
}

fn block_device() -> Result<i64, io::Error> {
    let mut last = io::ErrorKind::NotFound.into();
    for name in [c"/dev/vda", c"/dev/sda", c"/dev/nvme0n1", c"/dev/loop0"] {
        match path(name) {
            Ok(fd) => return Ok(fd),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn perf_event() -> Result<i64, io::Error> {
    // struct perf_event_attr: a software clock of this task.
    let mut attr = [0_u32; 32];
    attr[0] = 1;
    attr[1] = 128;
    call(libc::SYS_perf_event_open, &[address(&attr), 0, -1, -1, 0])
}

/// Calls `bpf`. Fills the attributes up with zeros.
///
/// # Errors
/// What the kernel says.
pub fn bpf(command: i64, attr: &[u64]) -> Result<i64, io::Error> {
    let mut padded = [0_u64; 16];
    padded[..attr.len()].copy_from_slice(attr);
    call(libc::SYS_bpf, &[command, address(&padded), 128])
}

fn bpf_prog() -> Result<i64, io::Error> {
    const BPF_PROG_LOAD: i64 = 5;
    const RAW_TRACEPOINT: u64 = 17;
    // r0 = 0; exit
    let code: [u64; 2] = [0xb7, 0x95];
    let license = CString::new("GPL").unwrap_or_default();
    bpf(BPF_PROG_LOAD, &[RAW_TRACEPOINT | 2 << 32, address(&code) as u64, license.as_ptr() as u64])
}

fn btf() -> Result<i64, io::Error> {
    const BPF_BTF_LOAD: i64 = 18;
    // A header, one `int`, and the string "\0x\0".
    let words: [u32; 10] = [0x0001_eb9f, 24, 0, 16, 16, 3, 1, 1 << 24, 4, 0x20];
    let mut data: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    data.extend(b"\0x\0");
    bpf(BPF_BTF_LOAD, &[data.as_ptr() as u64, 0, data.len() as u64])
}

fn seccomp_notify() -> Result<i64, io::Error> {
    const SET_MODE_FILTER: i64 = 1;
    const NEW_LISTENER: i64 = 8;
    // struct sock_filter: return SECCOMP_RET_ALLOW
    let filter: [u64; 1] = [0x7fff_0000 << 32 | 0x06];
    let program: [u64; 2] = [1, address(&filter) as u64];
    call(libc::SYS_seccomp, &[SET_MODE_FILTER, NEW_LISTENER, address(&program)])
}

fn mqueue() -> Result<i64, io::Error> {
    let name = CString::new(format!("zoo{}", std::process::id())).unwrap_or_default();
    let fd =
        call(libc::SYS_mq_open, &[name.as_ptr() as i64, i64::from(libc::O_RDWR | libc::O_CREAT), 0o600, 0]);
    call(libc::SYS_mq_unlink, &[name.as_ptr() as i64])?;
    fd
}

/// Makes a pair of connected unix stream sockets.
///
/// # Errors
/// What the kernel says.
pub fn pair() -> Result<(i64, i64), io::Error> {
    let fds = [0 as c_int; 2];
    call(libc::SYS_socketpair, &[1, libc::SOCK_STREAM.into(), 0, address(&fds)])?;
    // SAFETY: the call has filled the array behind the compiler's back.
    let fds = unsafe { ptr::from_ref(&fds).read_volatile() };
    Ok((fds[0].into(), fds[1].into()))
}

/// Sends an fd by `SCM_RIGHTS`.
///
/// # Errors
/// What the kernel says.
pub fn send(socket: i64, fd: c_int) -> Result<i64, io::Error> {
    let mut control = [0_u64; 8];
    // cmsghdr: length, level SOL_SOCKET, type SCM_RIGHTS, fd
    control[0] = 20;
    control[1] = 1 | 1 << 32;
    control[2] = u64::from(fd as u32);
    message(libc::SYS_sendmsg, socket, &mut control, 24, 0)
}

/// Receives an fd.
///
/// # Errors
/// What the kernel says.
pub fn receive(socket: i64) -> Result<i64, io::Error> {
    let mut control = [0_u64; 8];
    message(libc::SYS_recvmsg, socket, &mut control, 64, 0)?;
    Ok((control[2] as u32).into())
}
