//! Devices.

use std::{fs, io};

use fdtracker_tests::{kinds::close, sys::call};

use crate::{
    Fixture, here,
    os::{self, ioctl, open, path, zoo},
    process::outside,
};

macro_rules! device {
    ($name:literal, $path:literal) => {
        here($name, concat!("the device ", $path), || {
            os::open_at($path, libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY).map(drop)
        })
    };
}

pub(crate) fn fixtures() -> Vec<Fixture> {
    let mut all = memory();
    all.extend(misc());
    all.extend(others());
    all.extend(tuns());
    all
}

/// Devices with major number 1.
fn memory() -> Vec<Fixture> {
    vec![
        device!("char.null", "/dev/null"),
        device!("char.zero", "/dev/zero"),
        device!("char.full", "/dev/full"),
        device!("char.random", "/dev/random"),
        device!("char.urandom", "/dev/urandom"),
        device!("char.kmsg", "/dev/kmsg"),
        device!("char.mem", "/dev/mem"),
        device!("char.port", "/dev/port"),
        here("char.null_made", "a node of one's own for the null device", || {
            made(libc::S_IFCHR, 1, 3).map(drop)
        }),
        here("char.null_unlinked", "one that is gone", || {
            made(libc::S_IFCHR, 1, 3)?;
            fs::remove_file(path("node"))
        }),
        here("char.zero_mapped", "memory of /dev/zero", || {
            let zero = open(c"/dev/zero", libc::O_RDWR)?;
            fdtracker_tests::sys::map(zero, 0, 4096).map(drop)
        }),
    ]
}

/// Makes a device node, and opens it.
fn made(kind: u32, major: u32, minor: u32) -> io::Result<i64> {
    let (at, device) = (os::c(path("node"))?, libc::makedev(major, minor));
    let here = libc::AT_FDCWD.into();
    call(libc::SYS_mknodat, &[here, at.as_ptr() as i64, (kind | 0o600).into(), device as i64])?;
    os::open_at(path("node"), libc::O_RDONLY | libc::O_NONBLOCK)
}

/// Devices with major number 10.
fn misc() -> Vec<Fixture> {
    vec![
        device!("char.fuse", "/dev/fuse"),
        device!("char.kvm", "/dev/kvm"),
        device!("char.loop_control", "/dev/loop-control"),
        device!("char.vhost_net", "/dev/vhost-net"),
        device!("char.vhost_vsock", "/dev/vhost-vsock"),
        device!("char.vsock", "/dev/vsock"),
        device!("char.autofs", "/dev/autofs"),
        device!("char.hpet", "/dev/hpet"),
        device!("char.hwrng", "/dev/hwrng"),
        device!("char.cpu_dma_latency", "/dev/cpu_dma_latency"),
        device!("char.userfaultfd", "/dev/userfaultfd"),
        device!("char.snapshot", "/dev/snapshot"),
        device!("char.nvram", "/dev/nvram"),
        device!("char.mcelog", "/dev/mcelog"),
        device!("char.uinput", "/dev/uinput"),
        device!("char.vfio", "/dev/vfio/vfio"),
        device!("char.udmabuf", "/dev/udmabuf"),
        device!("char.uhid", "/dev/uhid"),
        device!("char.btrfs_control", "/dev/btrfs-control"),
        device!("char.device_mapper", "/dev/mapper/control"),
        here("char.fuse_made", "a node of one's own for FUSE", || made(libc::S_IFCHR, 10, 229).map(drop)),
    ]
}

fn others() -> Vec<Fixture> {
    vec![
        device!("char.rtc", "/dev/rtc0"),
        device!("char.ppp", "/dev/ppp"),
        device!("char.input", "/dev/input/event0"),
        device!("char.mice", "/dev/input/mice"),
        device!("char.cpuid", "/dev/cpu/0/cpuid"),
        device!("char.msr", "/dev/cpu/0/msr"),
        device!("char.dri", "/dev/dri/card0"),
        device!("char.fb", "/dev/fb0"),
        device!("char.vga_arbiter", "/dev/vga_arbiter"),
        device!("char.raw_ctl", "/dev/rawctl"),
        device!("char.bsg", "/dev/bsg/0:0:0:0"),
        device!("char.ptp", "/dev/ptp0"),
        device!("char.tpm", "/dev/tpm0"),
        device!("char.nbd", "/dev/nbd0"),
        device!("char.vport", "/dev/vport0p1"),
        device!("char.gpio", "/dev/gpiochip0"),
        device!("char.dma_heap", "/dev/dma_heap/system"),
        device!("char.snd", "/dev/snd/timer"),
        device!("block.loop", "/dev/loop0"),
        here("block.made", "a node of one's own for a loop device", || made(libc::S_IFBLK, 7, 1).map(drop)),
        here("dmabuf.heap", "memory to share with devices", || {
            const DMA_HEAP_IOCTL_ALLOC: i64 = 0xc018_4800_u32 as i64;
            let heap = open(c"/dev/dma_heap/system", libc::O_RDONLY)?;
            // struct dma_heap_allocation_data: len; fd and flags; heap flags
            let mut data = [4096_u64, (libc::O_RDWR as u64) << 32, 0];
            let made = ioctl(heap, DMA_HEAP_IOCTL_ALLOC, data.as_mut_ptr() as i64);
            close(heap);
            made.map(drop)
        }),
        here("dmabuf.udmabuf", "memory to share with devices, of a memfd", || {
            const UDMABUF_CREATE: i64 = 0x4018_7542;
            let device = open(c"/dev/udmabuf", libc::O_RDWR)?;
            let sealable = libc::MFD_ALLOW_SEALING.into();
            let memory = call(libc::SYS_memfd_create, &[c"fixture".as_ptr() as i64, sealable])?;
            call(libc::SYS_ftruncate, &[memory, 4096])?;
            os::fcntl(memory, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK.into())?;
            // struct udmabuf_create: memfd and flags, offset, size
            let data = [memory as u64, 0, 4096];
            let made = ioctl(device, UDMABUF_CREATE, fdtracker_tests::sys::address(&data));
            close(device);
            close(memory);
            made.map(drop)
        }),
    ]
}

/// Attaches a tun device by `TUNSETIFF`.
fn attach(tun: i64, kind: u16) -> io::Result<()> {
    const TUNSETIFF: i64 = 0x4004_54ca;
    // struct ifreq: name, flags
    let mut request = [0_u8; 40];
    for (to, from) in request.iter_mut().zip(b"fixture%d".iter().chain(&[0; 7]).chain(&kind.to_ne_bytes())) {
        *to = *from;
    }
    ioctl(tun, TUNSETIFF, request.as_mut_ptr() as i64).map(drop)
}

fn tuns() -> Vec<Fixture> {
    const IFF_TUN: u16 = 1;
    const IFF_TAP: u16 = 2;
    vec![
        here("tun.plain", "a tunnel without an interface", || zoo("tun")),
        here("tun.attached", "a tunnel with an interface", || {
            attach(open(c"/dev/net/tun", libc::O_RDWR)?, IFF_TUN)
        }),
        here("tun.tap", "a tunnel of Ethernet frames", || {
            attach(open(c"/dev/net/tun", libc::O_RDWR)?, IFF_TAP)
        }),
        here("tun.foreign_net", "a tunnel in a network of its own", || {
            super::namespaces::in_network_of(outside(super::namespaces::new_network)?, || {
                attach(open(c"/dev/net/tun", libc::O_RDWR)?, IFF_TUN)
            })
        }),
    ]
}
