//! What container runtimes name their cgroups. Pure.
//!
//! | runtime | cgroup |
//! |---|---|
//! | docker | `/system.slice/docker-ID.scope`, `/docker/ID` |
//! | podman | `…/libpod-ID.scope[/container]`, `/libpod_parent/libpod-ID`, `…/libpod-payload-ID` |
//! | containerd | `…/cri-containerd-ID.scope`, `…:cri-containerd:ID`, `…/nerdctl-ID.scope` |
//! | CRI-O | `…/crio-ID.scope`, `/kubepods/…/crio-ID` |
//! | Kubernetes, cgroupfs driver | `/kubepods/[QOS/]podUID/ID` |
//! | LXC | `/lxc.payload.NAME` |
//! | systemd-nspawn | `/machine.slice/machine-NAME.scope`, `…/systemd-nspawn@NAME.service` |
//! | others | `/PARENT/ID` |
//!
//! ID is 64 hexadecimal digits. Containers nest (kind, Docker in Docker), so the innermost match counts; below it may
//! be cgroups that the container made itself.

use std::fmt;

/// What runs a container.
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
    /// The path has the form of a container's, but doesn't tell the runtime.
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

/// What a path tells of the container that a cgroup belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What runs it.
    pub runtime: Runtime,
    /// Its id; a name for LXC and systemd-nspawn.
    pub id: String,
    /// The Kubernetes pod's UID.
    pub pod_uid: Option<String>,
    /// The container's own cgroup: the start of the path.
    pub cgroup: String,
}

/// The container that a cgroup belongs to, if its path is that of one.
pub(super) fn identify(path: &str) -> Option<Identity> {
    let components: Vec<&str> = path.split('/').filter(|c| !c.is_empty()).collect();
    for depth in (0..components.len()).rev() {
        let (above, name) = (components.get(..depth)?, *components.get(depth)?);
        if let Some((runtime, id)) = container(above, name) {
            return Some(Identity {
                runtime,
                id: id.to_owned(),
                pod_uid: above.iter().rev().find_map(|c| pod_uid(c)),
                cgroup: format!("/{}", components.get(..=depth)?.join("/")),
            });
        }
    }
    None
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

/// Whether one component, below these, is a container's.
fn container<'a>(above: &[&str], name: &'a str) -> Option<(Runtime, &'a str)> {
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = bare.strip_prefix(prefix)
            && is_id(id)
        {
            return Some((runtime, id));
        }
    }
    if let Some((_, id)) = bare.rsplit_once(":cri-containerd:") {
        return Some((Runtime::Containerd, id));
    }
    if let Some(name) = name.strip_prefix("lxc.payload.") {
        return Some((Runtime::Lxc, name));
    }
    if let Some(machine) = bare.strip_prefix("machine-")
        && bare != name
    {
        return Some((Runtime::Nspawn, machine));
    }
    if let Some(machine) = name.strip_prefix("systemd-nspawn@") {
        return Some((Runtime::Nspawn, machine.strip_suffix(".service").unwrap_or(machine)));
    }
    if !is_id(name) {
        return None;
    }
    let runtime = match above.last() {
        Some(&"docker") => Runtime::Docker,
        _ => Runtime::Unknown,
    };
    Some((runtime, name))
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The pod's UID in `kubepods-burstable-podUID.slice` or `podUID`. systemd's names have `_` where the UID has `-`; a static
/// pod's UID has neither.
fn pod_uid(component: &str) -> Option<String> {
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

    /// `ID`, `OTHER` and `UID` in a path stand for those constants; `U_D` is the UID as systemd writes it.
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
                false,
            ),
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
        let found = identify("/lxc.payload.web/system.slice").unwrap();
        assert_eq!((found.runtime, found.id.as_str()), (Runtime::Lxc, "web"));
        let found = identify("/machine.slice/machine-build.scope/payload").unwrap();
        assert_eq!((found.runtime, found.id.as_str()), (Runtime::Nspawn, "build"));
        let found = identify("/machine.slice/systemd-nspawn@build.service/payload").unwrap();
        assert_eq!((found.runtime, found.id.as_str()), (Runtime::Nspawn, "build"));
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
            "/docker/ID0",
            "/docker/0123",
            "/system.slice/docker-.scope",
        ] {
            assert_eq!(identify(&fill(path)), None, "{path}");
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        for path in
            ["////", "/é/ü", "/\u{0}", "pod", "/pod/pod", "/:cri-containerd:", "/machine-", "/lxc.payload."]
        {
            let _ = identify(path);
        }
    }
}
