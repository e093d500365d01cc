//! The names that container runtimes give to their cgroups. Pure.
//!
//! | runtime | cgroup |
//! |---|---|
//! | docker | `/system.slice/docker-ID.scope`, `/docker/ID` |
//! | podman | `…/libpod-ID.scope[/container]`, `/libpod_parent/libpod-ID`, `…/libpod-payload-ID` |
//! | containerd by CRI | `…/cri-containerd-ID.scope`, `…:cri-containerd:ID` |
//! | containerd by itself | `…:containerd:ID`, `…/nerdctl-ID.scope` |
//! | CRI-O | `…/crio-ID.scope`, `/kubepods/…/crio-ID` |
//! | Kubernetes, cgroupfs driver | `/kubepods/[QOS/]podUID/ID` |
//! | kind, k3d | the same below `…/docker/ID/[kubelet/]`, `…/kubelet.slice/kubelet-kubepods…` |
//! | LXC, LXD, Incus | `/lxc.payload.NAME`, `/lxc.payload/NAME`, `/lxc/NAME` |
//! | systemd-nspawn | `/machine.slice/machine-NAME.scope`, `…/systemd-nspawn@NAME.service` |
//! | others | `/PARENT/ID` |
//!
//! ID is 64 hexadecimal digits. systemd's names of machines and units have its escapes. Containers
//! may be nested (kind, Docker in Docker), so the innermost match counts, if its id doesn't belong
//! to another container (`claims`). Below a container's cgroup there may be others, made by the
//! container itself or for it by its runtime: `/container`, `/init`.

use std::fmt;

use super::names::is_engine_id as is_id;

/// The runtime that runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// containerd, by CRI or by nerdctl.
    Containerd,
    /// CRI-O.
    CriO,
    /// LXC, LXD or Incus.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// runc by itself.
    Runc,
    /// crun by itself.
    Crun,
    /// The path has the form of a container's cgroup, but doesn't tell the runtime.
    Unknown,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Lxc => "lxc",
            Self::Nspawn => "systemd-nspawn",
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Unknown => "unknown",
        })
    }
}

/// What a cgroup's path tells of the container that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The runtime that runs it.
    pub runtime: Runtime,
    /// Its id; for LXC and systemd-nspawn, its name.
    pub id: String,
    /// The Kubernetes pod's UID.
    pub pod_uid: Option<String>,
    /// The container's own cgroup: the start of the path.
    pub cgroup: String,
}

/// Returns the container that a cgroup belongs to, if its path is that of a container.
#[cfg(test)]
pub(super) fn identify(path: &str) -> Option<Identity> {
    candidates(path).next()
}

/// Returns the containers that a cgroup is in, according to its path, the innermost first.
pub(super) fn candidates(path: &str) -> impl Iterator<Item = Identity> {
    let components: Vec<&str> = path.split('/').filter(|c| !c.is_empty()).collect();
    (0..components.len()).rev().filter_map(move |depth| {
        let (above, name) = (components.get(..depth)?, *components.get(depth)?);
        let (runtime, id) = container(above, name)?;
        Some(Identity {
            runtime,
            id,
            pod_uid: components.get(..=depth)?.iter().rev().find_map(|c| pod_uid(c)),
            cgroup: format!("/{}", components.get(..=depth)?.join("/")),
        })
    })
}

const PREFIXES: [(&str, Runtime); 7] = [
    ("docker-", Runtime::Docker),
    ("libpod-payload-", Runtime::Podman),
    ("libpod-", Runtime::Podman),
    ("cri-containerd-", Runtime::Containerd),
    ("nerdctl-", Runtime::Containerd),
    ("crio-", Runtime::CriO),
    ("ecstasks-", Runtime::Docker),
];

/// Prefixes in `SLICE:PREFIX:ID`, which systemd's driver gives to runc. Where systemd isn't used,
/// runc makes one directory of that name.
const TRIPLES: [(&str, Runtime); 6] = [
    ("cri-containerd", Runtime::Containerd),
    ("containerd", Runtime::Containerd),
    ("nerdctl", Runtime::Containerd),
    ("crio", Runtime::CriO),
    ("docker", Runtime::Docker),
    ("libpod", Runtime::Podman),
];

/// Returns the runtime and the id if one component of a path, below these, is a container's cgroup.
fn container(above: &[&str], name: &str) -> Option<(Runtime, String)> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = bare.strip_prefix(prefix)
            && is_id(id)
        {
            return Some((runtime, id.to_owned()));
        }
    }
    if let Some((slice, id)) = name.rsplit_once(':')
        && let Some((_, prefix)) = slice.rsplit_once(':')
        && let Some((_, runtime)) = TRIPLES.iter().find(|(known, _)| *known == prefix)
        && !id.is_empty()
    {
        return Some((*runtime, id.to_owned()));
    }
    by_name(above, name).filter(|(_, name)| !name.is_empty()).or_else(|| {
        let runtime = match above.last() {
            Some(&"docker") => Runtime::Docker,
            _ => Runtime::Unknown,
        };
        is_id(name).then(|| (runtime, name.to_owned()))
    })
}

/// Recognises containers whose cgroup contains their name.
fn by_name(above: &[&str], name: &str) -> Option<(Runtime, String)> {
    if let Some(name) = name.strip_prefix("lxc.payload.") {
        return Some((Runtime::Lxc, name.to_owned()));
    }
    if matches!(above.last(), Some(&("lxc" | "lxc.payload"))) {
        return Some((Runtime::Lxc, name.to_owned()));
    }
    if let Some(machine) = name.strip_prefix("systemd-nspawn@") {
        return Some((Runtime::Nspawn, unescape(machine.strip_suffix(".service").unwrap_or(machine))));
    }
    let machine = unescape(name.strip_prefix("machine-")?.strip_suffix(".scope")?);
    // libvirt also registers machines, by driver, number and name. A virtual machine is no
    // container.
    match machine.split('-').next() {
        Some("qemu") => None,
        Some("lxc") => Some((Runtime::Lxc, machine)),
        _ => Some((Runtime::Nspawn, machine)),
    }
}

/// Decodes a name that systemd escaped for a unit: bytes as `\x2d`.
fn unescape(unit: &str) -> String {
    let mut bytes = Vec::with_capacity(unit.len());
    let mut rest = unit;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        match after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.extend_from_slice(b"\\x");
                rest = after;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the pod's UID in `kubepods-burstable-podUID.slice` or `podUID`. systemd's names have `_`
/// where the UID has `-`. A static pod's UID has neither.
fn pod_uid(component: &str) -> Option<String> {
    let component = component.split(':').next().unwrap_or(component);
    let bare = component.strip_suffix(".slice").unwrap_or(component);
    let at = bare.rfind("pod")?;
    let uid = bare.get(at + 3..)?.replace('_', "-");
    let dashed = uid.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let hex = uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    (hex && (dashed || uid.len() == 32 && !uid.contains('-'))).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const UID: &str = "a1b2c3d4-0000-1111-2222-333344445555";

    /// Fills in a path: `ID`, `OTHER` and `UID` stand for the constants; `U_D` is the UID as
    /// systemd writes it.
    fn fill(path: &str) -> String {
        path.replace("OTHER", OTHER)
            .replace("UID", UID)
            .replace("U_D", &UID.replace('-', "_"))
            .replace("ID", ID)
    }

    #[test]
    fn runtimes() {
        use Runtime::*;
        for (path, runtime, pod) in [
            ("/docker/ID", Docker, false),
            ("/system.slice/docker-ID.scope", Docker, false),
            ("/machine.slice/libpod-ID.scope", Podman, false),
            ("/machine.slice/libpod-ID.scope/container", Podman, false),
            ("/libpod_parent/libpod-ID", Podman, false),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
                Podman,
                false,
            ),
            ("/system.slice/web.service/libpod-payload-ID", Podman, false),
            ("/system.slice/nerdctl-ID.scope", Containerd, false),
            ("/default/ID", Unknown, false),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice/cri-containerd-ID.scope",
                Containerd,
                true,
            ),
            ("/kubepods.slice/kubepods-podU_D.slice/crio-ID.scope", CriO, true),
            ("/kubepods.slice/kubepods-podU_D.slice/crio-ID.scope/container", CriO, true),
            ("/kubepods/besteffort/podUID/ID", Unknown, true),
            ("/kubepods/podUID/ID", Unknown, true),
            (
                "/system.slice/containerd.service/kubepods-burstable-podU_D.slice:cri-containerd:ID",
                Containerd,
                true,
            ),
            ("/system.slice:containerd:ID", Containerd, false),
            ("/system.slice:docker:ID", Docker, false),
            (
                "/docker/OTHER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                 kubelet-kubepods-burstable-podU_D.slice/cri-containerd-ID.scope",
                Containerd,
                true,
            ),
            (
                "/system.slice/docker-OTHER.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_D.slice/\
                 cri-containerd-ID.scope/init",
                Containerd,
                true,
            ),
            ("/docker/OTHER/kubepods/besteffort/podUID/ID", Unknown, true),
            ("/docker/OTHER/machine.slice/libpod-ID.scope/container", Podman, false),
            ("/machine.slice/machine-libpod_pod_OTHER.slice/libpod-ID.scope", Podman, false),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_OTHER.slice/libpod-ID.scope",
                Podman,
                false,
            ),
            ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope", Docker, false),
            ("/lxc.payload.web/docker/ID", Docker, false),
            ("/docker/OTHER/kubelet/kubepods/burstable/podUID/ID", Unknown, true),
            ("/docker/OTHER/docker/ID/init", Docker, false),
        ] {
            let found = identify(&fill(path)).unwrap_or_else(|| panic!("{path}: not a container"));
            assert_eq!((found.runtime, found.id.as_str()), (runtime, ID), "{path}");
            assert_eq!(found.pod_uid.as_deref(), pod.then_some(UID), "{path}");
        }
    }

    #[test]
    fn the_containers_own_cgroup_ends_at_its_id() {
        let found = identify(&fill("/machine.slice/libpod-ID.scope/container/a")).unwrap();
        assert_eq!(found.cgroup, fill("/machine.slice/libpod-ID.scope"));
    }

    #[test]
    fn names_instead_of_ids() {
        for (path, runtime, id) in [
            ("/lxc.payload.web/system.slice", Runtime::Lxc, "web"),
            ("/lxc.payload/web/init.scope", Runtime::Lxc, "web"),
            ("/lxc/web", Runtime::Lxc, "web"),
            ("/lxc/web/lxc/inner/system.slice", Runtime::Lxc, "inner"),
            ("/machine.slice/machine-lxc\\x2d7\\x2dweb.scope", Runtime::Lxc, "lxc-7-web"),
            ("/machine.slice/machine-build.scope/payload", Runtime::Nspawn, "build"),
            ("/machine.slice/machine-my\\x2dname.scope/payload", Runtime::Nspawn, "my-name"),
            ("/machine.slice/machine-a\\x2.scope", Runtime::Nspawn, "a\\x2"),
            ("/machine.slice/systemd-nspawn@build.service/payload", Runtime::Nspawn, "build"),
            ("/machine.slice/systemd-nspawn@my-name.service", Runtime::Nspawn, "my-name"),
        ] {
            let found = identify(path).unwrap_or_else(|| panic!("{path}: not a container"));
            assert_eq!((found.runtime, found.id.as_str()), (runtime, id), "{path}");
        }
    }

    #[test]
    fn a_static_pods_uid_has_no_dashes() {
        let uid = "0123456789abcdef0123456789abcdef";
        let found = identify(&fill(&format!("/kubepods/burstable/pod{uid}/ID"))).unwrap();
        assert_eq!(found.pod_uid.as_deref(), Some(uid));
    }

    #[test]
    fn not_containers() {
        for path in [
            "/",
            "",
            "/user.slice/user-0.slice/session-1.scope",
            "/system.slice/crio-conmon-ID.scope",
            "/machine.slice/libpod-conmon-ID.scope",
            "/machine.slice",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice",
            "/lxc.monitor.web",
            "/lxc.monitor/web",
            "/lxc",
            "/lxc.payload.",
            "/machine.slice/machine-.scope",
            "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/emulator",
            "/:cri-containerd:",
            "/a:b:ID",
            "/docker/ID0",
            "/docker/0123",
            "/system.slice/docker-.scope",
        ] {
            assert_eq!(identify(&fill(path)), None, "{path}");
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        for path in [
            "////",
            "/é/ü",
            "/\u{0}",
            "pod",
            "/pod/pod",
            "/:cri-containerd:",
            "/machine-",
            "/lxc.payload.",
            "/machine-\\x.scope",
            "/machine-\\xé.scope",
            "/systemd-nspawn@\\xff",
        ] {
            let _ = identify(path);
        }
    }
}
