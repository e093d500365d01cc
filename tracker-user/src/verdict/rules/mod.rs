//! What the kind of a file alone decides.

use tracker_ebpf::Kind;

use super::{
    Verdict,
    profile::{CriuVersion, Profile},
};

/// The verdict of one slot, or of one file that no slot holds, from its kind. An fd in flight is to be judged by what it is.
#[must_use]
pub fn judge(kind: Kind, profile: &Profile) -> Verdict {
    let since = |version| profile.version >= version;
    match kind {
        // files.c:dump_one_file, the table of anonymous inodes.
        Kind::Eventfd | Kind::Signalfd => Verdict::Ok,
        // Targets of an epoll, watches, clocks, map types, and tun's net namespace aren't looked at.
        Kind::Epoll | Kind::Inotify | Kind::Fanotify | Kind::Timerfd | Kind::BpfMap | Kind::Tun => {
            Verdict::Unknown
        }
        // pidfd.c:dump_one_pidfd came with 4.1; whether the target is in the tree isn't looked at.
        Kind::Pidfd if since(CriuVersion::new(4, 1, 0)) => Verdict::Unknown,
        // sk-inet.c:can_dump_ipproto takes ICMP since 4.2.
        Kind::Ping if since(CriuVersion::new(4, 2, 0)) => Verdict::Ok,
        // sockets.c:do_dump_opt: SO_PASSCRED is refused for these families from Linux 6.16, until CRIU 4.2. Their
        // multicast memberships aren't looked at.
        Kind::Packet if since(CriuVersion::new(4, 2, 0)) || !profile.kernel.at_least(6, 16) => {
            Verdict::Unknown
        }
        // Plugins (CUDA, amdgpu) may dump these; proc_parse.c:handle_vma asks them about mappings too.
        Kind::Nvidia if since(CriuVersion::new(4, 0, 0)) => Verdict::Unknown,
        Kind::Dri | Kind::GpuMapped => Verdict::Unknown,
        // sk-queue.c:dump_sk_queue takes the files of messages one by one, through files.c:dump_one_file.
        Kind::FdInFlight => Verdict::Unknown,
        Kind::Pidfd
        | Kind::Ping
        | Kind::Packet
        | Kind::Nvidia
        | Kind::IoUring
        | Kind::PerfEvent
        | Kind::BpfProg
        | Kind::BpfLink
        | Kind::Btf
        | Kind::BpfIter
        | Kind::Userfaultfd
        | Kind::Fscontext
        | Kind::SeccompNotify
        | Kind::Landlock
        | Kind::Kvm
        | Kind::Vfio
        | Kind::SyncFile
        | Kind::AnonOther
        | Kind::MemfdSecret
        | Kind::Mqueue
        | Kind::DmaBuf
        | Kind::Vsock
        | Kind::Alg
        | Kind::Xdp
        | Kind::Bluetooth
        | Kind::Can
        | Kind::Mptcp
        | Kind::Sctp
        | Kind::SocketOther
        | Kind::CharDevice
        | Kind::BlockDevice
        // proc_parse.c:vma_get_mapfile ("Unknown shit"), handle_vma ("Can't handle non-regular mapping").
        | Kind::IoUringMapped
        | Kind::PerfEventMapped
        | Kind::MemfdSecretMapped
        | Kind::OtherMapped
        // Nothing in CRIU looks at rings without an fd: what a restored process has registered isn't there.
        | Kind::IoUringRegistered
        | Kind::IoUringDirect => Verdict::Blocked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::KernelVersion;

    fn verdict(kind: Kind, version: &str, kernel: (u32, u32)) -> Verdict {
        let kernel = KernelVersion { major: kernel.0, minor: kernel.1 };
        judge(kind, &Profile::new(Some(version.parse().unwrap()), None, kernel))
    }

    #[test]
    fn pidfds_are_blocked_until_4_1_and_unknown_since() {
        for old in ["3.17.1", "3.19", "4.0"] {
            assert_eq!(verdict(Kind::Pidfd, old, (6, 12)), Verdict::Blocked);
        }
        for new in ["4.1", "4.1.1", "4.2.1", "5.0"] {
            assert_eq!(verdict(Kind::Pidfd, new, (6, 12)), Verdict::Unknown);
        }
    }

    #[test]
    fn packet_sockets_depend_on_kernel_and_version() {
        assert_eq!(verdict(Kind::Packet, "4.1.1", (6, 12)), Verdict::Unknown);
        assert_eq!(verdict(Kind::Packet, "4.1.1", (6, 16)), Verdict::Blocked);
        assert_eq!(verdict(Kind::Packet, "4.2", (6, 18)), Verdict::Unknown);
    }

    #[test]
    fn what_no_version_dumps() {
        for kind in [Kind::IoUring, Kind::MemfdSecret, Kind::Mptcp, Kind::BlockDevice, Kind::AnonOther] {
            assert_eq!(verdict(kind, "4.2.1", (7, 3)), Verdict::Blocked);
        }
        assert_eq!(verdict(Kind::Eventfd, "3.17.1", (5, 10)), Verdict::Ok);
    }

    #[test]
    fn what_no_slot_holds() {
        for kind in Kind::ALL.iter().filter(|kind| kind.is_hidden()) {
            let unknown = matches!(kind, Kind::GpuMapped | Kind::FdInFlight);
            let expected = if unknown { Verdict::Unknown } else { Verdict::Blocked };
            assert_eq!(verdict(*kind, "4.2.1", (6, 12)), expected, "{}", kind.name());
        }
    }

    #[test]
    fn worse_is_greater() {
        assert!(Verdict::Ok < Verdict::NeedsOption);
        assert!(Verdict::NeedsOption < Verdict::Unknown);
        assert!(Verdict::Unknown < Verdict::Blocked);
    }
}
