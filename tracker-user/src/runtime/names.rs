//! The names of a container, as its runtime tells them. Pure.
//!
//! In Kubernetes these are the names of the container in its pod, of the pod, and of the namespace.
//! A pod's sandbox (the pause container) has no name there. It is called `POD`, as the kubelet and
//! cadvisor call it; no container of a pod can have that name.
//!
//! Whoever starts a container chooses its name. So names are cut to a length, and control
//! characters are replaced, because a terminal would obey them.

/// The name of a pod's sandbox.
pub const SANDBOX: &str = "POD";

/// The longest name that is kept: a pod's name has at most 253 characters.
const LONGEST: usize = 253;

/// What a runtime tells of a container, besides its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// The container's own.
    pub(super) name: Option<String>,
    /// Its Kubernetes namespace.
    pub(super) namespace: Option<String>,
    /// Its Kubernetes pod.
    pub(super) pod: Option<String>,
    /// Its image.
    pub(super) image: Option<String>,
}

impl Names {
    /// Returns the names of a container that has only one, as docker and podman tell it. The slash
    /// in front isn't shown.
    pub(super) fn plain(name: &str, image: Option<&str>) -> Self {
        let name = clean(name.strip_prefix('/').unwrap_or(name));
        Self { name, image: image.and_then(clean), ..Self::default() }
    }

    /// Returns the names of a container in a pod.
    pub(super) fn in_pod(namespace: &str, pod: &str, name: &str, image: Option<&str>) -> Self {
        Self { name: clean(name), namespace: clean(namespace), pod: clean(pod), image: image.and_then(clean) }
    }

    /// Returns the names in annotations or labels, as these engines write them: containerd and
    /// CRI-O for CRI, docker under Kubernetes, nerdctl.
    pub(super) fn from_annotations<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        let first = |keys: &[&str]| keys.iter().find_map(|key| get(key)).and_then(clean);
        let pod = first(&["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"]);
        let namespace = first(&["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"]);
        let image = first(&["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"]);
        let is_sandbox = [
            ("io.kubernetes.cri.container-type", "sandbox"),
            ("io.kubernetes.cri-o.ContainerType", "sandbox"),
            ("io.kubernetes.docker.type", "podsandbox"),
        ];
        let is_sandbox = is_sandbox.iter().any(|(key, value)| get(key) == Some(value));
        let name = match pod {
            Some(_) if is_sandbox => Some(SANDBOX.to_owned()),
            _ => first(&["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"]),
        };
        Self { name, namespace, pod, image }
    }

    /// Removes the pod and the namespace. No user's own runtime belongs to Kubernetes, so it may
    /// not tell them.
    pub(super) fn without_pod(self) -> Self {
        Self { namespace: None, pod: None, ..self }
    }

    /// Fills what is missing from another source. A name, a pod and a namespace belong together.
    pub(super) fn or(self, other: &Self) -> Self {
        let image = self.image.clone().or_else(|| other.image.clone());
        let named = if self.name.is_some() { self } else { other.clone() };
        Self { image, ..named }
    }
}

/// Returns a name that can be shown safely; `None` if nothing is left of it.
pub(super) fn clean(text: &str) -> Option<String> {
    let text = text.trim();
    let shown = |c: char| if is_obeyed(c) { char::REPLACEMENT_CHARACTER } else { c };
    (!text.is_empty()).then(|| text.chars().take(LONGEST).map(shown).collect())
}

/// Whether this is no text, but tells a terminal how to show text. This includes characters that
/// change the direction of writing.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Whether this has the form of an id that engines give: no other container has the same.
pub(super) fn is_engine_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(annotations: &[(&str, &str)]) -> Names {
        let get = |key: &str| annotations.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        Names::from_annotations(get)
    }

    #[test]
    fn containerd() {
        let pod = [
            ("io.kubernetes.cri.sandbox-name", "front-1"),
            ("io.kubernetes.cri.sandbox-namespace", "shop"),
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.container-name", "nginx"),
            ("io.kubernetes.cri.image-name", "docker.io/library/nginx:1"),
        ];
        let image = Some("docker.io/library/nginx:1");
        assert_eq!(named(&pod), Names::in_pod("shop", "front-1", "nginx", image));
        let mut sandbox = pod;
        sandbox[2].1 = "sandbox";
        assert_eq!(named(&sandbox), Names::in_pod("shop", "front-1", "POD", image));
    }

    #[test]
    fn cri_o_and_docker_under_kubernetes() {
        let pod = [
            ("io.kubernetes.container.name", "nginx"),
            ("io.kubernetes.pod.name", "front-1"),
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.kubernetes.cri-o.ImageName", "nginx:1"),
        ];
        assert_eq!(named(&pod), Names::in_pod("shop", "front-1", "nginx", Some("nginx:1")));
        let sandbox = [("io.kubernetes.docker.type", "podsandbox"), ("io.kubernetes.pod.name", "front-1")];
        assert_eq!(named(&sandbox).name.as_deref(), Some("POD"));
    }

    #[test]
    fn podman_and_nerdctl_have_no_pod() {
        // podman marks the first container of its own pods like this, and tells no pod's name.
        assert_eq!(named(&[("io.kubernetes.cri-o.ContainerType", "sandbox")]), Names::default());
        assert_eq!(named(&[("nerdctl/name", "web")]), Names::plain("web", None));
        assert_eq!(Names::plain("/web", Some("alpine")).name.as_deref(), Some("web"));
    }

    #[test]
    fn a_name_and_its_pod_belong_together() {
        let api = Names::plain("web", None);
        let written = Names::in_pod("shop", "front-1", "old", Some("alpine"));
        assert_eq!(api.or(&written), Names::plain("web", Some("alpine")));
        assert_eq!(Names::default().or(&written), written);
    }

    #[test]
    fn hostile_names_are_made_harmless() {
        assert_eq!(clean("a\nb\u{1b}[2Jc\u{202e}d").as_deref(), Some("a\u{fffd}b\u{fffd}[2Jc\u{fffd}d"));
        assert_eq!(clean(&"é".repeat(10_000)).map(|name| name.chars().count()), Some(LONGEST));
        assert_eq!((clean(""), clean(" \n")), (None, None));
    }
}
