//! Asks Kubernetes' Container Runtime Interface (CRI), over its socket, which containers and pods
//! run.
//!
//! The messages have only those parts of Kubernetes' `cri-api` (`runtime/v1/api.proto`) that are
//! used; protobuf skips the rest. The crate with all of it needs `protoc`, which everybody who
//! builds fdtracker would have to install.

use std::{collections::HashMap, path::Path};

use hyper::http::uri::PathAndQuery;
use prost::Message;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::LookupError;
use crate::runtime::{
    directory::List,
    names::{Names, SANDBOX},
};

/// The largest answer, at about 2 KiB for each container.
const LARGEST: usize = 32 << 20;

/// Versions of the interface. Runtimes before 2022 know the same under the older name only.
const VERSIONS: [&str; 2] = ["v1", "v1alpha2"];

#[derive(Clone, PartialEq, Message)]
struct ListRequest {}

#[derive(Clone, PartialEq, Message)]
struct Containers {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "3")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "4")]
    image: Option<ImageSpec>,
    #[prost(map = "string, string", tag = "8")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
    #[prost(string, tag = "18")]
    user_specified_image: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sandboxes {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct Sandbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<SandboxMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// A connection that is kept from one lookup to the next. It reconnects by itself when the runtime
/// restarts.
pub(super) struct Client(Grpc<Channel>);

impl Client {
    pub(super) fn new(path: &Path) -> Result<Self, LookupError> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()));
        let channel = endpoint.map_err(|error| LookupError::Invalid(error.into()))?.connect_lazy();
        Ok(Self(Grpc::new(channel).max_decoding_message_size(LARGEST)))
    }

    pub(super) async fn list(&mut self) -> Result<List, LookupError> {
        let [newer, older] = VERSIONS;
        match self.list_by(newer).await {
            Err(LookupError::Unsupported(_)) => self.list_by(older).await,
            result => result,
        }
    }

    async fn list_by(&mut self, version: &str) -> Result<List, LookupError> {
        let sandboxes: Sandboxes = self.call(version, "ListPodSandbox").await?;
        let containers: Containers = self.call(version, "ListContainers").await?;
        Ok(names(sandboxes, containers))
    }

    async fn call<T: Message + Default + 'static>(
        &mut self,
        version: &str,
        method: &str,
    ) -> Result<T, LookupError> {
        let path = PathAndQuery::try_from(format!("/runtime.{version}.RuntimeService/{method}"))
            .map_err(|error| LookupError::Invalid(error.into()))?;
        self.0.ready().await.map_err(|error| LookupError::Refused(crate::error::chain(error)))?;
        let codec = ProstCodec::<ListRequest, T>::default();
        Ok(self.0.unary(Request::new(ListRequest {}), path, codec).await?.into_inner())
    }
}

impl From<Status> for LookupError {
    fn from(status: Status) -> Self {
        let text = format!("{}: {}", status.code(), status.message());
        match status.code() {
            Code::Unimplemented => Self::Unsupported(text),
            Code::Unavailable => Self::Connect(std::io::Error::other(text)),
            Code::OutOfRange | Code::Internal => Self::Invalid(text.into()),
            _ => Self::Refused(text),
        }
    }
}

fn names(sandboxes: Sandboxes, containers: Containers) -> List {
    let pods: HashMap<String, SandboxMetadata> = sandboxes
        .items
        .into_iter()
        .map(|sandbox| (sandbox.id, sandbox.metadata.unwrap_or_default()))
        .collect();
    let mut list = List::new();
    for (id, pod) in &pods {
        list.insert(id.clone(), Names::in_pod(&pod.namespace, &pod.name, SANDBOX, None));
    }
    for container in containers.containers {
        let names = container.names(pods.get(&container.pod_sandbox_id));
        list.insert(container.id, names);
    }
    list
}

impl Container {
    fn names(&self, pod: Option<&SandboxMetadata>) -> Names {
        let name = self.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        // The image that the user asked for is a name; the other may be a digest.
        let image = self.image.as_ref().map(|spec| match spec.user_specified_image.as_str() {
            "" => spec.image.as_str(),
            asked => asked,
        });
        let by_labels = Names::from_annotations(|key| self.labels.get(key).map(String::as_str));
        let (namespace, pod) = pod.map_or(("", ""), |pod| (&pod.namespace, &pod.name));
        let mut names = Names::in_pod(namespace, pod, name, image);
        if names.pod.is_none() {
            (names.namespace, names.pod) = (by_labels.namespace, by_labels.pod);
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str, namespace: &str, name: &str) -> Sandbox {
        let metadata = SandboxMetadata { name: name.into(), namespace: namespace.into() };
        Sandbox { id: id.into(), metadata: Some(metadata) }
    }

    fn container(id: &str, sandbox: &str, name: &str, image: &str) -> Container {
        Container {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            metadata: Some(ContainerMetadata { name: name.into() }),
            image: Some(ImageSpec { image: image.into(), user_specified_image: String::new() }),
            labels: HashMap::new(),
        }
    }

    #[test]
    fn containers_are_named_by_their_pods() {
        let pods = Sandboxes { items: vec![sandbox("p1", "shop", "front-1")] };
        let mut digest = container("c2", "p1", "side", "sha256:77");
        digest.image.as_mut().unwrap().user_specified_image = "side:2".into();
        let mut orphan = container("c3", "gone", "late", "late:1");
        orphan.labels.insert("io.kubernetes.pod.name".into(), "old".into());
        let containers =
            Containers { containers: vec![container("c1", "p1", "nginx", "nginx:1"), digest, orphan] };
        let found = names(pods, containers);
        assert_eq!(found["p1"], Names::in_pod("shop", "front-1", "POD", None));
        assert_eq!(found["c1"], Names::in_pod("shop", "front-1", "nginx", Some("nginx:1")));
        assert_eq!(found["c2"], Names::in_pod("shop", "front-1", "side", Some("side:2")));
        assert_eq!(found["c3"], Names::in_pod("", "old", "late", Some("late:1")));
    }

    /// A message as containerd encodes it: `id`, then `metadata`, and a field that isn't used here.
    #[test]
    fn the_wire_format() {
        let bytes = b"\x0a\x0e\x0a\x02c1\x1a\x05\x0a\x03web\x38\x96\x01";
        let found = Containers::decode(&bytes[..]).unwrap();
        assert_eq!(found.containers[0].id, "c1");
        assert_eq!(found.containers[0].metadata.as_ref().unwrap().name, "web");
        assert!(Containers::decode(&bytes[1..]).is_err());
    }
}
