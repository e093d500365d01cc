//! Asks Docker's API, over its socket, what runs and what it is called. Podman gives the same
//! answers.

use std::{collections::HashMap, path::Path};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::LookupError;
use crate::runtime::{directory::List, names::Names};

/// The largest answer, at about 2 KiB for each container.
const LARGEST: usize = 32 << 20;

/// One container in the answer to `GET /containers/json`.
#[derive(Deserialize)]
struct Row {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "Names", default)]
    names: Option<Vec<String>>,
    #[serde(rename = "Image", default)]
    image: Option<String>,
    #[serde(rename = "Labels", default)]
    labels: Option<HashMap<String, String>>,
}

/// Asks for the names of all running containers.
///
/// # Errors
/// When there is no answer, or it isn't understood.
pub(super) async fn list(path: &Path) -> Result<List, LookupError> {
    let stream = UnixStream::connect(path).await.map_err(LookupError::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/containers/json").header(HOST, "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| LookupError::Invalid(error.into()))?;
    let ask = async {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(LookupError::Refused(response.status().to_string()));
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        Ok(body.map_err(LookupError::Invalid)?.to_bytes())
    };
    tokio::pin!(ask);
    // The connection is polled here, so that nothing is left of it when a slow answer is given up.
    let body = tokio::select! {
        answer = &mut ask => answer?,
        ended = connection => {
            ended?;
            ask.await?
        }
    };
    names(&body)
}

fn names(json: &[u8]) -> Result<List, LookupError> {
    let rows: Vec<Row> = serde_json::from_slice(json).map_err(|error| LookupError::Invalid(error.into()))?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row.into_names())).collect())
}

impl Row {
    fn into_names(self) -> Names {
        // The other names are those that linked containers use: `/other/alias`.
        let own = |name: &&String| !name.trim_start_matches('/').contains('/');
        let name = self.names.iter().flatten().find(own).map_or("", String::as_str);
        let plain = Names::plain(name, self.image.as_deref());
        // An image may have any labels; only the kubelet's containers have such a name.
        if !name.trim_start_matches('/').starts_with("k8s_") {
            return plain;
        }
        let labels = self.labels.unwrap_or_default();
        Names::from_annotations(|key| labels.get(key).map(String::as_str)).or(&plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_and_podman() {
        let json = br#"[
            {"Id":"a1","Names":["/db/link","/web"],"Image":"nginx:1","Labels":{"maintainer":"me"},"State":"running"},
            {"Id":"b2","Names":["/k8s_nginx_front-1_shop_UID_0"],"Image":"sha256:77","Labels":{
                "io.kubernetes.container.name":"nginx","io.kubernetes.pod.name":"front-1",
                "io.kubernetes.pod.namespace":"shop","io.kubernetes.docker.type":"container"}},
            {"Id":"c3","Names":null,"Labels":null}]"#;
        let found = names(json).unwrap();
        assert_eq!(found["a1"], Names::plain("web", Some("nginx:1")));
        assert_eq!(found["b2"], Names::in_pod("shop", "front-1", "nginx", Some("sha256:77")));
        assert_eq!(found["c3"], Names::default());
    }

    #[test]
    fn garbage_is_survived() {
        for json in ["", "{}", "[1]", "[{}]", r#"{"message":"no"}"#, "\u{0}", r#"[{"Id":1}]"#] {
            assert!(matches!(names(json.as_bytes()), Err(LookupError::Invalid(_))), "{json}");
        }
        assert!(names(b"[]").unwrap().is_empty());
    }
}
