//! Decides what is answered to whom.

use std::{
    sync::{Arc, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use hyper::{
    Method, Request, StatusCode,
    header::{self, HeaderMap},
};
use percent_encoding::percent_decode_str;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::{
    access::{Access, Peer, Policy},
    answer::{self, Answer, text, text_with},
    auth::{self, Admission},
    events::Subscriber,
    protection::{Pass, Protection},
    web_config::WebConfig,
};
use crate::{
    agent::{Handle, Snapshot, liveness::Liveness},
    api::{Feed, Filter, parameters},
    error::chain,
    host::comm_or_empty,
    metrics::{self, Namesakes, Scrape},
    target::TargetError,
};

/// The sources of all answers.
#[derive(Clone)]
pub struct Service {
    /// The agent's state.
    pub state: Handle,
    /// The events.
    pub feed: Feed,
    /// The liveness of the agent's tasks.
    pub liveness: Arc<Liveness>,
    /// How many series `/metrics` has at most.
    pub max_series: usize,
}

/// The routes, and their limits.
pub(super) struct Routes {
    pub(super) service: Service,
    pub(super) protection: Arc<Protection>,
    pub(super) policy: Policy,
    pub(super) telemetry_path: String,
    /// Limits how many requests over TCP are answered at a time. Further ones are told to come
    /// again.
    pub(super) requests: Arc<Semaphore>,
    /// The last rendering of metrics, and when it began.
    pub(super) rendered: Mutex<Option<(Instant, Bytes)>>,
    /// Counters that one rendering takes over from the last.
    pub(super) namesakes: Arc<std::sync::Mutex<Namesakes>>,
}

/// The client of a request, and what it has shown.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    pub(super) peer: Peer,
    /// Whether it speaks TLS.
    pub(super) encrypted: bool,
    /// Whether it has shown a certificate.
    pub(super) certified: bool,
}

/// A place among the requests over TCP, and the permission for it.
pub(super) struct Admitted {
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) pass: Pass,
}

impl Routes {
    /// Answers a request.
    pub(super) async fn answer<B>(self: &Arc<Self>, request: &Request<B>, caller: Caller) -> Answer {
        if caller.peer == Peer::Socket {
            return self.route(request, Access::All, None).await;
        }
        let config = self.protection.current().await;
        let mut answer = self.admit(request, caller, &config).await;
        answer.headers_mut().extend(config.headers.clone());
        answer
    }

    /// Answers a request over TCP, if that is allowed.
    async fn admit<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        caller: Caller,
        config: &Arc<WebConfig>,
    ) -> Answer {
        // Health checks have no password, and must be answered even if there are too many other
        // requests.
        if is_health(request.uri().path()) {
            return self.route(request, Access::All, None).await;
        }
        if !config.takes(caller) {
            let said = "TLS or a certificate is required since this connection was made: connect again\n";
            return text_with(StatusCode::FORBIDDEN, header::CONNECTION, "close", said);
        }
        let busy = |said| text_with(StatusCode::SERVICE_UNAVAILABLE, header::RETRY_AFTER, "1", said);
        // Check the password before a place among the requests is taken, so that guesses take none.
        let authorization = request.headers().get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
        if let Some(users) = &config.users {
            match users.admit(authorization).await {
                Admission::Granted => {}
                Admission::Busy => return busy("too many passwords wait to be verified\n"),
                Admission::Refused => {
                    let challenge = "Basic realm=\"fdtracker\", charset=\"UTF-8\"";
                    let said = "a name and its password are needed\n";
                    return text_with(StatusCode::UNAUTHORIZED, header::WWW_AUTHENTICATE, challenge, said);
                }
            }
        }
        let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
            return busy("too many requests at a time: --web.max-requests says how many are answered\n");
        };
        let (protection, config, name) =
            (Arc::clone(&self.protection), Arc::clone(config), authorization.and_then(auth::name));
        let authenticated = config.users.is_some() || caller.certified;
        let access = self.policy.access(caller.peer, authenticated, host(request.headers()));
        let pass = Pass { protection, config, caller, name };
        self.route(request, access, Some(Admitted { permit, pass })).await
    }

    async fn route<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        access: Access,
        admitted: Option<Admitted>,
    ) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let said = "only GET and HEAD are answered\n";
            return text_with(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "GET, HEAD", said);
        }
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if path == self.telemetry_path {
            return self.metrics().await;
        }
        match path {
            "/" => answer::page(&self.telemetry_path),
            "/livez" => self.live(),
            "/readyz" => self.ready(),
            _ => match path.strip_prefix("/v1/") {
                Some(what) => self.v1(what, query, access, admitted).await,
                None => text(StatusCode::NOT_FOUND, "not here; see /\n"),
            },
        }
    }

    async fn v1(
        self: &Arc<Self>,
        what: &str,
        query: &str,
        access: Access,
        admitted: Option<Admitted>,
    ) -> Answer {
        let paths = match access {
            Access::All => true,
            Access::NoPaths => false,
            Access::Refused(why) => return text(StatusCode::FORBIDDEN, why),
        };
        if what == "events" {
            let filter = match Filter::parse(query) {
                Ok(filter) => filter,
                Err(wrong) => return text(StatusCode::BAD_REQUEST, format!("{wrong}\n")),
            };
            let subscriber = Subscriber { filter, paths, admitted };
            return answer::stream(subscriber.follow(&self.service.feed));
        }
        let name = what.strip_prefix("containers/").map(decode);
        if what != "containers" && name.is_none() {
            return text(StatusCode::NOT_FOUND, "not here; there are /v1/containers and /v1/events\n");
        }
        if !self.service.state.is_ready() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "not ready; see /readyz\n");
        }
        let processes = parameters(query).any(|(name, value)| name == "processes" && value == "true");
        let _permit = admitted;
        let snapshot = match self.service.state.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => return answer::failed(&chain(error)),
        };
        // The names of processes are read from /proc, so this is done on a thread of its own.
        let answered = tokio::task::spawn_blocking(move || match name {
            Some(name) => container(&snapshot, &name, paths),
            None => answer::json(&snapshot.listing(processes.then_some(&comm_or_empty))),
        });
        answered.await.unwrap_or_else(|panic| answer::failed(&panic.to_string()))
    }

    /// Answers with the metrics of a moment after the request came. Clients who ask while metrics
    /// are rendered share the next rendering.
    async fn metrics(self: &Arc<Self>) -> Answer {
        const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
        let asked = Instant::now();
        let mut rendered = self.rendered.lock().await;
        if let Some((begun, body)) = rendered.as_ref().filter(|(begun, _)| *begun >= asked) {
            tracing::trace!(?begun, "a rendering is shared");
            return answer::typed(StatusCode::OK, TEXT, body.clone());
        }
        let begun = Instant::now();
        let snapshot = match self.service.state.snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => return answer::failed(&chain(error)),
        };
        let scrape =
            Scrape { began: begun, max_series: self.service.max_series, feed: self.service.feed.clone() };
        let namesakes = Arc::clone(&self.namesakes);
        let work = move || {
            let mut namesakes = namesakes.lock().unwrap_or_else(PoisonError::into_inner);
            metrics::render(&snapshot, &scrape, &mut namesakes).map_err(|error| error.to_string())
        };
        let result = tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(panic.to_string()));
        match result.map(Bytes::from) {
            Ok(body) => {
                *rendered = Some((begun, body.clone()));
                answer::typed(StatusCode::OK, TEXT, body)
            }
            Err(error) => answer::failed(&error),
        }
    }

    /// Answers whether the agent's tasks are at work. The event loop is, because it runs this.
    fn live(&self) -> Answer {
        match self.service.liveness.dead(Instant::now()).as_slice() {
            [] => text(StatusCode::OK, "ok\n"),
            dead => text(StatusCode::SERVICE_UNAVAILABLE, lines(dead)),
        }
    }

    fn ready(&self) -> Answer {
        let mut missing = self.service.liveness.dead(Instant::now());
        if !self.service.state.is_ready() {
            missing.insert(0, "adoption: what was open before the start is not counted yet".into());
        }
        match missing.as_slice() {
            [] => text(StatusCode::OK, "ready\n"),
            missing => text(StatusCode::SERVICE_UNAVAILABLE, lines(missing)),
        }
    }
}

fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn is_health(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

/// Answers about one container, with all its blockers.
fn container(snapshot: &Snapshot, name: &str, paths: bool) -> Answer {
    match snapshot.container(name, &comm_or_empty) {
        Ok(mut report) => {
            if !paths {
                report.hide_paths();
            }
            answer::json(&report)
        }
        Err(error) => {
            let status = match error {
                TargetError::Ambiguous { .. } => StatusCode::CONFLICT,
                _ => StatusCode::NOT_FOUND,
            };
            text(status, format!("{}\n", chain(error)))
        }
    }
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

/// Decodes the escapes in a part of a path. What is no valid escape stays as it is.
fn decode(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(decode("web"), "web");
        assert_eq!(decode("a%20b%2Fc%"), "a b/c%");
        assert_eq!(decode("%zz%4"), "%zz%4");
        assert_eq!(decode("%+f"), "%+f");
    }
}
