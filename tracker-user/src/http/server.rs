//! Listeners and routes.

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{
        OwnedSemaphorePermit, Semaphore,
        broadcast::{self, error::RecvError},
        mpsc,
    },
};

use crate::{
    error::chain,
    host,
    metrics::{self, Scrape},
    report::{Notice, UNBLOCKED},
    tracker::Tracker,
};

/// Connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to send a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait when no connection can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Lines on their way to one reader of events.
const READER_QUEUE: usize = 256;

/// Why the agent can't listen.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Something else has the port.
    #[error("{address} is taken{}: choose another with --web.listen-address", .holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    Taken {
        /// The address.
        address: SocketAddr,
        /// Who has it, if that can be told.
        holder: Option<String>,
    },
    /// The address can't be used.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent has the socket.
    #[error("another fdtracker agent answers at {}: stop it, or choose another path with --socket", .0.display())]
    Running(PathBuf),
    /// The socket can't be made.
    #[error("make the socket {}", .path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the agent listens on.
pub struct Listeners {
    tcp: Vec<TcpListener>,
    unix: UnixListener,
    guard: SocketGuard,
}

/// Removes the socket when it is dropped.
pub struct SocketGuard(PathBuf);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        // That it has gone already is fine.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listeners {
    /// Listens on these addresses, and on a unix socket of mode 0600.
    ///
    /// # Errors
    /// When an address or the socket is taken, or can't be used.
    pub async fn bind(addresses: &[SocketAddr], socket: &Path) -> Result<Self, ServeError> {
        let unix = bind_unix(socket)?;
        let guard = SocketGuard(socket.to_owned());
        let mut tcp = Vec::new();
        for address in addresses {
            tcp.push(bind_tcp(*address).await?);
        }
        Ok(Self { tcp, unix, guard })
    }

    /// The TCP addresses, with the ports that were given where 0 was asked for.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok())
    }

    /// Answers requests from now on, until the runtime ends. The socket goes with what is returned.
    #[must_use]
    pub fn serve(self, service: &Service) -> SocketGuard {
        let Self { tcp, unix, guard } = self;
        for listener in tcp {
            let accept = move |cx: &mut Context<'_>| listener.poll_accept(cx).map_ok(|(stream, _)| stream);
            tokio::spawn(service.clone().accept(false, accept));
        }
        let accept = move |cx: &mut Context<'_>| unix.poll_accept(cx).map_ok(|(stream, _)| stream);
        tokio::spawn(service.clone().accept(true, accept));
        guard
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            ServeError::Taken { address, holder: host::listener_of(address.port()) }
        } else {
            ServeError::Listen { address, source }
        }
    })
}

fn bind_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let error = |source| ServeError::Socket { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(error)?;
    }
    match StdUnixStream::connect(path) {
        Ok(_) => return Err(ServeError::Running(path.to_owned())),
        // Left over from an agent that was killed.
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            if !fs::symlink_metadata(path).map_err(error)?.file_type().is_socket() {
                return Err(error(io::Error::other("there is a file that is no socket")));
            }
            fs::remove_file(path).map_err(error)?;
        }
        Err(_) => {}
    }
    // SAFETY: the call has no precondition. The mask is the process's: nothing else makes files meanwhile, because the agent
    // runs its tasks on one thread.
    let mask = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    listener.map_err(error)
}

/// An event, as readers get it: encoded once for all.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it says.
    pub notice: Arc<Notice>,
    /// A line of JSON.
    pub json: Bytes,
}

impl Line {
    /// Encodes a notice.
    #[must_use]
    pub fn new(notice: Notice) -> Self {
        let mut json = serde_json::to_vec(&notice).unwrap_or_default();
        json.push(b'\n');
        Self { notice: Arc::new(notice), json: json.into() }
    }

    /// The next event; `None` once there are no more. A reader that was too slow is told how many it missed.
    pub async fn next(lines: &mut broadcast::Receiver<Self>, tracker: &Tracker) -> Option<Self> {
        match lines.recv().await {
            Ok(line) => Some(line),
            Err(RecvError::Lagged(missed)) => {
                tracker.count_late_reader(missed);
                Some(Self::new(Notice::lost(missed)))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

/// Events on their way to readers; a reader that falls further behind is told how many it missed.
pub const BACKLOG: usize = 8_192;

/// Where events are sent to, for every reader that follows them.
pub type Lines = broadcast::Sender<Line>;

/// What requests are answered from.
#[derive(Clone)]
pub struct Service {
    /// The agent's state.
    pub tracker: Arc<Tracker>,
    /// Events.
    pub lines: Lines,
    /// How many series `/metrics` has at the most.
    pub max_series: usize,
}

type Body = Either<Full<Bytes>, Queue>;

/// A body that goes on for as long as there is something to send.
struct Queue(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Queue {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

impl Service {
    /// Accepts connections, so many at a time.
    async fn accept<S>(self, trusted: bool, mut next: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            match std::future::poll_fn(&mut next).await {
                Ok(stream) => drop(tokio::spawn(self.clone().connection(stream, trusted, slot))),
                // Out of fds, most likely: it may pass.
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection<S>(self, stream: S, trusted: bool, _slot: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let answer = service_fn(|request| {
            let service = self.clone();
            async move { Ok::<_, Infallible>(service.answer(&request, trusted).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), answer);
        if let Err(error) = served.await {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    async fn answer(&self, request: &Request<Incoming>, trusted: bool) -> Response<Body> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        }
        let query = request.uri().query().unwrap_or_default();
        match (request.uri().path(), trusted) {
            ("/", _) => page(),
            ("/metrics", _) => self.blocking(Self::metrics).await,
            ("/livez", _) => text(StatusCode::OK, "ok\n"),
            ("/readyz", _) => self.ready(),
            ("/v1/containers", true) => {
                let query = query.to_owned();
                self.blocking(move |service| service.containers(&query)).await
            }
            ("/v1/events", true) => self.events(query),
            ("/v1/containers" | "/v1/events", false) => {
                text(StatusCode::FORBIDDEN, "this tells process names: ask over the agent's unix socket\n")
            }
            _ => text(StatusCode::NOT_FOUND, "not here; see /\n"),
        }
    }

    /// Reads maps and cgroups on a thread of its own, where it may wait for an audit.
    async fn blocking(&self, work: impl FnOnce(&Self) -> Response<Body> + Send + 'static) -> Response<Body> {
        let service = self.clone();
        let answer = tokio::task::spawn_blocking(move || work(&service)).await;
        answer.unwrap_or_else(|panic| failed(&panic.to_string()))
    }

    fn ready(&self) -> Response<Body> {
        if self.tracker.is_ready() {
            text(StatusCode::OK, "ready\n")
        } else {
            text(
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: what was open before the start is not counted yet\n",
            )
        }
    }

    fn metrics(&self) -> Response<Body> {
        let scrape = Scrape {
            began: Instant::now(),
            max_series: self.max_series,
            events: (self.lines.len(), BACKLOG),
        };
        let rendered = self
            .tracker
            .snapshot()
            .map_err(chain)
            .and_then(|snapshot| metrics::render(&snapshot, &scrape).map_err(|e| e.to_string()));
        match rendered {
            Ok(body) => typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body.into()),
            Err(error) => failed(&error),
        }
    }

    fn containers(&self, query: &str) -> Response<Body> {
        if !self.tracker.is_ready() {
            return self.ready();
        }
        let processes = parameters(query).any(|(name, value)| name == "processes" && value == "true");
        match self.tracker.listing(processes).map_err(chain) {
            Ok(listing) => match serde_json::to_vec(&listing) {
                Ok(body) => typed(StatusCode::OK, "application/json", body.into()),
                Err(error) => failed(&error.to_string()),
            },
            Err(error) => failed(&error),
        }
    }

    fn events(&self, query: &str) -> Response<Body> {
        let filter = Filter::parse(query);
        let (sender, queue) = mpsc::channel(READER_QUEUE);
        tokio::spawn(follow(self.lines.subscribe(), sender, filter, Arc::clone(&self.tracker)));
        let mut response = Response::new(Either::Right(Queue(queue)));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-ndjson"));
        response
    }
}

/// Sends events to one reader.
async fn follow(
    mut lines: broadcast::Receiver<Line>,
    sender: mpsc::Sender<Bytes>,
    filter: Filter,
    tracker: Arc<Tracker>,
) {
    loop {
        let line = tokio::select! {
            line = Line::next(&mut lines, &tracker) => line,
            () = sender.closed() => None,
        };
        let Some(line) = line else { return };
        if filter.lets(&line.notice) && sender.send(line.json).await.is_err() {
            return;
        }
    }
}

/// What one reader wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A container's full id; all if `None`.
    pub container: Option<String>,
    /// Names of kinds; all if there is none.
    pub kinds: Vec<String>,
}

impl Filter {
    fn parse(query: &str) -> Self {
        let mut filter = Self::default();
        for (name, value) in parameters(query) {
            match name {
                "container" => filter.container = Some(value.to_owned()),
                "kind" => filter.kinds.push(value.to_owned()),
                _ => {}
            }
        }
        filter
    }

    /// The query that asks for this. Ids and names of kinds have no character that would need escaping.
    #[must_use]
    pub fn query(&self) -> String {
        let container = self.container.iter().map(|id| format!("container={id}"));
        let kinds = self.kinds.iter().map(|kind| format!("kind={kind}"));
        container.chain(kinds).collect::<Vec<_>>().join("&")
    }

    /// Whether a notice is wanted. What was lost, everybody is told; and whoever may have heard of a blocker, that there is none any more.
    #[must_use]
    pub fn lets(&self, notice: &Notice) -> bool {
        notice.lost.is_some()
            || self.container.as_ref().is_none_or(|id| *id == notice.container_id)
                && (self.kinds.is_empty()
                    || notice.event == UNBLOCKED
                    || self.kinds.iter().any(|kind| notice.is_about(kind)))
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter_map(|pair| pair.split_once('='))
}

fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn failed(error: &str) -> Response<Body> {
    tracing::error!(error, "answer a request");
    typed(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", format!("{error}\n").into())
}

fn page() -> Response<Body> {
    const PAGE: &str = concat!(
        "<!doctype html><title>fdtracker</title><h1>fdtracker ",
        env!("CARGO_PKG_VERSION"),
        "</h1><p><a href=\"/metrics\">metrics</a> <a href=\"/readyz\">ready</a> <a href=\"/livez\">live</a></p>\n"
    );
    typed(StatusCode::OK, "text/html; charset=utf-8", Bytes::from_static(PAGE.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(container: &str, kind: &str) -> Notice {
        Notice {
            event: "opened".into(),
            container_id: container.into(),
            kind: Some(kind.into()),
            lost: None,
            ..Notice::lost(0)
        }
    }

    #[test]
    fn filters() {
        let filter = Filter::parse("container=web&kind=pidfd&kind=io_uring&other=1");
        assert!(filter.lets(&notice("web", "pidfd")));
        assert!(filter.lets(&notice("web", "io_uring")));
        assert!(!filter.lets(&notice("web", "eventfd")));
        assert!(!filter.lets(&notice("db", "pidfd")));
        assert!(filter.lets(&Notice::lost(1)));
        assert!(Filter::parse("").lets(&notice("db", "eventfd")));
        assert_eq!(Filter::parse(&filter.query()), filter);
    }

    #[test]
    fn a_line_ends() {
        let line = Line::new(notice("web", "pidfd"));
        assert_eq!(line.json.last(), Some(&b'\n'));
        assert_eq!(line.json.iter().filter(|b| **b == b'\n').count(), 1);
    }
}
